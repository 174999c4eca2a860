"""Dynamic alignment: a learned or fixed mixture of student blocks, and a head, for each teacher level."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.objectives.losses import LossKind
from pipeline.objectives.needs import TargetKind
from pipeline.objectives.objective import ObjectiveConfig
from pipeline.student.initialise import initialise_layer

Mode = Literal["dynamic", "layerwise", "uniform", "last"]
Head = Literal["linear", "norm_linear", "mlp"]


class Alignment(ObjectiveConfig):
    """How student blocks are mixed for a teacher level, the head to D channels, loss and target."""

    mask: ClassVar[Mapping[str, str | float | int]] = {"strategy": "attention", "ratio": 0.7}

    mode: Mode = "dynamic"
    head: Head = "linear"
    loss: LossKind = "smooth_l1"
    target: TargetKind = "whiten"


def matched_blocks(teacher_levels: Sequence[int], teacher_depth: int, student_depth: int) -> tuple[int, ...]:
    """Return for each teacher block t of T the student block at its depth: round((t + 1) * L / T) - 1.

    Halves are rounded up in integer arithmetic, so that float rounding cannot change the depth. Equal depth
    gives t itself. The result is at least the first block. Raises ConfigError for levels that
    the teacher does not have.
    """
    wrong = [level for level in teacher_levels if not 0 <= level < teacher_depth]
    if wrong or not teacher_levels:
        raise ConfigError(
            f"teacher levels {list(teacher_levels)} cannot be aligned: "
            f"give one or more block numbers from 0 to {teacher_depth - 1}"
        )
    rounded = (
        (2 * (level + 1) * student_depth + teacher_depth) // (2 * teacher_depth) for level in teacher_levels
    )
    return tuple(max(block - 1, 0) for block in rounded)


def initial_weights(mode: Mode, matched: Sequence[int], student_depth: int) -> Tensor:
    """Return the weights (M, L) float32 that a mode begins with; a learned match begins at 0.01 + 1."""
    match = torch.nn.functional.one_hot(torch.tensor(matched), student_depth).float()
    if mode == "dynamic":
        return match + 0.01
    if mode == "layerwise":
        return match
    if mode == "uniform":
        return torch.full_like(match, 1 / student_depth)
    last = torch.zeros_like(match)
    last[:, -1] = 1
    return last


def build_head(kind: Head, student_width: int, teacher_width: int) -> nn.Module:
    """Return a head from C to D channels, Xavier-uniform with zero biases."""
    linear = nn.Linear(student_width, teacher_width)
    head: nn.Module = linear
    if kind == "norm_linear":
        head = nn.Sequential(nn.LayerNorm(student_width), linear)
    elif kind == "mlp":
        head = nn.Sequential(nn.Linear(student_width, student_width), nn.GELU(), linear)
    return head.apply(initialise_layer)


class DynamicAlignment(nn.Module):
    """Weighted sums of student blocks and a head for each of M teacher levels.

    `weights` (M, L) is learned in mode `dynamic` and frozen otherwise; `last_block` is the last student block
    that any level reads.
    """

    def __init__(
        self,
        mode: Mode,
        head: Head,
        matched: Sequence[int],
        student_depth: int,
        student_width: int,
        widths: Sequence[int],
    ) -> None:
        """Take the matched student block and the width of each level."""
        super().__init__()
        weights = initial_weights(mode, matched, student_depth)
        self.weights = nn.Parameter(weights, requires_grad=mode == "dynamic")
        self.heads = nn.ModuleList(build_head(head, student_width, width) for width in widths)
        # For each student block the levels that read it: zeros cost nothing, and the compiler sees constants.
        self.readers = [row.nonzero().flatten().tolist() for row in weights.T]
        self.last_block = max(block for block, levels in enumerate(self.readers) if levels)

    def forward(self, block_outputs: Iterable[Tensor]) -> list[Tensor]:
        """Return M predictions (B, T, D) from block outputs (B, T, C), summed as they come, never stacked."""
        sums: dict[int, Tensor] = {}
        # zip asks the range first: when the range ends, no further block is computed.
        for block, tokens in zip(range(self.last_block + 1), block_outputs, strict=False):
            for level in self.readers[block]:
                term = self.weights[level, block] * tokens
                sums[level] = sums[level] + term if level in sums else term
        return [head(sums[level]) for level, head in enumerate(self.heads)]
