"""A folder on a plain web server as a Folder: files are read by their names; nothing is listed or written."""

from pathlib import Path
from typing import Never

from pipeline.errors import ConfigError, printable
from pipeline.storage.remote import RemoteFiles


class WebFolder(RemoteFiles):
    """A Folder that can only be read, such as a finished cache that somebody serves."""

    can_list = False

    def names(self, prefix: str = "") -> Never:
        self._refuse(f"list {prefix or 'a folder'}")

    def replace(self, key: str, *_: object, **__: object) -> Never:
        self._refuse(f"write {key}")

    def take(self, source: Path, key: str, *_: object, **__: object) -> Never:  # noqa: ARG002
        self._refuse(f"write {key}")

    def remove(self, key: str) -> None:
        self._refuse(f"remove {key}")

    def claimed(self, name: str) -> Never:
        self._refuse(f"claim {name}")

    def holds(self, name: str) -> bool:  # noqa: ARG002
        return False

    def moving(self) -> Never:
        self._refuse("take new files")

    sizes = names
    create = update = replace
    take_tree = take
    scratch = moving

    def free_bytes(self) -> int:
        return 0

    def _refuse(self, what: str) -> Never:
        raise ConfigError(
            f"the web server of {printable(self.address)!r} cannot {what}: it serves a finished cache to "
            "readers; to write, give a path, s3://..., gs://... or az://..."
        )
