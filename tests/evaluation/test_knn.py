"""k-NN accuracy against a plain reference in numpy, its properties and its errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import CacheError, ConfigError
from pipeline.evaluation import knn
from pipeline.evaluation.knn import knn_accuracy


def reference(bank, bank_labels, queries, query_labels, k, temperature, bank_groups=None, query_groups=None):
    """One query at a time, in double precision."""
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    correct = 0
    for row, query in enumerate(queries):
        allowed = (
            np.arange(len(bank)) if bank_groups is None else np.flatnonzero(bank_groups != query_groups[row])
        )
        similarity = bank[allowed] @ (query / np.linalg.norm(query))
        nearest = np.argsort(-similarity)[:k]
        votes = {}
        for place in nearest:
            label = bank_labels[allowed[place]]
            votes[label] = votes.get(label, 0.0) + np.exp(similarity[place] / temperature)
        correct += max(votes, key=votes.get) == query_labels[row]
    return correct / len(queries)


def clusters(seed, count, classes=5, width=6):
    """Noisy points round one centre a class, with labels that are neither dense nor sorted."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    index = rng.integers(classes, size=count)
    return centres[index] + rng.normal(0, 1.2, (count, width)), index * 7 + 3


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 60),
    temperature=st.sampled_from([0.01, 0.07, 1.0]),
    grouped=st.booleans(),
)
def test_equals_the_reference(seed, k, temperature, grouped):
    (bank, bank_labels), (queries, query_labels) = clusters(seed, 40), clusters(seed + 1, 25)
    rng = np.random.default_rng(seed)
    bank_groups, query_groups = (rng.integers(12, size=n) for n in (40, 25)) if grouped else (None, None)
    expected = reference(bank, bank_labels, queries, query_labels, k, temperature, bank_groups, query_groups)
    groups = (
        dict(zip(("bank_groups", "query_groups"), tensors(bank_groups, query_groups), strict=True))
        if grouped
        else {}
    )
    actual = knn_accuracy(
        *tensors(bank, bank_labels, queries, query_labels), k=k, temperature=temperature, **groups
    )
    assert actual == pytest.approx(expected)


def test_separable_features_are_all_found_and_shuffled_labels_are_not():
    bank, labels = clusters(0, 400)
    queries, truth = clusters(1, 200)
    bank, queries = (x + 20 * np.eye(5, 6)[(y - 3) // 7] for x, y in ((bank, labels), (queries, truth)))
    assert knn_accuracy(*tensors(bank, labels, queries, truth)) == 1.0
    shuffled = np.random.default_rng(2).permutation(labels)
    assert knn_accuracy(*tensors(bank, shuffled, queries, truth)) < 0.5


def test_the_same_image_does_not_vote():
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    labels, groups = torch.arange(60), torch.arange(60)
    assert knn_accuracy(features, labels, features, labels, k=1) == 1.0
    assert (
        knn_accuracy(features, labels, features, labels, k=1, bank_groups=groups, query_groups=groups) == 0.0
    )


def test_near_neighbours_outvote_a_far_majority():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    labels = torch.tensor([4, 9, 9])
    query, truth = torch.tensor([[1.0, 0.05]]), torch.tensor([4])
    assert knn_accuracy(bank, labels, query, truth, k=50) == 1.0
    assert knn_accuracy(bank, labels, query, truth, k=50, temperature=1e6) == 0.0


def test_a_low_temperature_does_not_overflow():
    bank, labels = clusters(3, 50)
    queries, truth = clusters(4, 50)
    nearest = knn_accuracy(*tensors(bank, labels, queries, truth), k=1)
    assert knn_accuracy(*tensors(bank, labels, queries, truth), k=20, temperature=1e-6) == nearest


def test_length_and_precision_of_features_do_not_matter():
    bank, labels, queries, truth = tensors(*clusters(5, 80), *clusters(6, 80))
    expected = knn_accuracy(bank, labels, queries, truth)
    assert knn_accuracy(bank * 3, labels, queries * 0.2, truth) == expected
    half = knn_accuracy(bank.half(), labels, queries.half(), truth)
    assert abs(half - expected) <= 2 / 80


@pytest.mark.parametrize("limit", [1, 100, 1000])
def test_chunks_change_nothing(monkeypatch, limit):
    rows = tensors(*clusters(7, 50), *clusters(8, 33))
    groups = {"bank_groups": torch.arange(50) % 9, "query_groups": torch.arange(33) % 9}
    expected = knn_accuracy(*rows, **groups)
    monkeypatch.setattr(knn, "_MAX_SCORES", limit)
    assert knn_accuracy(*rows, **groups) == expected


def small(**changes):
    values = {
        "bank": torch.eye(3),
        "bank_labels": torch.arange(3),
        "queries": torch.eye(3),
        "query_labels": torch.arange(3),
    }
    return values | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"bank": torch.empty(0, 3), "bank_labels": torch.empty(0)},
            CacheError,
            "no images in the bank: give at least one",
        ),
        (
            {"queries": torch.empty(0, 3), "query_labels": torch.empty(0)},
            CacheError,
            "no images in the queries",
        ),
        (
            {"bank_labels": torch.tensor([0, -1, -1])},
            CacheError,
            "2 of 3 images of the bank have no label: .* .cls",
        ),
        (
            {"query_labels": torch.tensor([0, 1, -1])},
            CacheError,
            "1 of 3 images of the queries have no label",
        ),
        ({"bank": torch.eye(3) / 0}, CacheError, "features of the bank are not finite"),
        (
            {"query_labels": torch.arange(4)},
            ConfigError,
            r"labels of the queries have shape \(4,\): give one for each of the 3 rows",
        ),
        ({"k": 0}, ConfigError, "k is 0: give a number of neighbours from 1"),
        ({"temperature": 0.0}, ConfigError, "temperature is 0.0: give a number above 0"),
        ({"temperature": float("nan")}, ConfigError, "temperature is nan"),
        ({"bank_groups": torch.arange(3)}, ConfigError, "bank_groups alone is given"),
        ({"query_groups": torch.arange(3)}, ConfigError, "query_groups alone is given"),
        (
            {"bank_groups": torch.ones(3), "query_groups": torch.tensor([0, 1, 2])},
            CacheError,
            "nothing but group 1",
        ),
    ],
)
def test_errors_name_the_value_and_the_remedy(changes, error, message):
    with pytest.raises(error, match=message):
        knn_accuracy(**small(**changes))
