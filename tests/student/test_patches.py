"""Cutting images into patches, against slices."""

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.student.patches import cut_patches, patches_at


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def test_a_patch_is_a_slice_in_reading_order(image):
    patches = cut_patches(image, 4)
    assert patches.shape == (15, 48)
    assert patches.dtype == np.uint8
    for number in range(15):
        row, column = divmod(number, 5)
        expected = image[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        np.testing.assert_array_equal(patches[number], expected.flatten())


def test_visible_patches_are_rows_of_all_patches(image):
    visible = np.array([0, 4, 7, 14])
    np.testing.assert_array_equal(patches_at(image, 4, visible), cut_patches(image, 4)[visible])


def test_tensors_and_batches_are_cut_alike(image):
    batch = np.stack([image, image[::-1]])
    patches = cut_patches(torch.from_numpy(batch), 4)
    assert isinstance(patches, torch.Tensor)
    assert patches.shape == (2, 15, 48)
    np.testing.assert_array_equal(patches.numpy(), np.stack([cut_patches(one, 4) for one in batch]))


@pytest.mark.parametrize("shape", [(12, 18, 3), (10, 20, 3), (12, 20, 4)])
def test_a_image_that_does_not_divide_is_refused(shape):
    message = f"height {shape[0]}, width {shape[1]} and {shape[2]} channels .* multiples of 4"
    with pytest.raises(ConfigError, match=message):
        cut_patches(np.zeros(shape, np.uint8), 4)
