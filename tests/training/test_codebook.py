"""The codebook of a run: fitted once, shared, resumed, refused."""

import json
import shutil

import caches
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from tiny_clip import write_clip
from torch.nn import functional as F
from training_runs import (
    TINY,
    assert_same_runs,
    describe_again,
    described,
    killed_after,
    losses,
    refused,
    tiny_job,
    train,
    trained,
)

from pipeline.cache.reader import Cache
from pipeline.seeding import generator
from pipeline.training.codebook_sample import drawn_rows
from pipeline.training.kmeans import random_start, spherical_kmeans, use_of_codes

BEIT = (
    *(setting for setting in TINY if not setting.startswith("mask.")),
    "objective.name=beit",
    "objective.codebook_size=24",
)
VQKD = (
    *(
        "objective.name=beit2",
        "objective.tokenizer=vqkd",
        "objective.vqkd_steps=5",
        "objective.vqkd_blocks=1",
    ),
    "objective.codebook_tokens=640",
)


def clusters(groups=12, each=50, width=16, spread=0.05):
    """Points (groups * each, width) around well separated directions, with any lengths."""
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(width, width)).Q[:groups]
    points = directions.repeat_interleave(each, 0) + spread * torch.randn(groups * each, width)
    return points * (0.5 + torch.rand(len(points), 1))


def plain_kmeans(points, codes, rounds):
    """Ten lines in numpy, float64."""
    units, codes = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (points, codes))
    for _ in range(rounds):
        cosines = units @ codes.T
        nearest, best = cosines.argmax(1), cosines.max(1)
        sums = np.array([units[nearest == code].sum(0) for code in range(len(codes))])
        empty = np.setdiff1d(np.arange(len(codes)), nearest)
        codes = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        codes[empty] = units[np.argsort(best, kind="stable")[: len(empty)]]
    return codes


def test_kmeans_is_the_plain_one_and_moves_empty_codes(monkeypatch):
    monkeypatch.setattr("pipeline.training.kmeans._COSINES_AT_ONCE", 4000)
    points = F.pad(clusters().double(), (0, 1))
    start = random_start(points, 40, generator(0, "start"))
    start[30:] = F.one_hot(torch.tensor(16), 17)  # at right angles to all points, so these ten begin empty
    found = spherical_kmeans(points, start, rounds=4)
    np.testing.assert_allclose(found, plain_kmeans(points.numpy(), start.numpy(), 4), rtol=0, atol=1e-12)
    assert use_of_codes((F.normalize(points, dim=-1) @ found.T).argmax(-1), 40)["share_taken"] > 0.9


def test_points_without_direction_take_no_code_but_the_first():
    points = torch.cat([torch.zeros(100, 16), clusters()])
    found = spherical_kmeans(points, points[90:130], rounds=3)
    torch.testing.assert_close(found[1:].norm(dim=1), torch.ones(39))
    assert not (points[:1] @ found.T).argmax(-1).any()


def test_kmeans_finds_what_scikit_learn_finds():
    points = clusters()
    start, units = points[::50], F.normalize(points, dim=-1)
    found = spherical_kmeans(points, start)
    reference = KMeans(12, init=F.normalize(start, dim=-1).numpy(), n_init=1).fit(units.numpy())
    theirs = F.normalize(torch.from_numpy(reference.cluster_centers_), dim=-1)
    inertia = [(units - codes[(units @ codes.T).argmax(-1)]).square().sum() for codes in (found, theirs)]
    torch.testing.assert_close(*inertia)
    torch.testing.assert_close(found, theirs)


def test_the_use_of_codes_is_their_share_and_perplexity():
    assert use_of_codes(torch.tensor([[0, 1], [2, 3]]), 8) == {
        "share_taken": 0.5,
        "perplexity": pytest.approx(4),
    }
    assert use_of_codes(torch.zeros(5, dtype=torch.int64), 8)["perplexity"] == 1


@pytest.fixture(scope="module")
def finished(small_cache_path, tmp_path_factory):
    """A finished run with a codebook, and its report. Do not change it."""
    run = tmp_path_factory.mktemp("runs") / "beit"
    train(small_cache_path, run, tiny=BEIT, code=0)
    return run


