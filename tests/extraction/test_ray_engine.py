"""Actors of a local Ray cluster, of which some are killed, leave the bytes of a single process."""

import os
import random
import shutil
import signal
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import ray
from cache_files import changed, contents
from caches import IMAGE_SIZE, TEACHER, extract, extraction_options
from calls import call
from tars import make_tars, source_tar

from pipeline.cache.reader import Cache
from pipeline.errors import MaskAlignError
from pipeline.extraction.ray_engine import ActorPool
from pipeline.storage.address import open_folder
from stages.extract_teacher import extract_teacher


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine, with the path of its files short enough for sockets."""
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        ray.init(
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 << 20,
            _temp_dir=folder,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixteen small tars, and the cache that one process makes of them."""
    folder = tmp_path_factory.mktemp("ray")
    shards = make_tars(folder / "tars", tars=16, images_per_tar=9)
    tally, missing = extract(folder / "alone.cache", shards)
    assert (len(tally.failed), missing) == (0, 0)
    return folder


def run(tars, cache, *options):
    """Run the command with the settings of `caches.extract`."""
    words = [tars, "--cache", cache, "--teacher", TEACHER, "--levels", "3", "--views", "2"]
    words += ["--image-size", IMAGE_SIZE, "--batch-size", "8", "--crop-scale", "0.4", "1.0"]
    return call(extract_teacher, *words, "--engine", "ray", *options)


def actors_of(cache):
    """The process numbers of all actors that have opened a cache, from its logs."""
    return {int(path.stem.rpartition("-")[2]) for path in (cache / "logs").glob("*Z-*.json")}


@contextmanager
def killer(cache, commits, chosen):
    """Kill chosen actors, in a thread, each time that a cache has so many more commits."""
    done, killed = threading.Event(), []

    def watch():
        for count in commits:
            while len(list((cache / "commits").glob("*.json"))) < count:
                if done.wait(0.005):
                    return
            living = sorted(actors_of(cache) - set(killed))
            for victim in chosen(living):
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


@pytest.mark.faults  # too slow for every run
@pytest.mark.usefixtures("cluster")
def test_two_actors_of_which_one_is_killed_make_the_same_bytes(data, tmp_path):
    cache = tmp_path / "a.cache"
    with killer(cache, [3], lambda living: living[:1]) as killed:
        result = run(data / "tars", cache, "--min-workers", "2", "--max-workers", "2")
    assert result.exit_code == 0, result.output
    assert len(killed) == 1
    line = "on a Ray cluster of 1 node and 0 GPUs: 2 actors on cpu with 0 decoding processes each\n"
    assert result.output.startswith(line)
    assert "; 1 actor died, and what they had not committed was done again" in result.output
    assert f"cache {str(cache)!r}: complete" in result.output
    assert changed(contents(data / "alone.cache"), contents(cache)) == []


class CountingPool(ActorPool):
    """Counts what its actors report."""

    outcomes = 0

    def _take(self, *call):
        self.outcomes += 1
        super()._take(*call)


@pytest.mark.faults
@pytest.mark.usefixtures("cluster")
def test_a_tar_claimed_by_a_dead_actor_is_tried_again_with_pauses(data, tmp_path, monkeypatch):
    """This process holds the claim for three seconds, as another machine would for a dead actor."""
    monkeypatch.setattr("pipeline.extraction.ray_engine._SECONDS_BETWEEN_TRIES", 1.0)
    tars = [source_tar(path) for path in sorted((data / "tars").iterdir())[:2]]
    extract(tmp_path / "a.cache", tars[:1])
    options = extraction_options(cache=tmp_path / "a.cache", shards=tars)
    claim, pool = ExitStack(), CountingPool(options, 0, 1, 1)
    assert claim.enter_context(open_folder(options.cache).claimed(tars[1].name))
    with pool:
        pool._deaths[tars[1].name], pool._died_at = 1, time.monotonic()
        release = threading.Timer(3.0, claim.close)
        release.start()
        pool.run()
        release.join()
    assert (len(pool.finished(pool.units)), pool.tally.elsewhere) == (4, [])
    assert pool.outcomes < 10


@pytest.mark.faults
@pytest.mark.usefixtures("cluster")
def test_a_lost_node_with_all_actors_does_not_end_the_command(data, tmp_path):
    """Eight waiting actors may die at once; sixteen deaths without a commit end the command."""
    cache = shutil.copytree(data / "alone.cache", tmp_path / "a.cache")
    commit = sorted((cache / "commits").iterdir())[0]
    away = commit.rename(tmp_path / "away")
    tars = [source_tar(path) for path in sorted((data / "tars").iterdir())]
    options = extraction_options(cache=cache, shards=tars)
    pool = ActorPool(options, 1, 1, 8)
    pool.units = options.covered(Cache(str(cache)).units)

    def lose(actors):
        for _ in range(actors):
            pool._bury(pool._actor.remote(options), [], "the node is gone")

    lose(15)
    away.rename(commit)
    lose(15)
    with pytest.raises(MaskAlignError, match="16 Ray actors have died since the last unit was finished"):
        lose(1)


@pytest.mark.faults
@pytest.mark.usefixtures("cluster")
def test_errors_of_an_actor_are_those_of_the_command(data, tmp_path):
    cache = shutil.copytree(data / "alone.cache", tmp_path / "a.cache")
    result = run(data / "tars", cache, "--seed", "7")
    assert result.exit_code == 2
    assert "was made with another configuration (view.seed" in result.output
    assert "Traceback" not in result.output


def test_wrong_options_are_refused_before_a_cluster_is_looked_for(shards, tmp_path):
    refused = {
        ("--min-workers", "3", "--max-workers", "2"): "--max-workers 2 is less than --min-workers 3",
        ("--device", "cuda:1"): "--device 'cuda:1': Ray chooses the GPU of an actor; give --device cuda",
        ("--dry-run",): "--dry-run measures this machine: leave out --engine ray",
        ("--engine", "local", "--max-workers", "2"): "need --engine ray: add it, or leave them out",
        ("--engine", "slurm"): "--engine 'slurm' is unknown; give local or ray",
    }
    for options, message in refused.items():
        result = run(Path(shards[0].address).parent, tmp_path / "a.cache", *options)
        assert result.exit_code == 2
        assert message in result.output
    assert not (tmp_path / "a.cache").exists()


@pytest.mark.faults
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("seed", range(3))
def test_actors_killed_at_random_are_replaced(data, tmp_path, seed):
    """Four actors, of which a random 30% are killed again and again."""
    cache, rng = tmp_path / "a.cache", random.Random(seed)

    def some(living):
        return [actor for actor in living if rng.random() < 0.3]

    with killer(cache, range(2, 32, 2), some) as killed:
        result = run(data / "tars", cache, "--max-workers", "4")
    assert result.exit_code == 0, result.output
    assert killed
    assert len(actors_of(cache)) > 2
    assert changed(contents(data / "alone.cache"), contents(cache)) == []
