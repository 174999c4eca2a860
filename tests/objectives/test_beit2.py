"""BEiT v2 against a plain computation on whole images in raster order."""

import pytest
import torch
from plain import assert_same_course, draw
from plain_inpainting import IS_HIDDEN, at_hidden, raster_outputs, stream_view
from torch.nn import functional as F

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.objectives.beit2 import Beit2
from pipeline.objectives.objective import Targets
from pipeline.training.config import RunConfig

TARGET = draw(2, 16, 20)  # of all patches in raster order
TARGETS = Targets([], [TARGET[IS_HIDDEN].view(2, 10, 20)])


def plain_codes(tokenizer, values):
    """The nearest codes of values (n, 20), for VQ-KD after its two layers."""
    if len(tokenizer.encode):
        first, last = tokenizer.encode[0], tokenizer.encode[2]
        values = torch.tanh(values @ first.weight.T + first.bias) @ last.weight.T + last.bias
    return F.cosine_similarity(values[:, None], tokenizer.codes, dim=-1).argmax(-1)


def plain_terms(objective, images, earlier, values=TARGET[IS_HIDDEN], is_hidden=IS_HIDDEN):
    """The cross-entropy at the hidden patches: of the last block, and through CLS."""
    outputs = raster_outputs(objective, images, is_hidden)
    joined = torch.cat([outputs[-1][:, :1], outputs[earlier - 1][:, 1:]], dim=1)
    for block in objective.joining:
        joined = block(joined)
    codes, terms = plain_codes(objective.tokenizer, values), []
    for tokens in (outputs[-1], joined):
        logits = at_hidden(objective, tokens, is_hidden) @ objective.head.weight.T + objective.head.bias
        terms.append(-logits.log_softmax(-1)[torch.arange(len(codes)), codes].mean())
    return torch.stack(terms)


@pytest.mark.parametrize(("depth", "earlier", "kind"), [(3, 1, "vqkd"), (5, 2, "kmeans")])
def test_loss_and_gradients_equal_the_plain_computation(coded_objective, images, depth, earlier, kind):
    config, view = Beit2(codebook_size=30, tokenizer=kind), stream_view(images)
    objective = coded_objective(config, depth=depth).double()
    _, terms = objective(view, TARGETS)
    torch.testing.assert_close(terms, plain_terms(objective, images, earlier).detach())
    assert objective.parts == ("patches", "cls")
    assert_same_course(
        objective, lambda: objective(view, TARGETS)[0], lambda: plain_terms(objective, images, earlier).sum()
    )


def test_the_joining_blocks_are_those_of_the_paper_and_not_exported(coded_objective):
    """Patches come from block 9 of 12 and 21 of 24; drop path continues the linear rule there."""
    for depth, earlier in ((12, 9), (24, 21)):
        objective = coded_objective(Beit2(codebook_size=30), depth=depth, drop_path=0.5)
        assert objective.earlier == earlier
        rates = [block.drop_path1.drop_prob for block in objective.joining]
        assert rates == pytest.approx([0.5 * place / (depth - 1) for place in (earlier, earlier + 1)])
        assert not torch.equal(
            objective.joining[0].mlp.fc1.weight, objective.encoder.vit.blocks[earlier].mlp.fc1.weight
        )
        assert not any("joining" in name for name in objective.encoder.state_dict())


def test_a_student_without_cls_is_refused(coded_objective):
    with pytest.raises(ConfigError, match=r"'beit2' predicts through CLS, .* or choose objective 'beit'"):
        coded_objective(Beit2(codebook_size=30), class_token=False, global_pool="avg", fc_norm=False)


def test_the_published_recipe_has_vqkd_in_the_space_of_clip():
    config = load_config(RunConfig, None, ["objective.name=beit2", "objective.preset=published"])
    request = config.objective.codebook_request
    assert (request.kind, request.size, request.target, request.reconstructs) == (
        *("vqkd", 8192, "whiten", "projected"),
    )
    assert config.objective.needs.target == "whiten"
    assert (config.optim.epochs, config.student.drop_path, config.optim.betas) == (300, 0, (0.9, 0.98))


def test_what_only_vqkd_uses_is_refused_for_kmeans():
    settings = ["objective.name=beit2", "objective.vqkd_steps=10"]
    with pytest.raises(
        ConfigError, match=r"'kmeans' does not use vqkd_steps: choose 'vqkd', or leave it out"
    ):
        load_config(RunConfig, None, settings)
    config = load_config(RunConfig, None, [*settings, "objective.tokenizer=vqkd"])
    assert config.objective.codebook_request.steps == 10
