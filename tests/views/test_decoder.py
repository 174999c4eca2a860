"""Decoding workers: the same views in the same order; a fault is one sentence and leaves no process."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tars import image, make_tars

from pipeline.errors import ConfigError, MaskAlignError
from pipeline.views.crop import CropPolicy
from pipeline.views.decoder import Decoder
from pipeline.views.maker import ViewMaker
from pipeline.views.sample import SourceSample
from pipeline.views.source import read_samples

MAKER = ViewMaker(CropPolicy(64, (0.4, 1.0), 0.5, 0), (0,), "jpeg")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The samples of two tars with twelve images each."""
    tars = make_tars(tmp_path_factory.mktemp("tars"), tars=2, images_per_tar=12)
    return [list(read_samples(tar)) for tar in tars]


def large_samples(count, side=700, kind="jpeg", **members):
    data = image(4, side, side, kind)
    return [SourceSample(str(number), data, members) for number in range(count)]


def test_a_worker_that_stands_still_is_reported_and_ended(samples):
    decoder = Decoder(1, 64, patience=2)
    next(decoder.views(samples[0], MAKER))
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    stalled = "no decoding worker has finished 8 images in 2 s, probably because it was"
    with closing(decoder), pytest.raises(MaskAlignError, match=stalled):
        list(decoder.views(samples[0], MAKER))
    assert multiprocessing.active_children() == []


def test_a_death_is_noticed_while_another_worker_stands_still(samples):
    decoder = Decoder(2, 64)
    first, second = sorted(multiprocessing.active_children(), key=lambda worker: worker.name)
    os.kill(second.pid, signal.SIGSTOP)
    first.kill()
    with closing(decoder), pytest.raises(MaskAlignError, match="a decoding worker was killed by SIGKILL"):
        list(decoder.views(samples[0][:9], MAKER))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("taken", [0, 7, 18])
def test_workers_in_the_middle_of_an_answer_can_be_ended(taken):
    """More is asked of them than is taken, and what is asked last does not fit into their shared memory."""
    decoder = Decoder(2, 600)
    views = decoder.views(large_samples(20), ViewMaker(CropPolicy(600, (0.2, 1.0), 0.5, 0), (0,), "raw"))
    for _ in range(taken):
        next(views)
    decoder.close()
    assert multiprocessing.active_children() == []


def test_a_pass_that_was_given_up_leaves_nothing_to_the_next(samples):
    """A worker that dies later, at rest, does not hinder the end."""
    (first, second), decoder = samples, Decoder(2, 64)
    next(decoder.views(first * 10, MAKER))
    assert [one.key for one in decoder.views(second, MAKER)] == [one.key for one in second]
    multiprocessing.active_children()[0].kill()
    decoder.close()
    assert multiprocessing.active_children() == []


def test_what_does_not_fit_into_shared_memory_comes_too():
    """Several jobs ahead, of which neither the questions nor the answers fit into a pipe."""
    large = large_samples(40, 400, "png", txt=b"x" * 60_000)
    assert 8 * len(large[0].image) > 1.1 * 8 * 256 * 1024
    maker = ViewMaker(CropPolicy(256, (0.2, 1.0), 0.5, 0), (0, 1), "raw")
    with closing(Decoder(1, 256, views=2, patience=30)) as workers, closing(Decoder(0, 256)) as here:
        for one, other in zip(workers.views(large, maker), here.views(large, maker), strict=True):
            assert (one.key, one.label, one.tar_samples) == (other.key, other.label, other.tar_samples)
            np.testing.assert_array_equal(one.pixels, other.pixels)
            np.testing.assert_array_equal(one.boxes, other.boxes)


def test_an_error_of_ours_in_a_worker_comes_with_its_traceback(samples):
    failed = r"(?s)decoding worker 0 failed:\nTraceback .*NoneType"
    with closing(Decoder(1, 64)) as decoder, pytest.raises(RuntimeError, match=failed):
        list(decoder.views(samples[0], None))


def test_too_little_shared_memory_is_reported_before_the_start():
    workers = shutil.disk_usage("/dev/shm").free // (3 * 4 * 8 * 4096 * 4096 * 3) + 1
    refused = r"^decoding needs \d+ MB of shared memory, /dev/shm has \d+ MB free: lower --workers, or"
    with pytest.raises(ConfigError, match=refused):
        Decoder(workers, 4096, views=4)


OWNER = """
import multiprocessing, time
from pipeline.views.crop import CropPolicy
from pipeline.views.decoder import Decoder
from pipeline.views.maker import ViewMaker
from pipeline.views.sample import SourceSample

if __name__ == "__main__":
    decoder = Decoder(1, 32)
    maker = ViewMaker(CropPolicy(32, (1.0, 1.0), 0.0, 0), (0,), "raw")
    next(iter(decoder.views([SourceSample("x", None, {})], maker)))
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


@pytest.mark.faults
def test_workers_of_a_killed_owner_end_without_a_traceback(tmp_path):
    (tmp_path / "owner.py").write_text(OWNER)
    command = [sys.executable, tmp_path / "owner.py"]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as owner,
    ):
        workers = [int(number) for number in owner.stdout.readline().split()]
        assert workers
        assert all(is_running(worker) for worker in workers)
        os.kill(owner.pid, signal.SIGKILL)
    while any(map(is_running, workers)):  # until the test times out
        time.sleep(0.05)
    assert "Exception" not in (tmp_path / "said").read_text()  # the resource tracker reports the memory


def is_running(process):
    """Tell whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
