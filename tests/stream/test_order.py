"""The order of samples, for any units, ranks and windows: none twice, only a remainder left out."""

from collections import Counter
from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.reader import UNIT_DTYPE
from pipeline.errors import ConfigError
from pipeline.stream.order import SampleOrder, have_few_classes
from pipeline.training.sections import DataConfig

BLOCK = 64


def units_of(rows_by_view):
    """Finished units, numbered as extract-teacher does; `rows_by_view` has the rows of each view's tars."""
    pairs = [(tar, view) for tar in range(len(rows_by_view[0])) for view in range(len(rows_by_view))]
    return np.array(
        [(unit, view, rows_by_view[view][tar], "") for unit, (tar, view) in enumerate(pairs)], UNIT_DTYPE
    )


@st.composite
def worlds(draw):
    """All ranks' orders of some data, and a batch size that fits."""
    tars, views = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    rows = st.lists(st.integers(1, 300), min_size=tars, max_size=tars)
    units = units_of([draw(rows) for _ in range(views)])
    chosen = tuple(draw(st.permutations(range(views)))[: draw(st.integers(1, views))])
    world_size, window, seed = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    return [SampleOrder(units, chosen, seed, rank, world_size, window) for rank in range(world_size)], draw(
        st.integers(1, 40)
    )


def consumed(order, epoch, batch_size):
    """The samples (unit, row) of one rank's epoch in order, from the parts of windows that a worker reads."""
    samples = []
    for part in order.parts(batch_size, epoch, 0):
        if part.epoch > epoch:
            return samples
        rows = [
            (int(order.units[place]["unit"]), block * BLOCK + row)
            for place, block, count in part.window.chunks.tolist()
            for row in range(count)
        ]
        assert len(rows) <= order.largest_window
        samples += [rows[place] for place in order.permutation(epoch, part.window)][part.first : part.last]
    return None


def steps_or_none(orders, batch_size):
    try:
        return orders[0].steps_per_epoch(batch_size)
    except ConfigError:
        return None


@settings(deadline=None, max_examples=60)
@given(worlds(), st.integers(0, 5))
def test_an_epoch_shows_every_sample_of_its_view_at_most_once(world, epoch):
    orders, batch_size = world
    if (steps := steps_or_none(orders, batch_size)) is None:
        return
    chosen = orders[0].units[orders[0].units["view"] == orders[0].views[epoch % len(orders[0].views)]]
    existing = {(int(unit["unit"]), row) for unit in chosen for row in range(int(unit["rows"]))}
    parts = [consumed(order, epoch, batch_size) for order in orders]
    assert {len(part) for part in parts} == {steps * batch_size}
    seen = Counter(sample for part in parts for sample in part)
    assert set(seen.values()) == {1}
    assert set(seen) <= existing


@settings(deadline=None, max_examples=100)
@given(worlds())
def test_ranks_take_as_many_steps_and_lose_little(world):
    orders, batch_size = world
    steps = {steps_or_none([order], batch_size) for order in orders}
    assert len(steps) == 1
    if (count := steps.pop()) is None:
        return
    smallest = min(orders[0].units["rows"][orders[0].units["view"] == view].sum() for view in orders[0].views)
    assert 0 <= smallest - count * batch_size * len(orders) < len(orders) * (batch_size + BLOCK)


@settings(deadline=None, max_examples=100)
@given(worlds())
def test_a_rank_has_as_many_samples_in_every_epoch(world):
    orders, _ = world
    views = len(orders[0].views)
    for epoch in range(views):
        sizes = [
            [sum(window.size for window in order.windows(later)) for order in orders]
            for later in range(epoch, 3 * views, views)
        ]
        assert sizes[0] == sizes[1] == sizes[2]
        assert max(sizes[0]) - min(sizes[0]) <= BLOCK
        rows = orders[0].units["rows"][orders[0].units["view"] == orders[0].views[epoch]].sum()
        assert sum(sizes[0]) == rows


@settings(deadline=None, max_examples=60)
@given(worlds(), st.integers(0, 3), st.integers(0, 30))
def test_a_start_in_an_epoch_gives_the_rest_of_it(world, epoch, step):
    orders, batch_size = world
    steps = steps_or_none(orders, batch_size)
    if steps is None or step >= steps:
        return
    order = orders[-1]
    whole = [part for part in takewhile(lambda part: part.epoch == epoch, order.parts(batch_size, epoch, 0))]
    rest = [
        part for part in takewhile(lambda part: part.epoch == epoch, order.parts(batch_size, epoch, step))
    ]
    assert rest[0].window.start + rest[0].first == step * batch_size
    assert rest[-1].window.start + rest[-1].last == steps * batch_size
    assert sum(part.count for part in rest) == (steps - step) * batch_size
    assert [part.window.number for part in rest] == [part.window.number for part in whole][-len(rest) :]


