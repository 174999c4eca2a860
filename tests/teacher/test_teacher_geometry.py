"""Levels, grids and the resizing of positions and pixels."""

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.teacher.geometry import resize_positions, teacher_images
from pipeline.teacher.request import parse_levels, resolve_levels, student_grid

DEPTHS = st.integers(1, 40)


@given(DEPTHS, st.data())
def test_a_count_means_the_last_blocks(depth, data):
    count = data.draw(st.integers(1, depth))
    assert resolve_levels(str(count), depth) == tuple(range(depth))[-count:]


@given(DEPTHS, st.data())
def test_a_list_means_itself(depth, data):
    blocks = sorted(data.draw(st.sets(st.integers(0, depth - 1), min_size=1)))
    text = ", ".join(map(str, blocks)) + ("," if len(blocks) == 1 else "")
    assert resolve_levels(text, depth) == tuple(blocks)


@given(st.text(alphabet="0123,- a²", max_size=6), DEPTHS)
def test_whatever_is_accepted_is_ascending_and_in_range(text, depth):
    try:
        levels = resolve_levels(text, depth)
    except ConfigError:
        return
    assert levels == tuple(sorted(set(levels)))
    assert set(levels) <= set(range(depth))
    assert levels


@pytest.mark.parametrize(
    ("levels", "found"),
    [
        ("0", "0 blocks"),
        ("-1", "'-1'"),
        ("", "''"),
        (",", "''"),
        ("1,,2", "''"),
        ("last", "'last'"),
        ("7,7", "numbers that repeat or do not ascend"),
        ("9,7", "numbers that repeat or do not ascend"),
    ],
)
def test_wrong_levels_are_told_what_is_accepted(levels, found):
    accepted = "give a count of the last blocks such as 5, or ascending block numbers from 0 such as '7,9,11'"
    with pytest.raises(ConfigError, match=re.escape(f"levels {levels!r} asks for {found}: {accepted}")):
        parse_levels(levels)


@pytest.mark.parametrize(("levels", "found"), [("13", "13 blocks"), ("7,12", "block 12")])
def test_levels_that_a_teacher_lacks_are_told_its_depth(levels, found):
    accepted = "give a count from 1 to 12, or ascending block numbers from 0 to 11 such as '11,'"
    refused = f"levels {levels!r} asks for {found}, but the teacher has 12 blocks: {accepted}"
    with pytest.raises(ConfigError, match=re.escape(refused)):
        resolve_levels(levels, 12)


@given(st.integers(1, 600), st.integers(1, 64))
def test_a_grid_error_names_sizes_that_would_do(image_size, patch_size):
    if image_size % patch_size == 0:
        assert student_grid(image_size, patch_size) * patch_size == image_size
        return
    with pytest.raises(ConfigError) as error:
        student_grid(image_size, patch_size)
    sizes = str(error.value).split("; give image size ")[1].split(" or ")
    assert all(student_grid(int(size), patch_size) for size in sizes)
    assert all(abs(int(size) - image_size) < patch_size for size in sizes)


@pytest.mark.parametrize(("image_size", "patch_size"), [(0, 16), (224, 0), (-224, -16)])
def test_sizes_must_be_positive(image_size, patch_size):
    with pytest.raises(ConfigError, match="must be positive"):
        student_grid(image_size, patch_size)


def test_positions_on_their_own_grid_are_untouched():
    positions = torch.randn(13, 6)
    assert resize_positions(positions, (3, 4), 3).shape == (10, 6)
    assert torch.equal(resize_positions(positions[:10], (3, 3), 3), positions[:10])


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_positions_are_resized_channel_by_channel(prefix):
    positions = torch.randn(prefix + 16 * 16, 4)
    found = resize_positions(positions, (16, 16), 14)
    assert torch.equal(found[:prefix], positions[:prefix])
    for channel in range(4):
        image = positions[prefix:, channel].reshape(1, 1, 16, 16)
        wanted = F.interpolate(image, (14, 14), mode="bicubic", align_corners=False, antialias=False)
        torch.testing.assert_close(found[prefix:, channel], wanted.flatten())


def test_images_of_the_right_size_are_only_normalised():
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    images = teacher_images(pixels, 8, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    assert images.shape == (2, 3, 8, 8)
    torch.testing.assert_close(images[1, 2], (pixels[1, :, :, 2] / 255 - 0.3) / 2.0)


def test_images_are_resized_before_normalising():
    pixels = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    images = teacher_images(pixels, 28, (0.0,) * 3, (1.0,) * 3)
    wanted = F.interpolate(pixels.permute(0, 3, 1, 2) / 255, (28, 28), mode="bicubic", align_corners=False)
    smooth = F.interpolate(
        pixels.permute(0, 3, 1, 2) / 255, (28, 28), mode="bicubic", align_corners=False, antialias=True
    )
    torch.testing.assert_close(images, wanted)
    assert (images - smooth).abs().max() > 0.01
