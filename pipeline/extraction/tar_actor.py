"""An extraction that is given its tars some at a time: one actor of the engine `ray`."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from pipeline.cache.units import Unit
from pipeline.errors import MaskAlignError
from pipeline.extraction.extractor import Extractor
from pipeline.extraction.job import prepared_extraction
from pipeline.extraction.options import ExtractionOptions
from pipeline.extraction.tally import Tally


@dataclass
class Outcome:
    """What an actor reports: counts of the tars of one call, and busy seconds of its whole life."""

    tally: Tally = field(default_factory=Tally)
    seconds: dict[str, float] = field(default_factory=dict)
    compiler_fault: str = ""
    error: Exception | None = None  # one that a user can cause or cure


class TarActor:
    """Keeps teacher, decoding workers and cache from one call to the next. The caller has all shares."""

    def __init__(self, options: ExtractionOptions) -> None:
        """Take the options; `prepare` comes first, then any number of `extract`, then `close`."""
        self._options, self._held = options, ExitStack()
        self._tars = {tar.name: tar for tar in options.tars}
        self._extractor: Extractor | None = None
        self._units: list[Unit] = []

    def prepare(self) -> Outcome:
        """Load the teacher, and create or extend the cache."""
        try:
            self._extractor, self._units = self._held.enter_context(prepared_extraction(self._options))
        except (MaskAlignError, OSError) as error:
            return Outcome(error=error)
        return Outcome()

    def extract(self, names: Sequence[str]) -> Outcome:
        """Make the missing units of some tars."""
        extractor, error = self._extractor, None
        assert extractor is not None, "was prepared"
        extractor.tally = Tally()
        try:
            extractor.run([self._tars[name] for name in names], self._units)
        except (MaskAlignError, OSError) as fault:
            error = fault
        return Outcome(extractor.tally, extractor.timing.seconds, extractor.encoder.compiler_fault, error)

    def close(self) -> None:
        """End the decoding workers."""
        self._held.close()
