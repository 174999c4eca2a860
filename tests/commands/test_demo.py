"""The demo in small: settings given to it, its table, and what it refuses."""

import json

import pytest
from calls import call

from stages.demo import demo


@pytest.mark.faults  # half a minute; make demo runs all evaluations
def test_settings_reach_both_networks_but_the_objective_the_student_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.demo._FROZEN", "knn")
    monkeypatch.setattr("stages.demo._SETTINGS", "")
    changes = ("optim.steps=4", "optim.warmup_steps=1", "objective.mode=uniform", "data.levels=[5]")
    words = [word for change in changes for word in ("--set", change)]
    result = call(demo, "--folder", tmp_path / "demo", "--images", 200, "--test-images", 60, *words, code=0)
    config = {
        run: json.loads((tmp_path / "demo" / run / "run.json").read_text())["config"]
        for run in ("run", "supervised")
    }
    assert [one["optim"]["steps"] for one in config.values()] == [4, 4]
    assert (config["run"]["objective"]["mode"], config["run"]["data"]["levels"]) == ("uniform", [5])
    assert config["supervised"]["objective"]["name"] == "supervised"
    assert "on 60 unseen images" in result.output
    scores = json.loads((tmp_path / "demo" / "result.json").read_text())["scores"]
    assert [*scores] == ["teacher", "untrained", "trained on labels", "student"]
    assert all(0 <= value <= 1 for row in scores.values() for value in row.values())
    assert (tmp_path / "demo" / "run" / "report.html").exists()


def test_a_folder_with_other_things_in_it_is_refused_and_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    result = call(demo, "--folder", tmp_path, code=2)
    assert f"--folder {str(tmp_path)!r} is not an earlier demo: give a new or empty folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
