"""Checks a network that is described in Python as a teacher: the description, then what its blocks give."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.storage.address import name_fault
from pipeline.teacher.tower import Importance

if TYPE_CHECKING:
    from pipeline.teacher.module import ModuleTeacher

PROBED = 2  # images: a network may mix those of a batch up
_MOST_OTHERS = 16  # tokens that are neither CLS nor patches; known networks have up to 8 registers


def refuse_description(given: "ModuleTeacher", spec: str) -> None:
    """Raise ConfigError for what is wrong before the network runs."""
    if fault := _network_fault(given) or _values_fault(given) or _parts_fault(given):
        raise ConfigError(f"{spec} {fault}")


def _network_fault(given: "ModuleTeacher") -> str:
    if not isinstance(given.module, nn.Module):
        return f"has a {type(given.module).__name__} as `module`: give an nn.Module"
    if not isinstance(given.blocks, Sequence | nn.ModuleList | nn.Sequential):
        return f"has a {type(given.blocks).__name__} as `blocks`: give a list of submodules"
    if odd := [block for block in given.blocks if not isinstance(block, nn.Module)]:
        return f"has {odd[0]!r} in `blocks`: give submodules of `module`"
    if len(given.blocks) < 2:
        return f"has {len(given.blocks)} block: give at least 2 in `blocks`"
    if len(set(given.blocks)) < len(given.blocks):
        return "has a module twice in `blocks`, and only its last output could be kept: give each once"
    return ""


def _values_fault(given: "ModuleTeacher") -> str:
    if not isinstance(given.name, str) or not given.name or name_fault(given.name):
        return f"has the name {given.name!r}: give a text in one line"
    for name, number in (("width", given.width), ("patch_size", given.patch_size)):
        if not isinstance(number, int) or number < 1:
            return f"has the {name} {number!r}: give a whole number from 1 on"
    for name, values in (("mean", given.mean), ("std", given.std)):
        try:
            colours = tuple(map(float, values))
        except (TypeError, ValueError):
            colours = ()
        if len(colours) != 3 or not 0 <= min(colours) <= max(colours) <= 1:
            return f"has the {name} {values!r}: give three numbers in [0, 1], for R, G and B"
        if name == "std" and not all(colours):
            return f"has the std {values!r}: give three numbers above 0"
    return ""


def _parts_fault(given: "ModuleTeacher") -> str:
    norm, importance, blocks = given.final_norm, given.importance, range(len(given.blocks))
    if not isinstance(norm, nn.Module | None):
        return f"has a {type(norm).__name__} as `final_norm`: give an nn.Module, or leave it out"
    if isinstance(norm, nn.LayerNorm) and tuple(norm.normalized_shape) != (given.width,):
        return (
            f"has a `final_norm` over {tuple(norm.normalized_shape)}: give one over the width {given.width}"
        )
    if not isinstance(importance, Importance | None):
        return f"has a {type(importance).__name__} as `importance`: give maskalign.Importance(block, of)"
    if importance and importance.block not in blocks:
        return f"has `importance` of block {importance.block!r}: give 0 to {len(blocks) - 1}"
    return ""


def refuse_tokens(given: "ModuleTeacher", spec: str, tokens: Sequence[object], grid: int) -> None:
    """Raise ConfigError if the blocks' outputs for two images are not tokens of grid x grid patches.

    A network with smaller patches than described gives more tokens; the last ones would be used as patches.
    """
    side, least = grid * given.patch_size, grid**2 + int(given.has_cls)
    counts = list[int]()
    for block, found in enumerate(tokens):
        shown = f"block {block} of {spec} gives"
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = found.dtype if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ConfigError(f"{shown} {kind}: expected floats (B, T, D), or a tuple that begins with them")
        shape = tuple(found.shape)
        if len(shape) != 3 or shape[0] != PROBED or shape[2] != given.width or shape[1] < least:
            raise ConfigError(
                f"{shown} {shape} for {PROBED} images of {side} pixels: expected "
                f"({PROBED}, {least} or more tokens, width {given.width}); check blocks, width and patch_size"
            )
        counts.append(shape[1])
    others, patches = counts[0] - least, counts[0] - int(given.has_cls)
    if others > _MOST_OTHERS or (others and math.isqrt(patches) ** 2 == patches):
        raise ConfigError(
            f"block 0 of {spec} gives {counts[0]} tokens for an image of {side} pixels, {others} more than "
            f"{grid} x {grid} patches{' and CLS' * given.has_cls}: check patch_size and has_cls"
        )
    if len(set(counts)) > 1:
        raise ConfigError(f"the blocks of {spec} give {counts} tokens: give blocks that keep all of them")
    if importance := given.importance:
        ranked: Any = importance.of(tokens[importance.block])  # type: ignore[arg-type]
        shape = tuple(ranked.shape) if isinstance(ranked, Tensor) else ()
        if shape != (PROBED, grid**2):
            raise ConfigError(
                f"`importance` of {spec} gives {shape or type(ranked).__name__} for {PROBED} images: "
                f"expected ({PROBED}, {grid**2}), a number for each patch without CLS and other tokens"
            )
