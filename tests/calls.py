"""Commands in this process, and scripts as ranks of torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from stages.console import new_app

TESTS = Path(__file__).parent


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


def call_alone(module, *words, **how):
    """Run a command of `stages` in a new process; return how it ended, its output, errors and imports."""
    program = (
        f"import sys; from stages.{module} import main\n"
        f"sys.argv = {[module.replace('_', '-'), *map(str, words)]!r}\n"
        "try: main()\n"
        "finally: print(*[name for name in sys.modules if '.' not in name])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, **how)
    *output, modules = result.stdout.splitlines()
    return result.returncode, output, result.stderr, {*modules.split()}


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
