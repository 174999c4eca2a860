"""Read by the example of cache_schema.md alone, a small real cache has what the teacher computed."""

import hashlib
import io
import json
import tarfile
from functools import cache

import numpy as np
import pytest
import torch
import zarr
from cache_document import DOCUMENT, example
from caches import IMAGE_SIZE, PATCH_SIZE, TEACHER
from crc32c_reference import crc32c
from PIL import Image

from pipeline.teacher.load import load_teacher

READ_UNIT = example(DOCUMENT.read_text(encoding="utf-8"))["read_unit"]
UNITS = 2  # of each cache: one tar in two views


@pytest.fixture
def made(every_kind):
    """(path of a cache, its teacher)."""
    return every_kind.path, every_kind.options.get("teacher", TEACHER)


def group_of(path):
    return zarr.open_group(path / "targets.zarr", mode="r")


def schema_of(path):
    return group_of(path).attrs["maskalign_cache"]


def crop_of(sample):
    name, data = next((name, data) for name, data in sample.items() if name.endswith((".jpg", ".npy")))
    pixels = np.load(io.BytesIO(data)) if name.endswith(".npy") else np.asarray(Image.open(io.BytesIO(data)))
    return name[: -len(".jpg")], pixels


@cache
def recomputed(path, spec, number):
    """The teacher's features of the crops of a unit, computed in the extraction's batches of 8."""
    schema = schema_of(path)
    unit = READ_UNIT(path, number, schema["levels"][0])
    teacher = load_teacher(
        spec, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, levels=",".join(map(str, schema["levels"])) + ","
    )
    pixels = np.stack([crop_of(sample)[1] for sample in unit["samples"]])
    padded = np.concatenate([pixels, np.zeros((-len(pixels) % 2, *pixels.shape[1:]), np.uint8)])
    batches = [
        teacher.features(torch.from_numpy(padded[start : start + 8])) for start in range(0, len(padded), 8)
    ]
    hidden = [
        torch.cat(parts)[: len(pixels)].numpy()
        for parts in zip(*(batch.hidden for batch in batches), strict=True)
    ]
    importance = (
        None
        if batches[0].importance is None
        else torch.cat([batch.importance for batch in batches])[: len(pixels)].numpy()
    )
    return hidden, importance


def stored_tokens(hidden, tokens, schema):
    """The hidden states (n, T, D) of those of all tokens whose patches `tokens` (n, T) names, -1 for CLS."""
    return hidden[np.arange(len(hidden))[:, None], tokens + schema["teacher"]["has_cls"]]


def whitened(hidden):
    """LayerNorm without affine by torch itself."""
    return torch.nn.functional.layer_norm(torch.from_numpy(hidden), hidden.shape[-1:], eps=1e-5).numpy()


def test_features_are_within_the_stated_bound(made):
    path, spec = made
    schema, group = schema_of(path), group_of(path)
    for number in range(UNITS):
        hidden, _ = recomputed(path, spec, number)
        for place, level in enumerate(schema["levels"]):
            read = READ_UNIT(path, number, level)
            states = stored_tokens(hidden[place], read["tokens"], schema)
            true = whitened(states)
            rounding = 2.0**-20 * (abs(true) + abs(group["channel_mean"][place]))
            offset = states.mean(-1, keepdims=True) / (states.std(-1, keepdims=True) + 1e-9)
            rounding += 2.0**-22 * (1 + abs(offset))  # torch adds up in another order than the extraction
            assert read["whitened"].shape == true.shape
            assert (abs(read["whitened"] - true) <= read["bound"] + rounding).all()
            assert (
                abs(read["hidden"] - states).max()
                <= (0.2 if schema["encoding"] == "int4" else 0.02) * abs(states).max()
            )


def test_stored_tokens_are_the_first_of_the_ranking(made):
    path, _ = made
    schema, group = schema_of(path), group_of(path)
    assert ("tokens" in group) == (schema["keep"] < 1)
    listed = json.loads((path / "units.json").read_text())["units"]
    for number in range(UNITS if "tokens" in group else 0):
        read = READ_UNIT(path, number, schema["levels"][0])
        for row, sample in enumerate(read["samples"]):
            key = crop_of(sample)[0]
            unit = listed[number]
            text = repr((schema["view"]["seed"], "rank", unit["source"], key, unit["view"]))
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
            arrivals = np.random.Generator(np.random.Philox(key=seed)).standard_exponential(16)
            if schema["keep_rank"] == "attention":
                arrivals /= np.maximum(
                    group["attention"][listed[number]["first_row"] + row].astype(np.float64), 1e-300
                )
            stored = read["tokens"][row, schema["teacher"]["has_cls"] :]
            assert stored.tolist() == np.argsort(arrivals)[: {0.5: 8, 0.3: 4}[schema["keep"]]].tolist()


