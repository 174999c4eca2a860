"""The targets of a run: what the cache holds for the chosen levels, decoded on the device."""

import torch

from pipeline.cache.encoding import TargetDecoder
from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.objectives.losses import TargetKind
from pipeline.objectives.targets import CachedTargets


def cached_targets(cache: Cache, levels: tuple[int, ...], target: TargetKind) -> CachedTargets:
    """Return what decodes targets of the chosen levels (indices of the stored ones); raises ConfigError as `post_norm`."""
    mean, std = (torch.from_numpy(values[list(levels)]) for values in cache.calibration())
    return CachedTargets(TargetDecoder(mean, std, cache.schema.encoding), target, post_norm(cache, target))


def post_norm(cache: Cache, target: TargetKind) -> torch.Tensor | None:
    """Return weight and bias (2, D) of the teacher's final norm if a target is made with them; raises ConfigError if there is none."""
    if target != "post_norm":
        return None
    raise ConfigError(
        f"objective.target 'post_norm' needs the teacher's final norm, which cache {cache.address!r} (schema "
        f"{cache.schema.version}) does not have: set objective.target=whiten as a substitute, or extract the cache again"
    )
