"""Images of all kinds to pixels, and crops to bytes and back."""

import io

import numpy as np
import pytest
from PIL import Image
from tars import image

from pipeline.views.codec import decode_view, encode_view


def pixels_of(width=50, height=40):
    return np.array(Image.open(io.BytesIO(image(0, width, height, "png"))))


def test_a_raw_view_is_exact():
    pixels = pixels_of(32, 32)
    data = encode_view(pixels, "raw")
    np.testing.assert_array_equal(np.load(io.BytesIO(data)), pixels)
    np.testing.assert_array_equal(decode_view(data, "raw"), pixels)


def test_a_jpeg_view_is_close_and_the_same_for_every_reader():
    pixels = pixels_of(64, 64)
    data = encode_view(pixels, "jpeg")
    assert data == encode_view(pixels.copy(), "jpeg")
    found = decode_view(data, "jpeg")
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data))))
    assert abs(found.astype(int) - pixels).mean() < 4


@pytest.mark.parametrize("view_format", ["jpeg", "raw"])
def test_what_is_no_view_is_refused(view_format):
    whole = encode_view(pixels_of(32, 32), view_format)
    floats, flat = (
        encode_view(values, "raw") for values in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8))
    )
    for data in (b"", b"x", whole[: len(whole) // 2], floats, flat):
        with pytest.raises(ValueError, match=r".+"):
            decode_view(data, view_format)
