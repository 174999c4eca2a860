"""Both stages on an object store, through faults and a kill, leave and read the same bytes as on a disk."""

import json
import os
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import typer
from caches import TEACHER, extract
from stream_parts import digests
from torch.utils.data import DataLoader, _utils
from typer.testing import CliRunner

import maskalign
from pipeline.cache.join import read_joined
from pipeline.cache.layout import array_specs, shard_key
from pipeline.cache.reader import Cache
from pipeline.cache.requests import gets_of_chunk
from pipeline.errors import CacheError, ConfigError, StorageError
from pipeline.extraction.options import options_of_views
from pipeline.storage.address import open_folder
from pipeline.views.source_tars import resolve_tars
from stages.extract_teacher import extract_teacher
from stages.inspect_cache import app as inspect_app
from stages.train_student import train_student

TESTS = Path(__file__).parents[1]
VIEW = ("--image-size", "64", "--patch-size", "16", "--levels", "3", "--batch-size", "8")
VIEW += ("--crop-scale", "0.4", "1.0")
SECONDS = 120
TINY = (
    'student.model="vit_tiny_patch16_224"',
    "student.options={depth=1, embed_dim=32, num_heads=2}",
    "mask.ratio=0.5",
    "data.workers=0",
    "optim.steps=2",
    "optim.warmup_steps=1",
    "train.global_batch=16",
    "train.log_every=1",
)


def extracting(shards, cache):
    """Start a process that extracts two views."""
    command = ["-m", "stages.extract_teacher", shards, "--cache", cache, "--teacher", TEACHER]
    command += ["--views", "2", *VIEW, "--workers", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], stdout=-1, stderr=-2, text=True, env=environment, cwd=TESTS.parent
    )


def wait_for(server, part, count, process):
    """Wait until a process has sent so many objects whose key has `part` in it; return how many."""
    end = time.monotonic() + SECONDS
    while (sent := sum(method == "PUT" and part in path for method, path in list(server.log))) < count:
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    return sent


def contents(address):
    """The bytes of every file of a cache but those of logs/."""
    folder = open_folder(address)
    return {key: folder.read(key) for key in sorted(folder.sizes()) if not key.startswith("logs/")}


