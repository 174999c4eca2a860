"""Weighted k-nearest-neighbour accuracy of frozen features (Wu et al. 2018, arXiv 1805.01978; DINO)."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from pipeline.config import Section
from pipeline.errors import ConfigError
from pipeline.evaluation.draws import Few, check_tries, draw_few, few_notes
from pipeline.evaluation.features import Features, available
from pipeline.evaluation.kinds import as_list
from pipeline.evaluation.metrics import RANKED, classification_outcome
from pipeline.evaluation.task import SharedKeys, Task
from pipeline.report.scores import Outcome

_MAX_SCORES = 1 << 24  # similarities held at once, 64 MB
_SAME = 1 - 1e-5  # cosine of an image with itself, less rounding that depends on batch size

Groups = tuple[Tensor, Tensor]


class Knn(Section):
    """The k most similar images of the bank vote by exp(cosine / temperature).

    Of lists, the first k and temperature make the score, and the details have all. `centre` subtracts the
    bank's mean first. `few` images of each class (a share if below 1) are drawn from the bank `tries` times.
    `shared_keys` says what a key in both bank and test means: refuse it, exclude the image of that key from
    the vote because it is the same image, or allow it because the tars number other images alike.
    """

    name: ClassVar[str] = "knn"
    protocol: ClassVar[str] = "weighted k-NN, version 2"

    k: tuple[int, ...] = (20,)
    temperature: tuple[float, ...] = (0.07,)
    representations: tuple[str, ...] = ("cls", "mean")
    centre: bool = False
    few: Few | None = None
    tries: int = Field(1, ge=1)
    seed: int = 0
    shared_keys: SharedKeys = "refuse"

    _as_list = field_validator("k", "temperature", "representations", mode="before")(as_list)

    @field_validator("representations")
    @classmethod
    def _some(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if not values:
            raise ValueError("one or more are needed, such as cls")
        return values

    @field_validator("k", "temperature")
    @classmethod
    def _positive(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or min(values) <= 0:
            raise ValueError("numbers greater than 0 are needed, such as 20 or [10, 20]")
        return values

    _tries = model_validator(mode="after")(check_tries)

    def run(self, task: Task) -> list[Outcome]:
        """Score each representation that the network has."""
        bank, queries = task.features(self.shared_keys)
        notes = [*few_notes(bank.labels, self.few, bank.images)]
        groups = None  # the image behind each row of bank and queries: a query's own image must not vote
        if queries is bank:
            groups = (bank.images, bank.images)
            label_of_image = torch.unique(torch.stack([bank.labels, bank.images]), dim=1)[0]
            classes, images = torch.unique(label_of_image, return_counts=True)
            if len(lonely := classes[images == 1]):
                notes.append(
                    f"classes with only one image: {len(lonely)}, such as class {int(lonely[0])}; no "
                    "other of its class can vote for it, so it counts as wrong"
                )
        elif self.shared_keys == "exclude":
            numbers = {key: number for number, key in enumerate(dict.fromkeys([*bank.keys, *queries.keys]))}
            learnt, asked = (torch.tensor([numbers[key] for key in one.keys]) for one in (bank, queries))
            groups = (learnt, asked)
        names = available(self.representations, bank.names, "representations" in self.model_fields_set)
        return [self._score(name, bank, queries, groups, tuple(notes), task.subject.device) for name in names]

    def _score(
        self, name: str, bank: Features, queries: Features, groups: Groups | None, notes: tuple[str, ...],
        device: torch.device,
    ) -> Outcome:  # fmt: skip
        centre = sum(part.sum(0) for part in bank.chunks(name)) / len(bank.labels) if self.centre else 0
        asked, largest = queries.whole(name).sub_(centre), max(self.k)
        options, found = list(product(self.k, self.temperature)), []
        twins = torch.zeros(len(queries.labels), dtype=torch.bool)
        for attempt in range(self.tries if self.few else 1):
            drawn = draw_few(bank.labels, self.few, self.seed + attempt, bank.images) if self.few else None
            parts = ((part - centre).to(device) for part in bank.chunks(name, drawn))
            labels = bank.labels if drawn is None else bank.labels[drawn]
            of_drawn = groups and (groups[0] if drawn is None else groups[0][drawn], groups[1])
            neighbours = nearest(parts, len(labels), asked, largest, of_drawn)
            # If all images look alike, the last neighbour is as near: no copies.
            twins |= (neighbours[0][:, 0] > _SAME) & ((neighbours[0][:, -1] <= _SAME) | (largest == 1))
            found.append(rank_by_votes(neighbours, labels, options))
        if twins.any():
            example = queries.keys[int(twins.nonzero()[0])]
            notes = (
                *notes,
                f"{int(twins.sum())} test images have the same features as an image to learn from, such as "
                f"{example!r}: if they are the same images under other keys, the score is too high",
            )
        shares = {
            each: [float((one[each][:, 0] == queries.labels).float().mean()) for one in found]
            for each in options
        }
        table = [{"k": k, "temperature": t, "top-1": sum(shares[k, t]) / len(found)} for k, t in options]
        return classification_outcome(
            name, torch.stack([each[options[0]] for each in found]), queries.labels, bank.facts,
            queries.facts, selection="none: k and temperature are given", known=torch.unique(bank.labels),
            notes=notes, seeds=tuple(range(self.seed, self.seed + len(found))) if self.few else (),
            details={
                **({"k and temperature": table} if len(options) > 1 else {}),
                **({"top-1 of each draw": shares[options[0]]} if len(found) > 1 else {}),
            },
        )  # fmt: skip


def nearest(
    parts: Iterable[Tensor],
    count: int,
    queries: Tensor,
    k: int,
    groups: Groups | None = None,
    *,
    normalise: bool = True,
) -> tuple[Tensor, Tensor]:
    """Find the k most similar of a bank of n = `count` rows, given in parts: similarity and row (m, k).

    Each part is needed once, and at most 64 MB of similarities are held. Groups (n,) and (m,) are integers
    that name the image behind a row: entries of the query's own group do not count. Queries (m, C) go to the
    device of a part in pieces; the result is on the CPU. Similarity is the cosine, or the dot product without
    `normalise`. Raises ConfigError for a k of more than may vote.
    """
    voters = count
    if groups:
        images, views = torch.unique(groups[0], return_counts=True)
        own_views = views[torch.isin(images, groups[1])]
        voters -= int(own_views.max()) if len(own_views) else 0
    if k > voters:
        remedy = (
            f"give --set k={voters} or less, or a larger bank" if voters else "give a bank of other images"
        )
        raise ConfigError(f"k is {k}: only {voters} views of the bank may vote for each image; {remedy}")
    unit = partial(F.normalize, dim=1) if normalise else Tensor.float
    best = (torch.full((len(queries), 0), 0.0), torch.empty((len(queries), 0), dtype=torch.int64))
    first = 0
    for part in parts:
        bank = unit(part.float())
        rows, found = max(1, _MAX_SCORES // len(bank)), []
        for start in range(0, len(queries), rows):
            similar = unit(queries[start : start + rows].to(bank.device).float()) @ bank.T
            if groups:
                own = groups[1][start : start + rows, None] == groups[0][first : first + len(bank)]
                similar = similar.masked_fill(own.to(similar.device), -torch.inf)
            found.append(similar.topk(min(k, len(bank)), dim=1))
        similarity = torch.cat([best[0], torch.cat([one.values.cpu() for one in found])], dim=1)
        index = torch.cat([best[1], first + torch.cat([one.indices.cpu() for one in found])], dim=1)
        kept = similarity.topk(min(k, similarity.shape[1]), dim=1)
        best, first = (kept.values, index.gather(1, kept.indices)), first + len(bank)
    return best


def rank_by_votes(
    found: tuple[Tensor, Tensor], labels: Tensor, options: Sequence[tuple[int, float]]
) -> dict[tuple[int, float], Tensor]:
    """Rank classes by the votes of neighbours: similarity and row (m, k) of a bank with labels (n,).

    Returns by (k, temperature) up to five classes with the most votes (m, 5), -1 where fewer have any.
    """
    similarity, index = found
    classes, votes_for = torch.unique(labels, return_inverse=True)
    ranked: dict[tuple[int, float], Tensor] = {}
    for k, temperature in options:
        # Relative to the nearest, which changes no winner and cannot overflow at a low temperature.
        # A float32 of 0 would divide 0 by 0.
        least = max(temperature, torch.finfo(torch.float32).tiny)
        weights = ((similarity[:, :k] - similarity[:, :1]) / least).exp()
        rows = []
        for start in range(0, len(index), max(1, _MAX_SCORES // len(classes))):
            chosen = slice(start, start + max(1, _MAX_SCORES // len(classes)))
            votes = torch.zeros(len(index[chosen]), len(classes))
            votes.scatter_add_(1, votes_for[index[chosen, :k]], weights[chosen])
            most = votes.topk(min(RANKED, len(classes)), dim=1)
            rows.append(torch.where(most.values > 0, classes[most.indices], -1))
        everything = torch.cat(rows)
        ranked[k, temperature] = F.pad(everything, (0, RANKED - everything.shape[1]), value=-1)
    return ranked
