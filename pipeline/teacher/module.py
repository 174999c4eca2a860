"""Any network as a teacher, described in Python by its blocks, width, patch size and normalisation."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, cause_of
from pipeline.teacher.description import PROBED, refuse_description, refuse_tokens
from pipeline.teacher.load import describe
from pipeline.teacher.request import LOCAL, student_grid
from pipeline.teacher.source import Source, freeze
from pipeline.teacher.teacher import Teacher
from pipeline.teacher.tower import Importance, Tower, layer_norm
from pipeline.weights import weights_sha256

LIBRARY = "module"  # what a cache says of such a teacher
_FINAL_NORMS = ("post_layernorm", "layernorm", "norm")  # their names in transformers


@dataclass(frozen=True, eq=False)
class ModuleTeacher:
    """A network that makes tokens from images, as a teacher for `run_extraction`.

    module: called with images (B, 3, H, W) float32 and `arguments`; it is frozen, in float32 and evaluation
    mode. blocks: those of its submodules that are the teacher's levels, in order; each gives tokens (B, T, D)
    or a tuple that begins with them, the patches last and in row-major order. width: D. patch_size: in
    pixels. has_cls: whether the first token is CLS; other tokens before the patches are left out. mean, std:
    of R, G, B in [0, 1]. final_norm: what follows the last block, for `target="post_norm"` if it is a
    LayerNorm. importance: ranks the patches for masks by attention; without it masks are random or block.
    name: stands in the cache.
    """

    module: nn.Module
    name: str
    blocks: Sequence[nn.Module]
    width: int
    patch_size: int
    mean: Sequence[float]
    std: Sequence[float]
    has_cls: bool = True
    final_norm: nn.Module | None = None
    importance: Importance | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"'{LIBRARY}:{self.name}'"


def fit_module(
    given: ModuleTeacher, *, image_size: int, patch_size: int, levels: str, precision: str = "float32"
) -> Teacher:
    """Fit a network to the grid of a student; raises ConfigError if its tokens are not as described."""
    grid, spec = student_grid(image_size, patch_size), f"teacher {given!r}"
    refuse_description(given, spec)
    module, depth = freeze(given.module), len(given.blocks)
    outputs = partial(_outputs, module, list(given.blocks), given.arguments)
    side = grid * given.patch_size
    weight = next(iter(module.parameters()), torch.zeros(()))
    try:
        with torch.no_grad():
            tokens = outputs(torch.zeros(PROBED, 3, side, side, device=weight.device), list(range(depth)))
    except ConfigError:
        raise
    except Exception as error:  # of whatever the network does with images of a size that it does not take
        raise ConfigError(
            f"{spec} cannot see images of {side} x {side} pixels ({cause_of(error)}): choose another "
            "image_size, or give in `arguments` what makes it resize its positions"
        ) from error
    refuse_tokens(given, spec, tokens, grid)
    tower = Tower(
        module=module,
        depth=depth,
        width=given.width,
        patch_size=given.patch_size,
        prefix=tokens[0].shape[1] - grid**2,
        has_cls=given.has_cls,
        final_norm=given.final_norm or nn.Identity(),
        post_norm=layer_norm(given.final_norm),
        projection=None,
        outputs=outputs,
        importance=given.importance,
    )
    mean, std = (tuple(map(float, values)) for values in (given.mean, given.std))
    source = Source(module, LIBRARY, given.name, LOCAL, mean, std)
    return describe(tower, source, weights_sha256(module), grid, levels, precision)


def _outputs(
    module: nn.Module,
    blocks: list[nn.Module],
    arguments: Mapping[str, Any],
    images: Tensor,
    chosen: list[int],
) -> list[Tensor]:
    """Run the network and return what hooks saw of the chosen blocks' outputs (B, T, D)."""
    found: dict[int, Tensor] = {}

    def keep(block: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        found[block] = output[0] if isinstance(output, tuple) else output

    handles = [blocks[block].register_forward_hook(partial(keep, block)) for block in dict.fromkeys(chosen)]
    try:
        module(images, **arguments)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [block for block in chosen if block not in found]:
        raise ConfigError(
            f"block {missing[0]} of `blocks` did not run: give submodules that the network calls"
        )
    if list(found) != sorted(found):  # in the order of the first calls
        raise ConfigError(f"`blocks` ran in the order {list(found)}: give them in the order of the network")
    return [found[block] for block in chosen]


def transformers_teacher(
    model: nn.Module,
    name: str = "",
    *,
    mean: Sequence[float],
    std: Sequence[float],
    importance: Importance | None = None,
) -> ModuleTeacher:
    """Describe a plain vision transformer of Hugging Face transformers by its configuration.

    mean and std are those of its image processor. Raises ConfigError for a model that this cannot describe:
    use ModuleTeacher itself then.
    """
    config: Any = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)
    depth, lists = getattr(config, "num_hidden_layers", None), []
    for part in model.modules():
        if isinstance(part, nn.ModuleList) and len(part) == depth:
            lists.append(part)
    if len(lists) != 1 or not isinstance(getattr(config, "patch_size", None), int):
        raise ConfigError(
            f"{type(model).__name__} is not a plain vision transformer of transformers: describe it by "
            "maskalign.ModuleTeacher, with its blocks, width, patch size and normalisation"
        )
    names = [parameter for parameter, _ in model.named_parameters()]
    has_cls = any(part in parameter for parameter in names for part in ("cls_token", "class_embedding"))
    resizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    named = {path.rpartition(".")[2]: module for path, module in reversed(list(model.named_modules()))}
    return ModuleTeacher(
        module=model,
        name=name or type(model).__name__,
        blocks=list(lists[0]),
        width=config.hidden_size,
        patch_size=config.patch_size,
        mean=mean,
        std=std,
        has_cls=has_cls,
        final_norm=next((named[norm] for norm in _FINAL_NORMS if norm in named), None),
        importance=importance,
        arguments={"interpolate_pos_encoding": True} if resizes else {},
    )
