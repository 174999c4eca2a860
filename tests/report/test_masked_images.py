"""Masked and overlaid images against their definition, pixel by pixel."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from pipeline.report.images import MaskedImage, masked, overlaid, strip


def image(height=32, width=48, patch=8, importance=None):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return MaskedImage(pixels, np.array([7, 0, 23]), patch, importance, "k")


def test_only_visible_patches_keep_their_pixels():
    one = image()
    result = masked(one)
    for y in range(32):
        for x in range(48):
            seen = (y // 8) * 6 + x // 8 in (7, 0, 23)
            assert np.array_equal(result[y, x], one.pixels[y, x] if seen else [128, 128, 128])
    assert one.pixels.mean() != 128


def test_importance_lightens():
    importance = np.zeros(24, np.float32)
    importance[9] = 1.0
    result = overlaid(image(importance=importance)).astype(float)
    light = result[8:16, 24:32]
    assert result.shape == (32, 48, 3)
    assert light.mean() > 100 + (result.sum() - light.sum()) / (result.size - light.size)


def test_importance_of_zero_everywhere_is_dark():
    assert overlaid(image(importance=np.zeros(24, np.float32))).max() <= 0.4 * 255 + 10


def test_the_strip_holds_the_images_it_names():
    one = image(importance=np.ones(24, np.float32))
    data = re.findall(r'base64,([^"]*)"', strip(one))
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), float) for text in data]
    assert [image.shape for image in decoded] == [(32, 48, 3)] * 3
    assert np.abs(decoded[2][:8, 8:40] - 128).max() <= 4


def test_patches_that_do_not_tile_the_image_are_refused():
    with pytest.raises(AssertionError, match="patches tile the image"):
        masked(image(patch=7))
