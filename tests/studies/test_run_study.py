"""run-study from file to table on a tiny cache: killed, split, refused; and compare-runs on its runs."""

import json
import re
import shutil

import caches
import pytest
import study_figures
import torch
from calls import call
from safetensors.torch import load_file
from study_runs import BASE, TWO, study_file, without_times
from training.training_runs import terminate_when

from pipeline.cache.reader import Cache
from pipeline.report.compared import read_compared
from pipeline.report.scores import read_scores
from pipeline.student.patches import cut_patches
from pipeline.studies.teacher_in_loop import whole_views
from stages.compare_runs import compare_runs
from stages.run_study import run_study

RUNS = ["maskalign-s0", "fd-s0", "maskalign-s1", "fd-s1"]


def lines(out):
    return {line["label"]: line for line in json.loads((out / "table.json").read_text())["lines"]}


def test_the_table_has_scores_with_spread_and_costs(finished):
    found = lines(finished)
    assert list(found) == ["maskalign", "fd", "untrained encoder"]
    for name in ("maskalign", "fd"):
        assert found[name]["seeds"] == [0, 1]
        scores = found[name]["scores"]["knn mean"]
        assert len(scores["values"]) == 2
        assert scores["std"] == pytest.approx(torch.tensor(scores["values"]).std().item(), abs=1e-6)
        assert (found[name]["images"], found[name]["failures"], found[name]["waiting"]) == (96, [], 0)
    assert found["fd"]["operations"] > found["maskalign"]["operations"] > 0
    assert found["fd"]["settings"]["objective.name"] == "fd"
    page = (finished / "index.html").read_text()
    assert page.count("<svg") == 2
    assert "training operations of a run" in page
    links = {f"runs/{name}/report.html" for name in RUNS}
    assert set(re.findall(r'<a href="(.+?)"', page)) == links
    assert all((finished / link).is_file() for link in links)
    (score, *_) = read_scores(finished / "runs" / RUNS[0])
    assert json.loads((finished / "table.json").read_text())["chance"]["knn mean"] == score.chance > 0
    table = (finished / "table.md").read_text()
    assert table.startswith("| run | name | n | knn cls | knn mean | Δ knn mean | images |")
    assert "±" in table


def test_runs_of_a_seed_share_start_order_and_cache(finished):
    found = {name: read_compared(finished / "runs" / name) for name in RUNS}
    for seed in (0, 1):
        pair = [found[f"{name}-s{seed}"] for name in ("maskalign", "fd")]
        assert pair[0].facts == pair[1].facts
        assert pair[0].facts["initial_encoder"]
    assert found["fd-s0"].facts["initial_encoder"] != found["fd-s1"].facts["initial_encoder"]


def test_the_figure_of_the_document_shows_the_rows_of_one_ending(finished):
    table = json.loads((finished / "table.json").read_text())
    every, one = (study_figures.figure(finished, table, ending) for ending in ("", "fd"))
    assert every.startswith(b"\x89PNG")
    assert one not in (b"", every)
    assert study_figures.figure(finished, table) == b""


def test_the_document_states_when_its_runs_were_trained(finished):
    starts = [json.loads((finished / "runs" / name / "run.json").read_text())["starts"][0] for name in RUNS]
    text = study_figures.origin([finished])
    assert starts[0]["began"][:10] in text
    assert f"device cpu; commits {(starts[0]['commit'] or 'unknown')[:7]}" in text


def test_a_second_call_does_nothing_again(finished, small_cache_path, data):
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*.json")}
    study = finished.parent / "study.toml"
    result = call(run_study, study, "--cache", small_cache_path, "--out", finished, *data)
    assert result.exit_code == 0, result.output
    assert "4 of them trained" in result.output
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*.json")}


