"""Bad images, bad tars, bad teachers, full disks and dead workers: what is told, what is kept, and that a later run heals it."""

import errno
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_files import changed, contents
from caches import extract, extraction_options
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from tars import image, make_tars, write_tar

from pipeline.cache.encoding import encode_level
from pipeline.cache.reader import Cache
from pipeline.cache.schema import ENCODINGS
from pipeline.cache.shards import ShardWriter
from pipeline.errors import CacheError, ConfigError, MaskAlignError, SourceError, StorageError
from pipeline.extraction.calibration import calibrate
from pipeline.extraction.encode import FeatureEncoder, refuse_features
from pipeline.extraction.extractor import Extractor
from pipeline.extraction.job import build_teacher, prepare_cache
from pipeline.progress import ProgressDisplay
from pipeline.storage.address import open_folder
from pipeline.storage.files import locked
from pipeline.views.crop import CropPolicy, draw_crop
from pipeline.views.decoder import Decoder
from pipeline.views.maker import ViewMaker
from pipeline.views.sample import NO_LABEL, SourceSample
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar


def shard_of(path):
    return SourceTar(path, path.stat().st_size)


def good(count, first=0):
    return {f"{number:06d}": image(number) for number in range(first, first + count)}


def spoilt(bad, total=12):
    """Return images of which the first few after one good one are no images."""
    return {
        key: b"no image" if 0 < place <= bad else data
        for place, (key, data) in enumerate(good(total).items())
    }


@pytest.fixture
def bad_tar(tmp_path):
    """Twelve samples: a cut JPEG, one without an image, one with a wrong label, one without a label, eight good ones."""
    images = good(12)
    images["000001"] = images["000001"][:400]
    labels = {key: number for number, key in enumerate(images)} | {"000006": "dog", "000008": None}
    return shard_of(
        write_tar(tmp_path / "bad.tar", images, labels, members={"nothing.txt": b"no image here"})
    )


def test_a_bad_image_is_skipped_listed_and_shifts_no_row(bad_tar, tmp_path):
    tally, missing = extract(tmp_path / "a.cache", [bad_tar])
    assert [skipped.key for skipped in tally.skipped] == ["000001", "nothing"]
    assert tally.skipped[0].reason.startswith("cannot be decoded (")
    assert tally.skipped[1].reason == "has no image among its members"
    assert (tally.images, missing) == (11, 0)
    cache, policy = Cache(tmp_path / "a.cache"), extraction_options(cache=tmp_path, shards=[]).policy
    for commit in tuple(cache.commits()):
        assert (commit.rows, list(commit.skipped)) == (11, tally.skipped)
        rows = cache.read_chunk(commit, 0, ["index", "view"])
        assert rows["index"][:, 4].tolist() == [0, 2, 3, 4, 5, NO_LABEL, 7, NO_LABEL, 9, 10, 11]
        for number, row in zip([0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], rows["view"].tolist(), strict=True):
            with Image.open(io.BytesIO(image(number))) as opened:
                assert draw_crop(
                    policy, commit.source, f"{number:06d}", commit.view, *opened.size
                ).as_row() == tuple(row)


def test_a_bad_image_leaves_the_same_bytes_each_time(tmp_path):
    for name in ("a.cache", "b.cache"):
        extract(tmp_path / name, [shard_of(write_tar(tmp_path / "bad.tar", spoilt(2)))])
    assert changed(contents(tmp_path / "a.cache"), contents(tmp_path / "b.cache")) == []


def test_too_many_bad_images_fail_their_tar_until_they_are_allowed(shards, tmp_path):
    bad = shard_of(write_tar(tmp_path / "bad.tar", spoilt(4)))
    cache = tmp_path / "a.cache"
    tally, missing = extract(cache, [shards[0], bad, shards[1]])
    assert (tally.units, missing) == (4, 2)
    assert list(tally.failed) == ["bad.tar"]
    told = "tar 'bad.tar' has 4 bad images of 12, more than max(3, --max-bad 0.01); the first: '000001' cannot be decoded"
    assert tally.failed["bad.tar"].startswith(told)
    assert tally.failed["bad.tar"].endswith("make the tar again or raise --max-bad")
    assert not [name for name in contents(cache) if "bad" in name]
    before = contents(cache)
    tally, missing = extract(cache, [shards[0], bad, shards[1]], max_bad=0.34)
    assert (tally.units, tally.images, missing) == (2, 8, 0)
    assert [name for name in changed(before, contents(cache)) if name in before] == []


