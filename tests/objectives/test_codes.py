"""Codes: the nearest by cosine, and a cross-entropy in parts that equals the plain one."""

import pytest
import torch
from plain import draw
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.objectives import codes
from pipeline.objectives.codes import Tokenizer, code_loss


@pytest.fixture(params=[2**26, 11 * 30, 1], ids=["whole", "parts", "one by one"])
def _parts(request, monkeypatch):
    """How many logits there are at once; 30 codes."""
    monkeypatch.setattr(codes, "_LOGITS_AT_ONCE", request.param)


def problem(dtype=torch.float64):
    """A head from 12 channels to 30 codes, tokens (4, 9, 12) and their codes."""
    torch.manual_seed(0)
    head = nn.Linear(12, 30).to(dtype)
    return head, draw(4, 9, 12, dtype=dtype).requires_grad_(), torch.randint(0, 30, (4, 9))


@pytest.mark.usefixtures("_parts")
def test_the_loss_in_parts_and_its_gradients_are_the_plain_ones():
    head, tokens, right = problem()
    ours, plain = (
        code_loss(head, tokens, right),
        F.cross_entropy(head(tokens).flatten(0, 1), right.flatten()),
    )
    inputs = [tokens, head.weight, head.bias]
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    for found, expected in zip(
        *(torch.autograd.grad(3 * loss, inputs) for loss in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("_parts")
def test_half_precision_gives_a_single_precision_loss_and_gradients():
    head, tokens, right = problem(torch.float32)
    plain = torch.autograd.grad(code_loss(head, tokens, right), [tokens, head.weight, head.bias])
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", kind):
            loss = code_loss(head, tokens, right)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, code_loss(head, tokens, right), rtol=0.02, atol=0)
        for found, expected in zip(
            torch.autograd.grad(loss, [tokens, head.weight, head.bias]), plain, strict=True
        ):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=0.1, atol=2e-3)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(found) if isinstance(each, torch.Tensor)]
        self.numbers = max([self.numbers, *(each.numel() for each in made)])
        return found


def test_no_more_logits_than_stated_are_ever_there(monkeypatch):
    monkeypatch.setattr(codes, "_LOGITS_AT_ONCE", 4 * 3000)
    tokens, weight, bias = torch.randn(500, 2), torch.randn(3000, 2), torch.zeros(3000)
    tokenizer = Tokenizer(3000, 2)
    with Largest() as largest:
        codes._code_loss._init_fn(tokens, weight, bias, torch.zeros(500, dtype=torch.int64))
        tokenizer(tokens[None])
    assert largest.numbers == 4 * 3000
    with Largest() as largest:
        F.cross_entropy(tokens @ weight.T, torch.zeros(500, dtype=torch.int64))
    assert largest.numbers == 500 * 3000


def test_the_operator_keeps_the_rules_of_operators():
    head, tokens, right = problem()
    arguments = (tokens.detach().flatten(0, 1).requires_grad_(), head.weight, head.bias, right.flatten())
    rules = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.maskalign.code_loss, arguments, test_utils=rules)


@pytest.mark.usefixtures("_parts")
def test_a_tokenizer_finds_the_nearest_direction_in_single_precision():
    tokenizer = Tokenizer(30, 12)
    tokenizer.codes.copy_(F.normalize(draw(30, 12, seed=5, dtype=torch.float32), dim=-1))
    values = draw(4, 9, 12, dtype=torch.float32)
    cosines = F.cosine_similarity(values[:, :, None], tokenizer.codes, dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = tokenizer(values)
    assert torch.equal(found, cosines.argmax(-1))
    assert torch.equal(tokenizer(7 * values), found)
    assert (found.dtype, tokenizer.size, list(tokenizer.parameters())) == (torch.int64, 30, [])
