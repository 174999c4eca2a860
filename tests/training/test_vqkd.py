"""VQ-KD against a plain computation, and what its training reaches."""

import torch
from torch.nn import functional as F

from pipeline.objectives.codes import Tokenizer
from pipeline.objectives.needs import CodebookRequest
from pipeline.training.vqkd import Decoder, fit_vqkd, losses_and_moved_codes


def tiny(dtype=torch.float64):
    """A tokenizer of 12 codes of 8 channels for features of 16, its decoder to 6, and both (5, 4, D)."""
    torch.manual_seed(0)
    tokenizer, decoder = Tokenizer(12, 16, 8), Decoder(8, 16, 4, 1, 6)
    tokenizer.codes.copy_(F.normalize(torch.randn(12, 8), dim=-1))
    tokenizer.encode.requires_grad_(True)
    return (
        tokenizer.to(dtype),
        decoder.to(dtype),
        torch.randn(5, 4, 16, dtype=dtype),
        torch.randn(5, 4, 6, dtype=dtype),
    )


def test_losses_gradients_and_moved_codes_are_the_plain_ones():
    tokenizer, decoder, features, predicted = tiny()
    before = tokenizer.codes.clone()
    parameters = [*tokenizer.encode.parameters(), *decoder.parameters()]
    first, last = tokenizer.encode[0], tokenizer.encode[2]
    points = torch.tanh(features @ first.weight.T + first.bias) @ last.weight.T + last.bias
    points = points / points.norm(dim=-1, keepdim=True)
    nearest = torch.cdist(points.detach(), before).argmin(-1)
    chosen = before[nearest]
    found = decoder(points - points.detach() + chosen)
    cosine = (found * predicted).sum(-1) / (found.norm(dim=-1) * predicted.norm(dim=-1))
    plain = (1 - cosine).mean(), ((points - chosen) ** 2).mean()
    ours = losses_and_moved_codes(tokenizer, decoder, features, predicted)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(
        *(torch.autograd.grad(sum(losses), parameters) for losses in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    for number, code in enumerate(before):
        members = points[nearest == number]
        if len(members):
            code = 0.99 * code + 0.01 * members.sum(0) / members.sum(0).norm()
            code = code / code.norm()
        torch.testing.assert_close(tokenizer.codes[number], code, rtol=0, atol=1e-12)
    assert 0 < len(nearest.unique()) < 12  # so some codes have stayed


def test_training_finds_clusters_and_repeats():
    """Features around twelve directions, in random order within an image."""
    torch.manual_seed(1)
    directions = torch.linalg.qr(torch.randn(16, 16)).Q[:12]
    features = 4 * (directions[torch.randint(0, 12, (80, 4))] + 0.02 * torch.randn(80, 4, 16))
    lines, fitted = [], []
    for steps in (600, 20, 20):
        tokenizer = Tokenizer(12, 16, 32)
        request = CodebookRequest("features", "vqkd", 12, "whiten", 100, steps=steps, blocks=1)
        facts = fit_vqkd(tokenizer, features, features, request, 0, lines.append)
        fitted.append((facts, tokenizer.state_dict()))
    assert fitted[0][0]["one_minus_cosine"] < 0.3 < 0.8 < fitted[1][0]["one_minus_cosine"]
    assert all(torch.equal(value, fitted[2][1][name]) for name, value in fitted[1][1].items())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert lines[4].startswith("codebook: step 600 of 600, 1 - cosine 0.")
