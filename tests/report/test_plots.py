"""Charts: the series behind them and what is drawn of a matrix."""

import re

import numpy as np

from pipeline.report import plots


def test_a_column_is_sorted_finite_and_keeps_the_later_of_two_lines():
    metrics = [
        {"step": 20, "loss": 2.0},
        {"step": 10, "loss": 9.0},
        {"step": 10, "loss": 1.0},
        {"step": 30, "loss": float("nan")},
        {"step": 40},
    ]
    steps, values = plots.column(metrics, "loss")
    assert steps.tolist() == [10, 20]
    assert values.tolist() == [1.0, 2.0]
    assert [x.shape for x in plots.column([], "loss")] == [(0,), (0,)]


def test_a_long_log_is_averaged():
    metrics = [{"step": step, "learning_rate": step % 2} for step in range(20_000)]
    svg = plots.rate_chart(metrics)
    assert len(svg) < 60_000
    assert "from 0 to 1." in svg


def test_small_matrices_are_annotated_and_large_ones_are_not():
    assert ">0.25<" in plots.alignment_chart(np.full((5, 12), 0.25), range(5))
    assert ">0.25<" not in plots.alignment_chart(np.full((24, 24), 0.25), range(24))


def test_only_a_single_largest_weight_is_framed():
    framed = r"stroke: var\(--ink\)"
    assert not re.search(framed, plots.alignment_chart(np.full((2, 4), 0.25), [0, 1]))
    assert len(re.findall(framed, plots.alignment_chart(np.diag([1.0, -2.0]), [0, 1]))) == 2


def test_signs_have_colours_of_their_own():
    chart = plots.alignment_chart(np.array([[1.0, 0.0]]), [0])
    assert "fill: var(--warm)" not in chart
    assert "fill: var(--warm)" in plots.alignment_chart(np.array([[1.0, -1.0]]), [0])


def test_the_share_of_waiting_is_told():
    metrics = [{"step": 10, "wait_share": 0.1}, {"step": 20, "wait_share": 0.3}]
    assert "20.0 % waiting for data on average" in plots.time_chart(metrics)
    assert "waiting for data and in the step." in plots.time_chart([])
