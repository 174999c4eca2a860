"""Images of all kinds to pixels, and crops to bytes and back."""

import io

import numpy as np
import pytest
from PIL import Image
from tars import image

from pipeline.views.codec import decode_image, decode_view, encode_view


def pixels_of(width=50, height=40):
    return np.array(Image.open(io.BytesIO(image(0, width, height, "png"))))


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_decodes_exactly_as_by_pillow(subsampling, progressive):
    data = encoded(
        Image.fromarray(pixels_of(53, 41)),
        "JPEG",
        quality=80,
        subsampling=subsampling,
        progressive=progressive,
    )
    np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["grey", "cmyk", "png"])
def test_other_kinds_of_image_become_rgb(kind):
    data = image(1, 33, 21, kind)
    found = decode_image(data)
    assert (found.shape, found.dtype) == ((21, 33, 3), np.uint8)
    by_pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert abs(found.astype(int) - by_pillow).max() <= (
        1 if kind == "cmyk" else 0
    )  # the conversion from CMYK is rounded otherwise


def test_decoded_pixels_can_be_written_to():
    for kind in ("jpeg", "cmyk", "png"):
        decode_image(image(2, kind=kind))[:] = 0


def test_the_orientation_of_exif_is_ignored():
    image = Image.fromarray(pixels_of())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = encoded(image, "JPEG", exif=exif)
    np.testing.assert_array_equal(decode_image(turned), decode_image(encoded(image, "JPEG")))


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
