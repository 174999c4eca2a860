"""A resumed run equals an uninterrupted one bit for bit, on one thread of a CPU."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from caches import extraction_options
from training_runs import (
    DROP_PATH,
    assert_same_bits,
    assert_same_runs,
    call,
    checkpoint,
    describe_again,
    described,
    killed_after,
    losses,
    metrics,
    refused,
    saved_steps,
    settings,
    terminate_when,
    tiny_job,
    train,
    trained,
)

from pipeline.cache.reader import Cache
from pipeline.errors import CheckpointError
from pipeline.extraction.job import run_extraction
from pipeline.training.checkpoint import Checkpoint, choose_checkpoint, load_checkpoint, save_checkpoint
from pipeline.training.run import load_newest
from pipeline.views.source_tars import resolve_tars

LONG = "optim.steps=40"


@pytest.fixture(scope="module")
def finished(small_cache_path, tmp_path_factory):
    """A run of 6 steps with checkpoints after 3 and 6, drop path and a worker. Shared: do not change it."""
    return trained(
        small_cache_path, tmp_path_factory.mktemp("runs") / "finished", DROP_PATH, "data.workers=1"
    )


def test_runs_repeat_and_drop_path_has_a_part_in_them(small_cache_path, finished, tmp_path):
    assert_same_runs(finished, trained(small_cache_path, tmp_path / "again", DROP_PATH), 6)
    assert losses(trained(small_cache_path, tmp_path / "other", "student.drop_path=0.0")) != losses(finished)


def test_three_steps_and_three_resumed_are_six(small_cache_path, finished, tmp_path):
    """Also if a killed run had logged steps beyond its checkpoint, and left files that it was writing."""
    run = killed_after(finished, 3, tmp_path / "run")
    values = described(run)
    values["starts"][0]["began"] = "2026-01-01T00:00:00+00:00"  # starts in the same second are one
    describe_again(run, values)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    unfinished = [run / ".run.json.0123456789abcdef.tmp", run / "checkpoints" / "step_00000005.tmp"]
    for path in unfinished:
        path.write_bytes(b"half of it")
    trained(small_cache_path, run, resume=True)
    assert_same_runs(finished, run, 6)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in unfinished if path.exists()] == []
    starts = [(start["first_step"], start["last_step"]) for start in described(run)["starts"]]
    assert starts == [(0, 6), (3, 6)]


@pytest.mark.parametrize("step", [0, 6])
def test_a_run_resumes_from_its_start_and_its_end(small_cache_path, finished, tmp_path, step):
    run = killed_after(finished, step, tmp_path / "run")
    assert "6 of 6 steps done" in train(small_cache_path, run, resume=True).output
    assert_same_runs(finished, run, 6)
    assert (run / "report.html").exists()


def test_how_a_run_is_fed_and_logged_may_change_on_resume(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 3, tmp_path / "run")
    trained(small_cache_path, run, "data.workers=2", "train.checkpoint_every=2", resume=True)
    assert_same_runs(finished, run, 6)
    assert saved_steps(run) == [4, 6]
    assert described(run)["config"]["data"]["workers"] == 2


def test_resume_auto_starts_a_run_and_continues_it(small_cache_path, finished, tmp_path):
    command = ["--cache", small_cache_path, "--run", tmp_path / "run", "--device", "cpu", "--resume-auto"]
    command += settings(DROP_PATH)
    for _ in range(2):
        assert call(*command).exit_code == 0
    assert_same_runs(finished, tmp_path / "run", 6)
    assert call(*command, "--resume").exit_code == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_the_resumed_run_is_the_undisturbed_one(small_cache_path, tmp_path, number):
    run, handler = tmp_path / "run", signal.getsignal(number)
    thread = terminate_when(run, 7, number)
    result = train(small_cache_path, run, DROP_PATH, LONG, "train.checkpoint_every=1000")
    thread.join()
    (step,) = saved_steps(run)
    assert 7 <= step < 40
    assert (result.exit_code, signal.getsignal(number)) == (130 if number == signal.SIGINT else 1, handler)
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert f"stopped by {name} after step {step} of 40: continue with --resume" in result.output
    assert metrics(run)[-1]["step"] == step
    if number == signal.SIGTERM:
        trained(small_cache_path, run, resume=True)
        assert_same_runs(trained(small_cache_path, tmp_path / "undisturbed", DROP_PATH, LONG), run, 40)


@pytest.mark.faults  # too slow for every run
def test_a_signal_to_all_processes_and_its_repetition_cost_no_checkpoint(small_cache_path, tmp_path):
    """As Slurm and systemd send them, and torchrun again: helpers and workers of the run get them too."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "stages.train_student", "--cache", small_cache_path, "--run", run]
    command += ["--device", "cpu"]
    command += settings("data.workers=1", "optim.steps=100000", "train.checkpoint_every=100000")
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 3:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
            os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1
    assert len(saved_steps(run)) == 1
    assert output.splitlines()[-1].startswith("stopped by SIGHUP after step")
    assert "Traceback" not in output
    assert "resource_tracker" not in output


def test_another_batch_or_list_of_units_is_refused_naming_both(small_cache_path, finished):
    digest = "with digest [0-9a-f]{16}'"
    for change, difference in (
        ("train.global_batch=32", "train.global_batch was 16 and is now 32"),
        ("data.views=[0]", f"units was '4 {digest} and is now '2 {digest}"),
    ):
        job = tiny_job(small_cache_path, finished, change)
        message = rf"^cannot resume: {difference}: use the old value, or a new --run$"
        with pytest.raises(CheckpointError, match=message):
            load_newest(job)


