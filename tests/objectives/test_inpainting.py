"""What holds for every objective that has mask tokens in the encoder."""

import pytest
import torch
from plain import draw
from plain_inpainting import HIDDEN, stream_view
from student_fixtures import IMAGE_SIZE, PATCH_SIZE
from torch.nn import functional as F

from pipeline.config import load_config
from pipeline.objectives.beit import Beit
from pipeline.objectives.beit2 import Beit2
from pipeline.objectives.maskdistill import MaskDistill
from pipeline.objectives.objective import MaskedView, Setting, Targets
from pipeline.training.codebook import unfitted_tokenizer
from pipeline.training.config import RunConfig

OBJECTIVES = {
    "maskdistill": MaskDistill(),
    "cosine": MaskDistill(loss="cosine", target="projected"),
    "beit": Beit(codebook_size=30),
    "pixels": Beit(codebook_size=30, codes="pixels"),
    "beit2": Beit2(codebook_size=30),
    "vqkd": Beit2(codebook_size=30, tokenizer="vqkd"),
}


@pytest.fixture(params=OBJECTIVES)
def name(request):
    """The name of an objective."""
    return request.param


@pytest.fixture
def build(tiny_objective, name):
    """Build the objective with a drawn codebook."""

    def build(**options):
        config, facts = OBJECTIVES[name], {"projected_width": 20}
        if request := config.codebook_request:
            tokenizer = unfitted_tokenizer(request, Setting(IMAGE_SIZE, PATCH_SIZE, (5,), 6, 20, True))
            tokenizer.codes.copy_(F.normalize(draw(*tokenizer.codes.shape, dtype=torch.float32), dim=-1))
            facts["tokenizer"] = tokenizer
        return tiny_objective(config, facts=facts, **options)

    return build


def view_and_targets(objective, images, dtype=torch.float64):
    """What the stream delivers: pixels of hidden patches or targets there."""
    targets = [draw(2, 10, 20, dtype=dtype)] if objective.needs.hidden == "last" else []
    return stream_view(images, objective.needs.pixels), Targets([], targets)


def test_the_order_of_hidden_tokens_changes_nothing(build, images):
    objective = build().double()
    view, targets = view_and_targets(objective, images)
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    patches = view.patches.clone()
    patches[:, 6:] = patches[:, 6:][:, order[: patches.shape[1] - 6]]
    turned = MaskedView(patches, view.visible, HIDDEN[:, order])
    moved = Targets([], [target[:, order] for target in targets.hidden])
    torch.testing.assert_close(objective(turned, moved)[0], objective(view, targets)[0], rtol=1e-12, atol=0)


def test_hidden_pixels_matter_only_as_codes(build, name, images):
    objective, poked = build().double(), images.clone()
    for image, hidden in enumerate(HIDDEN.tolist()):
        for row, column in (divmod(patch, 4) for patch in hidden):
            poked[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8, 0] //= 2
    before, after = (view_and_targets(objective, each) for each in (images, poked))
    assert torch.equal(before[0].patches[:, :6], after[0].patches[:, :6])
    losses = [objective(*each)[0] for each in (before, after)]
    assert torch.equal(*losses) == (name != "pixels")
    if name == "pixels":
        objective.tokenizer.forward = lambda values: torch.zeros(values.shape[:2], dtype=torch.int64)
        assert torch.equal(*[objective(*each)[0] for each in (before, after)])


@pytest.mark.parametrize("options", [{"reg_tokens": 2}, {"init_values": 0.1}], ids=str)
def test_exactly_the_trained_parameters_get_a_gradient(build, images, options):
    objective = build(**options)
    objective(*view_and_targets(objective, images, torch.float32))[0].backward()
    frozen = {name for name, value in objective.named_parameters() if not value.requires_grad}
    assert {each for each in frozen if not each.startswith("tokenizer.")} == {"encoder.vit.pos_embed"}
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert {"mask_token", "encoder.vit.cls_token"} <= objective.no_weight_decay()


def test_half_precision_autocast_gives_a_single_precision_loss(build, images):
    objective = build()
    view, targets = view_and_targets(objective, images, torch.float32)
    exact, _ = objective(view, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss, terms = objective(view, targets)
    assert loss.dtype == terms.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)
    loss.backward()


@pytest.mark.parametrize("name", ["maskdistill", "beit", "beit2"])
def test_masks_are_of_blocks_and_the_same_with_that_preset(name):
    config = load_config(RunConfig, None, [f"objective.name={name}"])
    assert config.mask.strategy == "block"
    assert 196 - config.mask.visible_count(196) == (79 if name == "maskdistill" else 75)
    same = load_config(RunConfig, None, [f"objective.name={name}", "objective.preset=same-mask"])
    assert (same.mask.strategy, same.mask.ratio) == ("attention", 0.7)
    assert config.objective == same.objective
