"""k-NN against a plain reference in numpy, its properties, and what its scores say and refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbour_votes import knn_predictions
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.errors import CacheError, ConfigError
from pipeline.evaluation import knn
from pipeline.evaluation.crops import ViewBatch
from pipeline.evaluation.knn import Knn
from pipeline.evaluation.run import run_evaluation
from pipeline.evaluation.subject import Subject
from pipeline.evaluation.task import Task
from pipeline.report.scores import SubjectFacts


def reference(bank, bank_labels, queries, k, temperature, groups=None):
    """One query at a time, in double precision."""
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    found = []
    for row, query in enumerate(queries):
        allowed = np.arange(len(bank)) if groups is None else np.flatnonzero(groups[0] != groups[1][row])
        similarity = bank[allowed] @ (query / np.linalg.norm(query))
        votes = {}
        for index in np.argsort(-similarity)[:k]:
            label = bank_labels[allowed[index]]
            votes[label] = votes.get(label, 0.0) + np.exp(similarity[index] / temperature)
        found.append(max(votes, key=votes.get))
    return found


def clusters(seed, count, classes=5, width=6):
    """Noisy points around one centre per class, with labels that are neither dense nor sorted."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    index = rng.integers(classes, size=count)
    return centres[index] + rng.normal(0, 1.2, (count, width)), index * 7 + 3


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 30),
    temperature=st.sampled_from([0.01, 0.07, 1.0]),
    grouped=st.booleans(),
)
def test_equals_the_reference(seed, k, temperature, grouped):
    (bank, bank_labels), (queries, _) = clusters(seed, 40), clusters(seed + 1, 25)
    groups = (np.arange(40) % 12, np.arange(25) % 12) if grouped else None
    expected = reference(bank, bank_labels, queries, k, temperature, groups)
    found = knn_predictions(
        *tensors(bank, bank_labels, queries),
        k=k,
        temperature=temperature,
        groups=groups and tuple(tensors(*groups)),
    )
    assert found.tolist() == expected


def test_near_neighbours_outvote_a_far_majority():
    bank, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([4, 9, 9])
    query = torch.tensor([[1.0, 0.05]])
    assert knn_predictions(bank, labels, query, k=3).tolist() == [4]
    assert knn_predictions(bank, labels, query, k=3, temperature=1e6).tolist() == [9]


def test_a_low_temperature_does_not_overflow():
    bank, labels, queries, _ = tensors(*clusters(3, 50), *clusters(4, 50))
    nearest = knn_predictions(bank, labels, queries, k=1)
    assert knn_predictions(bank, labels, queries, k=20, temperature=1e-6).equal(nearest)


def test_length_and_precision_of_features_do_not_matter():
    bank, labels, queries, _ = tensors(*clusters(5, 80), *clusters(6, 80))
    expected = knn_predictions(bank, labels, queries)
    assert knn_predictions(bank * 3, labels, queries * 0.2).equal(expected)
    assert (knn_predictions(bank.half(), labels, queries.half()) == expected).float().mean() > 0.97


@pytest.mark.parametrize("limit", [1, 100, 1000])
def test_parts_change_nothing(monkeypatch, limit):
    bank, labels, queries, _ = tensors(*clusters(7, 50), *clusters(8, 33))
    groups = (torch.arange(50) % 9, torch.arange(33) % 9)
    expected = knn_predictions(bank, labels, queries, groups=groups)
    monkeypatch.setattr(knn, "_MAX_SCORES", limit)
    assert knn_predictions(bank, labels, queries, groups=groups).equal(expected)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of a tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.elements = max(self.elements, found.numel())
        return found


def test_queries_are_worked_on_in_pieces(monkeypatch):
    bank, queries = torch.randn(50, 40), torch.randn(1000, 40).half()
    monkeypatch.setattr(knn, "_MAX_SCORES", 5000)
    with LargestTensor() as seen:
        knn.nearest([bank], 50, queries, 3)
    assert seen.elements == 5000  # 100 queries by the bank, less than the 40,000 of all queries


@pytest.mark.parametrize(
    ("k", "groups", "message"),
    [
        (4, None, "k is 4: only 3 views .* may vote .*; give --set k=3 or less"),
        (3, (torch.tensor([0, 1, 1]), torch.tensor([1])), "only 1 views .* --set k=1 or less"),
        (1, (torch.ones(3), torch.ones(1)), "only 0 views .* a bank of other images"),
    ],
)
def test_what_cannot_be_scored_is_refused(k, groups, message):
    with pytest.raises(ConfigError, match=message):
        knn_predictions(torch.eye(3), torch.arange(3), torch.ones(1, 3), k=k, groups=groups)


class Points:
    """Images of one colour each, a point on a circle in red and green: {key: (256ths of a turn, label)}."""

    kind, address, class_names = "tars", "points", ()

    def __init__(self, points, tar="a.tar"):
        self.points, self.tar = points, tar
        self.digest = f"{tar} {points}"

    def views(self, size, batch_size, left_out, **_):
        used = []
        for key, (turn, label) in self.points.items():
            if label is None:
                left_out.add("unlabelled", f"{self.tar}/{key}", "has no .cls member")
            else:
                used.append((colour(turn, size), (self.tar, key, label)))
        for start in range(0, len(used), batch_size):
            pixels, names = map(list, zip(*used[start : start + batch_size], strict=True))
            yield ViewBatch(torch.stack(pixels), names)


def colour(turn, size):
    angle = turn / 256 * 2 * torch.pi
    values = [127.5 + 127 * np.cos(angle), 127.5 + 127 * np.sin(angle), 127.5]
    return torch.tensor(values).round().to(torch.uint8).expand(size, size, 3)


