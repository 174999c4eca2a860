"""scores.json: what replaces what, what is outdated, and what is shown together."""

import json
from pathlib import Path

import pytest
from html_page import Page

from pipeline.errors import CheckpointError
from pipeline.report.compared import ComparedRun, Comparison, Line
from pipeline.report.comparison import as_data, as_markdown, as_page
from pipeline.report.score_sections import score_section
from pipeline.report.scores import (
    DataFacts,
    Score,
    SubjectFacts,
    add_scores,
    is_outdated,
    read_scores,
    student_digest,
)


def data(digest, **changes):
    values = {"address": digest, "kind": "tars", "image_size": 64, "images": 10, "classes": 2, "left_out": {}}
    return DataFacts(**(values | {"first_reasons": {}, "digest": digest} | changes))


STUDENT = {"kind": "run", "name": "student", "weights": "w1", "step": 7}


def score(value=0.5, *, subject=None, **changes):
    values = {
        "representation": "cls", "bank": data("bank"), "test": data("test"), "metrics": {"top-1": value},
        "per_class": {"0": value, "1": value}, "class_images": {"0": 5, "1": 5}, "chance": 0.5,
        "subject": SubjectFacts(**(STUDENT | (subject or {}))), "evaluation": "knn", "protocol": "k-NN",
        "options": {"k": 3}, "selection": "none", "date": "2026-01-02", "seconds": 1.0, "device": "cpu",
    }  # fmt: skip
    return Score(**(values | changes))


TEACHER = {"kind": "teacher", "name": "teacher <b>", "weights": "t", "step": None}


def test_a_run_without_scores_has_none(tmp_path):
    assert read_scores(tmp_path) == ()


def test_scores_come_back_as_they_were_written(tmp_path):
    scores = (score(0.1), score(0.2, subject=TEACHER, seeds=(1, 2), notes=("a note",)))
    add_scores(tmp_path, scores)
    assert read_scores(tmp_path) == scores


def test_a_score_replaces_its_like_alone(tmp_path):
    others = [
        score(subject={"weights": "w2"}), score(subject=TEACHER), score(representation="mean"),
        score(options={"k": 4}), score(test=data("other")), score(protocol="k-NN 2"),
        score(test=data("test", image_size=32)), score(subject={"patch_size": 16, "input_size": 56}),
    ]  # fmt: skip
    add_scores(tmp_path, [score(0.1), *others])
    new = score(0.9, subject={"patch_size": 8, "input_size": 64})  # the first is of a version without sizes
    add_scores(tmp_path, [new])
    assert read_scores(tmp_path) == (*others, new)


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {}},
        {"per_class": {"cat": 0.5}},
        {"chance": 5.0},
        {"plots": [{"file": "../../secret", "caption": "a file that is no plot of this run"}]},
        {"test": data("test").model_dump() | {"left_out": {"damaged": 1}}},
    ],
)
def test_a_score_that_cannot_be_shown_is_refused_before_an_evaluation(tmp_path, change):
    text = json.dumps([score(0.1).model_dump(mode="json") | change])
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"scores\.json' is not a list of scores"):
        read_scores(tmp_path)


def test_what_is_no_list_of_scores_is_refused(tmp_path):
    for text in ('{"student": {"mean": 0.5, "cls": null}}', "[{}]", "[", ""):
        (tmp_path / "scores.json").write_text(text)
        message = r"scores\.json' is not a list of scores: .* evaluate again"
        with pytest.raises(CheckpointError, match=message):
            add_scores(tmp_path, [score()])
        assert (tmp_path / "scores.json").read_text() == text


def test_only_a_runs_student_of_other_weights_is_outdated(tmp_path):
    assert student_digest(tmp_path) is None
    (tmp_path / "student.safetensors").write_bytes(b"weights")
    digest = student_digest(tmp_path)
    assert is_outdated(score(), digest)
    assert not is_outdated(score(subject={"weights": digest}), digest)
    assert not is_outdated(score(subject=TEACHER), digest)


def shown(*scores):
    section = score_section(scores, "w1")
    Page(section.body)
    return section.body


def test_outdated_scores_are_marked():
    text = shown(score(0.25), score(0.75, subject={"weights": "w0", "step": 3}))
    assert "student, step 7<" in text
    assert "student, step 3 (outdated: other weights)<" in text
    assert text.count("bar old") == 1


def test_scores_share_a_chart_only_under_equal_conditions():
    same = [score(), score(subject=TEACHER), score(representation="mean")]
    assert shown(*same).count('<table class="scores"') == 1
    others = [
        score(options={"k": 4}),
        score(protocol="k-NN 2"),
        score(test=data("other")),
        score(bank=data("more")),
    ]
    assert shown(*same, *others).count('<table class="scores"') == 5


def test_charts_say_protocol_data_chance_and_notes():
    left_out = {"left_out": {"damaged": 2}, "first_reasons": {"damaged": "a.tar/x is <bad>"}}
    text = shown(score(0.25, notes=("one class",), test=data("test", **left_out)))
    words = " ".join(Page(text).words)
    assert (
        "k-NN (k 3): 10 images of 2 classes of test, learnt from 10 of bank; the line is chance, 50.0%."
        in words
    )
    assert "2 damaged images of test are left out; the first: a.tar/x is <bad>" in words
    assert "one class" in words
    assert "Accuracy of each class" in words
    assert "25.0%" in words


def test_without_scores_there_is_no_section():
    assert score_section([], None).body == ""


def test_a_table_tells_scores_under_several_conditions_apart():
    scores = [score(), score(options={"k": 4}), score(test=data("other"), selection="best of 2")]
    keys = [("knn", "cls", one.conditions) for one in scores]
    runs = [ComparedRun(Path(str(at)), 0, {key: 0.5}, {}) for at, key in enumerate(keys)]
    table = Comparison("A title", [Line(str(run.folder), [run]) for run in runs])
    expected = [
        "knn cls (1): k 3, selection none, images to test on test of 64 pixels",
        "knn cls (2): k 4, selection none, images to test on test of 64 pixels",
        "knn cls (3): k 3, selection best of 2, images to test on other of 64 pixels",
    ]
    assert as_markdown(table).splitlines()[-3:] == [f"- {text}" for text in expected]
    assert as_data(table)["remarks"] == expected
    assert all(text in as_page(table, "subtitle", Path("out")) for text in expected)
    assert Comparison("A title", [Line("one", runs[:1])]).notes == []
