"""Labels of a cache: neighbours of one class are noticed, and unusable labels are refused."""

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.stream.labels import have_few_classes, refuse_labels
from pipeline.views.sample import NO_LABEL


def chunks_of(labels):
    """Sixteen chunks that are spread over a data set, by their labels."""
    chunks = np.split(labels[: len(labels) // 64 * 64], len(labels) // 64)
    return [chunks[index] for index in np.linspace(0, len(chunks) - 1, 16).round().astype(int)]


def test_class_sorted_tars_are_noticed_and_shuffled_ones_are_not():
    """Sorted: 1000 classes with stray images, ten classes, two classes, and one class that is frequent."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        imagenet = np.repeat(rng.permutation(1000), rng.integers(732, 1301, 1000))
        imagenet[rng.integers(0, len(imagenet), 20)] = 1001
        few = rng.integers(0, 10, 20_000)
        frequent = np.minimum(rng.geometric(0.3, 20_000), 50)
        for labels in (imagenet, few, few % 2, frequent):
            if labels is not frequent:
                assert have_few_classes(chunks_of(labels if labels is imagenet else np.sort(labels)))
            assert not have_few_classes(chunks_of(rng.permutation(labels)))
    assert not have_few_classes(chunks_of(np.zeros(20_000, np.uint64)))
    assert not have_few_classes([np.empty(0, np.uint64)] * 3)


@pytest.mark.parametrize("missing", [np.array([3, -1]), np.array([3, NO_LABEL], np.uint64)])
def test_labels_that_cannot_be_learnt_from_are_refused(missing):
    refuse_labels(np.arange(4), 4)
    with pytest.raises(
        ConfigError, match="the objective learns from labels, and an image of the cache has none"
    ):
        refuse_labels(missing, 4)
    with pytest.raises(
        ConfigError, match=r"objective\.classes is 3, .* has label 3: set objective\.classes to"
    ):
        refuse_labels(np.arange(4), 3)
