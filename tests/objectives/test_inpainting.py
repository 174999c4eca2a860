"""What holds for every objective that has mask tokens in the encoder."""

from dataclasses import replace

import pytest
import torch
from plain_inpainting import stream_view

from pipeline.config import load_config
from pipeline.objectives.beit import Beit
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig


def test_hidden_pixels_matter_only_as_codes(coded_objective, images):
    objective = coded_objective(Beit(codebook_size=30, codes="pixels")).double()
    objective.tokenizer.forward = lambda values: torch.zeros(values.shape[:2], dtype=torch.int64)
    view = stream_view(images, "all")
    poked = replace(view, patches=torch.cat([view.patches[:, :6], 255 - view.patches[:, 6:]], dim=1))
    assert torch.equal(*[objective(each, Targets([], []))[0] for each in (view, poked)])


@pytest.mark.parametrize("name", ["maskdistill", "beit", "beit2"])
def test_masks_are_of_blocks_and_the_same_with_that_preset(name):
    config = load_config(RunConfig, None, [f"objective.name={name}"])
    assert config.mask.strategy == "block"
    assert 196 - config.mask.visible_count(196) == (79 if name == "maskdistill" else 75)
    same = load_config(RunConfig, None, [f"objective.name={name}", "objective.preset=same-mask"])
    assert (same.mask.strategy, same.mask.ratio) == ("attention", 0.7)
    assert config.objective == same.objective
