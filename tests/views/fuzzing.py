"""Random damage to images and tars, which gives pixels or samples, or a SourceError in one sentence.

For minutes instead of the suite's moment: PYTHONPATH=. python tests/views/fuzzing.py SECONDS SEED
"""

import io
import re
import resource
import sys
import tarfile
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from pipeline.errors import SourceError
from pipeline.views.codec import decode_image
from pipeline.views.sample import label_of
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar

MEMORY_BYTES = 3 * 2**30  # above what the process has when it starts to fuzz
NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x01\x00\x00", b"7777")
SECONDS = 60  # of one case: a header may ask for 100 million pixels


@contextmanager
def memory(more):
    """Let the process take no more than `more` bytes of address space on top of what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def images():
    """Small valid images of many kinds."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (24, 40, 3)).astype(np.uint8))
    grey = Image.fromarray((np.arange(960) * 68).astype(np.uint16).reshape(24, 40))
    kinds = [
        (rgb, "JPEG", {"quality": 90}),
        (rgb, "JPEG", {"progressive": True, "subsampling": 0}),
        (rgb, "JPEG", {"restart_marker_blocks": 2}),
        (rgb.convert("L"), "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {}),
        (grey, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": bytes(range(256))}),
        (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        (rgb, "WEBP", {}),
        (rgb, "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(180)]}),
        (rgb, "BMP", {}),
        (rgb, "PPM", {}),
        (grey, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw", "save_all": True, "append_images": [rgb]}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (rgb, "TIFF", {"compression": "tiff_deflate"}),
    ]
    return [encoded(*kind) for kind in kinds]


def encoded(image, form, options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tars():
    """Small valid tars: plain, with long names of both kinds, with links, labels and other members."""
    return [
        _tar(form, long)
        for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
        for long in (False, True)
    ]


def _tar(form, long):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for number in range(4):
            stem = f"{'folder/' * 20 * long}{number}"
            for extension, size in (("jpg", 700), ("cls", 1), ("json", 30), ("npy", 600)):
                info = tarfile.TarInfo(f"{stem}.{extension}")
                info.size = size
                tar.addfile(info, io.BytesIO(b"%d" % number * size))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
        tar.addfile(link)
    return buffer.getvalue()


def damaged(data, others, rng):
    """Return `data` with one to four random wounds."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        most = min(len(data), 700) if rng.random() < 0.5 else len(data)  # headers are at the front
        start, length = int(rng.integers(most)), int(rng.integers(1, 64))
        other = others[int(rng.integers(len(others)))]
        wounds = (  # how many bytes go, and what comes in their place
            (1, bytes([data[start] ^ 1 << int(rng.integers(8))])),
            (1, bytes([int(rng.choice([0, 1, 127, 128, 255]))])),
            (4, NUMBERS[int(rng.integers(len(NUMBERS)))]),
            (length, b""),
            (0, rng.bytes(length)),
            (0, data[start : start + length * 16]),
            (len(data), b""),
            (len(data), other[int(rng.integers(len(other))) :]),
        )
        removed, added = wounds[int(rng.integers(len(wounds)))]
        data[start : start + removed] = added
    return bytes(data)


def mended(tar):
    """Return a tar whose headers have right checksums again, so that damage to them is not stopped there."""
    data = bytearray(tar)
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


def _told(what, error):
    assert not re.search(r"\n| at 0x", str(error)), error
    return f"{what} refused"


def try_image(data):
    """Return what became of an image; raises whatever may not be."""
    try:
        pixels = decode_image(data)
    except SourceError as error:
        return _told("image", error)
    assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)
    assert pixels.size > 0
    assert pixels.flags.writeable
    return "image decoded"


def try_tar(data, path):
    """Return what became of a tar; raises whatever may not be."""
    path.write_bytes(data)
    keys = []
    try:
        for sample in read_samples(SourceTar(path, len(data))):
            keys.append(sample.key)
            sample.key.encode()
            label_of(sample)
    except SourceError as error:
        return _told("tar", error)
    assert len(keys) == len(set(keys))
    return "tar read"


def fuzz(rng, folder, goes_on):
    """Try damaged images and tars in turn while `goes_on(cases)`; return how often each outcome came."""
    sound, outcomes, case = (images(), tars()), Counter(), 0
    with memory(MEMORY_BYTES), warnings.catch_warnings(action="error"):
        while goes_on(case):
            kind = case % 3 == 0
            data = damaged(sound[kind][int(rng.integers(len(sound[kind])))], sound[kind], rng)
            if kind and rng.random() < 0.7:
                data = mended(data)
            (folder / "case").write_bytes(data)
            begin = time.monotonic()
            outcomes[try_tar(data, folder / "some.tar") if kind else try_image(data)] += 1
            assert time.monotonic() - begin < SECONDS
            case += 1
    return outcomes


def main(seconds, seed):
    """Fuzz for some seconds; a case that fails is kept."""
    end = time.monotonic() + seconds
    with TemporaryDirectory() as folder:
        try:
            print(dict(fuzz(np.random.default_rng(seed), Path(folder), lambda _: time.monotonic() < end)))
        except BaseException:
            kept = Path(f"fuzz-{seed}.bin")
            kept.write_bytes((Path(folder) / "case").read_bytes())
            print(f"the case that failed is in {kept}")
            raise


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