def test_what_auto_precision_was_is_pinned_and_an_older_run_has_no_such_pin(
    small_cache_path, finished, tmp_path
):
    job = tiny_job(small_cache_path, finished, DROP_PATH)
    on_other_gpu = replace(job, precision="float16", scaler=torch.amp.GradScaler("cpu"))
    message = r"^cannot resume: train\.precision was 'float32' and is now 'float16': "
    with pytest.raises(CheckpointError, match=message):
        load_newest(on_other_gpu)
    run = killed_after(finished, 3, tmp_path / "run")
    older = checkpoint(run, 3)
    del older["pinned"]["train.precision"]
    torch.save(older, run / "checkpoints/step_00000003.pt")
    assert load_newest(replace(on_other_gpu, run=run)) == 3


def test_another_cache_or_unit_is_refused_before_the_first_checkpoint(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 0, tmp_path / "run")
    values = described(run)
    for key, message in (
        ("cache", "is not the cache that the run began with"),
        ("units", "units was 'other' and is now '4 with digest"),
    ):
        changed = values["pinned"] | {key: "other", "ranks": 8}
        describe_again(run, values | {"pinned": changed})
        result = train(small_cache_path, run, resume=True, code=1)
        assert result.stderr.startswith("error: cannot resume: ")
        assert message in result.stderr
    describe_again(run, values | {"pinned": values["pinned"] | {"ranks": 8}})
    assert_same_runs(finished, trained(small_cache_path, run, resume=True), 6)


def test_a_cache_that_has_lost_a_unit_is_refused(cache_copy, finished, tmp_path):
    (cache_copy / "commits/train-0001.v01.json").unlink()
    run = killed_after(finished, 3, tmp_path / "run")
    message = "lacks units [3] that the run began with"
    refused(message, cache_copy, run, "data.allow_partial=true", resume=True, code=1)


def test_a_run_continues_as_it_was_in_a_cache_that_has_grown(
    small_cache_path, cache_copy, finished, tmp_path
):
    run, messages = killed_after(finished, 3, tmp_path / "run"), []
    shards = resolve_tars(str(small_cache_path.parent / "tars"))
    run_extraction(extraction_options(shards=shards, cache=cache_copy, views=3))
    assert len(tuple(Cache(cache_copy).commits())) == 6
    trained(cache_copy, run, resume=True, say=messages.append)
    assert messages[0].startswith("continuing after step 3 of 6")
    assert_same_runs(finished, run, 6)


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 30):
        save_checkpoint(folder, Checkpoint(step, {"weight": step}, {}, {}))
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000002.pt", "step_00000030.pt"]
    assert load_checkpoint(choose_checkpoint(folder)).student == {"weight": 30}
    assert choose_checkpoint(tmp_path) is None


def test_only_an_error_of_the_disk_is_said_to_be_one(tmp_path, monkeypatch):
    def fail_at_the_device(*_):
        raise RuntimeError("CUDA error")

    def fail_as_torch_does_on_a_full_disk(*_):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", fail_at_the_device)
    with pytest.raises(RuntimeError, match="CUDA error"):
        save_checkpoint(tmp_path, Checkpoint(1, {}, {}, {}))
    monkeypatch.setattr(torch, "save", fail_as_torch_does_on_a_full_disk)
    with pytest.raises(
        CheckpointError, match=r"cannot be written \(No space left on device\).*continue from the one before"
    ):
        save_checkpoint(tmp_path, Checkpoint(1, {}, {}, {}))


def test_a_damaged_checkpoint_is_refused_and_the_one_before_serves(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 6, tmp_path / "run")
    newest = run / "checkpoints/step_00000006.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    message = f"error: checkpoint {str(newest)!r} is damaged (BadZipFile): delete it to continue"
    refused(message, small_cache_path, run, resume=True, code=1)
    newest.unlink()
    trained(small_cache_path, run, resume=True)
    assert_same_runs(finished, run, 6)


def test_a_damaged_line_of_the_log_is_named(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 3, tmp_path / "run")
    log = run / "metrics.jsonl"
    first, rest = log.read_bytes().split(b"\n", 1)
    for line in (b"\0\0\0", b"[]", b'{"loss": 1}', b"\xff"):
        log.write_bytes(b"\n".join([first, line, rest]))
        message = f"line 2 of '{log}' is damaged: remove it"
        refused(message, small_cache_path, run, resume=True, code=1)


def test_a_flipped_bit_anywhere_in_a_checkpoint_changes_no_weight_unnoticed(finished, tmp_path):
    data, whole = (finished / "checkpoints/step_00000006.pt").read_bytes(), checkpoint(finished, 6)
    folder, refused = tmp_path / "checkpoints", 0
    folder.mkdir()
    for offset in range(1000, len(data), len(data) // 60):
        (folder / "step_00000006.pt").write_bytes(
            data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :]
        )
        try:
            loaded = load_checkpoint(choose_checkpoint(folder))
        except CheckpointError:
            refused += 1
        else:  # padding between the records
            assert_same_bits(loaded.student, whole["student"])
            assert_same_bits(loaded.optimiser, whole["optimiser"])
    assert refused > 30
