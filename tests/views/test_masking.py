"""Masks: exact counts, fair draws, keyed randomness, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.seeding import generator
from pipeline.views.masking import (
    MaskConfig,
    count_of_share,
    draw_around_blocks,
    least_ratio,
    rank_by_arrival,
    rank_of_view,
)

STRATEGIES = ["attention", "random", "block"]
GOLDEN = {
    "attention": [9, 10, 11, 12, 14, 15],
    "random": [0, 1, 6, 10, 14, 15],
    "block": [0, 8, 9, 12, 13, 15],
}


def visible_count(patches, ratio):
    return MaskConfig(ratio=ratio).visible_count(patches)


def rank_patches(strategy, importance, patches, rng):
    return rank_by_arrival(strategy, importance, rng.standard_exponential(patches))


def draw_visible(strategy, importance, grid, count, rng):
    """Draw a mask as the stream does."""
    if strategy == "block":
        return draw_around_blocks(grid, count, rng)
    return np.sort(rank_patches(strategy, importance, grid * grid, rng)[:count])


def draw(strategy, importance, grid, count, *key):
    return draw_visible(strategy, importance, grid, count, generator(0, "mask", *key))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), grid=st.integers(1, 9), strategy=st.sampled_from(STRATEGIES), seed=st.integers(0, 99))
def test_exactly_as_many_distinct_patches_ascending(data, grid, strategy, seed):
    count = data.draw(st.integers(1, grid * grid))
    rng = np.random.default_rng(seed)
    importance = (rng.random(grid * grid) * rng.integers(0, 2, grid * grid)).astype(np.float32)
    visible = draw_visible(strategy, importance, grid, count, rng)
    assert visible.dtype == np.int64
    assert visible.shape == (count,)
    assert (np.diff(visible) > 0).all()
    assert 0 <= visible[0] <= visible[-1] < grid * grid


def test_attention_shows_a_patch_in_proportion_to_its_importance():
    importance = np.array([0.05, 0.5, 0, 0.15, 0.1, 0, 0.12, 0.05, 0.03], np.float32)
    rng = np.random.default_rng(5)
    first = np.concatenate([draw_visible("attention", importance, 3, 1, rng) for _ in range(20_000)])
    np.testing.assert_allclose(np.bincount(first, minlength=9) / 20_000, importance, atol=0.012)


def test_attention_draws_without_replacement():
    importance = np.array([0.6, 0.3, 0.1, 0], np.float32)
    rng = np.random.default_rng(6)
    pairs = [tuple(draw_visible("attention", importance, 2, 2, rng)) for _ in range(20_000)]
    expected = {
        (0, 1): 0.6 * 0.3 / 0.4 + 0.3 * 0.6 / 0.7,
        (0, 2): 0.6 * 0.1 / 0.4 + 0.1 * 0.6 / 0.9,
        (1, 2): 0.3 * 0.1 / 0.7 + 0.1 * 0.3 / 0.9,
    }
    assert set(pairs) == set(expected)
    for pair, probability in expected.items():
        assert pairs.count(pair) / 20_000 == pytest.approx(probability, abs=0.012)


@pytest.mark.parametrize("leading", [0.0, 1.0])
def test_patches_without_importance_are_shown_alike(leading):
    importance = np.zeros(16, np.float32)
    importance[9] = leading
    rng = np.random.default_rng(7)
    shown = (
        np.bincount(
            np.concatenate([draw_visible("attention", importance, 4, 4, rng) for _ in range(8_000)]),
            minlength=16,
        )
        / 8_000
    )
    if leading:
        assert shown[9] == 1
    others = np.delete(shown, 9)
    np.testing.assert_allclose(others, others.mean(), atol=0.025)


def test_the_least_importance_still_counts():
    importance = np.zeros(16, np.float32)
    importance[[3, 12]] = np.finfo(np.float32).smallest_subnormal
    np.testing.assert_array_equal(draw("attention", importance, 4, 2), [3, 12])


def test_random_is_uniform():
    rng = np.random.default_rng(8)
    shown = (
        np.bincount(
            np.concatenate([draw_visible("random", None, 4, 4, rng) for _ in range(8_000)]), minlength=16
        )
        / 8_000
    )
    np.testing.assert_allclose(shown, 0.25, atol=0.025)


def neighbours(visible, grid):
    """Pairs of hidden patches side by side."""
    hidden = np.ones(grid * grid, dtype=int)
    hidden[visible] = 0
    hidden = hidden.reshape(grid, grid)
    return (hidden[1:] * hidden[:-1]).sum() + (hidden[:, 1:] * hidden[:, :-1]).sum()


def test_blocks_hide_neighbours_together():
    block, random = (
        [neighbours(draw(strategy, None, 14, 98, sample), 14) for sample in range(50)]
        for strategy in ("block", "random")
    )
    assert min(block) > max(random)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_key_decides_the_mask(strategy):
    importance = np.linspace(0.1, 1, 196, dtype=np.float32)
    masks = [draw(strategy, importance, 14, 58, epoch, "sample") for epoch in (0, 0, 1)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def test_the_visible_count_is_the_methods():
    assert visible_count(196, 0.7) == 58
    assert visible_count(10, 0.7) == 3
    assert visible_count(100, 0.9) == 10
    assert visible_count(196, 0.0) == 196
    assert visible_count(4, 0.75) == 1


@pytest.mark.parametrize(
    ("strategy", "importance", "count", "message"),
    [
        ("attention", np.array([1, 2, np.nan, 1], np.float32), 2, "importance holds nan"),
        ("attention", np.array([1, 2, -1, 1], np.float32), 2, r"importance holds -1\.0"),
        ("grid", None, 2, "mask.strategy 'grid' is unknown: choose 'attention'"),
    ],
)
def test_impossible_draws_are_refused(strategy, importance, count, message):
    with pytest.raises(ConfigError, match=message):
        draw_visible(strategy, importance, 2, count, np.random.default_rng(0))


@settings(deadline=None, max_examples=40)
@given(grid=st.integers(1, 9), strategy=st.sampled_from(["attention", "random"]), seed=st.integers(0, 99))
def test_a_mask_is_the_first_of_the_ranking_of_all_patches(grid, strategy, seed):
    importance = np.random.default_rng(seed).random(grid * grid).astype(np.float32)
    ranking = rank_patches(strategy, importance, grid * grid, np.random.default_rng(seed))
    assert sorted(ranking) == list(range(grid * grid))
    for count in range(1, grid * grid + 1):
        drawn = draw_visible(strategy, importance, grid, count, np.random.default_rng(seed))
        np.testing.assert_array_equal(drawn, np.sort(ranking[:count]))


def test_a_ranking_is_a_function_of_seed_tar_key_and_view():
    importance = np.linspace(0.1, 1, 49, dtype=np.float32)
    first, again, *others = (
        rank_of_view("attention", importance, 49, *key).tolist()
        for key in [
            (0, "a.tar", "a", 0),
            (0, "a.tar", "a", 0),
            (0, None, "a", 0),
            (0, "b.tar", "a", 0),
            (1, "a.tar", "a", 0),
            (0, "a.tar", "b", 0),
            (0, "a.tar", "a", 1),
        ]
    )
    assert first == again
    assert first not in others
    new, old = generator(0, "rank", "a.tar", "a", 0), generator(0, "rank", "a", 0)
    assert first == rank_patches("attention", importance, 49, new).tolist()
    assert others[0] == rank_patches("attention", importance, 49, old).tolist()


def test_masks_are_drawn_as_ever():
    importance = (np.arange(16) ** 2).astype(np.float32)
    drawn = {strategy: draw(strategy, importance, 4, 6, 3, "golden").tolist() for strategy in STRATEGIES}
    assert drawn == GOLDEN


@pytest.mark.parametrize("patches", [1, 4, 7, 16, 49, 196, 256, 1000])
def test_the_ratios_that_refusals_name_work(patches):
    for count in {1, 2, patches // 3, patches // 2, patches - 1} - {0}:
        ratio = least_ratio(patches, count)
        assert count_of_share(patches, 1 - ratio) <= count
        assert ratio == 0 or count_of_share(patches, 1 - (ratio - 1e-4)) > count
    with pytest.raises(ConfigError, match=r"give one from 0 to ") as error:
        visible_count(patches, 0.99999)
    assert visible_count(patches, float(str(error.value).rsplit(" ", 1)[1])) == 1


def test_a_share_and_its_ratio_count_alike():
    for patches in (16, 49, 196, 256):
        for percent in range(1, 100):
            assert count_of_share(patches, percent / 100) == count_of_share(
                patches, 1 - (100 - percent) / 100
            )
