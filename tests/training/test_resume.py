"""A run that was stopped goes on exactly: bit for bit what an undisturbed one does, on one thread of a CPU."""

import json
import shutil
import signal

import pytest
from caches import extraction_options
from training_runs import (
    DROP_PATH,
    assert_same_bits,
    assert_same_runs,
    checkpoint,
    killed_after,
    losses,
    metrics,
    saved_steps,
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

LONG = "optim.steps=80"
WORKER = "data.workers=1"


@pytest.fixture(scope="module")
def finished(small_cache_path, tmp_path_factory):
    """A run of 6 steps with checkpoints after 3 and 6, drop path and a worker. Shared: change nothing in it."""
    return trained(small_cache_path, tmp_path_factory.mktemp("runs") / "finished", DROP_PATH, WORKER)


def test_runs_repeat_and_drop_path_has_a_part_in_them(small_cache_path, finished, tmp_path):
    again = trained(small_cache_path, tmp_path / "again", DROP_PATH)
    assert_same_runs(finished, again, 6)
    other = trained(small_cache_path, tmp_path / "other", "student.drop_path=0.0")
    assert losses(other) != losses(finished)


def test_three_steps_and_three_resumed_are_six(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 3, tmp_path / "run")
    assert saved_steps(run) == [3]
    trained(small_cache_path, run, resume=True)
    assert_same_runs(finished, run, 6)


def test_lines_beyond_the_checkpoint_and_a_torn_one_are_not_logged_twice(
    small_cache_path, finished, tmp_path
):
    run = killed_after(finished, 3, tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    trained(small_cache_path, run, resume=True)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_what_a_killed_run_was_writing_is_swept(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 3, tmp_path / "run")
    unfinished = [
        run / ".student.safetensors.0123456789abcdef.tmp",
        run / "checkpoints" / "step_00000005.tmp",
    ]
    for path in unfinished:
        path.write_bytes(b"half of it")
    trained(small_cache_path, run, resume=True)
    assert [path.name for path in unfinished if path.exists()] == []
    shutil.copy(
        run / "checkpoints/step_00000003.pt", run / "checkpoints/step_00000001.pt"
    )  # as killed before it was dropped
    trained(small_cache_path, run, resume=True)
    assert saved_steps(run) == [3, 6]
    assert_same_runs(finished, run, 6)


def test_a_finished_run_resumes_to_itself(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 6, tmp_path / "run")
    assert "6 of 6 steps done" in train(small_cache_path, run, resume=True).output
    assert_same_runs(finished, run, 6)
    assert (run / "report.html").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 0, tmp_path / "run")
    trained(small_cache_path, run, resume=True)
    assert_same_runs(finished, run, 6)


def test_how_a_run_is_fed_and_logged_may_change_on_resume_without_repeating_the_rest(
    small_cache_path, finished, tmp_path
):
    run = killed_after(finished, 3, tmp_path / "run")
    trained(small_cache_path, run, "data.workers=2", "train.checkpoint_every=2", resume=True)
    assert_same_runs(finished, run, 6)
    assert saved_steps(run) == [4, 6]
    assert json.loads((run / "run.json").read_text())["config"]["data"]["workers"] == 2


def test_sigterm_saves_and_exits_1_and_the_resumed_run_equals_the_undisturbed_one(small_cache_path, tmp_path):
    undisturbed, run = trained(small_cache_path, tmp_path / "undisturbed", DROP_PATH, LONG), tmp_path / "run"
    handler, thread = signal.getsignal(signal.SIGTERM), terminate_when(run, 7)
    result = train(small_cache_path, run, DROP_PATH, LONG, "train.checkpoint_every=1000")
    thread.join()
    (step,) = saved_steps(run)
    assert 7 <= step < 80
    assert (result.exit_code, signal.getsignal(signal.SIGTERM)) == (1, handler)
    assert f"stopped by SIGTERM after step {step} of 80: continue with --resume" in result.output
    assert metrics(run)[-1]["step"] == step
    trained(small_cache_path, run, resume=True)
    assert_same_runs(undisturbed, run, 80)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.global_batch=32"], "train.global_batch was 16, is 32"),
        (
            ["data.views=[0]"],
            r"units was '4 with digest [0-9a-f]{16}', is '2 with digest [0-9a-f]{16}'",
        ),
    ],
)
def test_another_batch_world_or_list_of_units_is_refused_naming_both(
    small_cache_path, finished, changes, message
):
    job = tiny_job(small_cache_path, finished, *changes)
    with pytest.raises(
        CheckpointError,
        match=rf"^the run cannot be resumed exactly: {message}; restore these or start another --run$",
    ):
        load_newest(job)


