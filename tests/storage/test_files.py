"""Files that appear whole or not at all, also on poor file systems, and locks."""

import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage.files import create_file_exclusively, locked, replace_file
from pipeline.storage.local import LocalFolder


def failing(number):
    """A call of the operating system that fails with an errno."""

    def fail(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    return fail


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["links", "renames that do not replace", "neither"])
def file_system(request, monkeypatch):
    """A file system with hard links; without, such as exFAT and SMB; and without such a rename either."""
    if request.param != "links":
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
    if request.param == "neither":

        class Poor(ctypes.CDLL):
            def __getattr__(self, name):
                raise AttributeError(name)

        monkeypatch.setattr(ctypes, "CDLL", Poor)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    replace_file(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "a", b"new")
    assert (names(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"old")


@pytest.mark.usefixtures("file_system")
def test_of_many_creators_at_once_one_wins_with_a_whole_file(tmp_path):
    def create(number):
        return create_file_exclusively(tmp_path / "a", b"%d" % number * 5000)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert (names(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"%d" % won.index(True) * 5000)


def use_every_way_into(folder):
    """Bring files into a folder in all ways and check what is there then."""
    with folder.scratch() as scratch:
        (scratch / "draft").mkdir()
        for name in ("file", "draft/zarr.json"):
            (scratch / name).write_bytes(b"data")
        assert folder.create("commits/a.json", b"{}")
        assert not folder.create("commits/a.json", b"[]")
        folder.take(scratch / "file", "views/a.tar")
        folder.replace("units.json", b"1")
        assert folder.take_tree(scratch / "draft", "targets.zarr", "zarr.json")
        assert not folder.take_tree(scratch / "draft", "targets.zarr", "zarr.json")
    sizes = {"views/a.tar": 4, "commits/a.json": 2, "units.json": 1, "targets.zarr/zarr.json": 4}
    assert {key: size for key, size in folder.sizes().items() if not key.startswith("logs/")} == sizes
    assert folder.names() == {"views", "commits", "units.json", "targets.zarr", "logs"}


def test_files_cross_from_one_file_system_to_another(tmp_path):
    """The scratch folder of a cache whose logs/ is a link to another disk; /dev/shm stands for that disk."""
    folder, other = LocalFolder(tmp_path / "a.cache"), Path("/dev/shm") / f"test-{os.getpid()}"
    folder.path.mkdir()
    other.mkdir()
    try:
        assert other.stat().st_dev != tmp_path.stat().st_dev
        (folder.path / "logs").symlink_to(other)
        use_every_way_into(folder)
    finally:
        shutil.rmtree(other)


@pytest.fixture
def mounts(monkeypatch):
    """Each folder is a mount of the same file system: equal st_dev, yet no link or rename between them."""
    tries = []

    def within_a_mount(call):
        def checked(source, target, **options):
            tops = {tuple(Path(path).parts[:-1]) for path in (source, target)}
            if len(tops) > 1:
                tries.append((Path(source), Path(target)))
                failing(errno.EXDEV)()
            return call(source, target, **options)

        return checked

    for owner, name in ((os, "link"), (Path, "rename"), (Path, "replace")):
        monkeypatch.setattr(owner, name, within_a_mount(getattr(owner, name)))
    return tries


def test_files_cross_from_one_mount_of_a_file_system_to_another(tmp_path, mounts):
    use_every_way_into(LocalFolder(tmp_path / "a.cache"))
    assert len(mounts) == 6


@pytest.mark.usefixtures("mounts")
def test_a_folder_half_copied_by_a_dead_maker_is_swept(tmp_path):
    """Those of other hosts, whose scratch folder may be unseen, after a day."""
    folder = LocalFolder(tmp_path / "a.cache")
    other = folder.path / ".copy-elsewhere-1-0a0a0a0a"
    with folder.scratch() as scratch:
        mine = folder.path / f".copy-{scratch.name}"
        for copy in (mine, other):
            copy.mkdir()
        with LocalFolder(folder.path).scratch():
            assert mine.exists()  # its maker is at work
    with folder.scratch():
        assert not mine.exists()
        assert other.exists()
    os.utime(other, (0, 0))
    with folder.scratch():
        assert folder.names() == {"logs"}


def test_what_file_systems_and_desktops_add_is_not_there(tmp_path):
    for name in ("lost+found", "views"):
        (tmp_path / name).mkdir()
    for name in (".DS_Store", "views/._a.tar", "views/a.tar", "views/Thumbs.db", "lost+found/1"):
        (tmp_path / name).write_bytes(b"x")
    folder = LocalFolder(tmp_path)
    assert folder.names() == {"views"}
    assert folder.names("views") == {"a.tar"}
    assert folder.sizes() == {"views/a.tar": 1}


def test_a_lock_ends_with_its_holder(tmp_path):
    program = "import os, pathlib, sys; from pipeline.storage.files import locked\n"
    program += "with locked(pathlib.Path(sys.argv[1])):\n    os._exit(3)"
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "lock"], check=False).returncode == 3
    with locked(tmp_path / "lock", wait=False) as free:
        assert free


@pytest.mark.parametrize("wait", [True, False])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, wait):
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOTSUP))
    text = r"the file system of '.*lock' has no file locks \(Operation not supported\): use one that has them"
    with pytest.raises(StorageError, match=text), locked(tmp_path / "new" / "lock", wait):
        pass
