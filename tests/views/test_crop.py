"""Crops are pure functions of (seed, key, view), lie inside their image and keep to the policy."""

import itertools
import math
from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipeline.views.crop import ASPECT_RATIO, CropBox, CropPolicy, cut_crop, draw_crop

POLICY = CropPolicy(size=32, scale=(0.2, 1.0), flip=0.5, seed=3)
CENTRE = CropPolicy(size=32, scale=(1.0, 1.0), flip=0.0, seed=3)
GOLDEN_OF_1_0 = [(7, 12, 424, 461, 0, 640, 480), (121, 3, 352, 469, 0, 640, 480)]
GOLDEN = [(264, 118, 348, 327, 1, 640, 480), (127, 36, 494, 432, 0, 640, 480)]
SIDES = st.integers(1, 3000)
SCALES = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(lambda pair: (min(pair), max(pair)))


@given(SIDES, SIDES, SCALES, st.integers(0, 2**31), st.text(max_size=20))
@example(1, 3000, (0.2, 1.0), 0, "a")
@example(3000, 1, (0.2, 1.0), 0, "a")
@example(1, 1, (0.01, 0.01), 0, "a")
def test_a_crop_lies_inside_its_image(width, height, scale, seed, key):
    box = draw_crop(CropPolicy(32, scale, 0.5, seed), "a.tar", key, 0, width, height)
    assert 0 <= box.left < box.left + box.width <= width
    assert 0 <= box.top < box.top + box.height <= height
    assert (box.source_width, box.source_height) == (width, height)


@given(st.integers(0, 10_000), SCALES)
def test_scale_and_aspect_stay_in_their_bounds_up_to_rounding(number, scale):
    box = draw_crop(CropPolicy(32, scale, 0.5, 0), "a.tar", str(number), 0, 1000, 1100)
    fallback = (box.width, box.height) == (1000, 1100)
    slack = (box.width + box.height) / 1_100_000
    assume(scale != (1.0, 1.0))  # the centred square
    assert fallback or scale[0] - slack <= box.width * box.height / 1_100_000 <= scale[1] + slack
    assert ASPECT_RATIO[0] * 0.95 <= box.width / box.height <= ASPECT_RATIO[1] * 1.05


def test_a_crop_is_a_function_of_seed_tar_key_and_view():
    keys = list(itertools.product((0, 1), ("a.tar", "b.tar", None), ("a", "b", "1"), (0, 1, 2)))
    boxes = [draw_crop(replace(POLICY, seed=seed), *rest, 640, 480) for seed, *rest in keys]
    again = [draw_crop(replace(POLICY, seed=seed), *rest, 640, 480) for seed, *rest in reversed(keys)]
    assert boxes == again[::-1]
    assert len(set(boxes)) == len(boxes)


def test_crops_are_the_same_for_ever():
    old = [astuple(draw_crop(POLICY, None, "000017", view, 640, 480)) for view in (0, 1)]
    new = [astuple(draw_crop(POLICY, "a.tar", "000017", view, 640, 480)) for view in (0, 1)]
    assert (old, new) == (GOLDEN_OF_1_0, GOLDEN)


def test_flips_are_as_frequent_as_asked():
    for share in (0.0, 0.3, 1.0):
        flips = [
            draw_crop(replace(POLICY, flip=share), "a.tar", str(number), 0, 64, 64).flip
            for number in range(1000)
        ]
        assert abs(np.mean(flips) - share) < (0.06 if 0 < share < 1 else 1e-9)


def test_areas_are_uniform_between_their_bounds():
    policy = replace(POLICY, scale=(0.2, 0.6))  # larger ones do not fit in every aspect and are drawn again
    boxes = [draw_crop(policy, "a.tar", str(number), 0, 500, 500) for number in range(1500)]
    areas = np.sort([box.width * box.height / 250_000 for box in boxes])
    uniform = np.linspace(0.2, 0.6, len(areas))
    assert abs(areas - uniform).max() < 0.02


@given(SIDES, SIDES)
def test_scale_one_is_the_largest_centred_square(width, height):
    box = draw_crop(CENTRE, "a.tar", "any", 5, width, height)
    side = min(width, height)
    assert (box.width, box.height, box.flip) == (side, side, False)
    assert (box.left, box.top) == ((width - side) // 2, (height - side) // 2)


@pytest.mark.parametrize(("width", "height"), [(1, 400), (400, 1), (10, 4000)])
def test_a_strip_falls_back_to_the_largest_box_of_a_fitting_aspect(width, height):
    box = draw_crop(POLICY, "a.tar", "strip", 0, width, height)
    assert max(box.width, box.height) <= math.ceil(4 / 3 * min(width, height))


def test_a_mirrored_crop_is_the_crop_flipped():
    pixels = np.random.default_rng(0).integers(0, 255, (61, 47, 3)).astype(np.uint8)
    box = CropBox(3, 5, 30, 40, flip=False, source_width=47, source_height=61)
    straight, mirrored = cut_crop(pixels, box, 32), cut_crop(pixels, replace(box, flip=True), 32)
    np.testing.assert_array_equal(mirrored, straight[:, ::-1])
    assert not np.array_equal(mirrored, straight)
    assert mirrored.flags.c_contiguous


def test_a_crop_of_the_final_size_is_cut_out_exactly():
    pixels = np.random.default_rng(0).integers(0, 255, (61, 47, 3)).astype(np.uint8)
    np.testing.assert_array_equal(
        cut_crop(pixels, CropBox(7, 9, 32, 32, False, 47, 61), 32), pixels[9:41, 7:39]
    )


def test_resizing_keeps_flat_colours():
    flat = np.full((7, 100, 3), (3, 200, 77), np.uint8)
    resized = cut_crop(flat, CropBox(0, 0, 100, 7, False, 100, 7), 16)
    np.testing.assert_array_equal(resized, np.full((16, 16, 3), (3, 200, 77)))
