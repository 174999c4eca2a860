"""Bad images, tars and teachers, full disks, dead workers: what is reported and what heals it."""

import errno
import io
import json
import multiprocessing
import os
import resource
import threading
import time
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from cache_files import changed, contents
from caches import extract, extraction_options
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from tars import image, make_tars, source_tar, write_tar

from pipeline.cache import writer
from pipeline.cache.encoding import encode_level
from pipeline.cache.reader import Cache
from pipeline.cache.schema import ENCODINGS
from pipeline.cache.shards import ShardWriter
from pipeline.errors import CacheError, MaskAlignError
from pipeline.extraction.encode import FeatureEncoder, refuse_features
from pipeline.extraction.extractor import Extractor
from pipeline.extraction.job import build_teacher, prepare_cache
from pipeline.extraction.origin import FromTars
from pipeline.storage.files import locked
from pipeline.views.crop import draw_crop
from pipeline.views.decoder import Decoder
from pipeline.views.sample import NO_LABEL, SkippedImage
from pipeline.views.source_tars import SourceTar


def tar_of(path, *contents, **members):
    return source_tar(write_tar(path, *contents, **members))


def good(count):
    return {f"{number:06d}": image(number) for number in range(count)}


def spoilt(bad, total=12):
    """Return images of which the first few after one good one are no images."""
    return good(total) | {f"{number:06d}": b"no image" for number in range(1, bad + 1)}


def test_a_bad_image_is_skipped_and_shifts_no_row(tmp_path):
    """A cut JPEG and a sample without an image; a label that is not a number costs no image."""
    images = good(12)
    images["000001"] = images["000001"][:400]
    labels = {key: number for number, key in enumerate(images)} | {"000006": "dog", "000008": None}
    members = {"nothing.txt": b"no image here"}
    tally, missing = extract(
        tmp_path / "a.cache", [tar_of(tmp_path / "bad.tar", images, labels, members=members)]
    )
    assert [skipped.key for skipped in tally.skipped] == ["000001", "nothing"]
    assert tally.skipped[0].reason.startswith("cannot be decoded (")
    assert tally.skipped[1].reason == "has no image among its members"
    assert (tally.images, missing, tally.unlabelled) == (11, 0, 1)
    key, reason = tally.first_unlabelled
    assert (key, reason[:19]) == ("000006", "has the label 'dog'")
    numbers = [0, *range(2, 12)]
    cache, policy = Cache(tmp_path / "a.cache"), extraction_options(cache=tmp_path, shards=[]).maker().policy
    for commit in tuple(cache.commits()):
        assert (commit.rows, list(commit.skipped)) == (11, tally.skipped)
        rows = cache.read_chunk(commit, 0, ["index", "view"])
        assert rows["index"][:, 4].tolist() == [NO_LABEL if one in (6, 8) else one for one in numbers]
        for number, row in zip(numbers, rows["view"].tolist(), strict=True):
            with Image.open(io.BytesIO(image(number))) as opened:
                box = draw_crop(policy, "bad.tar", f"{number:06d}", commit.view, *opened.size)
            assert astuple(box) == tuple(row)


def test_too_many_bad_images_fail_a_tar_until_allowed(shards, tmp_path):
    """Three are always allowed."""
    bad, cache = tar_of(tmp_path / "bad.tar", spoilt(4)), tmp_path / "a.cache"
    tars = [shards[0], bad, tar_of(tmp_path / "three.tar", spoilt(3))]
    tally, missing = extract(cache, tars, views=1, max_bad=0.0)
    assert (tally.units, tally.images, missing, list(tally.failed)) == (2, 21, 1, ["bad.tar"])
    reported = "tar 'bad.tar' has 4 bad images of 12, more than max(3, --max-bad 0); the first: '000001' "
    assert tally.failed["bad.tar"].startswith(reported)
    assert tally.failed["bad.tar"].endswith("make the tar again or raise --max-bad")
    assert not [name for name in contents(cache) if "bad" in name]
    before = contents(cache)
    tally, missing = extract(cache, tars, views=1, max_bad=0.34)
    assert (tally.units, tally.images, missing) == (1, 8, 0)
    assert [name for name in changed(before, contents(cache)) if name in before] == []


