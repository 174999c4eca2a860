"""README's table of the demo is what docs/demo.json says, since one script writes both from one run."""

import json

from demo_figures import BLOCK, README, RESULT, block

EXAMPLE = {
    "began": "2026-11-26T10:00:00+00:00", "commit": "0123456789abcdef", "cpu": "2 cores of a CPU",
    "versions": {"python": "3.11.2", "torch": "2.14.1"}, "seconds": {"images": 20.4, "train": 118.2},
    "teacher_knn": 0.468, "teacher_knn_cls": 0.969, "untrained_knn": 0.078, "untrained_knn_cls": 0.086,
    "student_knn": 0.401, "student_knn_cls": 0.711,
}  # fmt: skip


def test_the_table_holds_the_figures_of_the_run():
    text = block(EXAMPLE)
    assert (
        "on 2026-11-26 (commit 0123456, 2 cores of a CPU,\nPython 3.11.2, torch 2.14.1, 139 s in all)" in text
    )
    assert "| student after 1,000 steps, 118 s | 40.1% | 71.1% |\n" in text
    assert "| student before training | 7.8% | 8.6% |\n" in text


def test_the_readme_has_a_place_for_it():
    assert len(BLOCK.findall(README.read_text(encoding="utf-8"))) == 1


def test_readme_and_result_are_of_one_run():
    if RESULT.exists():
        (found,) = BLOCK.findall(README.read_text(encoding="utf-8"))
        assert found == block(json.loads(RESULT.read_text(encoding="utf-8")))