@pytest.mark.faults  # too slow for every run
def test_a_run_that_equals_a_finished_one_is_copied(finished, small_cache_path, data, tmp_path):
    levels = list(Cache(str(small_cache_path)).schema.levels)
    rows = {
        "equal": {"data.levels": levels, "data.workers": 1, "train.checkpoint_every": 3},
        "equal again": {"objective.name": "maskalign"},
        "other mask": {"mask.ratio": 0.5},
        "other level": {"data.levels": levels[-1:]},
        "two lanes": {"data.lanes": 2},
    }
    text = 'title = "more"\nseeds = [1]\n' + BASE
    for label, settings in rows.items():
        values = "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in settings.items())
        text += f'[[variants]]\nlabel = "{label}"\n[variants.settings]\n{values}'
    study, out = study_file(tmp_path, text), tmp_path / "out"
    words = (study, "--cache", small_cache_path, *data)
    result = call(run_study, *words, "--out", out, "--reuse", finished)
    assert result.exit_code == 0, result.output
    source = finished / "runs" / "maskalign-s1"
    for name in ("equal-s1", "equal-again-s1"):
        assert f"{name}: copied from the equal run " in result.output
        assert (out / "runs" / name / "student.safetensors").read_bytes() == (
            source / "student.safetensors"
        ).read_bytes()
    assert result.output.count("copied from") == 2
    assert json.loads((out / "runs/equal-s1/run.json").read_text())["copied_from"] == str(source.resolve())

    result = call(run_study, *words, "--out", out)
    assert result.exit_code == 0, result.output
    assert "5 of them trained" in result.output

    trained = tmp_path / "trained"
    half = trained / "runs/.equal-again-s1.tmp"  # what a killed process leaves of a copy
    half.mkdir(parents=True)
    shutil.copy(out / "study.json", trained)
    shutil.copy(finished / "runs/maskalign-s1/run.json", half)
    result = call(run_study, *words, "--out", trained, "--only", "1/5")
    assert "copied" not in result.output
    ours, theirs = (load_file(folder / "runs/equal-s1/student.safetensors") for folder in (trained, out))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert lines(trained)["equal"]["scores"] == lines(out)["equal"]["scores"]

    result = call(run_study, *words, "--out", out, "--reuse", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: --reuse {str(tmp_path)!r} holds no study: give the --out of a run-study\n"
    )


@pytest.mark.faults  # too slow for every run
def test_stopped_at_three_moments_it_ends_with_the_same_table(finished, small_cache_path, data, tmp_path):
    out = tmp_path / "out"
    words = (study_file(tmp_path), "--cache", small_cache_path, "--out", out, *data)
    for run, steps in (("maskalign-s0", 3), ("fd-s0", 1), ("maskalign-s1", 5)):
        terminate_when(out / "runs" / run, steps)
        result = call(run_study, *words)
        assert result.exit_code == 1, result.output
        assert "stopped by SIGTERM: run the same command again to continue" in result.output
    # a kill leaves a run without its last steps and scores, and a run that has not begun
    for name in ("student.safetensors", "scores.json"):
        (out / "runs" / "maskalign-s0" / name).unlink(missing_ok=True)
    described = json.loads((out / "runs/maskalign-s0/run.json").read_text())
    for start in described["starts"]:
        start.pop("last_step", None)
    (out / "runs/maskalign-s0/run.json").write_text(json.dumps(described))
    result = call(run_study, *words)
    assert result.exit_code == 0, result.output
    assert without_times(out) == without_times(finished)


@pytest.mark.faults  # too slow for every run
def test_the_parts_of_a_study_add_up(finished, small_cache_path, data, tmp_path):
    out = tmp_path / "out"
    words = (study_file(tmp_path), "--cache", small_cache_path, "--out", out, *data)
    first = call(run_study, *words, "--only", "1/2")
    assert first.exit_code == 0, first.output
    assert "the study is not complete" in first.output
    there = sorted(path.name for path in (out / "runs").iterdir() if path.is_dir())
    assert there == ["maskalign-s0", "maskalign-s1"]
    assert call(run_study, *words, "--only", "2/2").exit_code == 0
    assert without_times(out) == without_times(finished)


def test_a_dry_run_lists_steps_and_operations_and_writes_nothing(small_cache_path, tmp_path):
    study, out = study_file(tmp_path), tmp_path / "out"
    words = (study, "--cache", small_cache_path, "--out", out, "--dry-run")
    result = call(run_study, *words)
    assert result.exit_code == 0, result.output
    first, *_, last = result.output.splitlines()
    assert first.startswith("maskalign-s0: 6 steps (0.75 epochs, 96 images), ")
    assert first.endswith(" FLOP; to do")
    assert last.startswith("4 runs, 24 steps, about ")
    assert not out.exists()
    result = call(run_study, *words, "--budget", "epochs=2", "--only", "2/4")
    assert result.output.startswith("fd-s0: 16 steps (2 epochs")