def test_three_bad_images_are_always_allowed(tmp_path):
    tally, missing = extract(
        tmp_path / "a.cache", [shard_of(write_tar(tmp_path / "bad.tar", spoilt(3)))], max_bad=0.0
    )
    assert (tally.images, missing) == (9, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_tar_fails_alone(finished, shards, tmp_path, workers):
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(shards[0].address).read_bytes()[:40_000])
    empty = write_tar(tmp_path / "empty.tar", {})
    gone = SourceTar(tmp_path / "gone.tar", 1000)
    tally, missing = extract(
        tmp_path / "a.cache",
        [shards[0], shard_of(cut), shard_of(empty), gone, shards[1]],
        workers=workers,
        batch_size=8,
    )
    assert (tally.units, missing) == (4, 6)
    units = {
        name.rsplit("/", 1)[-1]: data
        for name, data in contents(finished).items()
        if name.startswith("views/")
    }
    assert {
        name.rsplit("/", 1)[-1]: data
        for name, data in contents(tmp_path / "a.cache").items()
        if name.startswith("views/")
    } == units
    assert tally.failed["cut.tar"].startswith("tar 'cut.tar' ")
    assert tally.failed["cut.tar"].endswith("make the tar again or leave it out")
    assert (
        tally.failed["empty.tar"]
        == "tar 'empty.tar' holds no image that can be decoded: leave it out or make it again"
    )
    assert "tar 'gone.tar' cannot be opened (No such file or directory)" in tally.failed["gone.tar"]
    assert list((tmp_path / "a.cache" / "logs" / "scratch").iterdir()) == []


def test_without_any_image_nothing_is_made(tmp_path):
    tar = shard_of(write_tar(tmp_path / "a.tar", {"x": b"no image"}))
    with pytest.raises(
        SourceError,
        match=r"none of the 1 tars holds an image that can be decoded, the first is .*a.tar': check SHARDS",
    ):
        extract(tmp_path / "a.cache", [tar])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_calibration_of_a_cut_tar_is_that_of_its_whole_samples(shards, tmp_path, workers):
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(shards[0].address).read_bytes()[:40_000])
    whole = shard_of(write_tar(tmp_path / "whole.tar", good(6)))
    options = extraction_options(cache=tmp_path / "a.cache", shards=[shard_of(cut)])
    teacher, decoder, serial = build_teacher(options), Decoder(workers, 64), Decoder(0, 64)
    mean, std, count = calibrate(options.shards, options.maker, decoder, teacher, options.device)
    decoder.close()
    assert 4 < count < 9
    expected = calibrate(
        [shard_of(write_tar(Path(whole.address), good(count)))],
        options.maker,
        serial,
        teacher,
        options.device,
    )
    np.testing.assert_array_equal(mean, expected[0])
    np.testing.assert_array_equal(std, expected[1])


def test_a_tar_with_more_images_than_a_unit_has_rows_fails(tmp_path):
    options = extraction_options(
        cache=tmp_path / "a.cache", shards=make_tars(tmp_path, tars=1, images_per_tar=70), views=1
    )
    teacher, decoder = build_teacher(options), Decoder(0, 64)
    cache, units = prepare_cache(options, teacher, decoder)
    encoder = FeatureEncoder(teacher, *cache.calibration(), cache.schema, options.device, options.batch_size)
    schema = cache.schema.model_copy(update={"unit_rows": 64})
    extractor = Extractor(open_folder(options.cache), schema, options.policy, encoder, decoder, 0.01)
    with ProgressDisplay("test", 1) as progress:
        extractor.run(options.shards, units, progress)
    assert extractor.tally.failed == {
        "train-0000.tar": "tar 'train-0000.tar' has more than 64 images: split it into smaller tars"
    }


