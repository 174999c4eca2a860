"""The command from end to end: all parts on a small cache, its table, its JSON, and what it refuses."""

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from pipeline.benchmark.options import PARTS
from stages.bench import bench

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(bench)
QUICK = ("--quick", "--rounds", "1", "--steps", "1", "--batch-size", "16")
QUICK += ("--workers", "1", "--device", "cpu")


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.bench
def test_a_run_of_all_parts_has_a_table_and_json(small_cache_path, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = ("--cache", str(small_cache_path), "--shards", str(small_cache_path.parent / "tars"))
    result = run(*QUICK, *own)
    assert result.exit_code == 0, result.output
    assert list(tmp_path.glob("maskalign-bench-*")) == []

    values = json.loads(result.stdout.splitlines()[-1])
    names = set(values["figures"])
    parts = {
        "peak",
        "step",
        "loader",
        "reads",
        "stream",
        "decode",
        "teacher",
        "extraction",
        "disk",
        "ratio",
        "embedding",
        "objective",
    }
    assert {name.partition(".")[0] for name in names} == parts
    assert {"extraction.whole", "step.wait_share", "ratio.extraction_to_slowest"} <= names
    for name, figure in values["figures"].items():
        assert figure["quartiles"][0] <= figure["median"] <= figure["quartiles"][1], name
    assert values["configuration"]["parts"] == list(PARTS)
    assert values["configuration"]["config"]["train"]["global_batch"] == 16
    assert values["versions"]["torch"]

    for line in (
        r"\| streamed / resident ",
        r"training waits for data [\d.]+% of its time, at [\d.]+ of the resident rate",
        r"extraction makes [\d,.]+ views/s; its busiest part is (read|decode|teacher|write|publish), [\d,.]+",
        r"(reached|missed): reads / raw checked reads [\d.]+ x, at least 0.7",
        r"(reached|missed): decode, crop, encode: four views, one core [\d,]+ views/s, at least 550",
    ):
        assert re.search(line, result.stdout), line


def test_one_part_is_measured_and_json_goes_to_a_file(small_cache_path, tmp_path):
    file, shards = tmp_path / "bench.json", str(small_cache_path.parent / "tars")
    result = run(*QUICK, "--only", "decode", "--shards", shards, "--json", str(file))
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())["figures"]
    assert set(figures) == {"decode.one_view", "decode.four_views", "ratio.four_views_to_one"}
    assert "{" not in result.stdout


def test_a_users_mistake_is_one_sentence():
    for arguments, text in (
        (["--recipe", "huge"], "--recipe 'huge' is unknown: give tiny, s, b, l"),
        (["--only", "all"], "--only 'all' is not a part: give step, in-loop"),
        (["--device", "tpu"], "device 'tpu' is unknown"),
        (["--only", "decode", "--shards", "/nowhere/a.tar"], "'/nowhere/a.tar' does not exist"),
        (["--only", "teacher", "--teacher", "timm:no_vit"], "teacher 'timm:no_vit' is not a model of timm"),
    ):
        result = run("--quick", *arguments)
        assert result.exit_code == 2, arguments
        assert text in result.stderr
        assert "Traceback" not in result.output
