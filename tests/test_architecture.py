"""The directions in which folders import each other, one door per library, and limits of style."""

import ast
import re
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("maskalign", "pipeline", "stages")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 260
BANNED_NAMES = {"utils.py", "helpers.py"}

# What a folder may not import. Student and objectives know tensors only.
FORBIDDEN = {
    "maskalign": {"stages"},
    "pipeline": {"stages", "maskalign"},
    "pipeline/stream": {"pipeline.teacher"},
    "pipeline/training": {"pipeline.teacher"},
    "pipeline/cache": {"pipeline.student"},
    "pipeline/evaluation": {"pipeline.extraction", "pipeline.stream"},
    "pipeline/student": {"zarr", "webdataset", "tarfile"},
    "pipeline/objectives": {"zarr", "webdataset", "tarfile"},
}
# The only modules of pipeline that a folder may import, besides its own.
ALLOWED = {
    "pipeline/runtime": {"pipeline.errors"},
    "pipeline/student": {
        "pipeline.config",
        "pipeline.errors",
        "pipeline.seeding",
        "pipeline.runtime",
        "pipeline.storage.files",
    },
    "pipeline/objectives": {
        "pipeline.config",
        "pipeline.errors",
        "pipeline.seeding",
        "pipeline.runtime",
        "pipeline.student",
    },
}
SHARED_BY_STAGES = "stages.console"
DOORS = {
    "open_clip": {"pipeline/teacher", "pipeline/demo"},
    "zarr": {"pipeline/cache"},
    "numcodecs": {"pipeline/cache"},
    "obstore": {"pipeline/storage"},
    "ray": {"pipeline/extraction"},
    "webdataset": {"pipeline/views", "pipeline/stream"},
    "typer": {"stages"},
    "matplotlib": {"pipeline/report"},
    "torchvision.models": {"pipeline/evaluation"},
    "wandb": {"pipeline/training"},
    "trackio": {"pipeline/training"},
    "mlflow": {"pipeline/training"},
    "pyarrow": {"pipeline/packing"},
}


def is_part(name, whole, separator="."):
    return name == whole or name.startswith(whole + separator)


@cache  # several tests read the same files
def nodes_of(source):
    return [*ast.walk(ast.parse(source))]  # the module first


def imported(path, source):
    """Names that a module imports, at any depth: `from a import b` is a and a.b, and "pipeline.x" counts."""
    package = PurePosixPath(path).parent.parts
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^(?:pipeline|stages)(?:\.\w+)+$", node.value)


def is_wrong(path, name):
    folders = [str(folder) for folder in PurePosixPath(path).parents][:-1]
    own = ".".join(PurePosixPath(path).parts[:2])
    if any(is_part(name, module) for folder in folders for module in FORBIDDEN.get(folder, ())):
        return True
    for folder in folders:
        if folder in ALLOWED and name.startswith("pipeline."):
            return not any(is_part(name, module) for module in {own, *ALLOWED[folder]})
    if path.startswith("stages/") and name.startswith("stages."):
        return not is_part(name, SHARED_BY_STAGES)
    return any(is_part(name, library) and not doors & {*folders} for library, doors in DOORS.items())


def wrong_imports(path, source):
    """The imports that the layout forbids to the module at `path`; of a and a.b only a."""
    wrong = sorted({name for name in imported(path, source) if is_wrong(path, name)})
    return {
        f"{path} imports {name}" for name in wrong if not any(is_part(name, w) and name != w for w in wrong)
    }


def room(name):
    """pipeline.cache.schema -> pipeline.cache: the folder or file of pipeline that a name belongs to."""
    return ".".join(name.split(".")[:2])


