"""VQ-KD, the tokenizer of BEiT v2: codes from which a decoder reconstructs the teacher (arXiv 2208.06366).

The original encodes pixels with a ViT-B. Here a linear layer, tanh and a second linear layer to 32 channels
encode the teacher's cached tokens, whitened. The length of training is ours too: 5,000 steps of 64 views at a
rate of 2e-4 that warms up and falls by a cosine, where the original has 100 epochs of 512 images at 2e-4. The
rest is as published: codes have unit length and begin at k-means; the nearest one is chosen, with a
straight-through gradient; codes follow the mean of their tokens with a decay of 0.99; the loss is 1 - cosine
plus the squared distance to the code.
"""

from collections.abc import Callable

import numpy as np
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.objectives.codes import Tokenizer
from pipeline.objectives.needs import CodebookRequest
from pipeline.seeding import derived_seed, generator
from pipeline.student.initialise import initialise_layer
from pipeline.training.kmeans import random_start, spherical_kmeans

BATCH = 64  # views
_DECAY = 0.99
_RATE, _BETAS, _WEIGHT_DECAY, _WARMUP = 2e-4, (0.9, 0.99), 1e-4, 0.1
_HEAD_WIDTH = 64
_POINTS_AT_START = 16  # for each code


class Decoder(nn.Module):
    """ViT blocks of width D on the codes of all patches, then linear, tanh and linear to D' channels."""

    def __init__(self, code_width: int, width: int, patches: int, blocks: int, predicted: int) -> None:
        super().__init__()
        heads = width // _HEAD_WIDTH if width % _HEAD_WIDTH == 0 else 1
        self.embed = nn.Linear(code_width, width)
        self.positions = nn.Parameter(torch.zeros(patches, width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, predicted))
        self.apply(initialise_layer)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        """Return features (B, N, D') for codes (B, N, 32)."""
        tokens = self.blocks(self.embed(codes) + self.positions)
        return self.head(self.norm(tokens))  # type: ignore[no-any-return]


def fit_vqkd(
    tokenizer: Tokenizer,
    values: Tensor,
    predicted: Tensor,
    request: CodebookRequest,
    seed: int,
    log: Callable[[str], None],
) -> dict[str, float | int]:
    """Train a tokenizer of features (V, N, D) of views; return the facts for its metadata.

    A decoder predicts `predicted` (V, N, D'), the same features in some form. One loop on one device, keyed
    by the seed: each step draws 64 views.
    """
    torch.manual_seed(derived_seed(seed, "vqkd"))
    sizes = tokenizer.codes.shape[1], tokenizer.width, values.shape[1], request.blocks
    decoder = Decoder(*sizes, predicted.shape[-1])
    tokenizer.encode.apply(initialise_layer).requires_grad_(True)
    decoder.to(values.device)
    # The codes begin at k-means of the untrained encoder's points.
    rng, size = generator(seed, "codebook start"), tokenizer.size
    tokens = values.flatten(0, 1)
    with torch.no_grad():
        points = tokenizer.points(random_start(tokens, min(len(tokens), _POINTS_AT_START * size), rng))
        tokenizer.codes.copy_(spherical_kmeans(points, random_start(points, size, rng)))
    parameters = [*tokenizer.encode.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=_RATE, betas=_BETAS, weight_decay=_WEIGHT_DECAY)
    warmup = max(1, round(_WARMUP * request.steps))

    def share_of_rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return float(0.5 + 0.5 * np.cos(np.pi * (step - warmup) / max(1, request.steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share_of_rate)
    for step in range(request.steps):
        rng = generator(seed, "vqkd batch", step)
        views = rng.choice(len(values), min(BATCH, len(values)), replace=False)
        rows = torch.from_numpy(views).to(values.device)
        one_minus_cosine, distance = losses_and_moved_codes(tokenizer, decoder, values[rows], predicted[rows])
        (one_minus_cosine + distance).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if (step + 1) % max(1, request.steps // 5) == 0:
            log(f"codebook: step {step + 1:,} of {request.steps:,}, 1 - cosine {one_minus_cosine.item():.3f}")
    tokenizer.requires_grad_(False)
    return {"steps": request.steps, "blocks": request.blocks, "one_minus_cosine": one_minus_cosine.item()}


def losses_and_moved_codes(
    tokenizer: Tokenizer, decoder: nn.Module, features: Tensor, predicted: Tensor
) -> tuple[Tensor, Tensor]:
    """Return 1 - cosine () and the squared distance () of encoded features (B, N, D) to their codes.

    The cosine is that of the decoder's output and `predicted` (B, N, D').

    Then move the tokenizer's codes towards the mean direction of their tokens; no optimiser has them.
    """
    points = tokenizer.points(features)  # (B, N, 32), unit length
    numbers = tokenizer.nearest(points.detach())
    codes = tokenizer.codes[numbers]
    passed = points + (codes - points).detach()  # straight-through: the choice of a code has the gradient 1
    one_minus_cosine = 1 - F.cosine_similarity(decoder(passed), predicted, dim=-1).mean()
    distance = (points - codes).square().mean()
    taken, tokens = numbers.flatten(), points.detach().flatten(0, 1)
    sums = torch.zeros(tokenizer.codes.shape, dtype=torch.float64, device=tokens.device)
    sums.index_put_((taken,), tokens.double(), accumulate=True)  # deterministic on a GPU too
    means = F.normalize(sums, dim=-1).to(tokens.dtype)
    moved = F.normalize(torch.lerp(means, tokenizer.codes, _DECAY), dim=-1)
    used = torch.bincount(taken, minlength=len(tokenizer.codes)) > 0
    tokenizer.codes.copy_(torch.where(used[:, None], moved, tokenizer.codes))
    return one_minus_cosine, distance