def called(command, *arguments):
    """Run a command in this process; return its exit code and what it said."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    return result.exit_code, result.output


@pytest.fixture
def tars(server, bucket, small_cache_path):
    """The tars of the small cache in the bucket."""
    for path in (small_cache_path.parent / "tars").iterdir():
        server.backend.put_object(bucket, f"tars/{path.name}", path.read_bytes())
    return f"s3://{bucket}/tars/"


@pytest.fixture
def copied(in_bucket):
    """The address of the small cache in the bucket."""
    return in_bucket.address


@pytest.fixture
def workers_of_now(server):
    """Let workers have the environment of the test: the server that forks them keeps that of its start."""
    del server
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


@pytest.mark.faults
def test_killed_and_continued_by_two_at_once_through_faults_it_is_the_local_cache(
    server, bucket, tars, small_cache_path
):
    cache = f"s3://{bucket}/deep/a.cache"
    first = extracting(tars, cache)
    assert wait_for(server, "targets.zarr/stats/c/", 1, first) == 1  # in the middle of a unit
    first.kill()
    first.communicate()
    assert set(open_folder(cache).names()) >= {"units.json", "targets.zarr", "logs"}
    server.fail("503", every=11)
    server.fail("closed", every=13)
    server.fail("cut", every=17, method="GET")
    server.forget()
    other = extracting(tars, cache)
    wait_for(server, "logs/claims", 1, other)
    units = extract(cache, resolve_tars(tars))[0].units
    told = other.communicate(timeout=SECONDS)[0]
    assert other.returncode == 0, told
    server.heal()
    assert contents(cache) == contents(small_cache_path)
    assert open_folder(cache).names("logs/claims") == set()
    assert int(told.partition(" units made")[0].rpartition("\n")[2]) + units == 4


def test_a_cache_grows_by_tars_and_views(bucket, tars, small_cache_path):
    def units():
        return {key: data for key, data in contents(cache).items() if not key.endswith("/zarr.json")}

    cache, shards = f"s3://{bucket}/a.cache", resolve_tars(tars)
    assert extract(cache, shards[:1], views=1)[0].units == 1
    before = units()
    assert extract(cache, shards, views=1)[0].units == 1
    assert extract(cache, shards, views=2)[0].units == 2
    after = units()
    assert {key for key in before if after[key] != before[key]} == {"units.json", "copies/units.json"}
    assert {key for key in after if key.startswith("views/")} == {
        f"views/{path.name}" for path in (small_cache_path / "views").iterdir()
    }
    assert [commit.rows for commit in Cache(cache).commits()] == [70] * 4


@pytest.mark.faults
def test_another_teacher_follows_a_cache_to_and_from_a_bucket(bucket, copied, small_cache_path, tmp_path):
    made, local = [], small_cache_path
    for first, second in ((copied, str(tmp_path / "b.cache")), (local, f"s3://{bucket}/b.cache")):
        views = options_of_views(Cache(first)) | {"limit": 1, "levels": "1", "batch_size": 70}
        tally, missing = extract(second, teacher="timm:test_vit3.random", views_from=str(first), **views)
        assert (tally.units, missing) == (2, 0)
        made.append(contents(second))
    assert made[0] == made[1]
    tars = {key: data for key, data in contents(local).items() if key.startswith("views/train-0000")}
    assert len(tars) == 2
    assert {key: made[0][key] for key in tars} == tars


@pytest.mark.faults
@pytest.mark.usefixtures("workers_of_now")
def test_batches_are_those_of_the_local_cache_with_and_without_workers(server, copied, small_cache_path):
    server.fail("503", every=9)
    server.fail("cut", every=7, method="GET")
    expected = digests(small_cache_path, 9)
    assert [digests(copied, 9, workers=workers) for workers in (0, 2)] == [expected, expected]


def test_the_library_reads_the_same_rows_and_refuses_a_fork(copied, small_cache_path, monkeypatch):
    remote, disk = maskalign.Cache(copied), maskalign.Cache(small_cache_path)
    rows = slice(60, 72)  # of three chunks
    assert remote.keys(rows) == disk.keys(rows)
    assert np.array_equal(remote.features(5, rows), disk.features(5, rows))
    assert np.array_equal(remote.images(rows), disk.images(rows))
    found, expected = (maskalign.CacheDataset(cache, 5, shuffle=False) for cache in (remote, disk))
    assert next(iter(found))["key"] == next(iter(expected))["key"]
    loader = iter(DataLoader(found, num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(ConfigError, match="cannot be read by a forked worker: give the DataLoader"):
        next(loader)
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # it hangs at its exit, too
    loader._shutdown_workers()


def test_training_losses_are_those_of_the_local_cache(copied, small_cache_path, tmp_path):
    def losses(cache, run):
        settings = [word for key in TINY for word in ("--set", key)]
        code, output = called(train_student, "--cache", cache, "--run", run, "--device", "cpu", *settings)
        assert code == 0, output
        return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    assert losses(copied, tmp_path / "remote") == losses(small_cache_path, tmp_path / "local")


def test_reading_asks_for_many_things_at_once_but_not_twice(server, copied):
    cache = Cache(copied)
    server.forget()
    server.fail("slow", method="GET")
    assert len(cache.finished(None, allow_partial=False)) == 4
    assert (server.counts(), server.most_at_once) == ({"GET": 5}, 4)  # one list, four commits
    names = ["index", "stats", "features/block_03"]
    commit = next(cache.commits())
    server.forget()
    cache.read_chunk(commit, 0, names)
    assert server.counts() == {"GET": 2 * len(names)}  # metadata and chunk of each array
    assert server.most_at_once == len(names)
    server.forget()
    cache.read_chunk(commit, 1, names)
    assert (server.counts(), server.most_at_once) == ({"GET": len(names)}, len(names))


def test_a_chunk_takes_the_requests_that_plan_states(server, copied):
    cache = Cache(copied)
    names = ["features/block_03", "stats", "attention"]
    first, second, *_ = cache.finished(None, allow_partial=False)
    read_joined(cache, cache.pinned_commit(first), 0, names)  # the metadata of the arrays
    server.forget()
    read_joined(cache, cache.pinned_commit(second), 0, names)
    assert server.counts() == {"GET": gets_of_chunk(cache.schema, [3])}


def test_a_chunk_that_lies_elsewhere_in_its_shard_is_found(copied):
    cache = Cache(copied)
    commit = next(cache.commits())
    spec = array_specs(cache.schema)["stats"]
    key, size = shard_key(spec, commit.unit), spec.bytes_of(64) + 4
    expected = [cache.read_chunk(commit, chunk, ["stats"])["stats"] for chunk in (0, 1)]
    data = cache.folder.read(key)
    index = np.frombuffer(data[2 * size : -4], "<u8").reshape(-1, 2).copy()
    index[[0, 1]] = index[[1, 0]]
    crc = int(google_crc32c.value(index.tobytes())).to_bytes(4, "little")
    cache.folder.replace(key, data[size : 2 * size] + data[:size] + index.tobytes() + crc)
    for chunk in (0, 1):
        found = Cache(copied).read_chunk(commit, chunk, ["stats"])["stats"]
        np.testing.assert_array_equal(found, expected[chunk])


def test_what_fails_for_good_ends_reading_with_one_sentence(server, copied):
    cache = Cache(copied)
    commit = next(cache.commits())
    cache.folder.remove("views/train-0000.v00.tar")
    with pytest.raises(CacheError, match=r"^.*cannot be read.*\Z"):
        cache.read_crops(commit, 0, 100)
    server.fail("403", method="GET", key="targets.zarr")
    with pytest.raises(StorageError, match=r"^.*access is denied \(403 Forbidden\).*\Z"):
        cache.read_chunk(commit, 0, ["index"])


def test_commands_end_with_one_sentence_where_access_is_denied(server, tars, bucket, tmp_path):
    server.fail("403", key="a.cache")
    server.fail("403", key=f"{bucket}", method="GET")
    cache = ("--cache", f"s3://{bucket}/a.cache", "--device", "cpu")
    for code, output in (
        called(extract_teacher, tars, *cache, "--teacher", TEACHER, *VIEW, "--workers", "0"),
        called(train_student, *cache, "--run", tmp_path / "run"),
    ):
        assert code == 1
        assert output.startswith(
            "error: access is denied (403 Forbidden): check the address, the network and AWS_ACCESS_KEY_ID"
        )
        assert output.count("\n") == 1


def test_a_finished_cache_is_known_for_one_from_few_requests(server, copied, tars):
    shards = resolve_tars(tars)
    server.forget()
    assert extract(copied, shards)[0].units == 0
    assert server.counts()["PUT"] == 2  # the log, at the start and at the end
    assert not any("logs/claims" in path for _, path in server.log)


def test_verification_finds_damage_and_repair_with_the_same_extraction_heals_it(
    server, copied, tars, small_cache_path
):
    def verified(*options):
        result = CliRunner().invoke(
            inspect_app, ["verify", "--cache", copied, "--full", "--workers", "2", *options]
        )
        return result.exit_code, result.output

    assert verified()[0] == 0
    folder = open_folder(copied)
    key = "targets.zarr/features/block_03/c/2/0/0"
    folder.replace(key, folder.read(key)[:-5000] + bytes(5000))
    folder.remove("views/train-0000.v01.tar")
    code, output = verified()
    assert code == 1
    assert "unit 1 (train-0000.tar, view 1): views/train-0000.v01.tar is missing" in output
    assert f"unit 2 (train-0001.tar, view 0), {key} does not match its SHA-256" in output
    server.fail("403", method="GET", key="features/block_04/c")
    code, output = verified("--repair")
    assert (code, "access is denied" in output) == (1, True)
    server.heal()
    assert len(list(Cache(copied).commits())) == 4  # nothing is dropped that cannot be read once more
    assert verified("--repair")[0] == 0
    assert extract(copied, resolve_tars(tars))[0].units == 2
    assert contents(copied) == contents(small_cache_path)
