"""Progress of a long command: a bar with rate and time left on a terminal, elsewhere a line now and then."""

import sys
import time
from contextlib import suppress
from typing import Any, Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_SECONDS_BETWEEN_LINES = 10.0
_BAR_WIDTH = 8  # so that counts, rate and time left of ImageNet fit into 80 columns


class _ForgivingStream:
    """Writes to a stream as far as that is possible: nobody reads a closed pipe or terminal any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class ProgressDisplay:
    """Shows how many images, or other units, of a total are done, and a free text; a context manager.

    It never fails a command: once stderr has no reader, it shows nothing.
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        """Begin at `done` of `total`."""
        self._title, self._total, self._unit = title, total, unit
        # Without it, rich ends the process when a pipe is closed, and raises OSError for a lost terminal.
        self._console = Console(file=cast("TextIO", _ForgivingStream(sys.stderr)))
        self._last_line = time.monotonic()
        # Rates count from the first update on: what came before it is start-up and compilation.
        self._since: tuple[float, int] | None = None
        columns = (TextColumn("{task.description}"), BarColumn(_BAR_WIDTH), TextColumn("{task.fields[text]}"))
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=done, text=self._counts(done))

    def update(self, done: int, text: str, total: int | None = None) -> None:
        """Show that `done` of the total are done; `total` may be a better estimate than before."""
        now = time.monotonic()
        self._total = self._total if total is None else total
        shown = f"{self._counts(done, now)}, {text}".removesuffix(", ")
        self._since = self._since or (now, done)
        self._bar.update(self._task, completed=done, total=self._total, text=shown)
        if self._bar.disable and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            line = f"{self._title}: {shown}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _counts(self, done: int, now: float = 0.0) -> str:
        counts = f"{done:,}/{self._total:,} {self._unit}"
        if not self._since or done <= self._since[1] or now <= self._since[0]:
            return counts
        rate = (done - self._since[1]) / (now - self._since[0])
        left = int((self._total - done) / rate)
        shown = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
        return f"{counts}, {shown}, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
