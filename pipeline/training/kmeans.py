"""Spherical k-means: the codes of BEiT-like objectives, on the device that trains."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 10
_COSINES_AT_ONCE = 2**26  # 256 MiB of float32


def random_start(points: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Return `size` of the points (T, W), drawn without replacement."""
    return points[torch.from_numpy(rng.choice(len(points), size, replace=False)).to(points.device)]


@torch.no_grad()
def spherical_kmeans(points: Tensor, start: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Return codes (size, W) of unit length for points (T, W); only the directions of points count.

    Codes begin at `start` (size, W). In each round a code moves to the mean direction of the points nearest
    to it; a code without points moves to the point that is farthest from its own code. No code moves to
    points of length zero, such as flat patches of pixels; all of these are nearest to the first code.
    """
    codes, size = F.normalize(start, dim=-1), len(start)
    for _ in range(rounds):
        sums = torch.zeros(codes.shape, dtype=torch.float64, device=points.device)
        nearest, cosines = [], []
        for part in points.split(max(1, _COSINES_AT_ONCE // size)):  # type: ignore[no-untyped-call]
            units = F.normalize(part, dim=-1)
            best = (units @ codes.T).max(-1)
            sums.index_put_((best.indices,), units.double(), accumulate=True)  # deterministic on a GPU too
            nearest.append(best.indices)
            cosines.append(best.values.where(part.any(-1), 1))
        codes = F.normalize(sums, dim=-1).to(points.dtype)
        empty = (torch.bincount(torch.cat(nearest), minlength=size) == 0).nonzero().flatten()
        farthest = torch.cat(cosines).sort(stable=True).indices[: len(empty)]
        codes[empty] = F.normalize(points[farthest], dim=-1)
    return codes


def use_of_codes(codes: Tensor, size: int) -> dict[str, float]:
    """Return the share of `size` codes that occur in `codes` (...) int64, and the perplexity of their use."""
    shares = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return {"share_taken": (shares > 0).double().mean().item(), "perplexity": entropy.exp().item()}
