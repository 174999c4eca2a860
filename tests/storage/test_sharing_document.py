"""Every command line of docs/sharing.md, run in turn at reduced size."""

import re
import shlex
import shutil
from pathlib import Path

from test_cache_on_objects import TINY, called
from typer.testing import CliRunner

from pipeline.cache.reader import Cache
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
