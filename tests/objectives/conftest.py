"""The students and batches of student_fixtures.py, and objectives with their codes."""

import pytest
import torch
from plain import draw
from student_fixtures import IMAGE_SIZE, PATCH_SIZE, images, tiny_encoder, tiny_objective, visible
from torch.nn import functional as F

from pipeline.objectives.objective import Setting
from pipeline.training.codebook import unfitted_tokenizer

__all__ = ["images", "tiny_encoder", "tiny_objective", "visible"]


@pytest.fixture
def coded_objective(tiny_objective):
    """Build a tiny objective, with a drawn codebook if it predicts codes."""

    def build(config, **options):
        facts = {"projected_width": 20}
        if request := config.codebook_request:
            tokenizer = unfitted_tokenizer(request, Setting(IMAGE_SIZE, PATCH_SIZE, (5,), 6, 20, True, 20))
            tokenizer.codes.copy_(F.normalize(draw(*tokenizer.codes.shape, dtype=torch.float32), dim=-1))
            facts["tokenizer"] = tokenizer
        return tiny_objective(config, facts=facts, **options)

    return build
