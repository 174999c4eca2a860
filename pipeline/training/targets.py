"""The targets of a run: what the cache holds for the chosen levels."""

import torch

from pipeline.cache.encoding import TargetDecoder
from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.objectives.losses import TargetKind
from pipeline.objectives.targets import CachedTargets


def cached_targets(cache: Cache, levels: tuple[int, ...], target: TargetKind) -> CachedTargets:
    """Return what decodes targets of the chosen levels, which are indices of the stored ones."""
    mean, std = (torch.from_numpy(values[list(levels)]) for values in cache.calibration())
    decoder, eps = TargetDecoder(mean, std, cache.schema.encoding), cache.schema.teacher.post_norm_eps
    if target != "post_norm":
        return CachedTargets(decoder, target)
    assert eps is not None
    return CachedTargets(decoder, target, torch.from_numpy(cache.teacher_output()["post_norm"]), eps)


def refuse_target(cache: Cache, levels: tuple[int, ...], target: TargetKind) -> None:
    """Raise ConfigError if the cache lacks what a target is made of, or if it would be made of a level that the norm does not follow."""
    if target != "post_norm":
        return
    schema, substitute = cache.schema, "set objective.target=whiten as a substitute"
    last = schema.teacher.depth - 1
    if schema.teacher.post_norm_eps is None:
        raise ConfigError(
            f"objective.target 'post_norm' needs the teacher's final norm, which cache {cache.address!r} (schema "
            f"{schema.version}) does not have: {substitute}, or extract again with this version if the teacher has that norm"
        )
    if schema.levels[levels[-1]] != last:
        raise ConfigError(
            f"objective.target 'post_norm' follows the teacher's last block {last}, not block {schema.levels[levels[-1]]}: "
            f"choose data.levels that end with {last}, or {substitute}"
        )
