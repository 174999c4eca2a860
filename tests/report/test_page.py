"""The report page: complete in itself, well-formed, escaped, for any run folder and length of log."""

import json
import re
import shutil

import numpy as np
import pytest
from html_page import Page
from safetensors.numpy import save_file

from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.report.alignment import alignment_section
from pipeline.report.page import PageSection, render_page
from pipeline.report.plots import loss_chart
from pipeline.report.run_page import write_run_report
from pipeline.training.config import RunConfig, objective_kinds


def line(step, **changes):
    values = {
        "step": step, "epoch": step / 80, "loss": 1 / step, "learning_rate": 1e-3, "images_per_second": 800.0,
        "loss_terms": {"level 2": 1 / step, "level 3": 2 / step},
        "wait_share": 0.01, "data_seconds": 0.1, "step_seconds": 9.9,
        "figures": {"alignment": (np.eye(2, 4) + 1 / step).tolist()},
    }  # fmt: skip
    return values | changes


@pytest.fixture(scope="module")
def cache(small_cache_path):
    return Cache(small_cache_path)


def run_folder(path, cache, metrics, config=None, **changes):
    """Write the folder of a run as train-student does, with a student of 24 parameters."""
    path.mkdir()
    teacher = cache.schema.teacher.model_dump(mode="json")
    described = {
        "config": RunConfig(**(config or {})).model_dump(mode="json"),
        "cache": {"path": cache.address, "digest": cache.digest, "teacher": teacher},
        "view": cache.schema.view.model_dump(mode="json"),
        "units": [0, 1], "steps": 60, "steps_per_epoch": 80,
        "operations": 31_630_000_000, "device": "cpu", "versions": {"torch": "2.14"},
        "began": "2026-11-02T10:00:00+00:00", "ended": "2026-11-02T11:00:00+00:00",
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(described | changes))
    (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in metrics))
    save_file({"a": np.zeros((4, 5), np.float32), "b": np.zeros(4, np.float32)}, path / "student.safetensors")
    return path


def page_of(folder):
    return write_run_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "my-run"
    return page_of(run_folder(folder, cache, [line(10), line(20), line(22)]))


def test_a_run_without_a_teacher_says_what_taught_it(cache, tmp_path):
    """Nor does it have an alignment."""
    metrics, config = [line(10, figures={}, loss_terms={})], {"objective": {"name": "mae"}}
    lesson = objective_kinds()["mae"].lesson
    page = page_of(run_folder(tmp_path / "run", cache, metrics, config, lesson=lesson, ended=None))
    assert "trained on pixels: 10 of 60 steps, not ended yet" in page
    assert "taught by" not in page
    assert "Alignment" not in Page(page).words


def test_title_and_headline_say_what_became_of_the_run(text):
    words = Page(text).words
    assert words.count("my-run, 2026-11-02") == 2
    assert "vit_base_patch16_224 taught by timm test_vit: 22 of 60 steps, stopped" in words
    assert {
        "22",
        "of 60, 0.275 epochs",
        "0.0455",
        "from 0.1000",
        "800",
        "1.0%",
        "30 s",
        "24",
        "31.6 GFLOP",
    } <= set(words)


def test_any_length_of_log_gives_a_well_formed_page_that_stays_small(cache, tmp_path):
    for count, charts in ((0, 0), (1, 4), (2, 5), (4_999, 5)):
        metrics = [line(10 * step) for step in range(1, count + 1)]
        text = page_of(run_folder(tmp_path / str(count), cache, metrics))
        page = Page(text)
        assert len(page.charts) == charts
        assert len(set(page.ids)) == len(page.ids)
        assert ("Nothing has been logged yet." in page.words) == (count == 0)
        assert len(text) < 300_000


def test_nothing_comes_from_elsewhere(text):
    page = Page(text)
    assert page.addresses
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"' ]*", text)) <= namespaces
    assert not re.search(r"<script|@import|<link", text)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)


def test_the_same_folder_gives_the_same_page(cache, tmp_path, text):
    assert page_of(run_folder(tmp_path / "my-run", cache, [line(10), line(20), line(22)])) == text


def test_charts_follow_the_theme(text):
    assert not re.search(r"#0[ab]0[ab]0\d", text)
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used <= {*re.findall(r"(--\w+):", text), "--chance"}
    assert {"--ink", "--accent", "--warm", "--tone"} <= used
    assert "prefers-color-scheme: dark" in text


def test_all_text_is_escaped(cache, tmp_path):
    evil = "<b onclick='x'>&"
    config = {"student": {"model": evil, "options": {evil: evil}}}
    folder = run_folder(
        tmp_path / "<b>", cache, [line(10)], config, device=evil, command=evil, versions={evil: evil}
    )
    text = page_of(folder) + render_page(evil, evil, [PageSection(evil, "x")])
    assert "<b onclick" not in text
    Page(text)


def test_charts_and_images_are_described_in_words(text):
    page = Page(text)
    assert page.charts[0] == "Line chart of the loss against steps, from 0.1 to 0.04545, with its 2 terms."
    assert page.charts[3] == "Line chart of the % of the time against steps, from 1 to 1."
    assert page.images[0].startswith("Image 0000")
    assert page.images[1].startswith("Heat map of the teacher's importance over image 0000")
    assert page.images[2].endswith("hidden of its 16 patches hatched")
    assert "4 of 16 patches visible" in page.words