@pytest.mark.faults  # too slow for every run
def test_a_failing_run_is_in_the_table_and_stops_no_other(small_cache_path, data, tmp_path):
    text = (
        'title = "t"\nseeds = [0]\nuntrained = false\n'
        + BASE
        + (
            '[[variants]]\nlabel = "too much"\nsettings = { "objective.name" = "fd", "mask.ratio" = 0.5 }\n'
            '[[variants]]\nlabel = "diverges"\nsettings = { "optim.base_lr" = 1e30 }\n'
            '[[variants]]\nlabel = "good"\n'
        )
    )
    out = tmp_path / "out"
    words = (study_file(tmp_path, text), "--cache", small_cache_path, "--out", out, *data)
    result = call(run_study, *words)
    assert result.exit_code == 1, result.output
    found = lines(out)
    assert "mask.ratio is set" in found["too much"]["failures"][0]["reason"]
    assert "the loss is nan" in found["diverges"]["failures"][0]["reason"]
    assert found["good"]["scores"]["knn mean"]["values"]
    assert "too much, seed 0:" in (out / "table.md").read_text()
    assert "refused: " in call(run_study, *words, "--dry-run").output


def refused(*words):
    result = call(run_study, *words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_mixed_caches_are_refused(finished, small_cache_path, data, tmp_path):
    other = caches.real(tmp_path, tars=1, encoding="int4")
    study = finished.parent / "study.toml"
    assert "all runs of a study share one cache" in refused(study, "--cache", other, "--out", finished, *data)
    out = shutil.copytree(finished, tmp_path / "copy")
    (out / "study.json").write_text(
        (out / "study.json").read_text().replace(Cache(small_cache_path).digest, Cache(other).digest)
    )
    assert "give the first cache, or a new --out" in refused(study, "--cache", other, "--out", out, *data)
    two = ("--cache", small_cache_path, "--cache", other)
    assert "2 caches are given" in refused(study, *two, "--out", tmp_path / "new", *data)


def test_runs_that_do_not_share_weights_or_order_are_refused(finished, small_cache_path, data, tmp_path):
    out = shutil.copytree(finished, tmp_path / "copy")
    file = out / "runs" / "fd-s0" / "run.json"
    described = json.loads(file.read_text())
    for change, message in (
        ({"initial_encoder": "0" * 64}, "their initial encoder weights differ"),
        ({"lanes": 2}, "their data.lanes differ (1 and 2)"),
    ):
        file.write_text(json.dumps(described | change | {"pinned": described["pinned"] | change}))
        study = finished.parent / "study.toml"
        result = call(run_study, study, "--cache", small_cache_path, "--out", out, *data, code=1)
        assert message in " ".join(result.output.split())


def test_misuse_of_the_command_is_one_sentence(finished, small_cache_path, data, tmp_path):
    study, cache = study_file(tmp_path), ("--cache", small_cache_path)
    other = study_file(tmp_path, TWO.replace("tiny", "another"), "other.toml")
    assert "holds another study, 'tiny'" in refused(other, *cache, "--out", finished, *data)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not a folder of this study" in refused(study, *cache, "--out", tmp_path / "full", *data)
    longer = study_file(tmp_path, TWO.replace('steps" = 6', 'steps" = 7'), "longer.toml")
    assert "optim.steps was 6 and is now 7" in refused(longer, *cache, "--out", finished, *data)
    new = ("--out", tmp_path / "new")
    assert "is not a part" in refused(study, *cache, *new, "--only", "3/2")
    assert "is not a budget: give epochs=N" in refused(study, *cache, *new, "--budget", "days=2")
    probe = study_file(tmp_path, TWO + "[evaluations.probe]\n", "probe.toml")
    assert "give --test-shards" in refused(probe, *cache, *new)
    named = study_file(tmp_path, TWO.replace("[axes]", '[axes]\ncache = ["a", "b"]'), "caches.toml")
    assert "is not a cache of the study" in refused(named, *cache, *new)
    assert "is not a cache of the study" in refused(named, "--cache", "a=", *new)
    in_loop = study_file(
        tmp_path, TWO + '[[variants]]\nlabel = "x"\nteacher_in_the_loop = true\n', "loop.toml"
    )
    assert "give --teacher the address" in refused(in_loop, *cache, *new, *data)


@pytest.mark.faults  # too slow for every run
def test_caches_may_be_an_axis(small_cache_path, data, tmp_path):
    other = caches.real(tmp_path, encoding="float16")  # of equal tars
    text = 'title = "t"\nseeds = [0]\n[axes]\ncache = ["int8", "float16"]\n' + BASE
    out = tmp_path / "out"
    named = ("--cache", f"int8={small_cache_path}", "--cache", f"float16={other}")
    result = call(run_study, study_file(tmp_path, text), *named, "--out", out, *data)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "table.json").read_text())["remarks"] == []
    runs = [read_compared(out / "runs" / f"{name}-s0") for name in ("int8", "float16")]
    assert runs[0].facts["cache"] != runs[1].facts["cache"]
    assert runs[0].facts["initial_encoder"] == runs[1].facts["initial_encoder"]


