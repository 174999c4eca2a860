"""What holds for every objective, whatever it predicts."""

import inspect
from dataclasses import replace

import pytest
import torch
from plain import draw, view_of
from plain_inpainting import HIDDEN, VISIBLE
from torch import nn
from torch.nn import functional as F

from pipeline.objectives.beit import Beit
from pipeline.objectives.beit2 import Beit2
from pipeline.objectives.cae import ContextAutoencoder
from pipeline.objectives.combined import Combined
from pipeline.objectives.decoder import pixel_target
from pipeline.objectives.fd import FeatureDistillation
from pipeline.objectives.inpainting import Inpainting
from pipeline.objectives.mae import MaskedAutoencoder
from pipeline.objectives.maskalign import MaskAlign
from pipeline.objectives.maskdistill import MaskDistill
from pipeline.objectives.milan import Milan
from pipeline.objectives.objective import Targets
from pipeline.objectives.supervised import Supervised
from pipeline.training.config import objective_kinds

DECODER = {"decoder_depth": 2, "decoder_width": 32, "decoder_heads": 4}
CAE = {"codebook_size": 30, "regressor_depth": 2, "decoder_depth": 2}
ALIGNED = {mode: MaskAlign(mode=mode) for mode in ("dynamic", "layerwise", "uniform", "last")}
ALIGNED |= {head: MaskAlign(head=head) for head in ("norm_linear", "mlp")}
HIDING = {
    "mae": MaskedAutoencoder(**DECODER),
    "milan": Milan(**DECODER),
    "milan, hidden": Milan(**DECODER, positions="hidden"),
    "combined": Combined(**DECODER),
    "combined, control": Combined(**DECODER, stop_gradient=True),
    "combined, layerwise": Combined(**DECODER, mode="layerwise"),
    "combined, pixels": Combined(**DECODER, reconstruct="pixels"),
    "cae": ContextAutoencoder(**CAE),
    "cae, pixels": ContextAutoencoder(**CAE, codes="pixels"),
    "cae, teacher": ContextAutoencoder(**CAE, align="teacher"),
    "maskdistill": MaskDistill(),
    "maskdistill, cosine": MaskDistill(loss="cosine", target="projected"),
    "beit": Beit(codebook_size=30),
    "beit, pixels": Beit(codebook_size=30, codes="pixels"),
    "beit2": Beit2(codebook_size=30),
    "beit2, vqkd": Beit2(codebook_size=30, tokenizer="vqkd"),
}
OTHERS = {"fd": FeatureDistillation(), "milan, visible": Milan(**DECODER, positions="visible")}
OTHERS |= {"supervised": Supervised(classes=7)}
LABELS = torch.tensor([5, 5])
OBJECTIVES = ALIGNED | HIDING | OTHERS
OF_PIXELS = ("mae", "combined, pixels", "cae", "cae, pixels", "beit, pixels")
STUDENTS = {
    "plain": {},
    "registers": {"reg_tokens": 2, "init_values": 0.1},
    "no CLS": {"class_token": False, "global_pool": "avg", "fc_norm": False},
}


