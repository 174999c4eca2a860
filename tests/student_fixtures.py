"""Tiny students of real timm models, and batches for them."""

import numpy as np
import pytest
import torch

from pipeline.objectives.maskalign import MaskAlign
from pipeline.objectives.objective import Setting
from pipeline.student.config import StudentConfig
from pipeline.student.encoder import build_encoder
from pipeline.student.patches import cut_patches

TINY = {"depth": 3, "embed_dim": 48, "num_heads": 3}
IMAGE_SIZE, PATCH_SIZE = 32, 8


@pytest.fixture
def tiny_encoder():
    """Build an encoder of 4 x 4 patches, without drop path unless asked for."""

    def build(drop_path=0.0, seed=0, **options):
        torch.manual_seed(seed)
        config = StudentConfig(model="vit_tiny_patch16_224", options=TINY | options, drop_path=drop_path)
        return build_encoder(config, IMAGE_SIZE, PATCH_SIZE)

    return build


@pytest.fixture
def tiny_objective():
    """Build an objective on 4 x 4 patches for a teacher that is 20 channels wide, and more `facts` of it."""

    def build(config=None, levels=(1, 4, 5), teacher_has_cls=True, drop_path=0.0, facts=None, **options):
        torch.manual_seed(0)
        student = StudentConfig(model="vit_tiny_patch16_224", options=TINY | options, drop_path=drop_path)
        setting = Setting(IMAGE_SIZE, PATCH_SIZE, levels, 6, 20, teacher_has_cls, **(facts or {}))
        return (config or MaskAlign()).build(student, setting)

    return build


def encode_images(encoder, images):
    """All tokens (B, prefix + N, C) of whole images after the final norm."""
    everything = torch.arange(encoder.grid**2).expand(len(images), -1)
    return encoder.vit.norm(encoder.forward_tokens(cut_patches(images, encoder.patch_size), everything))


@pytest.fixture
def images():
    """Two images (2, 32, 32, 3) uint8."""
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    )


@pytest.fixture
def visible():
    """Six of sixteen patches of each image, not the same ones."""
    return torch.tensor([[0, 3, 4, 9, 10, 15], [1, 2, 5, 8, 13, 14]])
