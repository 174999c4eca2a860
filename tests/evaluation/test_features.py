"""The feature store: representations by definition, reuse, several parts, and writers that are killed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from networks import task
from safetensors import safe_open
from tars import image, write_tar
from timm.models.vision_transformer import VisionTransformer
from tiny_clip import peaky

from pipeline.errors import CacheError, ConfigError
from pipeline.evaluation import features
from pipeline.evaluation.crops import LeftOut
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.draws import draw_few, stratified_folds
from pipeline.evaluation.features import extract_features, represent
from pipeline.evaluation.images import open_images
from pipeline.evaluation.knn import Knn
from pipeline.evaluation.subject import Subject
from pipeline.report.scores import SubjectFacts

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 4, "num_classes": 0}


def tiny(weights="00", **options):
    facts = SubjectFacts(kind="model", name="tiny", weights=weights)
    return Subject(facts, peaky(VisionTransformer(**SHAPE | options)).eval(), 8)


@pytest.fixture
def data(tmp_path):
    """Ten images: one without label, one damaged."""
    images = {f"{n}": image(n) for n in range(9)} | {"bad": b"no image"}
    tar = write_tar(tmp_path / "a.tar", images, {f"{n}": n % 3 for n in range(8)} | {"bad": 0})
    return LabelledImages(open_images([str(tar)], tmp_path))


def batch(data):
    (views,) = data.views(32, 100, LeftOut())
    return views.pixels


@pytest.mark.parametrize("registers", [0, 2])
def test_representations_equal_a_plain_timm_forward(data, registers):
    subject, pixels = tiny(reg_tokens=registers), batch(data)
    model = subject.vit
    with torch.no_grad():
        images = subject.images(pixels)
        last = model.forward_features(images)
        blocks = model.get_intermediate_layers(images, n=4, return_prefix_tokens=True, norm=True)
    expected = {
        "cls": last[:, 0],
        "mean": last[:, 1 + registers :].mean(1),
        "last4": torch.cat([prefix[:, 0] for _, prefix in blocks], dim=1),
    }
    found = represent(subject, pixels)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)


def test_a_network_has_the_representations_that_it_can_have(data, tmp_path):
    flat = tiny(class_token=False, global_pool="avg")
    assert extract_features(flat, data, 4, tmp_path / "store").names == ["mean"]
    shallow = tiny("01", depth=2)
    assert extract_features(shallow, data, 4, tmp_path / "store").names == ["cls", "mean", "cls+mean"]
    deep = extract_features(tiny("02"), data, 4, tmp_path / "store")
    assert {"cls", "last4", "mean", "cls+mean"} <= {*deep.names}
    together = torch.cat([deep.whole("cls"), deep.whole("mean")], dim=1)
    assert torch.equal(deep.whole("cls+mean"), together)
    with pytest.raises(ConfigError, match="representation 'max' is not available: this network has cls"):
        deep.whole("max")


def test_features_have_keys_labels_and_facts(data, tmp_path):
    found = extract_features(tiny(), data, 3, tmp_path / "store")
    assert found.keys == [f"{n}" for n in range(8)]
    assert found.labels.tolist() == [n % 3 for n in range(8)]
    assert set(found.sources) == {"a.tar"}
    assert found.facts.left_out == {"unlabelled": 1, "damaged": 1}
    assert found.facts.first_reasons["unlabelled"] == "a.tar/8 has no .cls member"
    assert (found.facts.images, found.facts.classes, found.facts.image_size) == (8, 3, 32)


@pytest.fixture
def forwards(monkeypatch):
    """The batches that a network was given."""
    seen, original = [], features.represent
    monkeypatch.setattr(features, "represent", lambda *given: seen.append(1) or original(*given))
    return seen


def test_the_store_is_reused(data, tmp_path, forwards):
    first = extract_features(tiny(), data, 4, tmp_path / "store")
    assert len(forwards) == 2
    second = extract_features(tiny(), data, 4, tmp_path / "store")
    assert len(forwards) == 2
    assert torch.equal(first.whole("mean"), second.whole("mean"))
    assert second.facts == first.facts


def test_other_weights_sizes_or_data_are_other_features(data, tmp_path, forwards):
    store = tmp_path / "store"
    other = LabelledImages(data.of.subset([0, 1, 2]))
    brighter, flatter = replace(tiny(), mean=(0.1, 0.1, 0.1)), replace(tiny(), std=(0.5, 0.5, 0.5))
    subjects = (tiny(), tiny("01"), tiny().resized(48), brighter, flatter)
    assert len({task(tmp_path, subject, data).file("probe", Knn()) for subject in subjects}) == 5
    for subject, of in (*((subject, data) for subject in subjects), (tiny(), other)):
        before = len(forwards)
        extract_features(subject, of, 100, store)
        assert len(forwards) == before + 1
    assert len(list(store.iterdir())) == 6


def test_parts_change_nothing(data, tmp_path, monkeypatch):
    whole = extract_features(tiny(), data, 2, tmp_path / "store")
    for size, parts in ((1, 4), (3, 2), (8, 1)):
        monkeypatch.setattr(features, "PART_IMAGES", size)
        found = extract_features(tiny(), data, 2, tmp_path / str(size))
        assert (len(found.parts), sum(found.parts)) == (parts, 8)
        for name in found.names:
            assert torch.equal(found.whole(name), whole.whole(name))
        rows = torch.tensor([0, 3, 4, 7])
        assert torch.equal(torch.cat(list(found.chunks("cls+mean", rows))), whole.whole("cls+mean")[rows])
        assert len(list(found.chunks("cls", torch.tensor([7])))) == 1


def test_what_a_killed_writer_leaves_is_not_taken_for_features(data, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART_IMAGES", 2)
    original, left = features.represent, []

    def represent(*given):
        if not left:
            left.append(tmp_path / "left")
        elif not left[0].exists() and len(list((tmp_path / "store").glob(".*/*"))) == 2:
            shutil.copytree(tmp_path / "store", left[0])  # what a kill would leave at this moment
        return original(*given)

    monkeypatch.setattr(features, "represent", represent)
    whole = extract_features(tiny(), data, 2, tmp_path / "store")
    (rest,) = left[0].iterdir()
    assert sorted(file.name for file in rest.iterdir()) == ["00000.safetensors", "00001.safetensors"]
    found = extract_features(tiny(), data, 2, left[0])
    assert torch.equal(found.whole("cls"), whole.whole("cls"))
    assert found.parts == [2, 2, 2, 2]


def test_of_two_writers_both_have_the_same_features(data, tmp_path, monkeypatch):
    original, results = features.represent, []

    def represent(*given):
        if not results:
            results.append(None)
            results[0] = extract_features(tiny(), data, 100, tmp_path / "store")
        return original(*given)

    monkeypatch.setattr(features, "represent", represent)
    second = extract_features(tiny(), data, 100, tmp_path / "store")
    assert torch.equal(second.whole("mean"), results[0].whole("mean"))
    assert [each.name for each in (tmp_path / "store").iterdir()] == [second.folder.name]


@pytest.mark.parametrize("file", ["index.json", "images.json", "00000.safetensors"])
def test_damaged_features_are_refused_with_their_folder(data, tmp_path, file):
    folder = extract_features(tiny(), data, 4, tmp_path / "store").folder
    (folder / file).write_bytes((folder / file).read_bytes()[:20])
    with pytest.raises(CacheError, match=r"features in .* cannot be read \(.*\): remove that folder"):
        extract_features(tiny(), data, 4, tmp_path / "store")


def test_features_that_are_not_finite_are_refused(data, tmp_path):
    subject = tiny()
    with torch.no_grad():
        subject.vit.norm.weight.fill_(torch.nan)
    with pytest.raises(CacheError, match="are not finite: the network has diverged"):
        extract_features(subject, data, 4, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


def test_parts_are_float16_with_an_index_that_names_their_sizes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART_IMAGES", 4)
    folder = extract_features(tiny(), data, 4, tmp_path / "store").folder
    index = json.loads((folder / "index.json").read_text())
    first = extract_features(tiny(), data, 4, tmp_path / "store").whole("cls")  # read again
    torch.testing.assert_close(first, represent(tiny(), batch(data))["cls"], rtol=1e-3, atol=1e-3)
    assert first.dtype == torch.float32
    assert (index["parts"], index["widths"]) == ([4, 4], {"cls": 32, "last4": 128, "mean": 32})
    with safe_open(folder / "00001.safetensors", "pt") as file:
        stored = [file.get_tensor(name) for name in index["widths"]]
    assert {(values.dtype, len(values)) for values in stored} == {(torch.float16, 4)}


LABELS = torch.tensor([5] * 40 + [2] * 11 + [9] * 1)


def test_few_labels_are_drawn_from_each_class():
    asked = {1: [1, 1, 1], 16: [11, 16, 1], 0.1: [1, 4, 1], 0.01: [1, 1, 1], 0.5: [6, 20, 1]}
    for few, counts in asked.items():
        drawn = draw_few(LABELS, few, seed=0)
        assert torch.unique(LABELS[drawn], return_counts=True)[1].tolist() == counts
        assert torch.equal(drawn, drawn.unique())


def test_draws_depend_on_the_seed_and_on_the_class_alone():
    assert torch.equal(draw_few(LABELS, 5, 3), draw_few(LABELS, 5, 3))
    assert not torch.equal(draw_few(LABELS, 5, 3), draw_few(LABELS, 5, 4))
    alone = draw_few(LABELS[:40], 5, 3)
    assert torch.equal(draw_few(LABELS, 5, 3)[: len(alone)], alone)
    more = set(draw_few(LABELS, 8, 3).tolist())
    assert set(draw_few(LABELS, 5, 3).tolist()) < more  # draws grow, they do not change


def test_views_of_an_image_are_drawn_and_held_out_together():
    labels, images = torch.arange(3).repeat(20), torch.arange(60) % 30
    drawn = draw_few(labels, 4, 0, images)
    assert torch.unique(labels[drawn], return_counts=True)[1].tolist() == [8, 8, 8]  # of two views each
    assert torch.bincount(images[drawn])[images[drawn]].eq(2).all()
    folds = stratified_folds(labels, 5, 0, images)
    assert torch.equal(folds[:30], folds[30:])
    assert torch.equal(folds[:30], stratified_folds(labels[:30], 5, 0))
