"""Builds towers of both libraries, seeded and without log output; errors name a remedy."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.errors import ConfigError, cause_of
from pipeline.teacher.request import Address

_EXAMPLES = {"open_clip": "'open_clip:ViT-B-16-quickgelu/openai'", "timm": "'timm:vit_base_patch16_224.dino'"}


@dataclass(frozen=True, eq=False)
class Source:
    """A vision tower at its native size, float32, with its name and the normalisation that it expects."""

    module: nn.Module
    library: str
    name: str
    tag: str
    mean: tuple[float, ...]  # of R, G, B in [0, 1]
    std: tuple[float, ...]


def build(address: Address, remedy: str, create: Callable[[], nn.Module]) -> nn.Module:
    """Run a library's factory; raises ConfigError that names the teacher, the cause and the remedy.

    Untrained weights are the same in every process, and the global generator stays as it was.
    """
    # open_clip logs on the root logger itself, where the first call would install a handler
    root, handler, reject = logging.getLogger(), logging.NullHandler(), lambda _record: False
    root.addHandler(handler)
    root.addFilter(reject)
    try:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the accelerators too, which fork_rng does not restore here
            torch.default_generator.manual_seed(0)
            return create()
    except Exception as error:  # a download fails with whatever the library's HTTP client raises
        raise ConfigError(f"{address} cannot be loaded ({cause_of(error)}): {remedy}") from error
    finally:
        root.removeFilter(reject)
        root.removeHandler(handler)


def freeze(module: nn.Module) -> nn.Module:
    """Bring a tower to float32, evaluation mode and no gradients."""
    return module.float().eval().requires_grad_(False)


def not_plain(address: Address, fault: str) -> ConfigError:
    """Return the refusal of a tower; the fault completes the sentence `teacher ADDRESS ...`."""
    examples = _EXAMPLES.get(address.library) or " or ".join(_EXAMPLES.values())
    remedy = f"choose a VisionTransformer such as {examples}"
    return ConfigError(f"{address} {fault}, not a plain ViT: {remedy}")
