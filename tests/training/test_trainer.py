"""The loop's step: accumulation, clipping, randomness, and a run that diverges."""

import time
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from training_runs import CPU, checkpoint, metrics, saved_steps, tiny_job, trained

from pipeline.errors import DivergedError
from pipeline.runtime.signals import StopRequest
from pipeline.stream.batches import BatchStream
from pipeline.training.distributed import Ranks
from pipeline.training.run import load_newest, run_job
from pipeline.training.trainer import StopVotes, Trainer


def first_step(cache, run, *settings, step=0):
    """Take one step on a run's first batch; returns loss and parts (1 + M,), and gradients by name."""
    job, gradients = tiny_job(cache, run, *settings), {}

    def note(*_):
        gradients.update(
            {
                name: value.grad.clone()
                for name, value in job.objective.named_parameters()
                if value.grad is not None
            }
        )

    job.optimiser.register_step_pre_hook(note)
    with BatchStream(job.cache, job.spec, CPU, workers=0) as stream:
        return Trainer(job, job.build_step().train()).step(next(iter(stream)), step), gradients


def assert_close(first, second, tolerance=1e-5):
    """Compare gradients, each within a share of its largest value."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (value - second[name]).abs().max() <= tolerance * max(1e-3, float(value.abs().max())), name


@pytest.mark.parametrize("count", [2, 16])
def test_accumulated_gradients_equal_those_of_the_whole_batch(small_cache_path, tmp_path, count):
    no_drop = "student.drop_path=0.0"
    loss, gradients = first_step(small_cache_path, tmp_path / "run", no_drop)
    parts_loss, parts = first_step(small_cache_path, tmp_path / "run", no_drop, f"train.accumulate={count}")
    assert torch.allclose(loss, parts_loss, rtol=1e-5)
    assert len(gradients) > 20
    assert_close(gradients, parts)


def test_clipping_bounds_the_norm(small_cache_path, tmp_path):
    norms = []
    for settings in ((), ("optim.clip_grad=0.01",)):
        _, gradients = first_step(small_cache_path, tmp_path / "run", *settings)
        norms.append(float(torch.stack([value.norm() for value in gradients.values()]).norm()))
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_drop_path_is_drawn_by_seed_and_step_whatever_was_drawn_before(small_cache_path, tmp_path):
    def loss(step):
        return first_step(small_cache_path, tmp_path / "run", "student.drop_path=0.5", step=step)[0]

    first = loss(1)
    torch.manual_seed(12345)
    assert torch.equal(loss(1), first)
    assert not torch.equal(loss(2), first)


LOGGED_EVERY_2 = ("train.log_every=2", "train.checkpoint_every=2")


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_steps(small_cache_path, tmp_path):
    job = tiny_job(small_cache_path, tmp_path, *LOGGED_EVERY_2)
    job.objective.alignment.weights.data[0, 0] = float("nan")
    message = r"^the loss is nan somewhere in steps 1 to 2: lower optim\.base_lr.*last checkpoint is intact$"
    with pytest.raises(DivergedError, match=message) as raised:
        run_job(job, 0)
    assert (saved_steps(tmp_path), metrics(tmp_path)) == ([], [])
    assert raised.value.printed_by_rank == 0  # it is the loss of all ranks


def test_a_weight_that_is_no_number_is_not_saved_though_the_loss_is_one(small_cache_path, tmp_path):
    job = tiny_job(small_cache_path, tmp_path, *LOGGED_EVERY_2)
    job.objective.encoder.vit.norm.weight.data[0] = float("inf")
    message = r"^a weight is not finite after step 2: .*the last checkpoint is intact$"
    with pytest.raises(DivergedError, match=message):
        run_job(job, 0)
    assert saved_steps(tmp_path) == []


def test_a_log_that_fails_costs_no_checkpoint(small_cache_path, tmp_path):
    job = tiny_job(small_cache_path, tmp_path, *LOGGED_EVERY_2)

    def fail(_):
        raise OSError

    with (
        BatchStream(job.cache, job.spec, CPU, workers=0) as stream,
        pytest.raises(OSError, match=r"^$"),
    ):
        Trainer(job, job.build_step(), fail).run(iter(stream), 0, 6)
    assert saved_steps(tmp_path) == [2]


def test_votes_become_rarer_by_doubling_however_fast_the_first_steps_seem():
    class TwoRanks(Ranks):
        voted_after: ClassVar[list[int]] = []

        def largest(self, *values):
            self.voted_after.append(count)
            return list(values)

    votes = StopVotes(TwoRanks(0, 2), StopRequest())
    count = 0
    while count < 400:
        count += 1
        votes()
    assert TwoRanks.voted_after == [1, 3, 7, 15, 31, 63, 127, 227, 327]


def test_metrics_are_means_over_the_steps_between_two_lines(small_cache_path, tmp_path):
    fine = tiny_job(small_cache_path, tmp_path / "fine")
    coarse = tiny_job(small_cache_path, tmp_path / "coarse", "train.log_every=4")
    for job in (fine, coarse):
        job.run.mkdir()
        assert run_job(job, 0)[0] == 6
    each, few = metrics(tmp_path / "fine"), metrics(tmp_path / "coarse")
    assert [line["step"] for line in few] == [3, 4, 6]
    for line, steps in zip(few, ((1, 2, 3), (4,), (5, 6)), strict=True):
        assert line["loss"] == pytest.approx(sum(each[step - 1]["loss"] for step in steps) / len(steps))


def test_only_the_feed_counts_as_waiting_for_data(small_cache_path, tmp_path):
    """On a GPU the loop waits in next() for the device, too: for a step that is still at work."""

    class SlowDevice:
        blocked_seconds = 0.0

        def __init__(self, batch, feed_seconds):
            self.batch, self.feed_seconds = batch, feed_seconds

        def __next__(self):
            time.sleep(0.02)
            self.blocked_seconds += self.feed_seconds
            return self.batch

    job = tiny_job(small_cache_path, tmp_path, "train.log_every=3")
    with BatchStream(job.cache, job.spec, CPU, workers=0) as stream:
        batch = next(iter(stream))
        assert stream.blocked_seconds > 0
        for feed_seconds in (0.0, 0.01):
            lines = []
            Trainer(job, job.build_step(), lines.append).run(SlowDevice(batch, feed_seconds), 0, 6)
            assert [line["data_seconds"] for line in lines] == pytest.approx([3 * feed_seconds] * 2)


def test_float16_scales_the_loss_and_checkpoints_hold_the_scale(small_cache_path, tmp_path):
    """It is what a GPU before Ampere trains in."""
    job = tiny_job(small_cache_path, tmp_path, "train.precision='float16'")
    assert run_job(job, 0)[0] == 6
    found, exact = metrics(tmp_path)[-1]["loss"], tiny_job(small_cache_path, tmp_path / "exact")
    exact.run.mkdir()
    run_job(exact, 0)
    assert found == pytest.approx(metrics(tmp_path / "exact")[-1]["loss"], rel=0.05)
    state = checkpoint(tmp_path, 6)["scaler"]
    assert state["scale"] == job.scaler.get_scale() > 1
    resumed = replace(job, scaler=torch.amp.GradScaler("cpu", init_scale=2.0))
    assert load_newest(resumed) == 6
    assert resumed.scaler.get_scale() == state["scale"]


def test_training_lowers_the_loss(small_cache_path, tmp_path):
    run = trained(small_cache_path, tmp_path / "run", "optim.steps=40", "train.log_every=10")
    found = [line["loss"] for line in metrics(run)]
    assert found[-1] < 0.9 * found[0]