def test_a_broken_tar_fails_alone(finished, shards, tmp_path):
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(shards[0].address).read_bytes()[:40_000])
    bad = tar_of(tmp_path / "bad.tar", {"x": b"no image", "y": b""})
    empty, gone = tar_of(tmp_path / "empty.tar", {}), SourceTar(tmp_path / "gone.tar", 1000)
    tars = [shards[0], SourceTar(cut, 40_000), empty, bad, gone, shards[1]]
    tally, missing = extract(tmp_path / "a.cache", tars, workers=2)
    assert (tally.units, missing) == (4, 8)
    made, expected = (
        {Path(name).name: data for name, data in contents(path).items() if name.startswith("views/")}
        for path in (tmp_path / "a.cache", finished)
    )
    assert made == expected
    assert tally.failed["cut.tar"].startswith("tar 'cut.tar' ")
    assert tally.failed["cut.tar"].endswith("make the tar again or leave it out")
    assert tally.failed["empty.tar"] == "tar 'empty.tar' holds no samples; leave it out or make it again"
    assert tally.failed["bad.tar"] == (
        "tar 'bad.tar' holds no image that can be decoded (0 of 2 samples, the first: 'x' cannot be decoded "
        "(no image of a known format)); leave it out or make it again"
    )
    assert "tar 'gone.tar' cannot be opened (No such file or directory)" in tally.failed["gone.tar"]
    assert list((tmp_path / "a.cache" / "logs" / "scratch").iterdir()) == []


def test_a_tar_that_disappears_after_it_was_read_fails_alone(monkeypatch, finished, tmp_path):
    cache, shards = tmp_path / "a.cache", make_tars(tmp_path / "tars", tars=2, images_per_tar=12)
    publish = Extractor._publish

    def lose_the_first(self, tar):
        if tar.source.name == "train-0000.tar":
            Path(tar.source.address).rename(tmp_path / "away")
        publish(self, tar)

    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "_publish", lose_the_first)
        tally, missing = extract(cache, shards)
    reason = "cannot be found again after it was read (no such file); restore it and run again"
    assert (tally.units, missing) == (2, 2)
    assert tally.failed == {"train-0000.tar": f"tar 'train-0000.tar' {reason}"}
    (tmp_path / "away").rename(shards[0].address)
    assert extract(cache, shards)[1] == 0
    assert changed(contents(finished), contents(cache)) == []


def test_a_unit_that_cannot_be_committed_fails_its_tar_alone(monkeypatch, finished, shards, tmp_path):
    cache, create = tmp_path / "a.cache", writer.create_commit

    def refuse_one(folder, unit, commit):
        if (unit.source, unit.view) == ("train-0000.tar", 1):
            commit = commit.model_copy(
                update={"skipped": (SkippedImage.model_construct(key="\udcff", reason="x"),)}
            )
        return create(folder, unit, commit)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "create_commit", refuse_one)
        tally, missing = extract(cache, shards)
    assert (tally.units, missing, list(tally.failed)) == (3, 1, ["train-0000.tar"])
    assert tally.failed["train-0000.tar"].startswith("unit 1 (train-0000.tar, view 1) cannot be committed: ")
    assert extract(cache, shards)[0].units == 1
    assert changed(contents(finished), contents(cache)) == []


def test_a_tar_with_more_images_than_a_unit_has_rows_fails(tmp_path):
    tars = make_tars(tmp_path, tars=1, images_per_tar=70)
    options = extraction_options(cache=tmp_path / "a.cache", shards=tars, views=1)
    teacher, decoder = build_teacher(options), Decoder(0, 64)
    cache, units = prepare_cache(options, teacher, decoder, FromTars(options))
    encoder = FeatureEncoder(teacher, *cache.calibration(), cache.schema, options.device, options.batch_size)
    schema = cache.schema.model_copy(update={"unit_rows": 64})
    extractor = Extractor(cache.folder, schema, FromTars(options), encoder, decoder, 0.01)
    extractor.run(tars, units)
    reported = "tar 'train-0000.tar' has more than 64 images; split it into smaller tars"
    assert extractor.tally.failed == {"train-0000.tar": reported}


