"""Which chunk stands in for a damaged one: the same for all ranks, of the same view, and large enough."""

import numpy as np
import pytest

from pipeline.cache.reader import UNIT_DTYPE
from pipeline.errors import CacheError, OtherContentError
from pipeline.stream.damage import read_sound
from pipeline.stream.order import SampleOrder

UNITS = np.array([(unit, unit % 2, 64 * 3 + 10, b"digest") for unit in range(8)], UNIT_DTYPE)


def order(own=(0,), lanes=1, seed=0):
    return SampleOrder(UNITS, (0, 1), seed, own, lanes, 2)


def reading(damaged, error=CacheError):
    """A function that reads a chunk as its name, unless it is damaged."""

    def read(unit, chunk):
        if (unit, chunk) in damaged:
            raise error(f"chunk {chunk} of {unit}: broken")
        return unit, chunk

    return read


def test_a_sound_chunk_stands_for_itself():
    assert read_sound(reading(()), order(), 0, [3, 1, 64], skip=True) == ((3, 1), [])


def test_all_ranks_choose_the_same_chunk_and_epochs_another():
    damaged = {(3, 1)}

    def chosen(order, epoch):
        found, damage = read_sound(reading(damaged), order, epoch, [3, 1, 64], skip=True)
        assert [(one.unit, one.chunk, one.rows, one.reason) for one in damage] == [
            (3, 1, 64, "chunk 1 of 3: broken")
        ]
        return found

    first = [chosen(order(), epoch) for epoch in range(20)]
    assert [chosen(order(own=(1,), lanes=2), epoch) for epoch in range(20)] == first
    assert len(set(first)) > 5
    assert first != [chosen(order(seed=1), epoch) for epoch in range(20)]


def test_a_substitute_is_of_the_same_view_and_has_as_many_rows():
    for epoch in range(50):
        (unit, chunk), _ = read_sound(reading({(3, 1)}), order(), epoch, [3, 1, 64], skip=True)
        assert (unit % 2, chunk < 3, (unit, chunk) != (3, 1)) == (1, True, True)
    short = {
        read_sound(reading({(3, 3)}), order(), epoch, [3, 3, 10], skip=True)[0][1] for epoch in range(50)
    }
    assert short == {0, 1, 2, 3}  # a chunk of 10 rows may be replaced by any


def test_damaged_substitutes_are_passed_over_and_named():
    damaged = {(unit, chunk) for unit in range(8) for chunk in range(4)} - {(5, 0)}
    found, damage = read_sound(reading(damaged), order(), 0, [3, 1, 64], skip=True)
    assert found == (5, 0)
    assert len({(one.unit, one.chunk) for one in damage}) == len(damage)
    with pytest.raises(
        CacheError, match=r"12 chunks in a row are damaged, .* the first: chunk 1 of 3: broken"
    ):
        read_sound(reading(damaged | {(5, 0)}), order(), 0, [3, 1, 64], skip=True)


def test_without_skip_and_for_another_content_the_error_is_raised():
    with pytest.raises(CacheError, match="chunk 1 of 3: broken"):
        read_sound(reading({(3, 1)}), order(), 0, [3, 1, 64], skip=False)
    with pytest.raises(OtherContentError, match="chunk 1 of 3: broken"):
        read_sound(reading({(3, 1)}, OtherContentError), order(), 0, [3, 1, 64], skip=True)
