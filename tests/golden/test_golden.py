"""Caches of every released schema version are read, verified and trained on by today's code, value for value.

Golden caches of a released version are never made again and never changed. If one of these tests fails, the
code has broken a promise to the owners of such caches: mend the code. make_golden.py made them.
"""

import json

import pytest
import torch
from make_golden import EXPECTED, GOLDEN, VARIANTS, found_in
from stream_parts import read_batches
from typer.testing import CliRunner

from pipeline.cache.reader import Cache
from pipeline.cache.schema import SCHEMA_VERSION
from pipeline.cache.verify import foreign_files, verify_quickly
from pipeline.cache.verify_content import verify_unit
from stages.inspect_cache import app

VERSIONS = sorted(GOLDEN.glob("schema_*"))
CACHES = [
    pytest.param(path, id=f"{version.name} {path.stem}")
    for version in VERSIONS
    for path in sorted(version.glob("*.cache"))
]
NUMBERS = ("whitened", "mean", "deviation")


def expected_of(path):
    return json.loads((path.parent / EXPECTED).read_text(encoding="utf-8"))[path.stem]


def test_todays_version_is_among_them():
    assert GOLDEN / f"schema_{SCHEMA_VERSION.replace('.', '_')}" in VERSIONS
    for version in VERSIONS:
        stems = {path.stem for path in version.glob("*.cache")}
        assert stems == set(json.loads((version / EXPECTED).read_text(encoding="utf-8")))
    assert {path.stem for path in VERSIONS[-1].glob("*.cache")} >= set(VARIANTS)


@pytest.mark.parametrize("path", CACHES)
def test_every_value_is_read_as_ever(path):
    found, expected = found_in(path), expected_of(path)
    for ours, theirs in zip(found["units"], expected["units"], strict=True):
        for name in NUMBERS:  # computed: the last bit may differ from machine to machine
            torch.testing.assert_close(
                torch.tensor(ours.pop(name)), torch.tensor(theirs.pop(name)), rtol=1e-6, atol=1e-7
            )
    assert found == expected


@pytest.mark.parametrize("path", CACHES)
def test_verification_finds_nothing(path):
    cache = Cache(path)
    assert list(verify_quickly(cache)) == []
    assert [finding for unit in cache.units for finding in verify_unit(cache, unit)] == []
    assert foreign_files(cache) == []


@pytest.mark.parametrize("path", CACHES)
def test_inspect_cache_describes_it(path):
    result = CliRunner().invoke(app, ["info", "--cache", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert (
        f"(schema {Cache(path).schema.version}, digest {expected_of(path)['digest'][:16]})" in result.output
    )
    assert "(complete)" in result.output


@pytest.mark.parametrize("path", CACHES)
def test_training_reads_a_batch(path):
    cache, views = Cache(path), tuple(range(len(expected_of(path)["units"])))
    levels = cache.level_indices(None)
    (batch,) = read_batches(path, 1, views=views, levels=levels, batch_size=4)
    assert batch["patches"].shape[:2] == (4, 2)
    assert batch["visible_codes"].shape[:3] == (4, len(levels), 3)
    assert batch["visible_stats"].isfinite().all()