def poisoned_clip(folder, weight):
    """Write a CLIP with one weight that is not a number; returns its address."""
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


@pytest.fixture
def poisoned(tmp_path):
    """The address of a CLIP whose last block gives no numbers."""
    return poisoned_clip(tmp_path / "clip", "mlp.c_fc.weight")


def test_features_that_are_not_finite_are_refused_before_a_cache_is_made(poisoned, shards, tmp_path):
    with pytest.raises(
        CacheError,
        match=r"^block 1 of the teacher gives '000000' features that are not finite, or .* 65504: check",
    ):
        extract(tmp_path / "a.cache", shards, teacher=poisoned, levels="2")
    assert not (tmp_path / "a.cache").exists()


def test_features_that_are_not_finite_fail_their_tar(poisoned, shards, tmp_path):
    tally, missing = extract(
        tmp_path / "a.cache", shards, teacher=poisoned, levels="2", encoding="float16", views=1
    )
    assert (missing, tally.units) == (2, 0)
    for reason, key in zip(tally.failed.values(), ("000000", "000012"), strict=True):
        assert reason.startswith(f"block 1 of the teacher gives '{key}' features that are not finite")
        assert reason.endswith("run it in float32 on --device cpu, or leave the image out")


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_attention_that_is_not_finite_fails_its_tar_and_names_the_image(shards, tmp_path, keep):
    teacher = poisoned_clip(tmp_path / "clip", "attn.in_proj_weight")
    tally, missing = extract(
        tmp_path / "a.cache", shards[:1], teacher=teacher, levels="0,", views=1, keep=keep
    )
    assert (missing, tally.units) == (1, 0)
    told = "the attention of the teacher's last block to the patches of '000000' is not finite: check the teacher's weights"
    assert tally.failed["train-0000.tar"].startswith(told)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e9])
def test_the_first_image_that_half_precision_cannot_hold_is_named_with_its_block(encoding, value):
    levels = torch.randn(3, 4, 5, 70, generator=torch.Generator().manual_seed(0)).unbind()  # of four images
    levels[1][2, 4, 69] = value * 70
    levels[0][3, 0, 0] = value * 70
    stats = torch.stack(
        [encode_level(level, torch.zeros(70), torch.ones(70), encoding)[1] for level in levels], dim=2
    )
    refuse_features(stats[:2], (4, 7, 11), ["a", "b"])
    with pytest.raises(
        CacheError,
        match=r"^block 7 of the teacher gives 'c' features that are not finite, or .* exceeds 65504: check",
    ):
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
    begin = time.monotonic()
    try:
        with pytest.raises(MaskAlignError, match=r"a decoding worker (was killed|ended)"):
            extract(tmp_path / "a.cache", shards, workers=1)
    finally:
        stop.set()
        killer.join()
    assert killed
    assert time.monotonic() - begin < 20
    assert not (tmp_path / "a.cache").exists()


def test_a_worker_that_stands_still_is_told_and_ended(shards):
    decoder, options = Decoder(1, 64, patience=2), extraction_options(cache="none", shards=shards)
    next(decoder.views(read_samples(shards[0]), options.maker))
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    with (
        closing(decoder),
        pytest.raises(
            MaskAlignError, match="no decoding worker has finished 8 images in 2 s, probably because it was"
        ),
    ):
        list(decoder.views(read_samples(shards[0]), options.maker))
    assert multiprocessing.active_children() == []


def test_the_death_of_one_worker_is_noticed_while_another_stands_still(shards):
    decoder, maker = Decoder(2, 64), extraction_options(cache="none", shards=shards).maker
    samples = list(read_samples(shards[0]))
    first, second = sorted(multiprocessing.active_children(), key=lambda worker: worker.name)
    os.kill(second.pid, signal.SIGSTOP)
    first.kill()
    begin = time.monotonic()
    with closing(decoder), pytest.raises(MaskAlignError, match="a decoding worker was killed by SIGKILL"):
        list(decoder.views(samples[:9], maker))
    assert time.monotonic() - begin < 20
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("taken", [0, 1, 7, 18])
def test_workers_that_are_in_the_middle_of_an_answer_can_be_ended(taken):
    """More is asked of them than is taken, and what is asked last does not fit into their shared memory."""
    maker = ViewMaker(CropPolicy(600, (0.2, 1.0), 0.5, 0), (0,), "raw")
    large = image(4, 700, 700)
    samples = [SourceSample(str(number), large, {}) for number in range(20)]
    decoder = Decoder(2, 600)
    views = decoder.views(samples, maker)
    for _ in range(taken):
        next(views)
    decoder.close()
    assert multiprocessing.active_children() == []


