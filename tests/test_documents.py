"""What the documents say exists: links, files, folders, make targets, and every command with its options."""

import re
import shlex
from pathlib import Path

import click
import typer
from test_architecture import ALLOWED, DOORS, FORBIDDEN
from torch.distributed.run import get_args_parser

from stages.bench import bench
from stages.compare_runs import compare_runs
from stages.evaluate_student import app as evaluate_student
from stages.extract_teacher import extract_teacher
from stages.inspect_cache import app as inspect_cache
from stages.pack_images import pack_images
from stages.run_study import run_study
from stages.train_student import train_student

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
}


def single_command(function):
    app = typer.Typer()
    app.command()(function)
    return app


COMMANDS = {
    "pack-images": single_command(pack_images),
    "extract-teacher": single_command(extract_teacher),
    "train-student": single_command(train_student),
    "evaluate-student": evaluate_student,
    "inspect-cache": inspect_cache,
    "run-study": single_command(run_study),
    "compare-runs": single_command(compare_runs),
    "stages.bench": single_command(bench),
}
PROGRAMS = {*COMMANDS, "torchrun", "python", "sbatch", "make", "pip", "docker"}


def command_lines():
    """(page, line) of every line of a code block that starts a program."""
    for page, text in PAGES.items():
        for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines() if language in ("", "bash") else ():
                if line.partition(" ")[0] in PROGRAMS:
                    yield page, line


def without_torchrun(words):
    """Return the command that torchrun or `python -m` starts."""
    if words[:2] == ["python", "-m"]:
        return words[2:]
    if words[0] != "torchrun":
        return words
    parsed = get_args_parser().parse_args(words[1:])
    assert parsed.no_python
    return [parsed.training_script, *parsed.training_script_args]


def refusal(words):
    """What the command line parser objects to; None if it accepts the words."""
    command = typer.main.get_command(COMMANDS[words[0]])
    arguments = words[1:]
    if isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    try:
        command.make_context(words[0], arguments)
    except click.ClickException as error:
        return error.format_message()


def test_commands_of_the_documents_are_accepted():
    lines = [(page, without_torchrun(shlex.split(line))) for page, line in command_lines()]
    lines = [(page, words) for page, words in lines if words[0] in COMMANDS]
    assert {words[0] for _, words in lines} == set(COMMANDS)
    assert [(page, words, refusal(words)) for page, words in lines if refusal(words)] == []


def test_targets_of_links_exist():
    targets = {
        (page, target)
        for page, text in PAGES.items()
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
        if "://" not in target
    }
    assert len(targets) > 20
    assert [
        (page, target) for page, target in targets if not (ROOT / page).parent.joinpath(target).exists()
    ] == []


def test_the_index_lists_all_documents():
    linked = re.findall(r"\]\(([^)]+)\)", PAGES["docs/README.md"])
    listed = {(ROOT / "docs" / target).resolve().relative_to(ROOT).as_posix() for target in linked}
    assert set(PAGES) - {"docs/README.md"} == listed


def test_the_file_map_is_that_of_the_project():
    (file_map,) = re.findall(r"```\n(pipeline/.*?)```", PAGES["README.md"], re.DOTALL)
    named = {line.split()[0].rstrip("/") for line in file_map.splitlines()}
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert named == folders | {"maskalign", "notebooks", "stages", "tests", "tools"}


def test_make_targets_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {target for text in PAGES.values() for target in re.findall(r"`make ([\w-]+)", text)}
    assert named - set(targets) == set()


def test_functions_that_the_documents_name_exist():
    named = {
        (page, path, name)
        for page, text in PAGES.items()
        for path, name in re.findall(r"`((?:pipeline|stages)/[\w/]+\.py):(\w+)`", text)
    }
    assert len(named) > 20
    missing = [
        (page, path, name)
        for page, path, name in named
        if not (ROOT / path).exists()
        or not re.search(rf"^(class|def) {name}\b", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_the_page_on_architecture_states_the_rules_of_the_test():
    rules = PAGES["docs/architecture.md"].partition("## Which folder may import which")[2]
    doors = {folder.rpartition("/")[2] for folders in DOORS.values() for folder in folders}
    words = {folder.rpartition("/")[2] for folder in {*FORBIDDEN, *ALLOWED}} | set(DOORS) | doors
    assert [word for word in sorted(words) if word not in rules] == []
