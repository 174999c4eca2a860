"""Progress of a long command: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Shows how much of a total is done, with a free text; a context manager."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        """Begin at `done` of `total`."""
        self._title, self._total, self._first, self._done = title, total, done, done
        self._console = Console(stderr=True)
        self._begin = self._last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=done, text="")

    def update(self, done: int, text: str) -> None:
        """Show that `done` of the total are done."""
        self._done = done
        self._bar.update(self._task, completed=done, text=text)
        if self._bar.disable and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._console.print(
                f"{self._title}: {done} of {self._total}, {self._left()}, {text}",
                highlight=False,
                soft_wrap=True,
            )

    def _left(self) -> str:
        made = self._done - self._first
        if not made:
            return "time left unknown"
        seconds = (time.monotonic() - self._begin) / made * (self._total - self._done)
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d} left"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
