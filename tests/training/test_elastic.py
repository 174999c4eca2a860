"""One run on 1, 2, 4 and 2 ranks in turn has the samples and losses of a run on one."""

import json
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from calls import under_torchrun
from elastic_script import BATCH, LANES, STEPS, TURNS, take_turn
from training_runs import (
    assert_same_runs,
    checkpoint,
    describe_again,
    described,
    killed_after,
    metrics,
    refused,
    saved_steps,
    trained,
)

from pipeline.training.distributed import Ranks

SCRIPT = Path(__file__).parent / "elastic_script.py"


@pytest.fixture(scope="module")
def folder(small_cache_path, tmp_path_factory):
    """What the turns left."""
    folder = tmp_path_factory.mktemp("elastic")
    with ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in TURNS]
        ports = [each.getsockname()[1] for each in free]
    under_torchrun(SCRIPT, folder, small_cache_path, *ports, ranks=max(TURNS)[0])
    return folder


@pytest.fixture(scope="module")
def alone(small_cache_path, tmp_path_factory):
    """The run on one rank, and the samples of its steps."""
    run = tmp_path_factory.mktemp("alone") / "run"
    return run, take_turn(small_cache_path, run, Ranks(), (), STEPS + 1, "never")


def starts(run):
    return described(run)["starts"]


@pytest.mark.faults  # too slow for every run
def test_every_turn_has_a_part_of_the_run(folder):
    found = [(start["ranks"], start["first_step"], start["last_step"]) for start in starts(folder / "run")]
    assert [ranks for ranks, _, _ in found] == [ranks for ranks, _, _ in TURNS]
    steps = [0, *(last for _, _, last in found)]
    assert [first for _, first, _ in found] == steps[:-1]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS


@pytest.mark.faults  # too slow for every run
def test_each_step_has_the_same_samples_in_the_same_order(folder, alone):
    joint = []
    for number, (ranks, _, _) in enumerate(TURNS):
        files = [folder / f"samples-{number}-{rank}.json" for rank in range(ranks)]
        parts = zip(*(json.loads(file.read_text()) for file in files), strict=True)
        joint += [[sample for part in step for sample in part] for step in parts]
    assert joint == alone[1]
    assert [len(set(step)) for step in joint] == [BATCH] * STEPS


@pytest.mark.faults  # too slow for every run
def test_losses_agree_to_one_in_a_million(folder, alone):
    ours, theirs = ([line["loss"] for line in metrics(run)] for run in (folder / "run", alone[0]))
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-6, abs=0)
    assert len(set(theirs)) == STEPS


@pytest.mark.faults  # too slow for every run
def test_other_lanes_and_ranks_that_do_not_divide_them_are_refused(folder, alone, small_cache_path):
    message = "cannot resume: data.lanes was 4 and is now 2: use the old value, or a new --run"
    refused(message, small_cache_path, alone[0], "data.lanes=2", resume=True)
    multiple = (
        "train.global_batch 16 is not a multiple of data.lanes 3: choose a multiple of 3, or in a new run"
    )
    refused(f"{multiple} data.lanes=2", small_cache_path, folder / "new", "data.lanes=3")


def test_a_run_from_before_lanes_has_as_many_as_ranks(small_cache_path, tmp_path):
    """Its run.json and checkpoints name ranks, and its configuration has no lanes."""
    run = killed_after(trained(small_cache_path, tmp_path / "whole"), 3, tmp_path / "run")
    values = described(run)
    assert (values["resolved"]["data.lanes"], values["pinned"].pop("lanes")) == (1, 1)
    values["pinned"]["ranks"] = LANES
    del values["config"]["data"]["lanes"], values["resolved"]["data.lanes"]
    describe_again(run, values)
    older = checkpoint(run, 3)
    del older["pinned"]["lanes"]
    message = "cannot resume: data.lanes was 4 and is now 1"
    refused(message, small_cache_path, run, "data.lanes=1", resume=True)
    assert saved_steps(run) == [3]
    values["pinned"]["ranks"] = 1
    describe_again(run, values)
    assert_same_runs(tmp_path / "whole", trained(small_cache_path, run, resume=True), 6)
