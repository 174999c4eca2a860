"""A damaged cache in training: refused by default; with data.on_damage=skip replaced, named and counted."""

import shutil

import caches
import pytest
from stream_parts import digests, stream_spec
from training_runs import assert_same_runs, described, killed_after, metrics, refused, train, trained

from pipeline.cache.layout import commit_key, view_tar_key
from pipeline.cache.reader import Cache

SKIP, MUCH = "data.on_damage=skip", "data.max_damaged=0.9"
SHARD = "targets.zarr/features/block_04/c/{}/0/0"


def spoil(path, at=5000):
    """Change a byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A cache of 4 units of 70 rows."""
    return caches.real(tmp_path_factory.mktemp("sound"), tars=4, images_per_tar=70, views=1)


@pytest.fixture
def damaged(sound, tmp_path):
    """A cache of 4 units of 70 rows: a bad byte in the first chunk of one, another without its tar."""
    path = shutil.copytree(sound, tmp_path / "damaged.cache")
    spoil(path / SHARD.format(0))
    (path / view_tar_key(Cache(path).units[2])).unlink()
    return path


def test_damage_stops_a_run_unless_it_is_to_be_skipped(damaged, tmp_path):
    result = train(damaged, tmp_path / "run", "optim.steps=16", code=1)
    assert "inspect-cache verify --full --repair removes what is damaged" in result.output
    run = trained(damaged, tmp_path / "run", "data.on_damage=skip", MUCH, resume=True)
    assert described(run)["damage"]["samples"] == 64 + 70


def test_what_is_skipped_is_named_and_counted(damaged, tmp_path):
    result = train(damaged, tmp_path / "run", "optim.steps=17", SKIP, MUCH, code=0)
    found = described(tmp_path / "run")["damage"]
    places = {(chunk["unit"], *chunk["rows"]) for chunk in found["chunks"]}
    assert places == {
        ("unit 0 (train-0000.tar, view 0)", 0, 63),
        ("unit 2 (train-0002.tar, view 0)", 0, 63),
        ("unit 2 (train-0002.tar, view 0)", 64, 69),
    }
    assert (found["samples"], found["units"]) == (134, [])
    assert found["share"] == pytest.approx(134 / 280)
    assert sum(line["replaced_samples"] for line in metrics(tmp_path / "run")) >= 134
    summary = "3 damaged chunks replaced by other samples (134 samples, 48% of the run's)"
    assert found["summary"] == summary
    assert f"cache: {summary}; " in result.output
    assert "warning: unit 2 (train-0002.tar, view 0), rows 0 to 63: view tar '" in result.output
    assert summary in (tmp_path / "run/report.html").read_text().replace("&#x27;", "'")


def test_a_run_over_damage_resumes_exactly(damaged, tmp_path):
    settings = "optim.steps=12", "train.checkpoint_every=5", SKIP, MUCH
    whole = trained(damaged, tmp_path / "whole", *settings)
    cut = killed_after(whole, 5, tmp_path / "cut")
    trained(damaged, cut, resume=True)
    assert_same_runs(whole, cut, 12)
    assert described(whole)["damage"] == described(cut)["damage"]


def test_damage_changes_its_own_samples_alone(tmp_path):
    path = caches.real(tmp_path, tars=4, images_per_tar=64, views=1)
    cache = Cache(path)
    settings = {"views": (0,), "batch_size": 64, "skip_damage": True}  # a batch is a chunk
    before = digests(path, 8, **settings)
    spoil(path / SHARD.format(1))
    after = digests(path, 8, **settings)
    changed = [step for step, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    order = stream_spec(cache, views=(0,), batch_size=64).order
    drawn = [int(window.chunks[0, 0]) for epoch in (0, 1) for window in order.windows(epoch)[0]]
    assert changed == [step for step, unit in enumerate(drawn) if unit == 1]
    assert digests(path, 8, workers=2, **settings) == after
    assert all(after[step] not in (before[step], *after[:step]) for step in changed[1:])


def test_more_damage_than_allowed_ends_the_run(damaged, tmp_path):
    result = train(damaged, tmp_path / "run", "optim.steps=17", SKIP, code=1)
    assert "more than data.max_damaged 0.01: inspect-cache verify --full --repair" in result.output
    assert described(tmp_path / "run")["damage"]["samples"] >= 64


def test_a_cache_without_a_sound_chunk_ends_the_run(cache_copy, tmp_path):
    for view_tar in (cache_copy / "views").iterdir():
        view_tar.unlink()
    result = train(cache_copy, tmp_path / "run", SKIP, MUCH, code=1)
    assert "chunks in a row are damaged, so data.on_damage 'skip' finds no other samples" in result.output


def test_a_damaged_commit_leaves_its_unit_out(damaged, tmp_path):
    commit = damaged / commit_key(Cache(damaged).units[2])
    spoil(commit, at=40)
    refused("is damaged", damaged, tmp_path / "stops", code=1)
    result = train(damaged, tmp_path / "run", "optim.steps=13", SKIP, MUCH, code=0)
    found = described(tmp_path / "run")["damage"]
    assert [unit["unit"] for unit in found["units"]] == ["unit 2 (train-0002.tar, view 0)"]
    assert described(tmp_path / "run")["units"] == [0, 1, 3]
    assert "warning: 1 damaged unit left out (70 samples, 25% of the run's)" in result.output
