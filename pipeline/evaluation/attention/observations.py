"""What networks show on the same images: their maps, tokens and measures, and how far two networks agree."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.evaluation.attention import measures
from pipeline.evaluation.subject import Subject, block_attention

_CKA_TOKENS = 16  # of each image


@dataclass
class Observations:
    """What one network shows, by batch: maps (B, N) and tokens (B, h, w, C) of the last block.

    `distance` and `entropy` (B, heads), `artefacts` () and some tokens (n, C) are lists for each block.
    """

    cls: list[Tensor] = field(default_factory=list)
    patch: list[Tensor] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)
    distance: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    entropy: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    artefacts: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    blocks: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


@torch.inference_mode()
def observe(subject: Subject, pixels: Tensor, found: Observations, at: tuple[float, float]) -> None:
    """Add what a network shows on pixels (B, S, S, 3) uint8.

    `at` is the row and the column of the one patch that keeps its attention, in shares of the image.
    """
    first = 0 if subject.has_cls else None
    for index, tokens in enumerate(subject.hidden(pixels)):
        if index:
            patches = tokens[:, subject.prefix :]
            found.artefacts[index - 1].append(measures.artefact_share(patches).cpu())
            step = max(1, patches.shape[1] // _CKA_TOKENS)
            found.blocks[index - 1].append(patches[:, ::step].flatten(0, 1).float().cpu())
        if index < subject.depth:
            weights = block_attention(subject.vit.blocks[index], tokens)
            maps = measures.patch_map(weights, subject.prefix, first)
            away = measures.attention_distance(weights, subject.grid, subject.prefix, subject.patch_size)
            found.distance[index].append(away.cpu())
            found.entropy[index].append(measures.entropy(maps).cpu())
    found.last.append(subject.split(subject.normed(tokens)).patches.float().cpu())
    found.cls.append(maps.mean(1).cpu())
    row, column = (int(share * side) for share, side in zip(at, subject.grid, strict=True))
    query = subject.prefix + row * subject.grid[1] + column
    found.patch.append(measures.patch_map(weights, subject.prefix, query).mean(1).cpu())


def agreement_of(own: Observations, teacher: Observations) -> dict[str, float]:
    """Compare the maps of CLS; raises ConfigError for other grids."""
    maps = torch.cat(own.cls), torch.cat(teacher.cls)
    if maps[0].shape != maps[1].shape:
        raise ConfigError("student and teacher have other grids: give --image-size and --patch-size of both")
    return {
        "overlap": float(measures.top_overlap(*maps).mean()),
        "rank correlation": float(measures.rank_correlation(*maps).mean()),
        "KL in nats": float(measures.divergence(*maps).mean()),
    }


def inside_masks(found: Observations, foreground: Mapping[int, Tensor]) -> dict[str, float]:
    """Return how much attention lies on the foreground (N,) of some images, on average."""
    index = list(foreground)
    mass, jaccard = measures.inside(torch.cat(found.cls)[index], torch.stack([foreground[i] for i in index]))
    return {"attention inside masks": float(mass.mean()), "Jaccard of the 60% mask": float(jaccard.mean())}


def artefacts_by_block(found: Observations) -> dict[str, float]:
    """Return the share of patch tokens with more than three times the median norm, by block."""
    return {f"block {i}": float(torch.stack(values).mean()) for i, values in found.artefacts.items()}


def by_head(of_blocks: Mapping[int, Sequence[Tensor]]) -> list[list[float]]:
    """Return the mean over images of values (B, heads) by batch, for each block and head."""
    return [torch.cat([*values]).mean(0).tolist() for values in of_blocks.values()]


def describe(
    found: Mapping[str, Observations],
    own: Observations,
    teacher: Observations | None,
    inside: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Return the tables of a report that compares `own` with `teacher`."""
    tables: dict[str, Any] = {}
    if teacher:
        tables["agreement with the teacher"] = [
            {"network": name, **agreement_of(one, teacher)}
            for name, one in found.items()
            if one is not teacher
        ]
        blocks = ([torch.cat(tokens) for tokens in one.blocks.values()] for one in (own, teacher))
        tables["CKA with the teacher's blocks"] = [
            {"block": index} | {f"teacher's {at}": round(value, 4) for at, value in enumerate(row)}
            for index, row in enumerate(measures.linear_cka(*blocks).tolist())
        ]
    if inside:
        tables["inside masks"] = [{"network": name, **values} for name, values in inside.items()]
    for what, of_networks in (
        ("attention distance in pixels", {name: one.distance for name, one in found.items()}),
        ("entropy of CLS in nats", {name: one.entropy for name, one in found.items()}),
    ):
        tables[f"{what}, by block and head"] = [
            {"network": name, "block": block} | {f"head {head}": value for head, value in enumerate(heads)}
            for name, of_blocks in of_networks.items()
            for block, heads in enumerate(by_head(of_blocks))
        ]
    tables["share of patch tokens with artefact norms"] = [
        {"network": name, **artefacts_by_block(one)} for name, one in found.items()
    ]
    return tables
