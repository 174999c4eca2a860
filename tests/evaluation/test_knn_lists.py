"""k-NN with lists of k and temperature, few labels, centring and several parts, against scikit-learn."""

import numpy as np
import pytest
import torch
from networks import feature_task, stored
from sklearn.neighbors import KNeighborsClassifier

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.evaluation.draws import draw_few
from pipeline.evaluation.knn import Knn
from pipeline.evaluation.metrics import classification_outcome
from pipeline.report.scores import DataFacts

CLASSES, WIDTH = 8, 10


def points(seed, count):
    """Noisy points around class centres, all far from 0 in one direction, as CLIP's features are."""
    centres = np.random.default_rng(1).normal(size=(CLASSES, WIDTH))
    labels = np.arange(count) % CLASSES
    values = centres[labels] + np.random.default_rng(seed).normal(0, 0.9, (count, WIDTH)) + 2
    return torch.from_numpy(values).half(), torch.from_numpy(labels)


BANK, TEST = points(2, 160), points(3, 90)


def scikit_learns(k, temperature, bank=BANK, test=TEST, shift=0.0):
    """Return the probabilities (m, K) of scikit-learn with the same weights, in double precision."""
    values, asked = ((each[0].double().numpy() - shift) for each in (bank, test))
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / temperature)
    )
    return model.fit(values, bank[1].numpy()).predict_proba(asked)


def shares(probabilities, labels=TEST[1]):
    """Return top-1 and top-5."""
    order = np.argsort(-probabilities, axis=1)
    right = order == labels.numpy()[:, None]
    return right[:, 0].mean(), right[:, :5].any(1).mean()


@pytest.fixture
def scored(tmp_path):
    def run(parts=1, **options):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        bank = stored(folder / "bank", {"mean": BANK[0]}, BANK[1], parts)
        test = stored(folder / "test", {"mean": TEST[0]}, TEST[1])
        (outcome,) = Knn.model_validate({"representations": ("mean",), **options}).run(
            feature_task(bank, test)
        )
        return outcome

    return run


def test_each_k_and_temperature_of_the_lists_is_scikit_learns(scored):
    ks, temperatures = (5, 1, 10, 20, 50), (0.07, 0.2, 1.0)
    outcome = scored(k=ks, temperature=temperatures)
    table = outcome.details["k and temperature"]
    assert [(one["k"], one["temperature"]) for one in table] == [(k, t) for k in ks for t in temperatures]
    for one in table:
        expected, _ = shares(scikit_learns(one["k"], one["temperature"]))
        assert one["top-1"] == pytest.approx(expected)
    assert outcome.metrics["top-1"] == pytest.approx(table[0]["top-1"])


@pytest.mark.parametrize("k", [10, 40])
def test_top_5_and_classes_are_scikit_learns(scored, k):
    outcome, probabilities = scored(k=k), scikit_learns(k, 0.07)
    assert (outcome.metrics["top-1"], outcome.metrics["top-5"]) == pytest.approx(shares(probabilities))
    best = probabilities.argmax(1)
    for label in range(CLASSES):
        chosen = TEST[1].numpy() == label
        assert outcome.per_class[str(label)] == pytest.approx((best[chosen] == label).mean())


def test_centring_takes_the_banks_mean_away(scored):
    mean = BANK[0].double().numpy().mean(0)
    expected, _ = shares(scikit_learns(10, 0.07, shift=mean))
    centred = scored(k=10, centre=True).metrics["top-1"]
    assert centred == pytest.approx(expected)
    assert centred != scored(k=10).metrics["top-1"]


def test_without_a_representation_there_would_be_no_score():
    with pytest.raises(ConfigError, match=r"'representations' is \[\]: one or more are needed, such as cls"):
        load_config(Knn, None, ["representations=[]"])


def test_a_temperature_near_zero_lets_the_nearest_decide(scored):
    assert scored(k=(5,), temperature=(1e-300,)).metrics["top-1"] == scored(k=(1,)).metrics["top-1"]


@pytest.mark.parametrize("few", [3, 0.25])
def test_few_labels_are_drawn_and_averaged(scored, few):
    outcome = scored(k=(3, 5), few=few, tries=3, seed=4)
    expected = []
    for seed in (4, 5, 6):
        rows = draw_few(BANK[1], few, seed)
        expected.append(shares(scikit_learns(3, 0.07, bank=(BANK[0][rows], BANK[1][rows])))[0])
    assert outcome.details["top-1 of each draw"] == pytest.approx(expected)
    assert outcome.details["standard deviation of top-1"] == pytest.approx(np.std(expected, ddof=1))
    assert sum(outcome.class_images.values()) == sum(row[2] for row in outcome.confused) == len(TEST[1])
    assert outcome.metrics["top-1"] == pytest.approx(np.mean(expected))
    assert (outcome.seeds, outcome.notes) == ((4, 5, 6), ())
    assert scored(few=20, k=(1,)).notes == ()
    (note,) = scored(few=21, k=(1,)).notes
    assert note.startswith("classes with fewer than the 21 images to draw: 8, such as class 0;")


def test_equal_tries_have_the_intervals_and_counts_of_one():
    random = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % CLASSES
    ranked = torch.stack([torch.randperm(CLASSES, generator=random)[:5] for _ in truth])
    ranked[:150, 0] = truth[:150]
    facts = DataFacts(
        address="a", kind="tars", image_size=8, images=300, classes=CLASSES, left_out={}, first_reasons={},
        digest="a",
    )  # fmt: skip
    how = {"selection": "none", "known": torch.arange(CLASSES)}
    one = classification_outcome("mean", ranked, truth, facts, facts, **how)
    four = classification_outcome("mean", ranked.expand(4, -1, -1), truth, facts, facts, **how)
    assert four == one.model_copy(update={"details": {"standard deviation of top-1": 0.0}})
    for name, value in one.metrics.items():
        low, high = one.intervals[name]
        assert low < value < high < low + 0.15


@pytest.mark.parametrize("options", [{}, {"centre": True}, {"few": 4, "tries": 2}])
def test_parts_of_the_bank_change_nothing(scored, options):
    whole, cut = (scored(parts, k=(7, 3), **options) for parts in (1, 5))
    assert (whole.metrics, whole.details, whole.confused) == (cut.metrics, cut.details, cut.confused)