def circles(sources):
    """Each circle of folders, once: the folders that are reached from each other."""
    edges: dict[str, set[str]] = {}
    for path, source in sources.items():
        here = room(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        names = {room(name) for name in imported(path, source) if name.startswith("pipeline.")}
        edges.setdefault(here, set()).update(names - {here})
    reached = {start: reach(edges, start) for start in edges}
    return {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in edges} - {frozenset()}


def reach(edges, start):
    """All that `start` imports, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def wrong_style(path, source):
    """One line for each breach of a limit."""
    module, *nodes = nodes_of(source)
    found = [f"{path} is named {name}" for name in BANNED_NAMES if PurePosixPath(path).name == name]
    if ast.get_docstring(module) is None:
        found.append(f"{path} has no docstring")
    if len(source.splitlines()) > MAX_FILE_LINES:
        found.append(f"{path} is longer than {MAX_FILE_LINES} lines")
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return found + [
        f"{path} {function.name} is longer than {MAX_FUNCTION_LINES} lines"
        for function in functions
        if function.end_lineno - function.lineno >= MAX_FUNCTION_LINES
    ]


def test_directions_doors_and_limits_hold():
    found = {
        line
        for path, source in SOURCES.items()
        for line in [*wrong_imports(path, source), *wrong_style(path, source)]
    }
    assert sorted(found) == []


def of_no_device(source):
    """Calls of CUDA that mean the current device, which need not be the one that a caller has chosen."""
    return re.findall(r"torch\.cuda\.(?:Stream|current_stream|synchronize)\(\)|\.record\(\)", source)


def test_each_stream_and_event_names_its_device():
    assert {path: found for path, source in SOURCES.items() if (found := of_no_device(source))} == {}
    calls = ["torch.cuda.Stream()", "torch.cuda.current_stream()", ".record()"]
    assert of_no_device("\n".join([*calls, "torch.cuda.current_stream(device).record_event()"])) == calls


def test_no_folders_import_each_other_in_a_circle():
    assert [sorted(circle) for circle in circles(SOURCES)] == []


def test_the_folders_of_the_rules_are_packages():
    named = {*FORBIDDEN, *ALLOWED, *(folder for doors in DOORS.values() for folder in doors)}
    folders = named | {str(PurePosixPath(path).parent) for path in SOURCES}
    assert [folder for folder in sorted(folders) if f"{folder}/__init__.py" not in SOURCES] == []


@pytest.mark.parametrize(
    ("path", "source", "name"),
    [
        ("pipeline/config.py", "from stages import demo", "stages"),
        ("pipeline/stream/order.py", "def f():\n    from pipeline.teacher import towers", "pipeline.teacher"),
        ("pipeline/stream/order.py", "from pipeline import teacher", "pipeline.teacher"),
        ("pipeline/stream/order.py", "from ..teacher import towers", "pipeline.teacher"),
        ("pipeline/stream/order.py", "from .. import teacher", "pipeline.teacher"),
        ("pipeline/training/loop.py", "import pipeline.teacher.towers as t", "pipeline.teacher.towers"),
        ("pipeline/training/loop.py", "run('pipeline.teacher.towers')", "pipeline.teacher.towers"),
        ("pipeline/student/masks.py", "from pipeline.views import masking", "pipeline.views"),
        ("pipeline/student/masks.py", "import tarfile", "tarfile"),
        ("pipeline/objectives/fd.py", "if True:\n    import zarr.storage", "zarr.storage"),
        ("pipeline/objectives/fd.py", "from pipeline.training import trainer", "pipeline.training"),
        ("pipeline/cache/store.py", "def f():\n    import obstore.store", "obstore.store"),
        ("pipeline/cache/join.py", "from pipeline.student import patches", "pipeline.student"),
        ("pipeline/evaluation/knn.py", "from pipeline.stream import order", "pipeline.stream"),
        ("pipeline/runtime/memory.py", "from pipeline.storage import local", "pipeline.storage"),
        ("pipeline/report/page.py", "from torchvision.models import detection", "torchvision.models"),
        ("pipeline/report_extra.py", "from matplotlib.figure import Figure", "matplotlib.figure"),
        ("stages/bench.py", "from . import demo", "stages.demo"),
    ],
)
def test_a_wrong_import_is_found(path, source, name):
    assert wrong_imports(path, source) & {
        f"{path} imports {name}",
        f"{path} imports {name.rpartition('.')[0]}",
    }


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pipeline/config.py", "import stages_of_life, zarrs, typer_like"),
        ("pipeline/teacher/towers.py", "import open_clip\nfrom pipeline.cache import schema"),
        (
            "pipeline/student/x.py",
            "import torch\nfrom pipeline.seeding import generator\nfrom . import encoder",
        ),
        ("pipeline/report/page.py", "import torchvision.transforms"),
        (
            "stages/bench.py",
            "import typer\nfrom stages.console import run\nfrom pipeline.teacher import towers",
        ),
    ],
)
def test_a_right_import_passes(path, source):
    assert wrong_imports(path, source) == set()


def test_a_circle_is_found_through_files_and_strings():
    sources = {
        "pipeline/a/x.py": "from pipeline.b import y",
        "pipeline/b/y.py": "import pipeline.c",
        "pipeline/c/__init__.py": "run('pipeline.a.z')",
        "pipeline/d/x.py": "from pipeline.a import x",
    }
    assert circles(sources) == {frozenset({"pipeline.a", "pipeline.b", "pipeline.c"})}


def test_a_breach_of_style_is_found():
    long_function = "    def f(self):\n" + "        x = 1\n" * MAX_FUNCTION_LINES
    source = "class A:\n" + long_function + "\n" * MAX_FILE_LINES
    assert wrong_style("pipeline/utils.py", source) == [
        "pipeline/utils.py is named utils.py",
        "pipeline/utils.py has no docstring",
        "pipeline/utils.py is longer than 260 lines",
        "pipeline/utils.py f is longer than 60 lines",
    ]
