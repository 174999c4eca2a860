"""The command from end to end: every part on a small cache, its table, its line of JSON, and what it refuses."""

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from pipeline.benchmark.options import PARTS
from stages.bench import bench

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(bench)


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def whole(small_cache_path, tmp_path_factory):
    """The result of a run of all parts, and the folder for temporary files."""
    temporary = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(temporary))
        own = ("--cache", str(small_cache_path), "--shards", str(small_cache_path.parent / "tars"))
        result = run(
            "--quick",
            "--rounds",
            "1",
            "--steps",
            "1",
            "--batch-size",
            "16",
            "--workers",
            "1",
            "--device",
            "cpu",
            *own,
        )
    assert result.exit_code == 0, result.output
    return result, temporary


@pytest.mark.bench
def test_the_last_line_is_json_of_every_part(whole):
    values = json.loads(whole[0].stdout.splitlines()[-1])
    assert {name.partition(".")[0] for name in values["figures"]} >= {
        "step",
        "loader",
        "reads",
        "stream",
        "decode",
        "teacher",
        "disk",
    }
    assert {"peak.matrix", "extraction.whole", "start.first_batch", "ratio.extraction_to_least"} <= set(
        values["figures"]
    )
    for name, figure in values["figures"].items():
        assert figure["quartiles"][0] <= figure["median"] <= figure["quartiles"][1], name
    assert values["configuration"]["parts"] == list(PARTS)
    assert values["configuration"]["config"]["train"]["global_batch"] == 16
    assert values["versions"]["torch"]


@pytest.mark.bench
def test_the_table_has_every_figure_and_says_what_it_means(whole):
    table = whole[0].stdout
    assert "streamed / resident" in table
    assert re.search(
        r"training waits for data [\d.]+% of its time and runs at [\d.]+ of the resident rate", table
    )
    assert re.search(r"extraction makes [\d,.]+ views/s; its busiest part is (decode|teacher|write)", table)
    assert re.search(r"(reached|missed): reads / raw reads [\d.]+ x, at least 0.6", table)
    assert re.search(
        r"(reached|missed): decode, crop, encode: four views, one core [\d,]+ views/s, at least 550", table
    )


@pytest.mark.bench
def test_nothing_is_left_behind(whole):
    assert list(whole[1].glob("maskalign-bench-*")) == []


def test_json_goes_to_a_file_and_only_the_chosen_part_is_measured(small_cache_path, tmp_path):
    file, shards = tmp_path / "bench.json", str(small_cache_path.parent / "tars")
    result = run(
        "--rounds", "1", "--only", "decode", "--device", "cpu", "--shards", shards, "--json", str(file)
    )
    assert result.exit_code == 0, result.output
    assert set(json.loads(file.read_text())["figures"]) == {
        "decode.one_view",
        "decode.four_views",
        "ratio.four_views_to_one",
    }
    assert "{" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "huge"], "--recipe 'huge' is unknown: give tiny, s, b, l"),
        (["--only", "everything"], "--only 'everything' is no part of the benchmark: give step, loader"),
        (["--device", "tpu"], "--device 'tpu' is unknown"),
        (["--only", "decode", "--shards", "/nowhere/a.tar"], "shard '/nowhere/a.tar' does not exist"),
        (["--only", "teacher", "--teacher", "timm:no_vit"], "teacher 'timm:no_vit' names no model of timm"),
    ],
)
def test_a_users_mistake_is_one_sentence(arguments, text):
    result = run("--quick", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert "Traceback" not in result.output