def poisoned_clip(folder, weight):
    """Write a CLIP with one weight of its last block that is not a number; returns its address."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    }
    weights = CLIP(**config).state_dict()
    weights[f"visual.transformer.resblocks.1.{weight}"][0, 0] = torch.nan
    folder.mkdir()
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return f"open_clip:local-dir:{folder}"


def test_features_that_are_not_finite_are_refused(shards, tmp_path):
    """In the calibration, before a cache is made; without one, they fail their tar."""
    teacher, cache = poisoned_clip(tmp_path / "clip", "mlp.c_fc.weight"), tmp_path / "a.cache"
    refused = r"^block 1 of the teacher gives '000000' features that are not finite, or .* 65504; check"
    with pytest.raises(CacheError, match=refused):
        extract(cache, shards, teacher=teacher, levels="2")
    assert not cache.exists()
    tally, missing = extract(cache, shards, teacher=teacher, levels="2", encoding="float16", views=1)
    assert (missing, tally.units) == (2, 0)
    for reason, key in zip(tally.failed.values(), ("000000", "000012"), strict=True):
        assert reason.startswith(f"block 1 of the teacher gives '{key}' features that are not finite")
        assert reason.endswith("give --precision float32, or leave the image out")


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_attention_that_is_not_finite_fails_its_tar(shards, tmp_path, keep):
    teacher = poisoned_clip(tmp_path / "clip", "attn.in_proj_weight")
    tally, missing = extract(
        tmp_path / "a.cache", shards[:1], teacher=teacher, levels="0,", views=1, keep=keep
    )
    assert (missing, tally.units) == (1, 0)
    reported = "the attention of the teacher's last block to the patches of '000000' is not finite; check the"
    assert tally.failed["train-0000.tar"].startswith(reported)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e9])
def test_the_first_image_beyond_half_precision_is_named(encoding, value):
    levels = torch.randn(3, 4, 5, 70, generator=torch.Generator().manual_seed(0)).unbind()  # of four images
    levels[1][2, 4, 69] = value * 70
    levels[0][3, 0, 0] = value * 70
    encoded = [encode_level(level, torch.zeros(70), torch.ones(70), encoding) for level in levels]
    stats = torch.stack([stats for _, stats in encoded], dim=2)
    refuse_features(stats[:2], (4, 7, 11), ["a", "b"])
    refused = r"^block 7 of the teacher gives 'c' features that are not finite, or .* exceeds 65504; check"
    with pytest.raises(CacheError, match=refused):
        refuse_features(stats, (4, 7, 11), ["a", "b", "c", "d"])


def kill_workers(stop, killed):
    while not stop.is_set():
        for child in multiprocessing.active_children():
            child.kill()
            killed.append(child.pid)
        time.sleep(0.001)


def test_a_dead_worker_stops_the_run_and_writes_nothing(shards, tmp_path):
    stop, killed = threading.Event(), []
    killer = threading.Thread(target=kill_workers, args=(stop, killed))
    killer.start()
    try:
        with pytest.raises(MaskAlignError, match=r"a decoding worker (was killed|ended)"):
            extract(tmp_path / "a.cache", shards, workers=1)
    finally:
        stop.set()
        killer.join()
    assert killed
    assert not (tmp_path / "a.cache").exists()


def test_a_disk_full_while_publishing_costs_a_unit_only(monkeypatch, finished, shards, tmp_path):
    cache, moved, replace = tmp_path / "a.cache", [], os.replace

    def full(source, target, **kwargs):
        if os.fspath(target).endswith(".tar"):
            if moved:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(target))
            moved.append(target)
        return replace(source, target, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left on device"):
            extract(cache, shards)
    assert len(list(cache.glob("commits/*"))) == 1
    assert list((cache / "logs" / "scratch").iterdir()) == []
    tally, missing = extract(cache, shards)
    assert (tally.units, missing) == (3, 0)
    assert changed(contents(finished), contents(cache)) == []


def test_a_file_that_cannot_grow_leaves_no_unit(finished, shards, tmp_path):
    cache = tmp_path / "a.cache"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (30_000, 60_000):  # the view tar, a shard
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                extract(cache, shards)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(cache.glob("commits/*")) == []
        assert list((cache / "logs" / "scratch").iterdir()) == []
    assert extract(cache, shards)[1] == 0
    assert changed(contents(finished), contents(cache)) == []


class SlowShard(ShardWriter):
    """A shard that is written slowly, or whose disk is full."""

    def append(self, rows):
        if self.file.path.name.startswith("features"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        time.sleep(0.02)
        assert not self.file._file.closed
        super().append(rows)


def test_a_unit_that_is_given_up_waits_for_its_writers(monkeypatch, shards, tmp_path):
    monkeypatch.setattr("pipeline.cache.writer.ShardWriter", SlowShard)
    with pytest.raises(OSError, match="No space left"):
        extract(tmp_path / "a.cache", shards)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("write", "publish"))]
    assert left == []
    assert list((tmp_path / "a.cache" / "logs" / "scratch").iterdir()) == []


def test_a_tar_that_another_process_has_is_left_to_it(finished, shards, tmp_path):
    """Later with fewer views than the unfinished cache has."""
    cache = tmp_path / "a.cache"
    extract(cache, shards, limit=1)
    with locked(cache / "logs" / "locks" / "train-0001.tar"):
        tally, missing = extract(cache, shards)
    assert (tally.units, tally.elsewhere, missing) == (0, ["train-0001.tar"], 2)
    tally, missing = extract(cache, shards, views=1, workers=1)
    assert (tally.units, missing) == (1, 0)
    assert extract(cache, shards)[0].units == 1
    assert changed(contents(finished), contents(cache)) == []
