"""Damage that a run lives with: the places of a damaged chunk are filled with the rows of another.

Which chunk stands in follows from seed, epoch and the damaged chunk alone. So every rank, worker and resumed
run chooses the same one without asking, no batch changes its size, and an epoch keeps its steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pipeline.cache.reader import REMEDY
from pipeline.errors import CacheError, OtherContentError
from pipeline.seeding import generator
from pipeline.stream.order import SampleOrder

OnDamage = Literal["stop", "skip"]
Result = TypeVar("Result")

_MOST_TRIES = 16  # substitutes that are damaged, too


@dataclass(frozen=True)
class DamagedChunk:
    """A chunk that could not be read, and why; `unit` is an index of the order's units."""

    unit: int
    chunk: int
    rows: int
    reason: str


def read_sound(
    read: Callable[[int, int], Result], order: SampleOrder, epoch: int, place: Sequence[int], skip: bool
) -> tuple[Result, list[DamagedChunk]]:
    """Read a chunk, `place` is (index of the unit, chunk, rows), or with `skip` one that stands in for it.

    A substitute has at least as many rows. Also returns what is damaged. Raises CacheError without `skip`, if
    too many substitutes are damaged too, or for sound content that does not belong to this run.
    """
    damage: list[DamagedChunk] = []
    places = [place]
    while places:
        unit, chunk, rows = places.pop(0)
        try:
            return read(unit, chunk), damage
        except OtherContentError:
            raise
        except CacheError as error:
            if not skip:
                raise
            if not damage:  # other chunks of the same view with as many rows, drawn for this one and epoch
                chunks = order.chunks(int(order.units[unit]["view"]))
                chunks = chunks[(chunks[:, 2] >= rows) & ((chunks[:, 0] != unit) | (chunks[:, 1] != chunk))]
                rng = generator(order.seed, "substitute", epoch, unit, chunk)
                places = rng.permutation(chunks)[:_MOST_TRIES].tolist()
            damage.append(DamagedChunk(unit, chunk, rows, str(error)))
    raise CacheError(
        f"{len(damage)} chunks in a row are damaged, so data.on_damage 'skip' finds no other samples; the "
        f"first: {damage[0].reason.removesuffix(f': {REMEDY}')}: check the disk; {REMEDY}"
    )
