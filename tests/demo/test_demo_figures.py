"""README's table of the demo is what docs/demo.json says, since one script writes both from one run."""

import json

from demo_figures import BLOCK, README, RESULT, block

EXAMPLE = {
    "began": "2026-11-26T10:00:00+00:00", "commit": "0123456789abcdef", "cpu": "2 cores of a CPU",
    "versions": {"python": "3.11.2", "torch": "2.14.1"},
    "seconds": {"images": 20.4, "train": 118.2, "train on labels": 9.0},
    "scores": {
        "teacher": {"k-NN": 0.468, "mIoU": 0.5}, "untrained": {"k-NN": 0.078, "mIoU": 0.1},
        "student": {"k-NN": 0.401, "mIoU": 0.4}, "trained on labels": {"k-NN": 0.2},
    },
}  # fmt: skip


def test_the_table_holds_the_figures_of_the_run():
    text = block(EXAMPLE)
    assert (
        "on 2026-11-26 (commit 0123456, 2 cores of a CPU,\nPython 3.11.2, torch 2.14.1, 148 s in all)" in text
    )
    assert "| | k-NN | mIoU |\n|---|---|---|\n" in text
    assert "| student after 900 steps, 118 s | 40.1% | 40.0% |\n" in text
    assert "| the same, trained on labels in as many steps, 9 s | 20.0% |  |\n" in text


def test_the_readme_has_a_place_for_it():
    assert len(BLOCK.findall(README.read_text(encoding="utf-8"))) == 1


def test_readme_and_result_are_of_one_run():
    if RESULT.exists():
        (found,) = BLOCK.findall(README.read_text(encoding="utf-8"))
        assert found == block(json.loads(RESULT.read_text(encoding="utf-8")))