def test_views_are_put_together_from_patches():
    views = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    patches = cut_patches(views, 8)
    shuffled = patches.gather(1, order[..., None].expand_as(patches))
    assert torch.equal(whole_views(shuffled, order, 8), views)


@pytest.mark.faults  # too slow for every run
def test_the_teacher_in_the_loop_has_the_losses_of_a_cache(tmp_path):
    """A float16 cache stores the teacher's own output but for rounding, so the loss curves agree."""
    cache = caches.real(tmp_path, tars=1, encoding="float16")
    text = TWO.replace("[0, 1]", "[0]") + (
        '[[variants]]\nlabel = "loop"\nteacher_in_the_loop = true\n'
        '[[variants]]\nlabel = "fd loop"\nteacher_in_the_loop = true\n'
        'settings = { "objective.name" = "fd" }\n'
    )
    out = tmp_path / "out"
    words = ("--cache", cache, "--out", out, "--device", "cpu", "--teacher", caches.TEACHER)
    study = study_file(tmp_path, text.replace("[evaluations.knn]\nk = 3", "[evaluations]"))
    result = call(run_study, study, *words)
    assert result.exit_code == 0, result.output
    for cached, loop in (("maskalign", "loop"), ("fd", "fd-loop")):
        losses = [
            [
                json.loads(line)["loss"]
                for line in (out / "runs" / f"{name}-s0/metrics.jsonl").read_text().splitlines()
            ]
            for name in (cached, loop)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        assert losses[0] != losses[1]


@pytest.mark.faults
def test_a_damaged_study_is_named_and_its_runs_can_be_reused(finished, small_cache_path, data, tmp_path):
    study, words = study_file(tmp_path), ("--cache", small_cache_path, *data)
    (tmp_path / "old").mkdir()
    shutil.copytree(finished / "runs", tmp_path / "old" / "runs")
    for text in ("{", "{}", "[]", '{"title": "tiny", "caches": 3}'):
        (tmp_path / "old" / "study.json").write_text(text)
        assert "study.json' is damaged" in refused(study, *words, "--out", tmp_path / "old")
    result = call(run_study, study, *words, "--out", tmp_path / "new", "--reuse", tmp_path / "old")
    assert result.output.count("copied from the equal run") == len(RUNS)


def test_compare_runs_gathers_seeds(finished, tmp_path):
    folders = [finished / "runs" / name for name in RUNS]
    result = call(compare_runs, *folders, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    ours, theirs = lines(tmp_path / "out"), lines(finished)
    assert [line["scores"] for line in ours.values()] == [
        theirs[name]["scores"] for name in ("maskalign", "fd")
    ]
    assert [list(line["seeds"]) for line in ours.values()] == [[0, 1], [0, 1]]
    assert next(iter(ours)).startswith("maskalign")
    links = re.findall(r'<a href="(.+?)"', (tmp_path / "out" / "index.html").read_text())
    reports = {(tmp_path / "out" / link).resolve() for link in links}
    assert reports == {(folder / "report.html").resolve() for folder in folders}


def test_compare_runs_gathers_what_learns_alike_and_nothing_else(finished, tmp_path):
    def changed(name, pinned, **sections):
        shutil.copytree(finished / "runs" / "fd-s0", tmp_path / name)
        record = json.loads((tmp_path / name / "run.json").read_text())
        for section, keys in sections.items():
            record["config"][section] |= keys
        record["pinned"] |= pinned
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        return tmp_path / name

    def labels(*runs):
        assert call(compare_runs, *runs, "--out", tmp_path / "out").exit_code == 0
        return [*lines(tmp_path / "out")]

    first = changed("first", {}, train={"seed": 1}, log={"name": "first"}, data={"on_damage": "skip"})
    assert labels(finished / "runs" / "fd-s0", first) == ["fd-s0"]
    in_loop = changed("loop", {"targets": "teacher in the loop"})
    assert labels(first, in_loop) == ["cached targets", "teacher in the loop"]
    warm = [
        changed(f"warm{at}", {}, optim={"warmup_steps": None, "warmup_epochs": at}, train={"seed": at})
        for at in (1, 2)
    ]
    assert labels(*warm) == ["warmup_epochs 1", "warmup_epochs 2"]


def test_compare_runs_refuses_in_one_sentence(finished, tmp_path):
    run = finished / "runs" / "fd-s0"
    for words, message in (
        ([run], "needs at least two runs"),
        ([run, run], "is given twice"),
        ([run, tmp_path], "is not a run folder"),
        ([run, tmp_path / "caf\udce9"], "has a name that is not UTF-8: rename it"),
    ):
        result = call(compare_runs, *words, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
