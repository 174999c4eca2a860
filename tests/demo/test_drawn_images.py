"""The demo's images: a pure function, balanced classes, true captions, colours that tell nothing."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pipeline.demo.forms import CLASSES
from pipeline.demo.images import image

COUNT = 900
TRAINING = 720


@pytest.fixture(scope="module")
def images():
    return [image(7, index) for index in range(COUNT)]


def test_an_image_is_a_function_of_seed_and_index(images):
    again = image(7, 834)
    np.testing.assert_array_equal(again.pixels, images[834].pixels)
    assert (again.label, again.caption) == (images[834].label, images[834].caption)
    assert (image(8, 834).pixels != again.pixels).mean() > 0.5
    assert (image(7, 835).pixels != again.pixels).mean() > 0.5


def test_classes_are_roughly_even(images):
    counts = Counter(one.label for one in images)
    assert sorted(counts) == list(range(len(CLASSES))) == list(range(18))
    expected = COUNT / len(CLASSES)
    # Five deviations of a fair draw.
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def article_of(word):
    return "an" if word in {"arrow", "orange", "hourglass"} else "a"


def test_captions_name_the_class_with_the_right_article(images):
    for one in images:
        words = one.caption.split()
        named = [word for word in words if word in CLASSES]
        assert named == [CLASSES[one.label]], one.caption
        for article, word in re.findall(r"\b(an?) (\w+)", one.caption):
            assert article == article_of(word), one.caption


def test_the_form_is_where_the_mask_and_the_box_say(images):
    for one in images[:50]:
        left, top, right, bottom = one.box
        inside = one.form[top:bottom, left:right]
        assert inside.sum() == one.form.sum()
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert 0.02 < one.form.mean() < 0.7
    distance = [
        np.abs(one.pixels[one.form].mean(0) - one.pixels[~one.form].mean(0)).max() for one in images[:50]
    ]
    assert np.median(distance) > 60  # form and ground differ in luma


def mean_colour(pixels):
    return pixels.mean((0, 1))


def thumbnail(pixels):
    return np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BOX), np.float64).ravel()


def nearest_centroid(train, labels, test):
    centroids = np.stack([train[labels == label].mean(0) for label in range(len(CLASSES))])
    return distances(test, centroids).argmin(1)


def nearest_neighbours(train, labels, test, k=10):
    nearest = np.argsort(distances(test, train), axis=1)[:, :k]
    return np.array([np.bincount(labels[row]).argmax() for row in nearest])


def distances(left, right):
    return (left**2).sum(1)[:, None] - 2 * left @ right.T + (right**2).sum(1)[None]


@pytest.mark.parametrize("classify", [nearest_centroid, nearest_neighbours])
@pytest.mark.parametrize("features", [mean_colour, thumbnail])
def test_colours_do_not_give_the_class_away(images, features, classify):
    values = np.stack([features(one.pixels) for one in images])
    labels = np.array([one.label for one in images])
    guesses = classify(values[:TRAINING], labels[:TRAINING], values[TRAINING:])
    accuracy = (guesses == labels[TRAINING:]).mean()
    assert accuracy < 0.25, f"{accuracy:.0%} are found by colour alone, chance is {1 / len(CLASSES):.0%}"
