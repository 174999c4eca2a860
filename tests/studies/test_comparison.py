"""Tables and figures of compared runs, and what tools/study_figures.py makes of them."""

from pathlib import Path

import pytest
import study_figures

from pipeline.report.compared import ComparedRun, Comparison, Line, Spread, lines_of, remarks_on_runs
from pipeline.report.comparison import as_data, as_markdown, as_page
from pipeline.report.comparison_plot import axes_of, comparison_png

KNN, PROBE = ("knn", "mean", "a"), ("probe", "mean", "b")
FACTS = {"cache": "c" * 64, "units": "2 with digest 0", "initial_encoder": "e"}


def run(seed, value, facts=FACTS, operations=10.0, done=10, **settings):
    return ComparedRun(
        folder=Path(f"run-{value}-{seed}"), seed=seed, settings={"mask.ratio": 0.5, **settings}, facts=facts,
        steps=10, done=done, batch=4, seconds=30.0, operations=operations,
        scores={KNN: value, PROBE: value / 2}, chances={KNN: 0.125},
    )  # fmt: skip


@pytest.fixture
def comparison():
    first = Line("first", [run(0, 0.40), run(1, 0.50)])
    second = Line(
        "second <b>", [run(0, 0.42, operations=30.0), run(1, 0.54, operations=30.0)], [(2, "a | b")]
    )
    return Comparison("A title", [first, second, Line("third", [], waiting=2)], ["a remark"])


def test_spreads_are_those_of_samples_and_differences_are_paired(comparison):
    first, second, third = comparison.lines
    assert first.score(KNN).mean == pytest.approx(0.45)
    assert first.score(KNN).std == pytest.approx(0.0707107, rel=1e-5)
    difference = second.difference(first, KNN)
    assert (difference.mean, difference.std) == pytest.approx((0.03, 0.0141421), rel=1e-5)
    assert Spread((0.5,)).std is None
    assert third.score(KNN) is None


def test_the_table_names_settings_scores_costs_and_failures(comparison):
    head, _, first, second, third, chance, _, failure, remark = as_markdown(comparison).splitlines()
    assert head == "| run | n | knn mean | probe mean | Δ knn mean | images | operations | seconds |"
    assert first == "| first | 2 | 45.0 ± 7.1 | 22.5 ± 3.5 |  | 40 | 400 | 30 s |"
    assert second == "| second <b> | 2 of 3 | 48.0 ± 8.5 | 24.0 ± 4.2 | +3.0 ± 1.4 | 40 | 1.2e+03 | 30 s |"
    assert third == "| third | 0 of 2 |  |  |  |  |  |  |"
    assert chance == "| chance |  | 12.5 |  |  |  |  |  |"
    assert (failure, remark) == ("- second <b>, seed 2: a | b", "- a remark")


def test_the_figures_are_accuracy_against_operations_and_seconds(comparison):
    by_operations, by_seconds = axes_of(comparison).values()
    assert [point[:2] for point in by_operations] == [("first", 400.0), ("second <b>", 1200.0)]
    assert [point[:2] for point in by_seconds] == [("first", 30.0), ("second <b>", 30.0)]
    assert [*axes_of(comparison)] == ["training operations of a run, FLOP", "seconds of training"]
    page = as_page(comparison, "subtitle", Path("out"))
    assert page.count("<svg") == 2
    assert "<b>" not in page
    assert page.count("Accuracy in percent") == 2
    assert page.count(">chance<") == 3  # in figures and table
    assert comparison_png(comparison).startswith(b"\x89PNG")
    assert comparison_png(Comparison("none", [Line("x", [])])) == b""


def test_without_operations_the_figure_is_against_seconds():
    line = Line("one", [run(0, 0.4, operations=None)])
    assert [*axes_of(Comparison("t", [line]))] == ["seconds of training"]


def test_seeds_become_a_line_and_what_is_not_shared_a_remark():
    other = FACTS | {"initial_encoder": "f"}
    runs = [run(0, 0.1), run(1, 0.2), run(0, 0.3, **{"mask.ratio": 0.9}), run(1, 0.4, other, done=5)]
    assert [(line.label, len(line.runs)) for line in lines_of(runs)] == [("ratio 0.5", 3), ("ratio 0.9", 1)]
    assert remarks_on_runs(runs) == [
        "runs of the same seed and student began with different initial weights",
        "ratio 0.5: 3 runs of 2 seeds, so the spread is not one over seeds alone",
        "run run-0.4-1 is at step 5 of 10",
    ]
    cache = run(2, 0.5, FACTS | {"cache": "d" * 64})
    assert "several caches" in remarks_on_runs([*runs, cache])[0]
    assert [line.label for line in lines_of([runs[0], cache])] == ["cache cccccccc", "cache dddddddd"]
    two = run(0, 0.6, FACTS | {"cache": f"{FACTS['cache']}+{'d' * 64}"})
    assert [line.label for line in lines_of([runs[0], two])] == ["cache cccccccc", "cache cccccccc+dddddddd"]


def test_the_document_gets_a_table_of_each_study(comparison):
    text = study_figures.block({"masks": as_data(comparison)}, "An origin.", with_figure=True)
    assert "### A title" in text
    assert "| first | 2 | 45.0 ± 7.1 | 22.5 ± 3.5 | 400 |" in text
    assert "| chance | | 12.5 |  | |" in text
    assert "- second <b>, seed 2: a | b" in text
    assert "(studies.png)" in text
    assert study_figures.BLOCK.search(study_figures.PAGE.read_text())