def batch_of(config, images, dtype=torch.float64):
    """What the stream delivers to an objective: the view, and targets of a teacher with CLS."""
    needs, visible = config.needs, VISIBLE if config.masked else torch.arange(16).expand(2, -1)
    view = view_of(images, visible, HIDDEN, needs.pixels)
    tokens = {"visible": visible.shape[1] + 1, "hidden": HIDDEN.shape[1]}
    found = {
        part: list(draw(len(levels), 2, tokens[part], 20, dtype=dtype))
        for part, levels in needs.targets((1, 4, 5)).items()
    }
    targets = Targets(found.get("visible", []), found.get("hidden", []))
    view = replace(view, labels=LABELS)
    return view if needs.positions else replace(view, hidden=None), targets


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_perfect_predictor_has_no_loss(coded_objective, images, name):
    """Heads without weights predict what is the same everywhere: one patch, one feature, one code."""
    config = OBJECTIVES[name]
    objective = coded_objective(config).double()
    view, targets = batch_of(config, images[:1, :8, :8].repeat(2, 4, 4, 1))
    feature, pixels = draw(20), pixel_target(objective.encoder, view.patches, per_patch=True)[0, 0]
    parts = (targets.visible, targets.hidden)
    targets = Targets(*([feature.expand_as(target) for target in part] for part in parts))
    predicted = {20: feature, 192: pixels, 7: 100 * F.one_hot(LABELS[0], 7).double()}
    if config.codebook_request:
        of_pixels = config.codebook_request.source == "pixels"
        code = objective.tokenizer((pixels if of_pixels else feature)[None, None])
        predicted[30] = 100 * F.one_hot(code[0, 0], 30).double()
    with torch.no_grad():
        for each, module in objective.named_modules():
            last = isinstance(module, nn.Linear) and module.out_features in predicted
            if last and ("head" in each or each == "to_teacher"):
                module.weight.zero_()
                module.bias.copy_(predicted[module.out_features])
            elif each in ("encoder.vit.norm", "regressor.norm"):  # the latents of cae are zero
                module.weight.zero_()
                module.bias.zero_()
    assert objective(view, targets)[0].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "fd"])
def test_hidden_pixels_count_only_where_they_are_predicted(coded_objective, images, name):
    """They are given to all objectives that could leave them out."""
    config = OBJECTIVES[name]
    objective, (view, targets) = coded_objective(config).double(), batch_of(config, images)
    if isinstance(objective, Inpainting):
        view = replace(view, patches=view_of(images, VISIBLE, HIDDEN, "all").patches)
    poked = view.patches.clone()
    poked[:, VISIBLE.shape[1] :, ::2] //= 2
    losses = [objective(replace(view, patches=patches), targets)[0] for patches in (view.patches, poked)]
    assert torch.equal(*losses) == (name not in OF_PIXELS)


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_exactly_the_trained_parameters_get_a_gradient(coded_objective, images, name, student):
    """Under autocast too: it caches cast weights, and those cast under no_grad would get no gradient."""
    if name.startswith("beit2") and student == "no CLS":  # which it refuses
        return
    for enabled in (False, True):
        objective = coded_objective(OBJECTIVES[name], **STUDENTS[student])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, terms = objective(*batch_of(OBJECTIVES[name], images, torch.float32))
        loss.backward()
        assert loss.dtype == terms.dtype == torch.float32
        parameters = dict(objective.named_parameters())
        for each, parameter in parameters.items():
            assert (parameter.grad is not None) == parameter.requires_grad, each
        assert objective.no_weight_decay() <= parameters.keys()
        if name not in ALIGNED and not name.startswith("combined"):
            frozen = {each for each, parameter in parameters.items() if not parameter.requires_grad}
            unused = [each for each in frozen if "fc_norm" in each or each.startswith("tokenizer.")]
            assert frozen.difference(unused) == {"encoder.vit.pos_embed"}


@pytest.mark.parametrize("name", HIDING)
def test_the_order_of_hidden_patches_does_not_matter(coded_objective, images, name):
    objective = coded_objective(HIDING[name]).double()
    view, targets = batch_of(HIDING[name], images)
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    seen, unseen = view.patches[:, :6], view.patches[:, 6:]
    patches = torch.cat([seen, unseen[:, order[: unseen.shape[1]]]], dim=1)
    turned = replace(view, patches=patches, hidden=HIDDEN[:, order])
    moved = replace(targets, hidden=[target[:, order] for target in targets.hidden])
    losses = objective(turned, moved)[0], objective(view, targets)[0]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_hardly_changes_the_loss(coded_objective, images, name):
    objective = coded_objective(OBJECTIVES[name])
    batch = batch_of(OBJECTIVES[name], images, torch.float32)
    exact, _ = objective(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(*batch)
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


def test_an_objective_is_one_file_of_at_most_130_lines():
    files = {name: inspect.getsource(inspect.getmodule(kind)) for name, kind in objective_kinds().items()}
    assert [name for name, text in files.items() if len(text.splitlines()) > 130] == []
