"""The card of a cache: read by Hugging Face's own parser, and what it tells a stranger to run works."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from typer.testing import CliRunner

from pipeline.cache.card import make_card, size_category
from pipeline.cache.reader import Cache
from pipeline.cache.sizes import take_inventory
from pipeline.cache.verify import foreign_files
from stages.inspect_cache import app
from stages.train_student import train_student


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


def test_the_front_matter_is_that_of_a_data_set_card(small_cache_path):
    cache = Cache(small_cache_path)
    data = DatasetCard(make_card(cache, take_inventory(cache), "cc-by-4.0")).data.to_dict()
    assert (data["license"], data["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    assert [config["data_files"][0]["path"] for config in data["configs"]] == [
        "views/*.v00.tar",
        "views/*.v01.tar",
    ]
    for config in data["configs"]:
        assert len(list(small_cache_path.glob(config["data_files"][0]["path"]))) == 2
    assert data["maskalign"]["digest"] == cache.digest
    assert data["maskalign"]["weights_sha256"] == cache.schema.teacher.weights_sha256


def test_the_digest_of_the_units_follows_the_content(cache_copy):
    before = take_inventory(Cache(cache_copy)).digest
    (cache_copy / "commits" / "train-0001.v01.json").unlink()
    cache = Cache(cache_copy)
    card = make_card(cache, take_inventory(cache), "mit")
    assert before not in card
    assert "| units | 3 of 4: the cache is unfinished |" in card


def test_what_the_card_tells_to_run_works(cache_copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("card", cache_copy)
    assert result.stdout.splitlines() == [
        f"card of cache '{cache_copy}': {cache_copy}/README.md",
        "its licence is unknown: images and teacher have terms; give --license ID",
    ]
    assert foreign_files(Cache(cache_copy)) == []
    text = (cache_copy / "README.md").read_text().replace("URL", str(cache_copy))
    commands, code = re.search(r"```\n(.*?)```\n\n```python\n(.*?)```", text, re.DOTALL).groups()
    lines = [shlex.split(line) for line in commands.splitlines()]
    assert [line[:2] for line in lines[:3]] == [
        ["inspect-cache", name] for name in ("info", "copy", "verify")
    ]
    assert [call(*line[1:]).exit_code for line in lines[:3]] == [0, 0, 0]
    assert lines[3][0] == train_student.__name__.replace("_", "-")
    found = {}
    exec(code, found)
    assert found["images"].shape == (8, 64, 64, 3)
    assert np.isfinite(found["features"]).all()


def test_a_card_goes_where_it_is_asked_to(small_cache_path, tmp_path):
    result = call("card", small_cache_path, "--out", tmp_path / "card.md", "--license", "mit")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert 'license: "mit"' in (tmp_path / "card.md").read_text()
    assert "## Licence" not in (tmp_path / "card.md").read_text()
    assert not (small_cache_path / "README.md").exists()
    result = call("card", small_cache_path, "--license", "free: for all")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --license 'free: for all' is not an identifier of a licence: give one such as cc-by-4.0, "
        "mit, other or unknown\n",
    )


def test_a_card_that_was_edited_by_hand_is_kept(cache_copy, tmp_path):
    for out in ([], ["--out", str(tmp_path / "card.md")]):
        card = Path(out[1]) if out else cache_copy / "README.md"
        for license_name in ("unknown", "mit"):  # what the command itself has written may be replaced
            assert call("card", cache_copy, *out, "--license", license_name).exit_code == 0
        assert 'license: "mit"' in card.read_text()
        edited = card.read_text().replace("mit", "cc0-1.0")
        card.write_text(edited)
        result = call("card", cache_copy, *out, "--license", "mit")
        assert (result.exit_code, result.stderr) == (
            2,
            f"error: {str(card)!r} was edited by hand: remove it, or give --out FILE for another card\n",
        )
        assert card.read_text() == edited


@pytest.mark.parametrize(
    ("rows", "name"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (1_281_167, "1M<n<10M"), (10**12, "n>1T")],
)
def test_size_categories_are_those_of_the_hub(rows, name):
    assert size_category(rows) == name