def test_the_order_depends_on_the_seed_alone():
    units = units_of([[200, 130, 64]])

    def blocks(seed):
        return [window.chunks.tolist() for window in SampleOrder(units, (0,), seed, 1, 2, 2).windows(3)]

    assert blocks(0) == blocks(0)
    assert blocks(0) != blocks(1)


def test_chunks_change_ranks_and_windows_between_epochs():
    units = units_of([[64] * 40])
    ranks = [SampleOrder(units, (0,), 0, rank, 4, 2) for rank in range(4)]
    dealt = [
        [{window.chunks[0, 0] for window in order.windows(epoch)} for order in ranks] for epoch in range(3)
    ]
    assert dealt[0] != dealt[1]
    assert dealt[1] != dealt[2]
    visited = set().union(
        *(tuple(window.chunks[:, 0].tolist()) for epoch in range(60) for window in ranks[0].windows(epoch))
    )
    assert visited == set(range(40))


def test_equal_chunks_are_not_always_dealt_together():
    units = units_of([[64] * 8])
    first = [
        frozenset(
            block
            for window in SampleOrder(units, (0,), 0, 0, 2, 4).windows(e)
            for block in window.chunks[:, 0]
        )
        for e in range(30)
    ]
    assert len(set(first)) > 10


def test_epochs_show_the_chosen_views_in_turn():
    order = SampleOrder(units_of([[10, 20], [10, 20], [10, 20]]), (2, 0), 0, 0, 1, 1)
    shown = [
        {int(order.units[place]["view"]) for window in order.windows(epoch) for place in window.chunks[:, 0]}
        for epoch in range(5)
    ]
    assert shown == [{2}, {0}, {2}, {0}, {2}]


def test_each_window_is_permuted_in_its_own_way():
    orders = [SampleOrder(units_of([[64] * 8]), (0,), 0, rank, 2, 2) for rank in range(2)]
    permutations = [
        order.permutation(epoch, window)
        for order in orders
        for epoch in range(2)
        for window in order.windows(epoch)
    ]
    assert all(sorted(permutation) == list(range(128)) for permutation in permutations)
    assert len({permutation.tobytes() for permutation in permutations}) == len(permutations)
    assert not any(np.array_equal(permutation, np.arange(128)) for permutation in permutations)


def test_too_large_a_global_batch_is_refused_with_the_largest():
    order = SampleOrder(units_of([[100, 90], [100, 60]]), (0, 1), 0, 0, 2, 1)
    message = r"train\.global_batch 200 on 2 ranks is larger than the data of an epoch: choose at most 120$"
    with pytest.raises(ConfigError, match=message):
        order.steps_per_epoch(100)
    assert order.steps_per_epoch(60) == 1


def test_more_ranks_than_chunks_are_refused():
    order = SampleOrder(units_of([[100]]), (0,), 0, 0, 3, 1)
    with pytest.raises(ConfigError, match=r"it has fewer chunks of 64 samples than ranks; use fewer ranks$"):
        order.steps_per_epoch(1)


def chunks_of(labels):
    """Sixteen chunks that are spread over a data set, by their labels."""
    chunks = np.split(labels[: len(labels) // 64 * 64], len(labels) // 64)
    return [chunks[index] for index in np.linspace(0, len(chunks) - 1, 16).round().astype(int)]


def test_class_sorted_tars_are_noticed_and_shuffled_ones_are_not():
    """Sorted: 1000 classes with stray images, ten classes, two classes, and one class that is frequent."""
    rng = np.random.default_rng(0)
    for _ in range(15):
        imagenet = np.repeat(rng.permutation(1000), rng.integers(732, 1301, 1000))
        imagenet[rng.integers(0, len(imagenet), 20)] = 1001
        few = rng.integers(0, 10, 20_000)
        frequent = np.minimum(rng.geometric(0.3, 20_000), 50)
        for labels in (imagenet, few, few % 2, frequent):
            if labels is not frequent:
                assert have_few_classes(chunks_of(labels if labels is imagenet else np.sort(labels)))
            assert not have_few_classes(chunks_of(rng.permutation(labels)))
    assert not have_few_classes(chunks_of(np.zeros(20_000, np.uint64)))
    assert not have_few_classes([np.empty(0, np.uint64)] * 3)


def test_a_window_has_at_least_two_batches_unless_it_is_set():
    assert [DataConfig().chunks_of_window(batch) for batch in (16, 256, 257, 1024)] == [8, 8, 9, 32]
    assert DataConfig(window_blocks=3).chunks_of_window(1024) == 3
