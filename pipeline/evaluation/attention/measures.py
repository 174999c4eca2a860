"""Numbers on attention maps and tokens: distance, entropy, agreement, mass inside masks, artefacts, CKA."""

from collections.abc import Sequence

import torch
from torch import Tensor

_EPSILON = 1e-12
_ARTEFACT = 3.0  # times the median norm
_MASS = 0.6  # of the attention that the mask of a map holds (DINO)
TOP = 0.3  # share of the patches to compare


def patch_map(attention: Tensor, prefix: int, query: int | None) -> Tensor:
    """Return attention (B, heads, T, T) to the patches (B, heads, N), summing to 1, of one query token.

    Without a query it is the mean over all patches as queries, for networks without CLS.
    """
    rows = attention[:, :, prefix:].mean(2) if query is None else attention[:, :, query]
    patches = rows[..., prefix:]
    return patches / patches.sum(-1, keepdim=True).clamp_min(_EPSILON)


def attention_distance(attention: Tensor, grid: tuple[int, int], prefix: int, patch_size: int) -> Tensor:
    """Return the mean distance in pixels (B, heads) between patches and the patches that they attend to."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows, columns], -1).reshape(-1, 2).float().to(attention.device) * patch_size
    among = attention[:, :, prefix:, prefix:]
    among = among / among.sum(-1, keepdim=True).clamp_min(_EPSILON)
    distance: Tensor = (among * torch.cdist(places, places)).sum(-1).mean(-1)
    return distance


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy in nats of distributions (B, heads, N): (B, heads)."""
    return -(weights * weights.clamp_min(_EPSILON).log()).sum(-1)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) in nats of maps (B, N): (B,)."""
    ratio = teacher.clamp_min(_EPSILON).log() - student.clamp_min(_EPSILON).log()
    total: Tensor = (teacher * ratio).sum(-1)
    return total


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's correlation of maps (B, N): (B,). Ties are broken by position."""
    ranks = [values.argsort(-1).argsort(-1).float() for values in (a, b)]
    ranks = [values - values.mean(-1, keepdim=True) for values in ranks]
    return (ranks[0] * ranks[1]).sum(-1) / (  # type: ignore[no-any-return]
        ranks[0].norm(dim=-1) * ranks[1].norm(dim=-1)
    ).clamp_min(_EPSILON)


def top_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the share of the top 30% of patches that maps (B, N) have in common: (B,)."""
    count = max(1, round(TOP * a.shape[-1]))
    chosen = [torch.zeros_like(one).scatter_(-1, one.topk(count, dim=-1).indices, 1.0) for one in (a, b)]
    return (chosen[0] * chosen[1]).sum(-1) / count


def mass_mask(weights: Tensor) -> Tensor:
    """Return the fewest patches that hold 60% of a map's mass: maps (B, N) to (B, N) bool."""
    ordered, index = weights.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(weights, dtype=torch.bool).scatter(
        -1, index, before < _MASS * weights.sum(-1, keepdim=True)
    )


def inside(weights: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Return mass inside a foreground and the Jaccard index of the 60% mask: maps, shares (B, N) to (B,)."""
    chosen, truth = mass_mask(weights), foreground >= 0.5
    union = (chosen | truth).sum(-1).clamp_min(1)
    return (weights * foreground).sum(-1), (chosen & truth).sum(-1) / union


def artefact_share(patches: Tensor) -> Tensor:
    """Return the share of tokens (B, N, C) with more than three times the median norm of their image: ()."""
    norms = patches.float().norm(dim=-1)
    share: Tensor = (norms > _ARTEFACT * norms.median(-1, keepdim=True).values).float().mean()
    return share


def linear_cka(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the linear CKA (L, M) of L blocks' features (n, C) with M blocks' (n, D).

    After Kornblith et al. 2019, arXiv 1905.00414.
    """
    a, b = ([values - values.mean(0) for values in blocks] for blocks in (a, b))
    own = [torch.stack([(values.T @ values).norm() for values in blocks]) for blocks in (a, b)]
    shared = torch.stack([(one.T @ other).square().sum() for one in a for other in b])
    return shared.reshape(len(a), len(b)) / torch.outer(*own).clamp_min(_EPSILON)


def principal_colours(tokens: Tensor) -> Tensor:
    """Return the first three principal components of patches (B, h, w, C) as colours (B, h, w, 3) in 0 to 1.

    One basis for all images; the sign makes the largest weight of a component positive.
    """
    flat = tokens.flatten(0, 2).double()
    centred = flat - flat.mean(0)
    _, _, basis = torch.linalg.svd(centred, full_matrices=False)
    basis = basis[:3]
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    values = centred @ (basis * largest.sign()).T
    low, high = values.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), dim=0)
    colours = ((values - low) / (high - low).clamp_min(_EPSILON)).clamp(0, 1)
    padded = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    return padded.reshape(*tokens.shape[:3], 3).float()
