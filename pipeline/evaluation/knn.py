"""Weighted k-nearest-neighbour accuracy of frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4; DINO's protocol)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import CacheError, ConfigError

_MAX_SCORES = 1 << 24  # similarities held at once, 64 MB


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    bank_groups: Tensor | None = None,
    query_groups: Tensor | None = None,
) -> float:
    """Share of `queries` (m, F) whose k most similar entries of `bank` (n, F) vote for their label, in [0, 1].

    Labels (n,) and (m,) are integers from 0. A neighbour's vote is exp(cosine / temperature). Groups (n,) and (m,) are integers that
    name the image behind a row: entries of the query's own group have no vote. A `k` beyond the bank is cut to it. All on one device.
    Raises ConfigError for a wrong option and CacheError for features that cannot be scored: none, unlabelled, not finite, no neighbour.
    """
    _check_options(k, temperature, bank_groups, query_groups)
    _check_rows("bank", bank, bank_labels, bank_groups)
    _check_rows("queries", queries, query_labels, query_groups)
    classes, votes_for = torch.unique(bank_labels, return_inverse=True)
    bank = F.normalize(bank.float(), dim=1)
    rows = max(1, _MAX_SCORES // max(len(bank), len(classes)))
    correct = 0
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        scores = F.normalize(queries[part].float(), dim=1) @ bank.T
        if bank_groups is not None and query_groups is not None:
            scores = _without_own_group(scores, query_groups[part], bank_groups)
        winners = classes[_votes(scores, votes_for, len(classes), k, temperature).argmax(1)]
        correct += int((winners == query_labels[part]).sum())
    return correct / len(queries)


def _votes(scores: Tensor, votes_for: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Sum the neighbours' weights for each class: scores (m, n) and class indices (n,) to (m, classes)."""
    nearest, index = scores.topk(min(k, scores.shape[1]), dim=1)
    # Relative to the nearest, which changes no winner and cannot overflow at a low temperature.
    weights = ((nearest - nearest[:, :1]) / temperature).exp()
    return scores.new_zeros(len(scores), classes).scatter_add_(1, votes_for[index], weights)


def _without_own_group(scores: Tensor, query_groups: Tensor, bank_groups: Tensor) -> Tensor:
    own = query_groups[:, None] == bank_groups[None, :]
    alone = own.all(1)
    if alone.any():
        group = int(query_groups[alone][0])
        raise CacheError(
            f"the bank holds nothing but group {group}, which is a query's own: give a bank with other images"
        )
    return scores.masked_fill(own, -torch.inf)


def _check_options(
    k: int, temperature: float, bank_groups: Tensor | None, query_groups: Tensor | None
) -> None:
    if k < 1:
        raise ConfigError(f"k is {k}: give a number of neighbours from 1")
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}: give a number above 0, such as 0.07")
    if (bank_groups is None) != (query_groups is None):
        given = "query_groups" if bank_groups is None else "bank_groups"
        raise ConfigError(
            f"{given} alone is given: give the groups of both the bank and the queries, or of neither"
        )


def _check_rows(name: str, features: Tensor, labels: Tensor, groups: Tensor | None) -> None:
    if len(features) == 0:
        raise CacheError(f"no images in the {name}: give at least one")
    for what, values in (("labels", labels), ("groups", groups)):
        if values is not None and values.shape != features.shape[:1]:
            raise ConfigError(
                f"{what} of the {name} have shape {tuple(values.shape)}: give one for each of the {len(features)} rows"
            )
    missing = int((labels < 0).sum())
    if missing:
        raise CacheError(
            f"{missing} of {len(labels)} images of the {name} have no label: k-NN needs a .cls member for each image"
        )
    if not features.isfinite().all():
        raise CacheError(
            f"features of the {name} are not finite: the model that made them has diverged or its weights are damaged"
        )
