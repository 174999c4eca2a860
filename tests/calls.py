"""Commands in this process or in a new one, and scripts as ranks of torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from stages.console import new_app

TESTS = Path(__file__).parent
ALONE = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
found = []
for stage, *words in json.loads(sys.argv[1]):
    sys.argv = [stage.replace("_", "-"), *words]
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        try:
            import_module(f"stages.{stage}").main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    found.append([code, output.getvalue(), errors.getvalue()])
print(json.dumps([found, [*sys.modules]]))
"""


def call(command, *arguments, code=None, charset="utf-8"):
    """Run a command, a function or an app; an exception that it should report in one sentence is raised here.

    The exit code must be `code`, if that is given; `charset` is the terminal's.
    """
    app = command
    if not isinstance(command, typer.Typer):
        app = new_app()
        app.command()(command)
    result = CliRunner(charset).invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert code in (None, result.exit_code), result.output
    return result


def call_alone(*commands, **how):
    """Run commands, each a stage and its words, one after the other in one new process.

    Return exit code, output and errors of each, and the modules that the process has imported in the end.
    """
    words = json.dumps([[*map(str, command)] for command in commands])
    result = subprocess.run([sys.executable, "-c", ALONE, words], capture_output=True, text=True, **how)
    assert result.returncode == 0, result.stderr
    found, modules = json.loads(result.stdout)
    return [*map(tuple, found)], {*modules}


def cases(text):
    """Return (a line, the indented message below it) of each pair of lines of a text."""
    lines = text.strip().splitlines()
    return [(words, below.strip()) for words, below in zip(lines[::2], lines[1::2], strict=True)]


def under_torchrun(*words, ranks=2):
    """Run a script, or -m MODULE, as ranks on this machine; return what they print."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
    paths = os.pathsep.join(map(str, [TESTS.parent, TESTS, TESTS / "training"]))
    process = subprocess.Popen(
        [*map(str, [sys.executable, *launcher, *words])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.terminate()  # if it hangs: torchrun then ends its ranks
    assert process.returncode == 0, output
    return output
