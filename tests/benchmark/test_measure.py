"""Rounds, turns and times."""

import gc
import time
from dataclasses import replace

import torch

from pipeline.benchmark.measure import (
    Figure,
    core_seconds,
    ratio,
    take_turns,
    wall_seconds,
)
from pipeline.benchmark.stage_one import measure_teacher

CPU = torch.device("cpu")


def test_a_figure_has_its_middle_and_its_middle_half():
    figure = Figure("a", (4.0, 1.0, 2.0, 3.0, 100.0), "s", "an a")
    assert (figure.median, figure.quartiles) == (3.0, (2.0, 4.0))
    assert figure.as_json() == {"median": 3.0, "quartiles": [2.0, 4.0], "rounds": 5, "unit": "s"}


def test_a_ratio_is_taken_round_by_round():
    over, under = Figure("a", [2.0, 40.0, 3.0], "s", "a"), Figure("b", [1.0, 20.0, 2.0], "s", "b")
    assert ratio("r", over, under, "a / b").values == [2.0, 2.0, 1.5]


def test_variants_alternate_after_a_warm_up():
    calls = []
    found = take_turns({name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}, rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert found == {"a": [3, 6, 7], "b": [4, 5, 8]}


def test_sleeping_takes_more_time_than_cores():
    wall = wall_seconds(lambda: time.sleep(0.05), CPU)
    assert wall >= 0.05
    assert core_seconds(lambda: time.sleep(0.05)) < wall
    assert core_seconds(lambda: [value * value for value in range(200_000)]) > 0


def test_the_bare_teacher_holds_the_features_of_one_batch_at_a_time(bench):
    bench.options = replace(bench.options, steps=16)
    alive = []

    def count_features(_module, _inputs, output):
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        alive.append(sum(one.shape == output.shape for one in tensors))

    with bench.teacher.tower.module.blocks[-1].register_forward_hook(count_features):
        (figure,) = measure_teacher(bench)
    assert figure.median > 0
    assert alive == alive[:1] * 8
