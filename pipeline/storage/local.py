"""A folder on a disk: files appear by rename, commits by link; the system frees the locks of the dead."""

import errno
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.storage.files import (
    create_file_exclusively,
    flush_to_disk,
    locked,
    move_file,
    nearest_existing,
    replace_file,
)

_HOST = platform.node()
_LOCKS = "logs/locks"
_SCRATCH = "logs/scratch"
_COPY = ".copy-"  # before the name of the scratch folder that a folder was copied from
_SECONDS_OF_OTHERS = 86_400.0
_SECONDS_OF_THREADS = 0.3
# what file systems and desktops put into any folder
_FOREIGN = re.compile(
    r"lost\+found|\.DS_Store|\._.*|\.Trash.*|\.Spotlight-V100|\.fseventsd|\.nfs.*|\.fuse_hidden.*|\.snapshot|"
    r"Thumbs\.db|desktop\.ini|System Volume Information|@eaDir|#recycle"
)


class LocalFolder:
    """A Folder on a disk."""

    parallel_reads = 1
    can_list = True

    def __init__(self, path: Path) -> None:
        self.path, self.address = path, str(path)
        self._scratch: Path | None = None

    def exists(self, key: str) -> bool:
        return (self.path / key).exists()

    def size(self, key: str) -> int | None:
        path = self.path / key
        return path.stat().st_size if path.is_file() else None

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        with (self.path / key).open("rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else max(0, end - start))

    def read_into(self, key: str, start: int, buffer: memoryview) -> int:
        with (self.path / key).open("rb", buffering=0) as file:
            done = 0
            while done < len(buffer) and (count := os.preadv(file.fileno(), [buffer[done:]], start + done)):
                done += count
            return done

    def names(self, prefix: str = "") -> set[str]:
        try:
            entries = {entry.name for entry in (self.path / prefix).iterdir()}
        except FileNotFoundError:
            return set()
        except NotADirectoryError:
            raise ConfigError(
                f"{self.address!r} is a file or below one: give a folder, or a path where nothing is"
            ) from None
        return {name for name in entries if not _FOREIGN.fullmatch(name)}

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        folders = [prefix]
        while folders:
            folder = folders.pop()
            start = f"{folder}/" if folder else ""
            with (
                suppress(FileNotFoundError, NotADirectoryError),
                os.scandir(f"{self.path}/{folder}") as entries,
            ):
                for entry in entries:
                    if _FOREIGN.fullmatch(entry.name):
                        continue
                    if entry.is_dir():
                        folders.append(start + entry.name)
                    else:
                        with suppress(FileNotFoundError):  # a temporary name that is gone by now
                            found[start + entry.name] = entry.stat().st_size
        return found

    def replace(self, key: str, data: bytes) -> None:
        replace_file(self.path / key, data, self._scratch)

    def create(self, key: str, data: bytes) -> bool:
        return create_file_exclusively(self.path / key, data, self._scratch)

    def take(self, source: Path, key: str, still: Callable[[], bool] = lambda: True) -> bool:
        if held := still():
            move_file(source, self.path / key)
        return held

    def take_tree(self, source: Path, key: str, marker: str) -> bool:  # noqa: ARG002
        """Flush a folder and rename it into place, unless there is one."""
        try:
            return self._rename_tree(source, key)
        except OSError as error:
            if error.errno != errno.EXDEV:  # logs/ may be a link to another file system, or a mount
                raise
        holder = self._scratch.name if self._scratch else secrets.token_hex(8)
        copy = self.path / f"{_COPY}{holder}"
        try:
            return self._rename_tree(Path(shutil.copytree(source, copy)), key)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _rename_tree(self, source: Path, key: str) -> bool:
        for entry in (source, *source.rglob("*")):
            flush_to_disk(entry)
        try:
            source.rename(self.path / key)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(source, ignore_errors=True)
            return False
        flush_to_disk(self.path)
        return True

    def update(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Replace a file by a function of what it holds, one process at a time."""
        with locked(self.path / _LOCKS / f"update-{key.replace('/', '-')}"):
            before = self.read(key)
            after = change(before)
            if after != before:
                self.replace(key, after)

    def remove(self, key: str) -> None:
        (self.path / key).unlink(missing_ok=True)

    def claimed(self, name: str) -> AbstractContextManager[bool]:
        return locked(self.path / _LOCKS / name, wait=False)

    def holds(self, name: str) -> bool:  # noqa: ARG002
        """Return True: the system frees a lock only when its holder dies."""
        return True

    def moving(self) -> AbstractContextManager[object]:
        """Hold the lock under which files are moved into place. It may not reach every host."""
        return locked(self.path / _LOCKS / "publish")

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Lend a folder for temporary files, and sweep those of processes of this host that died."""
        parent, sweeping = self.path / _SCRATCH, self.path / _LOCKS / "scratch"
        folder = parent / f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
        with ExitStack() as held:
            try:  # from before the folder is there: a signal may come at any moment
                # without this lock another's sweep could meet the folder before it is locked, or half removed
                with locked(sweeping):
                    folder.mkdir(parents=True)
                    held.enter_context(locked(folder / "lock"))
                    _sweep(self.path, parent)
                # replace and create put their temporary files there, so a sweep finds them
                self._scratch = folder
                yield folder
            except BaseException:
                # zarr writes in a thread of its own, which an exception here does not stop
                time.sleep(_SECONDS_OF_THREADS)
                raise
            finally:
                self._scratch = None
                try:
                    _remove(folder, sweeping)
                except BaseException:  # a signal came in the middle of it
                    _remove(folder, sweeping)
                    raise

    def free_bytes(self) -> int:
        return shutil.disk_usage(nearest_existing(self.path)).free


def _remove(folder: Path, sweeping: Path) -> None:
    with locked(sweeping):
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(path: Path, parent: Path) -> None:
    """Remove the scratch folders of dead processes, and the copies of folders that they were making."""
    for folder in parent.iterdir():
        with suppress(OSError):  # gone by now, or of another user
            if _is_sweepable(folder, folder.name):
                with locked(folder / "lock", wait=False) as free:
                    if free:
                        shutil.rmtree(folder, ignore_errors=True)
    for copy in path.glob(f"{_COPY}*"):
        with suppress(OSError):
            holder = copy.name.removeprefix(_COPY)
            if not (parent / holder).exists() and _is_sweepable(copy, holder):
                shutil.rmtree(copy, ignore_errors=True)


def _is_sweepable(folder: Path, holder: str) -> bool:
    """Return whether a folder is of this host, or a day old: the locks of other hosts may be invisible."""
    is_ours = holder.rsplit("-", 2)[0] == _HOST
    return is_ours or time.time() - folder.stat().st_mtime >= _SECONDS_OF_OTHERS
