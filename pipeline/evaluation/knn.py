"""Weighted k-nearest-neighbour accuracy of frozen features (Wu et al. 2018, arXiv 1805.01978; DINO)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.config import Section
from pipeline.errors import CacheError, ConfigError
from pipeline.evaluation.data import Data, Features, extract_features
from pipeline.evaluation.subject import Subject
from pipeline.report.scores import Outcome

_MAX_SCORES = 1 << 24  # similarities held at once, 64 MB


class Knn(Section):
    """The k most similar images of the bank vote by exp(cosine / temperature).

    `shared_keys` says what a key in both bank and test means: refuse it, exclude the image of that key from
    the vote because it is the same image, or allow it because the tars number other images alike.
    """

    name: ClassVar[str] = "knn"
    protocol: ClassVar[str] = "weighted k-NN, version 1"

    k: int = Field(20, ge=1)
    temperature: float = Field(0.07, gt=0)
    shared_keys: Literal["refuse", "exclude", "allow"] = "refuse"

    def run(self, subject: Subject, data: Data, test: Data | None, batch_size: int) -> list[Outcome]:
        """Score CLS, if there is one, and the mean patch token."""
        bank = extract_features(subject, data, batch_size)
        queries = bank if test is None else extract_features(subject, test, batch_size)
        return list(self._outcomes(bank, queries, subject.device))

    def _groups(self, bank: Features, queries: Features) -> tuple[Tensor, Tensor] | None:
        """Number the images behind bank (n,) and queries (m,), where a query's own image must not vote."""
        if queries is bank:
            names = list(zip(bank.tars, bank.keys, strict=True))
            return _numbered(names, names)
        shared = sorted(set(bank.keys) & set(queries.keys))
        if not shared or self.shared_keys == "allow":
            return None
        if self.shared_keys == "refuse":
            raise ConfigError(
                f"{len(shared)} keys are in the bank and in the test data, such as {shared[0]!r}: "
                "an image must not be its own neighbour; give other test data, --set shared_keys=exclude if "
                "equal keys are the same image, or --set shared_keys=allow if they are different images"
            )
        return _numbered(bank.keys, queries.keys)

    def _outcomes(self, bank: Features, queries: Features, device: torch.device) -> Iterator[Outcome]:
        classes, images = torch.unique(queries.labels, return_counts=True)
        groups = self._groups(bank, queries)
        groups = groups and (groups[0].to(device), groups[1].to(device))
        vote = partial(knn_predictions, k=self.k, temperature=self.temperature, groups=groups)
        for name in sorted(bank.by_name):
            tensors = (bank.by_name[name], bank.labels, queries.by_name[name])
            right = vote(*(tensor.to(device) for tensor in tensors)).cpu() == queries.labels
            per_class = {
                str(int(label)): float(right[queries.labels == label].float().mean()) for label in classes
            }
            yield Outcome(
                representation=name,
                bank=bank.facts,
                test=queries.facts,
                metrics={"top-1": int(right.sum()) / len(right)},
                per_class=per_class,
                class_images=dict(zip(per_class, images.tolist(), strict=True)),
                chance=int(images.max()) / len(right),
                selection="none: k and temperature are given",
                notes=tuple(_notes(bank, queries)),
            )


def knn_predictions(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    groups: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Classify `queries` (m, C) by the k most similar of `bank` (n, C) with its `labels` (n,): labels (m,).

    Groups (n,) and (m,) are integers that name the image behind a row: entries of the query's own group do
    not vote. All on one device. Raises ConfigError for a k of more than the entries that may vote, and
    CacheError for features that are not finite.
    """
    _check(bank, queries, k, groups)
    classes, votes_for = torch.unique(bank_labels, return_inverse=True)
    bank = F.normalize(bank.float(), dim=1)
    rows = max(1, _MAX_SCORES // max(len(bank), len(classes)))
    winners = []
    for start in range(0, len(queries), rows):
        similar = F.normalize(queries[start : start + rows].float(), dim=1) @ bank.T
        if groups:
            similar = similar.masked_fill(groups[1][start : start + rows, None] == groups[0], -torch.inf)
        nearest, index = similar.topk(k, dim=1)
        # Relative to the nearest, which changes no winner and cannot overflow at a low temperature.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = similar.new_zeros(len(similar), len(classes)).scatter_add_(1, votes_for[index], weights)
        winners.append(classes[votes.argmax(1)])
    return torch.cat(winners)


def _check(bank: Tensor, queries: Tensor, k: int, groups: tuple[Tensor, Tensor] | None) -> None:
    voters = len(bank)
    if groups:
        images, views = torch.unique(groups[0], return_counts=True)
        own = views[torch.isin(images, groups[1])]
        voters -= int(own.max()) if len(own) else 0
    if k > voters:
        remedy = (
            f"give --set k={voters} or less, or a larger bank" if voters else "give a bank of other images"
        )
        raise ConfigError(f"k is {k}: only {voters} views of the bank may vote for each image; {remedy}")
    for name, features in (("bank", bank), ("test data", queries)):
        if not features.isfinite().all():
            raise CacheError(
                f"features of the {name} are not finite: the network has diverged or its weights are "
                "damaged; evaluate another"
            )


def _numbered(bank: Sequence[object], queries: Sequence[object]) -> tuple[Tensor, Tensor]:
    """Give equal names equal numbers: (n,) and (m,)."""
    numbers: dict[object, int] = {}
    bank_numbers, query_numbers = (
        torch.tensor([numbers.setdefault(name, len(numbers)) for name in names]) for names in (bank, queries)
    )
    return bank_numbers, query_numbers


def _notes(bank: Features, queries: Features) -> Iterator[str]:
    """Return what makes an accuracy mean less than it seems to."""
    if queries is bank:
        images = Counter(
            label for label, _, _ in set(zip(bank.labels.tolist(), bank.tars, bank.keys, strict=True))
        )
        lonely = sorted(label for label, count in images.items() if count == 1)
        if lonely:
            yield f"{len(lonely)} classes have one image only, such as class {lonely[0]}: it cannot be right"
    else:
        unknown = sorted(set(queries.labels.tolist()) - set(bank.labels.tolist()))
        if unknown:
            count = int(torch.isin(queries.labels, torch.tensor(unknown)).sum())
            yield (
                f"{count} test images are of classes that the bank does not have, such as class {unknown[0]}:"
                " they cannot be right"
            )
    if queries.facts.classes == 1:
        yield "all test images are of one class: the accuracy says nothing"