def test_importance_is_what_the_teacher_says(made):
    path, spec = made
    schema, group = schema_of(path), group_of(path)
    assert ("attention" in group) == schema["teacher"]["has_importance"] == (spec == TEACHER)
    for number in range(UNITS if "attention" in group else 0):
        _, importance = recomputed(path, spec, number)
        start = number * schema["unit_rows"]
        np.testing.assert_array_equal(group["attention"][start : start + len(importance)], importance)


def test_keys_labels_and_boxes_belong_together(made):
    path, _ = made
    schema, group, seen, boxes = schema_of(path), group_of(path), [], []
    for number, unit in enumerate(json.loads((path / "units.json").read_text())["units"]):
        read, start = READ_UNIT(path, number, schema["levels"][0]), number * schema["unit_rows"]
        sources = source_images(path, unit["source"])
        index, view = (group[name][start : start + len(sources)].tolist() for name in ("index", "view"))
        for sample, (key_hash, _, _, _, label), box in zip(read["samples"], index, view, strict=True):
            key, pixels = crop_of(sample)
            assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
            assert key_hash == int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
            assert int(sample[f"{key}.cls"]) == label == int(key) % 4
            left, top, width, height, flip, *size = box
            assert (size, flip in (0, 1)) == (list(sources[key].size), True)
            assert (
                correlation(cut(sources[key], (left, top, left + width, top + height), flip), pixels) > 0.98
            )
            seen.append((key, unit["view"]))
            boxes.append((key, *box))
    assert len(seen) == len(set(seen)) == len(set(boxes)) == len(sources) * UNITS


def source_images(path, name):
    with tarfile.open(path.parent / "tars" / name) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    return {
        name.removesuffix(".jpg"): Image.open(io.BytesIO(data))
        for name, data in members.items()
        if name.endswith(".jpg")
    }


def cut(image, box, flip):
    """The crop as Pillow makes it: the same place, but for the resizer's rounding."""
    crop = np.asarray(
        image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box=box)
    )
    return crop[:, ::-1] if flip else crop


def correlation(one, other):
    return np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1]


def test_digests_and_checksums_are_those_of_the_document(made):
    path, _ = made
    schema, group = schema_of(path), group_of(path)
    assert group.attrs["digest"] == digest(schema)
    calibration = group["channel_mean"][:].tobytes() + group["channel_std"][:].tobytes()
    assert schema["calibration"]["sha256"] == hashlib.sha256(calibration).hexdigest()
    output = b"".join(group[name][:].tobytes() for name in ("post_norm", "projection") if name in group)
    assert schema["teacher"]["output_sha256"] == hashlib.sha256(output).hexdigest()
    listed = json.loads((path / "units.json").read_text())
    assert (listed["digest"], listed["rows_per_unit"]) == (digest(listed), schema["unit_rows"])
    commits = [json.loads(file.read_text()) for file in (path / "commits").iterdir()]
    assert sorted(commit["unit"] for commit in commits) == [unit["unit"] for unit in listed["units"]]
    assert (path / "copies/units.json").read_bytes() == (path / "units.json").read_bytes()
    assert (path / "copies/zarr.json").read_bytes() == (path / "targets.zarr/zarr.json").read_bytes()
    for commit in commits:
        assert (commit["digest"], commit["schema_digest"]) == (digest(commit), group.attrs["digest"])
        for name, record in commit["files"].items():
            data = (path / name).read_bytes()
            assert (record["size"], record["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def digest(values):
    text = json.dumps(
        {key: value for key, value in values.items() if key != "digest"},
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(text.encode()).hexdigest()


def test_chunk_checksums_are_of_decoded_values(made):
    path, _ = made
    schema, group = schema_of(path), group_of(path)
    for unit in json.loads((path / "units.json").read_text())["units"]:
        stem = f"{unit['source'].removesuffix('.tar')}.v{unit['view']:02d}"
        commit = json.loads((path / "commits" / f"{stem}.json").read_text())
        blocks = -(-commit["rows"] // schema["block_rows"])
        for name in ("index", "view"):
            starts = [unit["first_row"] + block * schema["block_rows"] for block in range(blocks)]
            assert commit["blocks"][name] == [
                crc32c(group[name][start : start + schema["block_rows"]].tobytes()) for start in starts
            ]
        view_tar = (path / "views" / f"{stem}.tar").read_bytes()
        for offset, length, crc in group["index"][unit["first_row"] :][:3, 1:4].tolist():
            assert crc == crc32c(view_tar[offset : offset + length])
        assert not group["index"][
            unit["first_row"] + commit["rows"] : unit["first_row"] + schema["unit_rows"]
        ].any()
