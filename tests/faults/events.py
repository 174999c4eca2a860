"""The changes that a process makes to the files below a folder, one by one, and its death just before a chosen one of them."""

import os
import signal
import sys

_WRITING = os.O_WRONLY | os.O_RDWR
_NOT_AIMED_AT = "/tensorboard/"  # a thread writes there when it likes
_CHANGES = {"os.rename", "os.link", "os.remove", "os.rmdir"}


class Changes:
    """Counts the changes of this process through Python's audit events, and tells them; an audit hook stays for ever."""

    def __init__(self, folder, on_change):
        """Call `on_change(number, path)` before every change, counted from 0."""
        self._folder, self._on_change, self._count = str(folder), on_change, 0
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        path = self._changed(event, arguments)
        if path is not None:
            number, self._count = self._count, self._count + 1
            self._on_change(number, path)

    def _changed(self, event, arguments):
        """Return the path that an event will change, None if it changes none below the folder."""
        if event == "open":
            path, _, flags = arguments
            return self._inside(path) if isinstance(flags, int) and flags & _WRITING else None
        if event == "os.mkdir":
            return None if os.path.isdir(arguments[0]) else self._inside(arguments[0])  # noqa: PTH112
        if event in _CHANGES:
            target = arguments[1] if event in ("os.rename", "os.link") else arguments[0]
            relative = event in ("os.remove", "os.rmdir") and arguments[1] != -1
            return os.fspath(target) if relative else self._inside(target)
        return None

    def _inside(self, path):
        if isinstance(path, int):
            return None
        text = os.fsdecode(path)
        return text if text.startswith(self._folder) and _NOT_AIMED_AT not in text else None


def die_at(folder, number, report):
    """Let this process kill itself before its change `number`, telling the path through the connection `report`."""

    def hear(count, path):
        if count == number:
            report.send(path)
            os.kill(os.getpid(), signal.SIGKILL)

    Changes(folder, hear)


def tell_changes(folder, report):
    """Send the path of every change through the connection `report`."""
    Changes(folder, lambda _number, path: report.send(path))