def test_what_a_pass_that_was_given_up_had_asked_for_is_not_taken_for_the_next(shards):
    maker = extraction_options(cache="none", shards=shards).maker
    first, second = (list(read_samples(shard)) for shard in shards)
    with closing(Decoder(2, 64)) as decoder:
        next(decoder.views(first * 10, maker))
        assert [one.key for one in decoder.views(second, maker)] == [one.key for one in second]


def test_images_and_crops_that_do_not_fit_into_the_shared_memory_come_all_the_same():
    """Several jobs ahead, of which neither the questions nor the answers fit into a pipe."""
    large = image(4, 700, 700, "png")
    samples = [SourceSample(str(number), large, {"txt": b"x" * 60_000}) for number in range(40)]
    assert 8 * len(large) > 1.1 * 8 * 256 * 1024
    maker = ViewMaker(CropPolicy(256, (0.2, 1.0), 0.5, 0), (0, 1), "raw")
    with closing(Decoder(1, 256, views=2, patience=30)) as workers, closing(Decoder(0, 256)) as here:
        for one, other in zip(workers.views(samples, maker), here.views(samples, maker), strict=True):
            assert (one.key, one.label, one.tar_samples) == (other.key, other.label, other.tar_samples)
            np.testing.assert_array_equal(one.pixels, other.pixels)
            np.testing.assert_array_equal(one.boxes, other.boxes)


def test_an_error_of_ours_in_a_worker_comes_with_its_traceback(shards):
    samples = list(read_samples(shards[0]))
    with (
        closing(Decoder(1, 64)) as decoder,
        pytest.raises(RuntimeError, match=r"(?s)decoding worker 0 failed:\nTraceback .*NoneType"),
    ):
        list(decoder.views(samples, None))


def test_too_little_shared_memory_is_told_before_the_start():
    free = shutil.disk_usage("/dev/shm").free
    workers = free // (3 * 4 * 8 * 4096 * 4096 * 3) + 1
    with pytest.raises(
        ConfigError,
        match=r"^decoding needs \d+ MB of shared memory, /dev/shm has \d+ MB free: lower --workers, or",
    ):
        Decoder(workers, 4096, views=4)


def test_a_worker_that_died_at_rest_does_not_keep_its_owner_from_ending(shards):
    decoder, maker = Decoder(2, 64), extraction_options(cache="none", shards=shards).maker
    list(decoder.views(read_samples(shards[0]), maker))
    for worker in multiprocessing.active_children()[:1]:
        worker.kill()
    begin = time.monotonic()
    decoder.close()
    assert time.monotonic() - begin < 5
    assert multiprocessing.active_children() == []


def test_the_other_workers_end_with_a_dead_one(shards):
    decoder, options = Decoder(2, 64), extraction_options(cache="none", shards=shards)
    next(decoder.views(read_samples(shards[0]), options.maker))
    multiprocessing.active_children()[0].kill()
    samples = (
        sample for _ in range(1000) for sample in read_samples(shards[0])
    )  # enough to be under way when its death is noticed
    with closing(decoder), pytest.raises(MaskAlignError, match="a decoding worker was killed by SIGKILL"):
        list(decoder.views(samples, options.maker))
    assert multiprocessing.active_children() == []