def circle_subject():
    """A ViT without CLS, whose token is the colour of its only patch."""
    vit = VisionTransformer(
        img_size=2, patch_size=2, embed_dim=3, depth=1, num_heads=1, class_token=False, global_pool="avg",
        num_classes=0,
    )  # fmt: skip
    vit.blocks[0] = vit.norm = vit.fc_norm = nn.Identity()
    with torch.no_grad():
        vit.patch_embed.proj.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2) / 4)
        vit.patch_embed.proj.bias.zero_()
        vit.pos_embed.zero_()
    facts = SubjectFacts(kind="model", name="circle", weights="00")
    return Subject(facts, vit.eval(), 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def scored(tmp_path):
    def run(data, test=None, **settings):
        task = Task(circle_subject(), data, test, tmp_path / "features", tmp_path / "plots", batch_size=2)
        (score,) = run_evaluation(Knn(**({"k": (1,)} | settings)), task)
        return score

    return run


BANK = Points({"a": (0, 0), "b": (10, 0), "c": (128, 1), "d": (138, 1)})
OTHERS = Points({"v": (3, 0), "w": (131, 1), "x": (132, 1), "y": (5, 1)}, "b.tar")


def test_a_score_holds_all_that_it_depends_on(scored):
    score = scored(BANK, OTHERS, temperature=(0.1,))
    assert score.metrics == {"top-1": 0.75, "mean per class": pytest.approx(5 / 6)}
    assert score.per_class == {"0": 1.0, "1": pytest.approx(2 / 3)}
    assert score.class_images == {"0": 1, "1": 3}
    assert (score.chance, score.evaluation, score.representation, score.notes) == (0.75, "knn", "mean", ())
    assert score.options == {
        "k": [1], "temperature": [0.1], "representations": ["cls", "mean"], "centre": False, "few": None,
        "tries": 1, "seed": 0, "shared_keys": "refuse",
    }  # fmt: skip
    assert (score.bank.images, score.test.images, score.bank.classes) == (4, 4, 2)
    assert score.bank.digest != score.test.digest
    assert score.subject.name == "circle"


def test_scores_compare_only_under_equal_conditions(scored):
    score = scored(BANK, OTHERS)
    assert scored(BANK, OTHERS).conditions == score.conditions
    assert scored(BANK, OTHERS, k=(2,)).conditions != score.conditions
    assert scored(BANK, Points(OTHERS.points | {"z": (0, 0)})).conditions != score.conditions


def test_without_test_data_no_image_is_its_own_neighbour(scored):
    assert scored(BANK).metrics["top-1"] == 1.0
    alone = scored(Points({"a": (0, 0), "b": (10, 0), "c": (5, 1)}))
    assert alone.metrics["top-1"] == 0.0
    assert alone.notes == (
        "classes with only one image: 1, such as class 1; no other of its class can vote for it, so it "
        "counts as wrong",
    )


def test_equal_keys_of_two_tars_are_two_images(scored):
    class Two(Points):
        def views(self, size, batch_size, left_out, **_):
            yield from BANK.views(size, batch_size, left_out)
            yield from Points(BANK.points, "z.tar").views(size, batch_size, left_out)

    assert scored(Two({}), k=(7,)).test.images == 8


def test_keys_in_bank_and_test_are_refused_unless_explained(scored):
    moved = Points({"a": (0, 1), "b": (128, 1)}, "b.tar")
    message = "2 keys are in the data to learn from and in the test data, such as 'a': an image"
    with pytest.raises(ConfigError, match=message):
        scored(BANK, moved)
    assert scored(BANK, moved, shared_keys="allow").metrics["top-1"] == 0.5
    same = Points({"a": (0, 0), "c": (128, 0)}, "copy.tar")
    assert scored(BANK, same, shared_keys="exclude", k=(3,)).metrics["top-1"] == 0.5
    with pytest.raises(ConfigError, match="k is 4: only 3 views"):
        scored(BANK, same, shared_keys="exclude", k=(4,))


def test_a_note_counts_test_images_in_the_bank_under_other_keys(scored):
    packed = Points({"0/a": (0, 0), "1/c": (128, 1), "1/e": (131, 1)}, "b.tar")
    for choices in ({}, {"centre": True}, {"few": 2, "tries": 2}):
        (note,) = scored(BANK, packed, **choices).notes
        assert note.startswith("2 test images have the same features as an image to learn from")
        assert ", such as '0/a': if" in note
    assert scored(BANK).notes == ()


def test_images_that_all_look_alike_are_not_called_copies(scored):
    alike = [Points({f"{name}{number}": (7, number % 2) for number in range(30)}) for name in "ab"]
    assert scored(*alike, k=(20,)).notes == ()


def test_images_without_label_are_counted_with_a_reason(scored):
    score = scored(BANK, Points(OTHERS.points | {"q": (0, None), "r": (0, None)}))
    assert score.test.left_out == {"unlabelled": 2}
    assert score.test.first_reasons == {"unlabelled": "a.tar/q has no .cls member"}
    message = r"has no image that is whole and labelled \(unlabelled: 1, first a.tar/q"
    with pytest.raises(CacheError, match=message):
        scored(Points({"q": (0, None)}))


def test_classes_without_neighbours_are_noted(scored):
    score = scored(BANK, Points({"v": (3, 0), "w": (4, 7)}))
    assert score.notes == (
        "1 test images are of classes that the images to learn from do not have, such as class 7: "
        "they cannot be right",
    )
    assert scored(BANK, Points({"v": (3, 0)})).notes == (
        "all test images are of one class: the accuracy says nothing",
    )
