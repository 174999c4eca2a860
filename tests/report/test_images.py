"""Masked and overlaid images against their definition, pixel by pixel."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from pipeline.report.images import MaskedImage, masked, overlaid, strip


def image(patch=8, importance=None, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 48, 3), np.uint8)
    return MaskedImage(pixels, np.array([7, 0, 23]), patch, importance, "k")


def test_only_visible_patches_keep_their_pixels():
    one, other = image(seed=0), image(seed=1)
    seen = [(y // 8) * 6 + x // 8 in (7, 0, 23) for y in range(32) for x in range(48)]
    assert (masked(one) == one.pixels).all(2).ravel()[seen].all()
    hidden = ~np.array(seen).reshape(32, 48)
    assert np.array_equal(masked(one)[hidden], masked(other)[hidden])


def test_the_hatch_has_a_colour_that_grey_photographs_lack():
    hidden = masked(image())[8:16, 0:8].reshape(-1, 3).astype(int)
    assert (hidden[:, 2] - hidden[:, 1]).min() > 30
    assert len(np.unique(hidden, axis=0)) == 2


def test_importance_lightens():
    importance = np.zeros(24, np.float32)
    importance[9] = 1.0
    result = overlaid(image(importance=importance)).astype(float)
    light = result[8:16, 24:32]
    assert light.mean() > 100 + (result.sum() - light.sum()) / (result.size - light.size)
    assert overlaid(image(importance=np.zeros(24, np.float32))).max() <= 0.4 * 255 + 10


def test_the_strip_holds_the_panels_under_their_headings():
    text = strip(image(importance=np.ones(24, np.float32)))
    assert re.findall("<h3>(.*?)</h3>", text) == ["image", "teacher's importance", "what the student sees"]
    data = re.findall(r'base64,([^"]*)"', text)
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in data]
    assert [each.shape for each in decoded] == [(32, 48, 3)] * 3
    assert re.findall("<h3>(.*?)</h3>", strip(image())) == ["image", "what the student sees"]


def test_patches_that_do_not_tile_the_image_are_refused():
    with pytest.raises(AssertionError, match="patches tile the image"):
        masked(image(patch=7))
