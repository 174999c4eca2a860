"""What holds for every objective that has mask tokens in the encoder."""

import pytest
import torch
from plain import draw
from plain_inpainting import HIDDEN, stream_view

from pipeline.config import load_config
from pipeline.objectives.beit import Beit
from pipeline.objectives.beit2 import Beit2
from pipeline.objectives.maskdistill import MaskDistill
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig

OBJECTIVES = {
    "maskdistill": MaskDistill(),
    "beit": Beit(codebook_size=30),
    "pixels": Beit(codebook_size=30, codes="pixels"),
    "beit2": Beit2(codebook_size=30),
    "vqkd": Beit2(codebook_size=30, tokenizer="vqkd"),
}
TARGETS = Targets([], [draw(2, 10, 20)])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_hidden_pixels_matter_only_as_codes(coded_objective, name, images):
    objective, poked = coded_objective(OBJECTIVES[name]).double(), images.clone()
    for image, hidden in enumerate(HIDDEN.tolist()):
        for row, column in (divmod(patch, 4) for patch in hidden):
            poked[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8, 0] //= 2
    views = [stream_view(each, objective.needs.pixels) for each in (images, poked)]
    assert torch.equal(*(view.patches[:, :6] for view in views))
    targets = Targets([], []) if name == "pixels" else TARGETS
    losses = [objective(view, targets)[0] for view in views]
    assert torch.equal(*losses) == (name != "pixels")
    if name == "pixels":
        objective.tokenizer.forward = lambda values: torch.zeros(values.shape[:2], dtype=torch.int64)
        assert torch.equal(*[objective(view, targets)[0] for view in views])


@pytest.mark.parametrize("name", ["beit", "beit2", "vqkd"])
def test_a_perfect_predictor_of_codes_has_no_loss(coded_objective, name, images):
    """Its logits give each token's code the probability 1."""
    objective = coded_objective(OBJECTIVES[name]).double()
    codes = objective.tokenizer(TARGETS.hidden[0])
    with torch.no_grad():
        objective.head.weight.copy_(1000 * torch.eye(30, 48))
    objective.hidden_of = lambda *_: torch.eye(30, 48).double()[codes]
    assert objective(stream_view(images), TARGETS)[0].item() == 0


@pytest.mark.parametrize("name", ["maskdistill", "beit", "beit2"])
def test_masks_are_of_blocks_and_the_same_with_that_preset(name):
    config = load_config(RunConfig, None, [f"objective.name={name}"])
    assert config.mask.strategy == "block"
    assert 196 - config.mask.visible_count(196) == (79 if name == "maskdistill" else 75)
    same = load_config(RunConfig, None, [f"objective.name={name}", "objective.preset=same-mask"])
    assert (same.mask.strategy, same.mask.ratio) == ("attention", 0.7)
    assert config.objective == same.objective
