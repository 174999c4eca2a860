"""Images of all kinds to pixels, and crops to bytes and back."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tars import image

from pipeline.errors import SourceError
from pipeline.views.codec import MAX_PIXELS, decode_image, decode_view, encode_view
from pipeline.views.crop import resize_crop


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


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF"])
def test_other_forms_are_decoded(form):
    image = Image.fromarray(pixels_of())
    assert decode_image(encoded(image, form)).shape == (40, 50, 3)


def test_decoded_pixels_can_be_written_to():
    for kind in ("jpeg", "cmyk", "png"):
        decode_image(image(2, kind=kind))[:] = 0


def test_the_orientation_of_exif_is_ignored():
    image = Image.fromarray(pixels_of())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = encoded(image, "JPEG", exif=exif)
    np.testing.assert_array_equal(decode_image(turned), decode_image(encoded(image, "JPEG")))


@pytest.mark.parametrize("kind", ["jpeg", "grey", "cmyk", "png"])
def test_a_truncated_image_is_refused(kind):
    data = image(0, kind=kind)
    for cut in (0, 1, 2, 20, len(data) // 2, len(data) - (200 if kind == "png" else 20)):
        with pytest.raises(SourceError, match="cannot be decoded"):
            decode_image(data[:cut])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
def test_a_damaged_image_is_decoded_or_refused(form):
    data, rng, refused = encoded(Image.fromarray(pixels_of()), form), np.random.default_rng(0), 0
    for _ in range(60):
        bad = bytearray(data)
        bad[rng.integers(min(len(bad), 400))] = rng.integers(256)
        try:
            assert decode_image(bytes(bad)).dtype == np.uint8
        except SourceError:
            refused += 1
    assert refused


def png_of_size(width, height):
    """A PNG that ends where its pixels should begin."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT")
    )


def _chunk(content):
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def jpeg_of_size(width, height):
    """A small JPEG whose header says another size."""
    data = bytearray(image(0, kind="jpeg"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data", [jpeg_of_size(20_000, 20_000), png_of_size(12_000, 12_000)], ids=["JPEG", "PNG"]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_unopened(data):
    assert len(data) < 20_000
    with pytest.raises(SourceError, match=rf"more than the {MAX_PIXELS} that are accepted"):
        decode_image(data)


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


def test_resizing_keeps_a_image_of_the_right_size_and_flat_colours():
    pixels = pixels_of(32, 32)
    np.testing.assert_array_equal(resize_crop(pixels, 32), pixels)
    flat = np.full((7, 100, 3), (3, 200, 77), np.uint8)
    np.testing.assert_array_equal(resize_crop(flat, 16), np.full((16, 16, 3), (3, 200, 77)))
