"""The order of samples, for any units, lanes, ranks and windows: none twice, only a remainder left out."""

import hashlib
from collections import Counter
from itertools import chain, takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.reader import UNIT_DTYPE
from pipeline.errors import ConfigError
from pipeline.stream.order import SampleOrder, lanes_of_rank
from pipeline.training.sections import DataConfig

BLOCK = 64


def units_of(rows_by_view):
    """Finished units, numbered as extract-teacher does; `rows_by_view` has the rows of each view's tars."""
    pairs = [(tar, view) for tar in range(len(rows_by_view[0])) for view in range(len(rows_by_view))]
    return np.array(
        [(unit, view, rows_by_view[view][tar], "") for unit, (tar, view) in enumerate(pairs)], UNIT_DTYPE
    )


def orders_of(units, views, seed, world_size, lanes, window):
    """All ranks' orders."""
    owned = [lanes_of_rank(lanes, rank, world_size) for rank in range(world_size)]
    return [SampleOrder(units, views, seed, own, lanes, window) for own in owned]


@st.composite
def worlds(draw):
    """All ranks' orders of some data, and a batch size of a rank that fits."""
    tars, views = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    rows = st.lists(st.integers(1, 300), min_size=tars, max_size=tars)
    units = units_of([draw(rows) for _ in range(views)])
    chosen = tuple(draw(st.permutations(range(views)))[: draw(st.integers(1, views))])
    world_size, window, seed = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    of_rank = draw(st.sampled_from([1, 1, 2, 3]))
    orders = orders_of(units, chosen, seed, world_size, world_size * of_rank, window)
    return orders, of_rank * draw(st.integers(1, 40 // of_rank))


def consumed(order, epoch, batch_size):
    """The samples (unit, row) of one rank's epoch, batch by batch, from the parts that workers read."""
    lanes = {lane: [] for lane in order.own}
    for part in order.parts(batch_size, epoch, 0):
        if part.epoch > epoch:
            break
        rows = [
            (int(order.units[place]["unit"]), block * BLOCK + row)
            for place, block, count in part.window.chunks.tolist()
            for row in range(count)
        ]
        assert len(rows) <= order.largest_window
        found = [rows[place] for place in order.permutation(epoch, part.window)][part.first : part.last]
        lanes[part.window.lane] += found
    share = batch_size // len(order.own)
    steps = range(0, len(lanes[order.own[0]]), share)
    return [sample for step in steps for lane in order.own for sample in lanes[lane][step : step + share]]


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
    lost = smallest - count * batch_size * len(orders)
    assert 0 <= lost < len(orders) * batch_size + orders[0].lanes * BLOCK


@settings(deadline=None, max_examples=100)
@given(worlds())
def test_a_lane_has_as_many_samples_in_every_epoch(world):
    orders, _ = world
    views = len(orders[0].views)
    for epoch in range(views):
        sizes = [
            [sum(window.size for window in windows) for order in orders for windows in order.windows(later)]
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
    share = batch_size // len(order.own)
    whole, rest = (
        list(takewhile(lambda part: part.epoch == epoch, order.parts(batch_size, epoch, first)))
        for first in (0, step)
    )
    assert sum(part.count for part in rest) == (steps - step) * batch_size
    for lane in order.own:
        ours, theirs = ([part for part in parts if part.window.lane == lane] for parts in (rest, whole))
        assert ours[0].window.start + ours[0].first == step * share
        assert ours[-1].window.start + ours[-1].last == steps * share
        assert [part.window.number for part in ours] == [part.window.number for part in theirs][-len(ours) :]
    needed = [(part.window.start + part.first) // share for part in rest]
    assert needed == sorted(needed)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([1, 4, 6, 12]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_steps_have_the_same_samples_on_any_ranks_that_divide_the_lanes(lanes, share, window, epoch):
    units = units_of([[300, 170, 64, 500, 30, 410], [290, 170, 64, 500, 31, 409]])
    found = []
    for world_size in (number for number in range(1, lanes + 1) if lanes % number == 0):
        orders = orders_of(units, (0, 1), 0, world_size, lanes, window)
        size = lanes * share // world_size
        ranks = [consumed(order, epoch, size) for order in orders]
        steps = [[samples[at : at + size] for samples in ranks] for at in range(0, len(ranks[0]), size)]
        found.append([list(chain.from_iterable(step)) for step in steps])
    assert len(found[0]) == orders[0].steps_per_epoch(share) > 3
    assert all(steps == found[0] for steps in found)


def test_with_a_lane_for_each_rank_the_order_is_the_recorded_one():
    """Of commit ddec8ac, before lanes: runs of that time continue."""
    units = units_of([[300, 170, 64, 500, 30, 410], [290, 170, 64, 500, 31, 409]])
    orders = orders_of(units, (1, 0), 5, 3, 3, 2)
    samples = [consumed(order, epoch, 10) for order in orders for epoch in range(3)]
    assert hashlib.sha256(repr(samples).encode()).hexdigest()[:16] == "8a71a94db2dae960"


def test_uneven_lanes_are_refused_with_the_numbers_that_work():
    assert [lanes_of_rank(6, rank, 3) for rank in range(3)] == [(0, 1), (2, 3), (4, 5)]
    message = r"^3 ranks cannot share data\.lanes 8 evenly: .* divide it \(1, 2, 4, 8\); .* a multiple of 3$"
    with pytest.raises(ConfigError, match=message):
        lanes_of_rank(8, 0, 3)


def test_the_order_depends_on_the_seed_alone():
    units = units_of([[200, 130, 64]])

    def blocks(seed):
        return [window.chunks.tolist() for window in SampleOrder(units, (0,), seed, (1,), 2, 2).windows(3)[0]]

    assert blocks(0) == blocks(0)
    assert blocks(0) != blocks(1)


def test_chunks_change_ranks_and_windows_between_epochs():
    units = units_of([[64] * 40])
    ranks = orders_of(units, (0,), 0, 4, 4, 2)
    dealt = [
        [{window.chunks[0, 0] for window in order.windows(epoch)[0]} for order in ranks] for epoch in range(3)
    ]
    assert dealt[0] != dealt[1]
    assert dealt[1] != dealt[2]
    visited = set().union(
        *(tuple(window.chunks[:, 0].tolist()) for epoch in range(60) for window in ranks[0].windows(epoch)[0])
    )
    assert visited == set(range(40))


def test_equal_chunks_are_not_always_dealt_together():
    units = units_of([[64] * 8])
    first = [
        frozenset(
            block
            for window in SampleOrder(units, (0,), 0, (0,), 2, 4).windows(e)[0]
            for block in window.chunks[:, 0]
        )
        for e in range(30)
    ]
    assert len(set(first)) > 10


def test_epochs_show_the_chosen_views_in_turn():
    order = SampleOrder(units_of([[10, 20], [10, 20], [10, 20]]), (2, 0), 0, (0,), 1, 1)
    shown = [
        {
            int(order.units[place]["view"])
            for window in order.windows(epoch)[0]
            for place in window.chunks[:, 0]
        }
        for epoch in range(5)
    ]
    assert shown == [{2}, {0}, {2}, {0}, {2}]


def test_each_window_is_permuted_in_its_own_way():
    orders = orders_of(units_of([[64] * 8]), (0,), 0, 1, 2, 2)
    permutations = [
        order.permutation(epoch, window)
        for order in orders
        for epoch in range(2)
        for windows in order.windows(epoch)
        for window in windows
    ]
    assert all(sorted(permutation) == list(range(128)) for permutation in permutations)
    assert len({permutation.tobytes() for permutation in permutations}) == len(permutations)
    assert not any(np.array_equal(permutation, np.arange(128)) for permutation in permutations)


def test_too_large_a_global_batch_is_refused_with_the_largest():
    order = SampleOrder(units_of([[100, 90], [100, 60]]), (0, 1), 0, (0,), 2, 1)
    message = r"train\.global_batch 200 on 2 ranks is larger than the data of an epoch: choose at most 120$"
    with pytest.raises(ConfigError, match=message):
        order.steps_per_epoch(100)
    assert order.steps_per_epoch(60) == 1


def test_more_ranks_or_lanes_than_chunks_are_refused():
    order = SampleOrder(units_of([[100]]), (0,), 0, (0,), 3, 1)
    with pytest.raises(ConfigError, match=r"fewer chunks of 64 samples than that; use fewer ranks$"):
        order.steps_per_epoch(1)
    order = SampleOrder(units_of([[100]]), (0,), 0, (0, 1, 2), 3, 1)
    message = r"^train\.global_batch 3 on data\.lanes 3 is larger .* than that; lower data\.lanes$"
    with pytest.raises(ConfigError, match=message):
        order.steps_per_epoch(3)


def test_a_window_has_at_least_two_shares_unless_it_is_set():
    assert [DataConfig().chunks_of_window(batch) for batch in (16, 256, 257, 1024)] == [8, 8, 9, 32]
    assert DataConfig(window_blocks=3).chunks_of_window(1024) == 3
