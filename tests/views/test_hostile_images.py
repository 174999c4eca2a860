"""Odd, damaged and hostile images: the right pixels or one sentence, never a part or a warning."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from fuzzing import encoded, fuzz, memory
from PIL import Image

from pipeline.errors import SourceError
from pipeline.views.codec import decode_image
from pipeline.views.crop import CropPolicy, cut_crop, draw_crop

HEIGHT, WIDTH = 16, 24
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
SMOOTH = np.stack([COLUMNS * 10, ROWS * 15, (ROWS + COLUMNS) * 6], -1).astype(np.uint8)
GREY16 = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
END = b"\xff\xd9"


def saved(image, form, **options):
    return encoded(image if isinstance(image, Image.Image) else Image.fromarray(image), form, options)


def png(depth, colour, raw_rows, extra=b""):
    """A PNG from its bytes: `raw_rows` are (H, bytes a row)."""
    lines = b"".join(b"\0" + row.tobytes() for row in raw_rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def test_sixteen_bits_of_grey_keep_their_tones():
    big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), GREY16.astype(">u2").tobytes())
    for data in (*(saved(GREY16, form) for form in ("PNG", "TIFF", "PPM")), saved(big_endian, "TIFF")):
        np.testing.assert_array_equal(decode_image(data), as_rgb((GREY16 >> 8).astype(np.uint8)))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)], ids=["RGB", "RGBA", "LA"])
def test_sixteen_bits_a_channel_become_their_upper_eight(colour, channels):
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    expected = (values >> 8).astype(np.uint8)
    expected = expected[..., :3] if channels > 2 else as_rgb(expected[..., 0])
    np.testing.assert_array_equal(decode_image(png(16, colour, values.astype(">u2"))), expected)


@pytest.mark.parametrize("values", [GREY16.astype(np.float32), GREY16.astype(np.int32)], ids=["float", "int"])
def test_thirty_two_bits_a_channel_are_refused(values):
    message = r"has 32 bits a channel, and their range is not known: at most 16 are accepted"
    with pytest.raises(SourceError, match=message):
        decode_image(saved(values, "TIFF"))


def test_alpha_is_ignored_and_hidden_colours_show():
    pixels = np.dstack([SMOOTH, COLUMNS * 9]).astype(np.uint8)
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        np.testing.assert_array_equal(decode_image(saved(pixels, form, **options)), SMOOTH)
    grey = Image.fromarray(pixels[..., [0, 3]], "LA")
    np.testing.assert_array_equal(decode_image(saved(grey, "PNG")), as_rgb(pixels[..., 0]))


@pytest.mark.parametrize(
    "transparency", [None, 3, bytes(range(256))], ids=["none", "one colour", "of each colour"]
)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_gives_its_colours_whatever_is_transparent(bits, transparency):
    places = ((ROWS + COLUMNS) % 2**bits).astype(np.uint8)
    colours = np.random.default_rng(0).integers(0, 256, (2**bits, 3)).astype(np.uint8)
    image = Image.fromarray(places, "P")
    image.putpalette(colours.tobytes())
    transparency = transparency[: 2**bits] if isinstance(transparency, bytes) else transparency
    data = saved(image, "PNG", bits=bits, **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(decode_image(data), colours[places])


def test_black_and_white_in_one_bit():
    values = (ROWS + COLUMNS) % 2 == 0
    np.testing.assert_array_equal(
        decode_image(saved(Image.fromarray(values), "PNG")), as_rgb(values * np.uint8(255))
    )


@pytest.mark.parametrize(
    ("form", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})]
)
def test_of_an_animation_or_several_pages_the_first_is_taken(form, options):
    frames = [
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), colour, np.uint8))
        for colour in ((250, 10, 30), (0, 200, 100), (9, 9, 9))
    ]
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode_image(data), np.array(frames[0]))


def test_inks_of_cmyk_become_light():
    inks = np.array([40, 80, 120, 20])
    found = decode_image(saved(Image.new("CMYK", (WIDTH, HEIGHT), tuple(inks.tolist())), "JPEG", quality=95))
    assert abs(found - (255 - inks[:3]) * (255 - inks[3]) / 255).max() <= 3


def test_ycck_is_told_from_cmyk():
    inks = np.array([40.0, 80.0, 120.0, 20.0])
    data = bytearray(saved(Image.new("CMYK", (WIDTH, HEIGHT), (40, 80, 120, 20)), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    luma, blue, red = 255 - inks[:3]
    turned = np.array(
        [
            luma + 1.402 * (red - 128),
            luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
            luma + 1.772 * (blue - 128),
        ]
    )
    assert abs(decode_image(bytes(data)) - (255 - turned.clip(0, 255)) * (255 - inks[3]) / 255).max() <= 3


def jpegs():
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    exif[0x0112] = 6
    plain = saved(SMOOTH, "JPEG", quality=95)
    return {
        "plain": plain,
        "progressive": saved(SMOOTH, "JPEG", quality=95, progressive=True),
        "restart markers": saved(SMOOTH, "JPEG", quality=95, restart_marker_blocks=1),
        "grey": saved(Image.fromarray(SMOOTH).convert("L"), "JPEG", quality=95),
        "4:1:1": simplejpeg.encode_jpeg(SMOOTH, 95, colorspace="RGB", colorsubsampling="411"),
        "4:4:0": simplejpeg.encode_jpeg(SMOOTH, 95, colorspace="RGB", colorsubsampling="440"),
        "huge EXIF": saved(SMOOTH, "JPEG", quality=95, exif=exif),
        "bytes after the end": plain + b"garbage" * 1000,
        "an image after the end": plain + saved(255 - SMOOTH, "JPEG"),
        "a few bytes before the end": plain[:-2] + b"abc" + END,
        "many bytes before the end": plain[:-2] + b"camera" * 200 + END,
        "zeros before the end": plain[:-2] + bytes(1000) + END,
        "many before a progressive end": saved(SMOOTH, "JPEG", quality=95, progressive=True)[:-2]
        + b"xyz" * 99
        + END,
    }


@pytest.mark.parametrize("kind", jpegs())
def test_every_kind_of_jpeg_is_decoded(kind):
    data = jpegs()[kind]
    expected = as_rgb(SMOOTH @ [0.299, 0.587, 0.114]) if kind == "grey" else SMOOTH
    assert abs(decode_image(data) - expected.astype(float)).mean() < (12 if ":" in kind else 6)
    np.testing.assert_array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_twelve_bits_in_a_jpeg_are_refused_by_that_name():
    data = jpegs()["plain"].replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c")
    with pytest.raises(SourceError, match=r"^cannot be decoded \(Unsupported JPEG data precision 12\)$"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["plain", "progressive", "restart markers", "grey"])
@pytest.mark.parametrize(
    "ending", [b"", END, bytes(500), bytes(500) + END], ids=["cut", "end put on", "zeros", "zeros, end"]
)
def test_a_jpeg_that_is_cut_is_never_decoded_in_part(kind, ending):
    data = jpegs()[kind]
    whole = decode_image(data)
    between_scans = ending.endswith(END) and kind == "progressive"  # where it is a whole file of fewer scans
    for cut in range(0, len(data) - 2, max(1, len(data) // 60)):
        try:
            found = decode_image(data[:cut] + ending)
        except SourceError:
            continue
        assert np.array_equal(found, whole) or (between_scans and b"\xff\xda" in data[cut - 1 : cut + 30])


NOISE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
JPEG_OPTIONS = {"plain": {}, "progressive": {"progressive": True}, "own codes": {"optimize": True}}


def junk(count):
    return np.random.default_rng(count).integers(1, 250, count, dtype=np.uint8).tobytes()


@pytest.mark.parametrize("count", [1, 2, 7, 50, 99, 100, 102, 258, 1041, 2230])
@pytest.mark.parametrize("kind", JPEG_OPTIONS)
def test_a_whole_jpeg_with_junk_before_its_end_is_decoded(kind, count):
    data = saved(NOISE, "JPEG", quality=95, **JPEG_OPTIONS[kind])
    whole = decode_image(data)
    for dirt in (junk(count), bytes(count)):
        np.testing.assert_array_equal(decode_image(data[:-2] + dirt + END), whole)
        np.testing.assert_array_equal(decode_image(data[:-2] + dirt + END + b"abc" + END + b"xyz"), whole)
        np.testing.assert_array_equal(decode_image(data[:20] + dirt + data[20:-2] + dirt + END), whole)


@pytest.mark.parametrize("kind", JPEG_OPTIONS)
def test_a_jpeg_that_is_cut_is_refused_whatever_fills_it_up(kind):
    data = saved(NOISE, "JPEG", quality=95, **JPEG_OPTIONS[kind])
    scan = data.index(b"\xff\xda")
    accepted = 0
    for cut in range(data.rindex(b"\xff\xda") + 20, len(data) - 50, (len(data) - scan) // 40):
        begin = data[:cut]
        for damaged in (
            begin + bytes(3000) + END,
            begin + bytes(3000) + b"\x37" + END,
            begin + bytes(3000) + END + b"abc" + END + b"xyz",
            begin[:scan] + b"abc" + begin[scan:] + END,
            begin[:scan] + b"abc" + begin[scan:] + bytes(3000) + END,
        ):
            with pytest.raises(SourceError, match=r"cannot be decoded"):
                decode_image(damaged)
        try:
            decode_image(begin + junk(len(data) - cut + 500) + END)
        except SourceError:
            continue
        accepted += 1
    assert accepted <= 20  # of 40: random bits that end in ones are like those of pixels


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_file_that_is_cut_is_never_decoded_in_part(form, options, capfd):
    data = saved(SMOOTH, form, **options)
    whole, refused = decode_image(data), 0
    for cut in range(0, len(data), max(1, len(data) // 60)):
        try:
            np.testing.assert_array_equal(decode_image(data[:cut]), whole)
        except SourceError:
            refused += 1
    assert refused > 30
    assert capfd.readouterr() == ("", "")


def test_what_libtiff_would_print_is_not_printed(capfd):
    data = bytearray(saved(SMOOTH, "TIFF", compression="tiff_lzw"))
    data[8:60] = bytes(52)
    with pytest.raises(SourceError, match=r"cannot be decoded"):
        decode_image(bytes(data))
    assert capfd.readouterr() == ("", "")


def jpeg_of_size(width, height, **options):
    data = bytearray(saved(SMOOTH, "JPEG", **options))
    place = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def png_of_size(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b"")
    )


def gif_of_size(width, height):
    data = bytearray(saved(SMOOTH, "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_of_size(side):
    data = bytearray(saved(SMOOTH, "WEBP"))
    place = data.index(b"\x9d\x01\x2a") + 3
    data[place : place + 4] = struct.pack("<HH", side, side)
    return bytes(data)


def tiff_of_size(side, tile=None):
    """A TIFF of one deflated strip or tile of nothing."""
    pixels = zlib.compress(bytes(100_000))
    where = [(324, 0), (325, len(pixels))] if tile else [(273, 0), (279, len(pixels)), (278, side)]
    entries = [
        (256, side),
        (257, side),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        *where,
        *([(322, tile), (323, tile)] if tile else []),
    ]
    begin = 8 + 2 + 12 * len(entries) + 4
    packed = (
        struct.pack("<HHII", tag, 4, 1, begin if tag in (273, 324) else value)
        for tag, value in sorted(entries)
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(packed) + bytes(4) + pixels


BOMBS = {
    "JPEG": jpeg_of_size(65_500, 65_500),
    "progressive JPEG": jpeg_of_size(65_500, 65_500, progressive=True),
    "PNG": png_of_size(30_000, 30_000),
    "PNG below Pillow's limit": png_of_size(11_000, 11_000),
    "GIF": gif_of_size(65_535, 65_535),
    "WEBP": webp_of_size(16_383),
    "TIFF": tiff_of_size(2_000_000),
    "TIFF tile": tiff_of_size(100, 30_000),
    "BMP": b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "PPM": b"P6 50000 50000 255\n" + bytes(1000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_unopened(kind, capfd):
    assert len(BOMBS[kind]) < 100_000
    with (
        memory(64 * 2**20),
        pytest.raises(
            SourceError, match=r"more than the 100000000 that are accepted|cannot be decoded \(OSError"
        ),
    ):
        decode_image(BOMBS[kind])
    assert capfd.readouterr() == ("", "")


def test_the_limit_is_ours_alone():
    with pytest.raises(
        SourceError, match=r"cannot be decoded \(OSError"
    ):  # for it is short of pixels; Pillow would warn of its size
        decode_image(png_of_size(9_900, 9_900))


def test_a_jpeg_of_thousands_of_scans_is_refused():
    data = jpeg_of_size(9_000, 9_000, progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(SourceError, match=r"has more than the 1000 scans that are accepted of a JPEG"):
        decode_image(data[:-2] + scan * 1000 + END)


def test_a_text_or_profile_that_swells_is_refused():
    swelling, message = zlib.compress(bytes(100_000_000)), r"\(ValueError: Decompressed data too large"
    for name in (b"zTXt", b"iCCP"):
        with memory(64 * 2**20), pytest.raises(SourceError, match=message):
            decode_image(png(8, 2, SMOOTH, chunk(name, b"a\0\0" + swelling)))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height"), [(30_000, 1), (1, 30_000), (1, 1)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (1.0, 1.0)])
def test_strips_and_points_are_accepted(form, width, height, scale):
    data = saved(Image.new("RGB", (width, height), (10, 200, 60)), form)
    with memory(128 * 2**20):
        pixels = decode_image(data)
        crop = cut_crop(
            pixels, draw_crop(CropPolicy(64, scale, 0.5, 0), "a.tar", "key", 0, width, height), 64
        )
    assert pixels.shape == (height, width, 3)
    assert abs(crop.astype(int) - (10, 200, 60)).max() <= 2


@pytest.mark.parametrize("seed", range(3))
def test_damage_has_no_other_outcome_than_samples_pixels_and_reasons(seed, tmp_path, capfd):
    outcomes = fuzz(np.random.default_rng(seed), tmp_path, lambda case: case < 450)
    assert sum(outcomes.values()) == 450
    assert set(outcomes) == {"image decoded", "image refused", "tar read", "tar refused"}
    assert capfd.readouterr() == ("", "")