@pytest.fixture(scope="module")
def with_vqkd(small_cache_path, tmp_path_factory):
    """A finished run of BEiT v2. Do not change it."""
    return trained(small_cache_path, tmp_path_factory.mktemp("runs") / "beit2", *VQKD, tiny=BEIT)


def test_a_run_fits_its_codebook_and_repeats(small_cache_path, finished, tmp_path):
    assert_same_runs(finished, trained(small_cache_path, tmp_path / "again", tiny=BEIT), 6)
    found = described(finished)["codebook"]
    assert (found["kind"], found["codes"], found["level"], found["size"]) == ("kmeans", "features", 5, 24)
    assert (found["tokens"], found["start"], found["rounds"]) == (2 * 140 * 16, "random", 10)
    assert found["share_taken"] == 1
    assert 12 < found["perplexity"] <= 24
    assert losses(finished)[-1]["loss"] < losses(finished)[0]["loss"]
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "codes in use" in page
    assert f"of 24; perplexity {found['perplexity']:.0f}" in page


def test_a_resumed_run_loads_its_codebook(small_cache_path, finished, tmp_path, monkeypatch):
    run = killed_after(finished, 3, tmp_path / "run")
    monkeypatch.setattr("pipeline.training.codebook_fit.make_codebook", None)
    trained(small_cache_path, run, resume=True)
    assert_same_runs(finished, run, 6)


def test_a_codebook_is_shared_between_runs(small_cache_path, finished, tmp_path):
    other = (*BEIT, f"objective.codebook={finished}", "train.seed=1")
    run = trained(small_cache_path, tmp_path / "run", tiny=other)
    assert described(run)["pinned"]["codebook"] == described(finished)["pinned"]["codebook"]
    assert described(run)["codebook"]["seed"] == 0
    file = tmp_path / "alone.safetensors"
    shutil.copy(finished / "codebook.safetensors", file)
    shared = f"objective.codebook={file}", "train.seed=1"
    assert losses(trained(small_cache_path, tmp_path / "again", *shared, tiny=BEIT)) == losses(run)


def test_an_older_codebook_of_vqkd_reconstructs_what_it_reads(small_cache_path, with_vqkd, tmp_path):
    file, old = with_vqkd / "codebook.safetensors", tmp_path / "old.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    facts = json.loads(metadata["codebook"])
    assert facts.pop("reconstructs") == "whiten"
    save_file(load_file(file), old, metadata | {"codebook": json.dumps(facts)})
    again = trained(small_cache_path, tmp_path / "again", *VQKD, f"objective.codebook={old}", tiny=BEIT)
    assert losses(again) == losses(with_vqkd)


def test_a_codebook_that_does_not_fit_is_refused(small_cache_path, finished, tmp_path, monkeypatch):
    run, shared = tmp_path / "run", f"objective.codebook={finished}"
    for changes, message in (
        (
            [shared, "objective.codebook_size=25"],
            "it has size 24, not 25; set objective.codebook_size=24, give",
        ),
        ([shared, "data.levels=[4]"], "it has level 5, not 4; give another one, or leave"),
        ([shared, "objective.codes=pixels"], "codes 'features', not 'pixels', level 5, not None, target"),
        ([shared, *VQKD], "kind 'kmeans', not 'vqkd', reconstructs None, not 'whiten'; give"),
        (
            [f"objective.codebook={tmp_path}"],
            "is not a codebook (No such file or directory): give a run folder",
        ),
        ([f"objective.codebook={finished / 'run.json'}"], "is not a codebook (Error while deserializing"),
        ([f"objective.codebook={finished / 'student.safetensors'}"], "its metadata describe no codebook"),
        (
            ["objective.codebook_size=4481"],
            "more than the 4480 tokens that the cache has: choose at most 4480",
        ),
        (["objective.codebook_tokens=20"], "more than objective.codebook_tokens 20, which it is fitted to"),
    ):
        refused(message, small_cache_path, run, *changes, tiny=BEIT)
    other = caches.real(tmp_path, tars=1, images_per_tar=20, views=1, encoding="int4", levels="2")
    digests = described(finished)["pinned"]["cache"], Cache(other).digest
    refused("it has cache '{}', not '{}'; give".format(*digests), other, run, shared, tiny=BEIT)
    monkeypatch.setattr("pipeline.training.codebook.memory_of", lambda _: 10**6)
    message = "2000000 do not fit into the memory of 'cpu' as 64 channels of float32: choose at most 3125"
    refused(message, small_cache_path, run, tiny=BEIT)