def test_a_cache_that_has_lost_a_unit_is_refused(cache_copy, finished, tmp_path):
    (cache_copy / "commits/train-0001.v01.json").unlink()
    run = killed_after(finished, 3, tmp_path / "run")
    result = train(cache_copy, run, "data.allow_partial=true", resume=True)
    assert result.exit_code == 1
    assert "lacks units [3] that the run began with" in result.output


def save(folder, step):
    """Save a checkpoint of one number."""
    return save_checkpoint(folder, Checkpoint(step, {"weight": step}, {}, {}))


def test_the_newest_two_checkpoints_are_kept_and_a_torn_one_is_ignored(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 30):
        save(folder, step)
    (folder / "step_00000040.tmp").write_bytes(b"half of a")
    assert sorted(path.name for path in folder.iterdir()) == [
        "step_00000002.pt",
        "step_00000030.pt",
        "step_00000040.tmp",
    ]
    assert load_checkpoint(choose_checkpoint(folder)).student == {"weight": 30}


def test_no_checkpoint_is_no_error(tmp_path):
    assert choose_checkpoint(tmp_path) is None


def test_a_cut_checkpoint_is_refused_and_the_one_before_serves(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 6, tmp_path / "run")
    newest = run / "checkpoints/step_00000006.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    result = train(small_cache_path, run, resume=True)
    assert result.exit_code == 1
    assert f"error: checkpoint {str(newest)!r} is damaged" in result.output
    assert "delete it, and --resume continues from the one before" in result.output
    newest.unlink()
    trained(small_cache_path, run, resume=True)
    assert_same_runs(finished, run, 6)


def test_a_flipped_bit_anywhere_in_a_checkpoint_changes_no_weight_unnoticed(finished, tmp_path):
    data, whole = (finished / "checkpoints/step_00000006.pt").read_bytes(), checkpoint(finished, 6)
    folder, refused = tmp_path / "checkpoints", 0
    folder.mkdir()
    for place in range(1000, len(data), len(data) // 60):
        (folder / "step_00000006.pt").write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            loaded = load_checkpoint(choose_checkpoint(folder))
        except CheckpointError:
            refused += 1
        else:  # padding between the records
            assert_same_bits(loaded.student, whole["student"])
            assert_same_bits(loaded.optimiser, whole["optimiser"])
    assert refused > 30


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    (tmp_path / "step_00000001.pt").write_bytes(b"text")
    with pytest.raises(CheckpointError, match=r"step_00000001\.pt' is damaged \(BadZipFile\)"):
        choose_checkpoint(tmp_path)


def test_a_run_goes_on_as_it_was_in_a_cache_that_has_grown(small_cache_path, cache_copy, finished, tmp_path):
    run = killed_after(finished, 3, tmp_path / "run")
    shards = resolve_tars(str(small_cache_path.parent / "tars"))
    run_extraction(extraction_options(shards=shards, cache=cache_copy, views=3))
    assert len(tuple(Cache(cache_copy).commits())) == 6
    result = train(cache_copy, run, resume=True)
    assert result.exit_code == 0, result.output
    assert "continuing after step 3 of 6" in result.output
    assert_same_runs(finished, run, 6)


def test_ctrl_c_saves_as_sigterm_does(small_cache_path, tmp_path):
    terminate_when(tmp_path / "run", 2, signal.SIGINT)
    result = train(small_cache_path, tmp_path / "run", LONG)
    assert result.exit_code == 130
    assert "stopped by Ctrl-C after step" in result.output
    assert saved_steps(tmp_path / "run")