def test_the_loss_has_a_log_axis_unless_it_reaches_zero():
    def decades(lowest):
        chart = loss_chart([line(10, loss=lowest, loss_terms={}), line(20, loss=10.0, loss_terms={})], 0)
        return re.findall(r">(0\.001|0\.01|0\.1)</text>", chart)

    assert decades(1e-4) == ["0.001", "0.01", "0.1"]
    assert decades(-0.5) == []


@pytest.mark.parametrize("count", [6, 10])
def test_a_chart_has_room_beside_long_names_of_terms(count):
    terms = {f"vit_base_patch14_reg4_dinov2.lvd142m level {level}": 1.0 for level in range(count)}
    chart = loss_chart([line(10, loss_terms=terms), line(20, loss_terms=terms)], 5)  # matplotlib warns if not
    assert re.findall(r">\S+ level (\d)</text>", chart) == ["0", str(count - 1)]


def test_the_matrix_frames_the_single_largest_of_a_row():
    def framed(weights):
        return alignment_section([line(10, figures={"alignment": weights})]).body.count(' largest"')

    assert framed([[0.25] * 4, [0.25] * 4]) == 0
    assert framed([[1.0, 0.0], [0.0, -2.0]]) == 2
    assert 'class="minus' in alignment_section([line(1, figures={"alignment": [[1.0, -1.0]]})]).body


def test_the_matrix_has_names_a_scale_and_its_course(text):
    words = Page(text).words
    assert {"level 2", "level 3", "1.05", ".05", "-1.05"} <= set(words)
    assert "Mean student block that a level draws on, by weight" in words


def marked_rows(text):
    """Name, value and note of each marked row of the configuration."""
    row = r"<tr class=\"changed\"><th scope=\"row\">(.*?)</th><td>(.*?)</td><td>(.*?)</td>"
    return re.findall(row, text)


def test_configuration_marks_changes_and_hides_what_is_overridden(cache, tmp_path):
    command = "train-student --config a.toml --set train.seed=0 --set 'student.options.depth = 2' --run r"
    config = {"student": {"options": {"depth": 2}}, "optim": {"steps": 60, "warmup_steps": 5}}
    config["mask"] = {"ratio": 0.6}
    text = page_of(run_folder(tmp_path / "run", cache, [line(10)], config, command=command))
    assert sorted(marked_rows(text)) == [
        ("mask.ratio", "0.6", "default 0.7"), ("optim.steps", "60", "default null"),
        ("optim.warmup_steps", "5", "default null"),
        ("student.options", "{&quot;depth&quot;: 2}", "--set, default {}"),
        ("train.seed", "0", "--set, default 0"),
    ]  # fmt: skip
    words = Page(text).words
    assert "optim.epochs" not in words
    assert "optim.warmup_epochs" not in words
    assert "optim.base_lr" in words


def test_configuration_has_the_defaults_of_the_objective(cache, tmp_path):
    config = {"objective": {"name": "fd", "beta": 2.0}}
    text = page_of(run_folder(tmp_path / "run", cache, [line(10)], config))
    assert marked_rows(text) == [
        ("objective.name", "fd", "default maskalign"), ("objective.beta", "2.0", "default 1.0"),
    ]  # fmt: skip


def test_a_finished_run_of_a_gpu_without_warm_up(cache, tmp_path, text):
    metrics = [line(10, bytes_per_image=24_000_000.0), line(60, bytes_per_image=25_640_000.0)]
    folder = run_folder(tmp_path / "run", cache, metrics, {"optim": {"warmup_steps": 0}})
    page = page_of(folder)
    assert "60 of 60 steps, finished" in page
    assert "25.6 MB" in Page(page).words
    assert "memory per image" not in text
    assert text.count(">warm-up<") == 2  # where the rate is shown
    assert ">warm-up<" not in page


def test_without_its_cache_a_run_still_has_a_report(cache, tmp_path):
    copy = Cache(shutil.copytree(cache.address, tmp_path / "copy.cache"))
    folder = run_folder(tmp_path / "run", copy, [])
    assert len(Page(page_of(folder)).images) == 3 * 6
    shutil.rmtree(copy.address)
    text = page_of(folder)
    assert "No images: " in text
    assert "is not a cache" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        write_run_report(tmp_path)


def test_scores_while_training_are_curves_with_chance_and_numbers(cache, tmp_path):
    evaluate = {"every_epochs": 1, "shards": ["learn.tar"], "test_shards": ["test.tar"]}

    def scored(step, value):
        entry = {"evaluation": "knn", "representation": "cls", "metric": "top-1", "chance": 0.25}
        values = {"value": value, "interval": [value - 0.1, value + 0.1]}
        return {"step": step, "epoch": step / 80, "evaluations": [entry | values], "evaluation_seconds": 1.5}

    metrics = [scored(0, 0.3), line(10), line(20), scored(20, 0.625)]
    text = page_of(run_folder(tmp_path / "run", cache, metrics, {"evaluate": evaluate}))
    words = Page(text).words
    assert "Scores while training" in words
    assert any("labelled images of learn.tar, tested on test.tar: for watching" in each for each in words)
    assert {"knn", "knn cls", "cls", "chance", "62.5%", "25.0%"} <= set(words)
    label = "knn in percent against steps: cls, from 30 to 62.5; chance is 25."
    assert f'aria-label="Line chart of {label}"' in text
    assert "20 of 60 steps" in text


def test_a_run_without_scores_has_no_section_for_them(text):
    assert "Scores while training" not in text
