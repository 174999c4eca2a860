"""What a batch joins belongs together: pixels and targets are those under one key."""

import caches
import numpy as np
import pytest
from stored_samples import KEYS, republish, stored_samples
from stream_parts import read_batches
from tars import image, write_tar

from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.reader import Cache
from pipeline.errors import CacheError
from pipeline.views.codec import encode_view
from pipeline.views.source_tars import SourceTar

UNIT_0 = r"unit 0 \(train-0000\.tar, view 0\)"


def patches_of(crop, size=16):
    """Cut all patches (N, P) by hand, rows of the grid first."""
    corners = [(top, left) for top in range(0, len(crop), size) for left in range(0, crop.shape[1], size)]
    return np.stack([crop[top : top + size, left : left + size].reshape(-1) for top, left in corners])


def check_batches(batches, stored, levels, prefix):
    """Compare every sample of some batches with the cache; returns the keys.

    A sample's key is the only one whose crop has its pixels at its patches.
    """
    keys, names, crops = [], list(stored), np.stack([patches_of(one.crop) for one in stored.values()])
    for batch in batches:
        for row, visible in enumerate(batch["visible"].numpy()):
            same = (crops[:, visible] == batch["patches"][row].numpy()).all(axis=(1, 2))
            (place,) = np.flatnonzero(same)
            keys.append(names[place])
            sample, tokens = stored[keys[-1]], [*range(prefix), *(visible + prefix)]
            assert np.array_equal(batch["visible_codes"][row].numpy(), sample.codes[list(levels)][:, tokens])
            assert np.array_equal(batch["visible_stats"][row].numpy(), sample.stats[list(levels)][:, tokens])
    return keys


@pytest.mark.parametrize(("levels", "views"), [((0, 1, 2), (0, 1)), ((2,), (1,)), ((1, 0), (1, 0))])
def test_pixels_and_targets_of_a_batch_are_of_one_key(small_cache_path, levels, views):
    batches = read_batches(small_cache_path, 14, levels=levels, views=views, batch_size=20)
    for epoch in range(2):
        stored = stored_samples(small_cache_path, views[epoch % len(views)])
        keys = check_batches(batches[7 * epoch : 7 * (epoch + 1)], stored, levels, prefix=1)
        assert sorted(keys) == sorted(stored)


def test_no_cls_raw_crops_and_missing_labels(tmp_path):
    images = {f"a/{number}": image(number) for number in range(6)}
    tar = write_tar(tmp_path / "some.tar", images, labels={"a/1": 700})
    teacher = {"teacher": "timm:test_vit3.random", "encoding": "float16", "view_format": "raw"}
    path = caches.real(tmp_path, shards=[SourceTar(tar, tar.stat().st_size)], views=1, **teacher)
    batches = read_batches(path, 1, views=(0,), batch_size=6)
    cache = Cache(path)
    width = cache.schema.teacher.width
    assert batches[0]["visible_codes"].shape == (6, 3, 8, width)
    assert batches[0]["visible_stats"].shape == (6, 3, 8, 2)
    keys = check_batches(batches, stored_samples(path, 0), (0, 1, 2), prefix=0)
    assert sorted(keys) == sorted(images)
    joined = read_joined(cache, next(cache.commits()), 0, [])
    assert dict(zip(joined.keys, joined.labels.tolist(), strict=True)) == {
        key: 700 if key == "a/1" else -1 for key in images
    }


def read_epoch(path):
    """Read an epoch of view 0, whole."""
    return read_batches(path, 7, views=(0,), batch_size=20)


def test_a_changed_key_is_refused(cache_copy):
    tar = cache_copy / "views/train-0000.v00.tar"
    data = tar.read_bytes()
    assert data.count(b"000065.jpg") == 1
    tar.write_bytes(data.replace(b"000065.jpg", b"000066.jpg"))
    message = UNIT_0 + ", row 65: the sample's bytes in the view tar do not match their checksum: inspect"
    with pytest.raises(CacheError, match=message):
        read_epoch(cache_copy)


def test_a_unit_republished_with_its_own_keys_is_read(cache_copy):
    republish(cache_copy)
    assert len(read_epoch(cache_copy)) == 7


def test_crops_in_another_order_are_refused(cache_copy):
    republish(cache_copy, [*KEYS[:20], KEYS[21], KEYS[20], *KEYS[22:]])
    with pytest.raises(
        CacheError,
        match=UNIT_0
        + ", row 20: crop '000021' does not belong to the target beside it: inspect-cache verify",
    ):
        read_epoch(cache_copy)


def leave_a_gap(arrays):
    arrays["index"][30, 1] += 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"change": leave_a_gap}, UNIT_0 + ", row 0: the samples do not follow one another in the view tar"),
        (
            {
                "keys": [*KEYS[:21], f"{KEYS[20]}.b", *KEYS[22:]]
            },  # a key with a dot: a member of the sample before
            UNIT_0 + r", row 21: the view tar cannot be parsed \(1 samples, .* 'jpg', in the place of one\)",
        ),
        ({"view_format": "raw"}, UNIT_0 + r", row 64: the view tar cannot be parsed \(1 samples, or none"),
        ({"spoilt": 33}, r"the crop of '000033' in cache '.*copy\.cache' cannot be decoded \(.+\): extract"),
    ],
)
def test_a_wrong_sample_with_right_checksums_is_named(cache_copy, changes, message):
    republish(cache_copy, **changes)
    with pytest.raises(CacheError, match=message):
        read_epoch(cache_copy)


def test_a_crop_of_another_size_is_refused(small_cache_path):
    crop = encode_view(np.zeros((48, 64, 3), np.uint8), "jpeg")
    told = r"the crop of 'a' in cache .* cannot be decoded \(it is 64 x 48, not 64 x 64\): extract"
    with pytest.raises(CacheError, match=told):
        decode_crop(Cache(small_cache_path), crop, "a")
