"""The directions in which the folders import each other, one door for each library, and the style rules that a machine can hold."""

import ast
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("pipeline", "stages")
    for path in (ROOT / folder).rglob("*.py")
)

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 260
BANNED_NAMES = {"utils.py", "helpers.py"}

FORBIDDEN = {
    "pipeline": ["stages"],
    "pipeline/stream": ["pipeline.teacher"],
    "pipeline/training": ["pipeline.teacher"],
    "pipeline/student": [
        "pipeline.teacher",
        "pipeline.cache",
        "pipeline.views",
        "pipeline.stream",
        "zarr",
        "webdataset",
        "tarfile",
    ],
}
SHARED_BY_STAGES = {"console"}
DOORS = {
    "open_clip": ["pipeline/teacher", "pipeline/demo"],
    "zarr": ["pipeline/cache"],
    "obstore": ["pipeline/storage"],
    "webdataset": ["pipeline/views", "pipeline/stream"],
    "typer": ["stages"],
    "matplotlib": ["pipeline/report"],
}


def is_part(name, whole, separator):
    return name == whole or name.startswith(whole + separator)


def imported(tree, path):
    """Absolute names of everything that a module imports, at any depth; `from a import b` counts as a and a.b."""
    package = PurePosixPath(path).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def is_forbidden(name, path):
    banned = [
        module for folder, modules in FORBIDDEN.items() if is_part(path, folder, "/") for module in modules
    ]
    if any(is_part(name, module, ".") for module in banned):
        return True
    if path.startswith("stages/") and name.startswith("stages."):
        return name.split(".")[1] not in SHARED_BY_STAGES
    library = name.split(".")[0]
    return library in DOORS and not any(is_part(path, folder, "/") for folder in DOORS[library])


def wrong_imports(path, source):
    """One line for each import that the layout forbids to the module at `path`."""
    found = {(line, name) for name, line in imported(ast.parse(source), path) if is_forbidden(name, path)}
    return [f"{path}:{line} imports {name}" for line, name in sorted(found)]


def wrong_style(path, source):
    """One line for each breach of a limit."""
    tree = ast.parse(source)
    found = [f"{path} is named {name}" for name in BANNED_NAMES if PurePosixPath(path).name == name]
    if ast.get_docstring(tree) is None:
        found.append(f"{path} has no docstring")
    lines = len(source.splitlines())
    if lines > MAX_FILE_LINES and not path.startswith("stages/"):
        found.append(f"{path} has {lines} lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES and not path.startswith("stages/"):
                found.append(f"{path}:{node.lineno} {node.name} has {length} lines")
    return found


@pytest.mark.parametrize("path", MODULES)
def test_imports_keep_their_directions(path):
    assert wrong_imports(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", MODULES)
def test_limits_of_style_hold(path):
    assert wrong_style(path, (ROOT / path).read_text(encoding="utf-8")) == []


def test_every_folder_of_modules_is_a_package():
    folders = {PurePosixPath(path).parent for path in MODULES}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder / "__init__.py").exists()] == []


def test_the_folders_with_rules_exist():
    named = {*FORBIDDEN, *(folder for folders in DOORS.values() for folder in folders)}
    assert [folder for folder in sorted(named) if not (ROOT / folder).is_dir()] == []


@pytest.mark.parametrize(
    ("path", "source", "name"),
    [
        ("pipeline/config.py", "import stages.demo", "stages.demo"),
        ("pipeline/config.py", "from stages import demo", "stages"),
        ("pipeline/stream/order.py", "def f():\n    from pipeline.teacher import towers", "pipeline.teacher"),
        ("pipeline/stream/order.py", "from pipeline import teacher", "pipeline.teacher"),
        ("pipeline/stream/order.py", "from ..teacher import towers", "pipeline.teacher"),
        ("pipeline/stream/order.py", "from .. import teacher", "pipeline.teacher"),
        ("pipeline/training/loop.py", "import pipeline.teacher.towers as t", "pipeline.teacher.towers"),
        ("pipeline/student/masks.py", "from pipeline.cache.reader import Reader", "pipeline.cache.reader"),
        ("pipeline/student/masks.py", "import tarfile", "tarfile"),
        ("pipeline/student/masks.py", "if True:\n    import zarr.storage", "zarr.storage"),
        ("pipeline/stream/order.py", "import zarr", "zarr"),
        ("pipeline/cache/store.py", "def f():\n    import obstore.store", "obstore.store"),
        ("pipeline/cache/plan.py", "import webdataset as wds", "webdataset"),
        ("pipeline/student/encoder.py", "import open_clip", "open_clip"),
        ("pipeline/report_extra.py", "from matplotlib.figure import Figure", "matplotlib.figure"),
        ("pipeline/config.py", "import typer", "typer"),
        ("stages/bench.py", "from stages.train_student import main", "stages.train_student"),
        ("stages/bench.py", "from . import demo", "stages.demo"),
        ("stages/console.py", "from stages import demo", "stages.demo"),
    ],
)
def test_a_wrong_import_is_found(path, source, name):
    assert any(line.endswith(f" imports {name}") for line in wrong_imports(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pipeline/config.py", "import stages_of_life, zarrs, typer_like"),
        ("pipeline/teacher/towers.py", "import open_clip\nfrom pipeline.cache import schema"),
        (
            "pipeline/student/masks.py",
            "import torch\nfrom pipeline.seeding import generator\nfrom . import encoder",
        ),
        (
            "stages/bench.py",
            "import typer\nfrom stages.console import run_command\nfrom pipeline.teacher import towers",
        ),
    ],
)
def test_a_right_import_passes(path, source):
    assert wrong_imports(path, source) == []


def test_a_breach_of_style_is_found():
    long_function = "    def f(self):\n" + "        x = 1\n" * MAX_FUNCTION_LINES
    source = "class A:\n" + long_function + "\n" * MAX_FILE_LINES
    assert wrong_style("pipeline/utils.py", source) == [
        "pipeline/utils.py is named utils.py",
        "pipeline/utils.py has no docstring",
        f"pipeline/utils.py has {2 + MAX_FUNCTION_LINES + MAX_FILE_LINES} lines",
        f"pipeline/utils.py:2 f has {MAX_FUNCTION_LINES + 1} lines",
    ]
