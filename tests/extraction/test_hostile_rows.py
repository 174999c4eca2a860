"""Hostile samples among good ones: each is skipped by name, and no row of the others shifts or changes."""

import io
import json
import struct
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from cache_files import contents
from caches import extract, extraction_options
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from tars import add_member, image

from pipeline.cache.join import read_joined
from pipeline.cache.reader import Cache
from pipeline.views.codec import decode_image, decode_view, encode_view
from pipeline.views.crop import cut_crop, draw_crop
from pipeline.views.source_tars import SourceTar

STEMS = ["{}", "folder.x/{}", "größe {}", "x" * 150 + "{}", "/root/{}", "../{}", "日本 {}"]


def claiming(data, width, height):
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def floats():
    buffer = io.BytesIO()
    Image.fromarray(np.ones((9, 9), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


JPEG = image(0, kind="jpeg")
GOOD = {
    "JPEG": lambda number: {"jpg": image(number, kind="jpeg"), "cls": str(number).encode()},
    "upper case": lambda number: {"JPEG": image(number, kind="grey"), "CLS": str(number).encode()},
    "PNG named jpg": lambda number: {"jpg": image(number, kind="png"), "cls": str(number).encode()},
    "CMYK": lambda number: {"cls": str(number).encode(), "json": b"{}", "jpeg": image(number, kind="cmyk")},
    "no label": lambda number: {"jpg": image(number, kind="jpeg"), "npy": b"x" * 1000},
    "wrong label": lambda number: {"jpg": image(number, kind="jpeg"), "cls": b"dog"},
    "long label": lambda number: {"jpg": image(number, kind="jpeg"), "cls": b"1" * 70_000},
    "point": lambda number: {"png": image(number, 1, 1, "png"), "cls": str(number).encode()},
    "strip": lambda number: {
        "png": image(number, 1, 3000, "png"),
        "cls": str(number).encode(),
        "txt": b"thin",
    },
    "two images": lambda number: {
        "png": b"a mask",
        "jpg": image(number, kind="jpeg"),
        "cls": str(number).encode(),
    },
}
HOSTILE = {
    "cut": ({"jpg": JPEG[:-100], "cls": b"1"}, "cannot be decoded (Premature end of JPEG file)"),
    "empty": ({"jpg": b"", "cls": b"1"}, "cannot be decoded (no image of a known format)"),
    "text": ({"jpg": b"no image", "cls": b"1"}, "cannot be decoded (no image of a known format)"),
    "bomb": (
        {"jpg": claiming(JPEG, 65_500, 65_500)},
        "has 65500 x 65500 pixels, more than the 100000000 that are accepted",
    ),
    "floats": (
        {"tif": floats()},
        "has 32 bits a channel, and their range is not known: at most 16 are accepted",
    ),
    "no image": ({"cls": b"1", "npy": b"x"}, "has no image among its members"),
    "link": (
        {"jpg": None, "cls": b"1"},
        "has a jpg that is a link, device or file with holes: pack whole files (tar --dereference)",
    ),
}
NOISE = {"directory": "d.jpg", "hidden": "d/._x.jpg", "no extension": "README"}
PLANS = st.lists(
    st.tuples(st.sampled_from([*GOOD, *HOSTILE, *NOISE]), st.sampled_from(STEMS)), min_size=3, max_size=14
).filter(lambda plan: any(kind in GOOD for kind, _ in plan))  # fmt: skip


def write(path, plan):
    """Write the tar of a plan of (number, kind, stem)."""
    with tarfile.open(path, "w") as tar:
        for number, kind, stem in plan:
            members = GOOD[kind](number) if kind in GOOD else HOSTILE.get(kind, ({},))[0]
            for extension, data in members.items():
                if data is None:
                    info = tarfile.TarInfo(f"{stem.format(number)}.{extension}")
                    info.type, info.linkname = tarfile.SYMTYPE, "elsewhere.jpg"
                    tar.addfile(info)
                else:
                    add_member(tar, f"{stem.format(number)}.{extension}", data)
            if kind in NOISE:
                info = tarfile.TarInfo(NOISE[kind])
                info.type = tarfile.DIRTYPE if kind == "directory" else tarfile.REGTYPE
                tar.addfile(info)
    return SourceTar(path, path.stat().st_size)


def write_all(folder, plans):
    folder.mkdir()
    return [write(folder / f"some-{place}.tar", plan) for place, plan in enumerate(plans)]


def uncommitted(cache):
    return {
        name: data
        for name, data in contents(cache).items()
        if not name.startswith(("commits/", "units.json", "copies/units.json"))
    }  # which know the tar


def rows_of(cache, commit):
    values = json.loads((cache / "commits" / f"{Path(commit.source).stem}.v00.json").read_text())
    return {key: value for key, value in values.items() if key not in ("skipped", "digest")}


@settings(max_examples=2, phases=[Phase.generate])  # shrinking a failure would take minutes
@given(st.lists(PLANS, min_size=4, max_size=4))
def test_rows_are_those_of_the_good_images_alone(drawn):
    plans = [[(number, *step) for number, step in enumerate(plan)] for plan in drawn]
    good = [[step for step in plan if step[1] in GOOD] for plan in plans]
    with TemporaryDirectory() as folder:
        mixed, clean = Path(folder) / "mixed.cache", Path(folder) / "clean.cache"
        tally, missing = extract(mixed, write_all(Path(folder) / "mixed", plans), views=1, max_bad=1.0)
        extract(clean, write_all(Path(folder) / "clean", good), views=1)
        told = [
            (stem.format(number), HOSTILE[kind][1])
            for plan in plans
            for number, kind, stem in plan
            if kind in HOSTILE
        ]
        assert missing == 0
        assert tally.failed == {}
        assert [(skipped.key, skipped.reason) for skipped in tally.skipped] == told
        assert uncommitted(mixed) == uncommitted(clean)
        for commit, steps in zip(Cache(mixed).commits(), good, strict=True):
            assert rows_of(mixed, commit) == rows_of(clean, commit)
            check_rows(Cache(mixed), commit, steps, extraction_options(cache=mixed, shards=[]).maker().policy)


def check_rows(cache, commit, good, policy):
    """Compare keys, labels and crops with what each good image gives by itself."""
    joined = read_joined(cache, commit, 0, [])
    assert joined.keys == [stem.format(number) for number, _, stem in good]
    assert joined.labels.tolist() == [-1 if "label" in kind else number for number, kind, _ in good]
    for (number, kind, _), key, crop in zip(good, joined.keys, joined.crops, strict=True):
        members = GOOD[kind](number)
        source = decode_image(
            next(members[name] for name in ("jpg", "jpeg", "JPEG", "png") if name in members)
        )
        box = draw_crop(policy, commit.source, key, 0, source.shape[1], source.shape[0])
        assert crop == encode_view(cut_crop(source, box, policy.size), "jpeg")
        assert decode_view(crop, "jpeg").shape == (64, 64, 3)