def refuse_views(monkeypatch, after):
    """Let os.replace fail as on a full disk once it has moved `after` view tars."""
    moved, replace = [], os.replace

    def full(source, target, **kwargs):
        if os.fspath(target).endswith(".tar"):
            if len(moved) == after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(target))
            moved.append(target)
        return replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", full)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_disk_that_fills_up_while_publishing_costs_a_unit_only(
    monkeypatch, finished, shards, tmp_path, after
):
    cache = tmp_path / "a.cache"
    with monkeypatch.context() as context:
        refuse_views(context, after)
        with pytest.raises(OSError, match="No space left on device"):
            extract(cache, shards)
    assert len(list(cache.glob("commits/*"))) == after
    assert list((cache / "logs" / "scratch").iterdir()) == []
    tally, missing = extract(cache, shards)
    assert (tally.units, missing) == (4 - after, 0)
    assert changed(contents(finished), contents(cache)) == []


@pytest.mark.parametrize("limit", [30_000, 60_000], ids=["view tar", "shard"])
def test_a_file_that_cannot_grow_leaves_no_unit(finished, shards, tmp_path, limit):
    cache = tmp_path / "a.cache"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
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


@pytest.mark.parametrize("workers", [0, 1])
def test_fewer_views_than_an_unfinished_cache_has_make_those_alone(finished, shards, tmp_path, workers):
    cache = tmp_path / "a.cache"
    extract(cache, shards, limit=1)
    with locked(cache / "logs" / "locks" / "train-0001.tar"):
        assert extract(cache, shards)[1] == 2
    tally, missing = extract(cache, shards, views=1, workers=workers)
    assert (tally.units, missing) == (1, 0)
    assert extract(cache, shards)[0].units == 1
    assert changed(contents(finished), contents(cache)) == []


class SlowShard(ShardWriter):
    """A shard that is written slowly, or whose disk is full."""

    def append(self, rows):
        if self._file.path.name.startswith("features"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        time.sleep(0.3)
        assert not self._file._file.closed
        super().append(rows)


def test_a_unit_that_is_given_up_waits_for_all_that_write_it(monkeypatch, shards, tmp_path):
    monkeypatch.setattr("pipeline.cache.writer.ShardWriter", SlowShard)
    with pytest.raises(OSError, match="No space left"):
        extract(tmp_path / "a.cache", shards)
    assert [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("write", "publish"))
    ] == []
    assert list((tmp_path / "a.cache" / "logs" / "scratch").iterdir()) == []


def test_the_teacher_goes_on_from_one_tar_to_the_next(monkeypatch, tmp_path):
    """The last batch of a tar is collected when the first one of the next has been launched."""
    calls = []

    class Noted(FeatureEncoder):
        def launch(self, pixels, keys, unit):
            calls.append(("launch", keys[0]))
            return super().launch(pixels, keys, unit)

        def collect(self, batch):
            calls.append(("collect", batch.keys[0]))
            return super().collect(batch)

    monkeypatch.setattr("pipeline.extraction.job.FeatureEncoder", Noted)
    extract(
        tmp_path / "a.cache",
        make_tars(tmp_path, tars=2, images_per_tar=40),
        views=1,
        workers=1,
        batch_size=16,
    )
    assert calls.index(("launch", "000040")) < calls.index(("collect", "000032"))


def test_a_tar_that_another_process_is_at_is_left_to_it(shards, tmp_path):
    cache = tmp_path / "a.cache"
    extract(cache, shards, limit=1)
    with locked(cache / "logs" / "locks" / "train-0001.tar"):
        tally, missing = extract(cache, shards)
    assert (tally.units, tally.elsewhere, missing) == (0, ["train-0001.tar"], 2)
    assert extract(cache, shards)[1] == 0


def test_a_folder_that_is_no_cache_is_refused(shards, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match=r"is not a cache .* give a folder that extract-teacher made"):
        extract(tmp_path / "mine", shards)
    with pytest.raises(StorageError, match=r"file' is a file or below one: give a folder"):
        extract(tmp_path / "file", shards)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_empty_folder_becomes_the_cache(finished, shards, tmp_path):
    (tmp_path / "a.cache").mkdir()
    assert extract(tmp_path / "a.cache", shards)[1] == 0
    assert changed(contents(finished), contents(tmp_path / "a.cache")) == []
