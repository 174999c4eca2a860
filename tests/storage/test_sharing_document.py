"""Every command line of docs/sharing.md, and of other pages on stores, run in turn at reduced size."""

import re
import shlex
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
from small_lines import run_line
from tars import make_tars
from test_cache_on_objects import TINY, called
from test_documents import command_lines
from typer.testing import CliRunner

from pipeline.cache.reader import Cache
from pipeline.storage.objects import ObjectFolder
from stages.inspect_cache import app as inspect_app
from stages.train_student import train_student

PAGE = Path(__file__).parents[2] / "docs" / "sharing.md"


def lines():
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
        yield from block.splitlines()


def test_every_command_of_the_page_on_sharing_works(server, bucket, small_cache_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_cache_path, "in1k.cache")
    (tmp_path / "fast").mkdir()
    replaced = {
        "s3://features": f"s3://{bucket}",
        "https://example.org": f"{server.endpoint}/plain/{bucket}",
        "/fast": str(tmp_path / "fast"),
        "7,11": "3,5",
        "{000000..000099}": "{0000..0099}",
    }
    for line in lines():
        for old, new in replaced.items():
            line = line.replace(old, new)
        name, *words = shlex.split(line)
        if name == "inspect-cache":
            result = CliRunner().invoke(inspect_app, words, catch_exceptions=False)
            assert result.exit_code == 0, (line, result.output)
        else:
            assert name == "train-student"
            settings = [word for key in TINY for word in ("--set", key)]
            code, output = called(train_student, *words, "--device", "cpu", *settings)
            assert code == 0, (line, output)
    whole, part = Cache("in1k.cache"), Cache("part.cache")
    assert Cache(tmp_path / "fast" / "in1k.cache").digest == whole.digest
    assert (part.schema.levels, {unit.view for unit in part.units}) == ((3, 5), {0})
    assert len(list(lines())) == 7


@pytest.mark.faults  # too slow for every run
def test_commands_of_other_pages_on_object_stores_work(bucket, tmp_path):
    found = sorted(line for page, line in command_lines() if "s3://" in line and page != "docs/sharing.md")
    assert [line.split()[0] for line in found] == ["extract-teacher", "train-student", "train-student"]
    make_tars(tmp_path / "tars", 2, 20)
    for tar in (tmp_path / "tars").iterdir():
        ObjectFolder(f"s3://{bucket}").replace(f"images/{tar.name}", tar.read_bytes())
    places = {"s3://images": f"s3://{bucket}/images", "s3://features": f"s3://{bucket}/features"}
    replaced = places | {"/scratch": str(tmp_path), "500GB": "5MB"}
    for number, line in enumerate(found):
        for old, new in replaced.items():
            line = line.replace(old, new)
        (tmp_path / str(number)).mkdir()
        with chdir(tmp_path / str(number)):
            run_line(line, tmp_path / "models")
    assert any((tmp_path / "tier").iterdir())
    assert len(Cache(f"s3://{bucket}/features/in1k.cache").units) == 2