def test_codes_of_pixels_need_no_stored_patches_and_resume(tmp_path):
    cache, small = caches.real(tmp_path, 1, 40, views=1, keep=0.5), "train.global_batch=8"
    run = trained(cache, tmp_path / "run", small, "objective.codes=pixels", tiny=BEIT)
    assert_fitted_and_resumes(cache, run, ["kmeans", "pixels", 768, 640])
    refused("the objective needs targets of hidden patches", cache, tmp_path / "other", small, tiny=BEIT)


def test_codes_of_vqkd_train_and_resume(small_cache_path, with_vqkd):
    assert_fitted_and_resumes(small_cache_path, with_vqkd, ["vqkd", "features", 64, 640])


def assert_fitted_and_resumes(cache, run, facts):
    found = described(run)["codebook"]
    assert [found[key] for key in ("kind", "codes", "width", "tokens")] == facts
    assert losses(run)[-1]["loss"] < losses(run)[0]["loss"]
    resumed = killed_after(run, 3, run.with_name(f"{run.name}-resumed"))
    assert_same_runs(run, trained(cache, resumed, resume=True), 6)


def test_vqkd_codes_whitened_tokens_and_predicts_projected_ones(tmp_path):
    write_clip(tmp_path / "clip")
    teacher = f"open_clip:local-dir:{tmp_path / 'clip'}"
    cache = caches.real(tmp_path, 1, 20, views=1, teacher=teacher, image_size=32, patch_size=8, levels="1,2")
    small = "objective.preset=published", "objective.codebook_tokens=320"
    run = trained(cache, tmp_path / "run", *VQKD, *small, tiny=BEIT)
    values, facts = described(run), Cache(cache).schema.teacher
    found = values["codebook"]
    assert (found["target"], found["reconstructs"], found["width"]) == ("whiten", "projected", facts.width)
    values["codebook"]["target"] = "projected"
    describe_again(run, values)
    refused("'vqkd' coded projected features when the run began", cache, run, resume=True)


def test_the_sample_is_spread_over_chunks_and_each_row_comes_once(small_cache_path, tmp_path):
    """The cache has 4 units of 70 images: chunks of 64 and of 6."""
    spec = tiny_job(small_cache_path, tmp_path).spec
    for count, chunks in ((20, 2), (40, 3), (280, 8)):
        picks = list(drawn_rows(spec, count, 0))
        taken = {(unit, chunk, row) for (unit, chunk, _), rows in picks for row in rows.tolist()}
        assert sum(len(rows) for _, rows in picks) == len(taken) == count
        assert len(picks) >= chunks
        assert max(len(rows) for _, rows in picks) <= (16 if count < 88 else 64)
    assert list(map(str, drawn_rows(spec, 40, 0))) == list(map(str, drawn_rows(spec, 40, 0)))
    assert list(map(str, drawn_rows(spec, 40, 0))) != list(map(str, drawn_rows(spec, 40, 1)))


def test_a_changed_or_missing_codebook_ends_a_resume(small_cache_path, finished, tmp_path):
    run = killed_after(finished, 3, tmp_path / "run")
    changed = "objective.codebook_size was 24 and is now 25"
    refused(changed, small_cache_path, run, "objective.codebook_size=25", resume=True)
    other = trained(small_cache_path, tmp_path / "other", "train.seed=1", tiny=BEIT)
    file = run / "codebook.safetensors"
    data = (other / file.name).read_bytes()
    for change, message in (
        (lambda: file.write_bytes(data), "cannot resume: codebook was '"),
        (lambda: file.write_bytes(data[:-10]), "is damaged ("),
        (file.unlink, "has lost codebook.safetensors: restore"),
    ):
        change()
        refused(message, small_cache_path, run, resume=True, code=1)
