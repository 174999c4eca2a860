"""The sdist and the wheel made of it hold everything: installed alone, all commands start elsewhere."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("maskalign", "pipeline", "stages")
OTHERS = ("pyproject.toml", "README.md", "LICENSE")


def run(command, cwd):
    result = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def built(kind, source, folder):
    """Build a distribution with the backend that pyproject.toml names; returns its file."""
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(folder)!r})"
    run([sys.executable, "-c", code], source)
    (file,) = folder.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the unpacked sdist of a copy of the project."""
    folder = tmp_path_factory.mktemp("packages")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / "copy" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in OTHERS:
        shutil.copy(ROOT / name, folder / "copy")
    shutil.unpack_archive(built("sdist", folder / "copy", folder), folder / "unpacked", filter="data")
    return built("wheel", next((folder / "unpacked").iterdir()), folder)


@pytest.mark.faults
def test_the_wheel_has_all_files_of_the_packages(wheel):
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


@pytest.mark.faults
def test_commands_of_the_installed_wheel_start(wheel, tmp_path):
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], tmp_path)
    python = tmp_path / "env/bin/python"
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel],
        tmp_path,
    )
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    # Dependencies come from here, but not the project: lines of .pth files that name it are not repeated.
    paths = {str(Path(path).resolve()) for path in sys.path if path.endswith("site-packages")}
    Path(site, "dependencies.pth").write_text("\n".join(sorted(paths | {sysconfig.get_path("purelib")})))
    for command in PROJECT["scripts"]:
        assert (
            run([tmp_path / "env/bin" / command, "--version"], tmp_path)
            == f"maskalign {PROJECT['version']}\n"
        )
        assert "--help" in run([tmp_path / "env/bin" / command, "--help"], tmp_path)
    shown = "import maskalign; print(maskalign.__version__, maskalign.__file__, maskalign.Cache.__module__)"
    assert run([python, "-c", shown], tmp_path).split() == [
        PROJECT["version"],
        f"{site}/maskalign/__init__.py",
        "pipeline.library.cache",
    ]


def test_the_version_is_written_once():
    places = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if f'"{PROJECT["version"]}"' in path.read_text(encoding="utf-8")
    ]
    assert places == []


def test_every_package_is_typed_and_every_command_is_a_script():
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").exists()] == []
    assert {entry.partition(":")[0].partition(".")[0] for entry in PROJECT["scripts"].values()} == {"stages"}


def test_extras_are_named_in_the_page_on_installing():
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert [extra for extra in PROJECT["optional-dependencies"] if f"`{extra}`" not in page] == []
