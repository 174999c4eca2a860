"""The two sources of targets: a cache, or the teacher in the loop. Both are modules from Batch to Targets.

One cache of whitened features serves every form of target, see `make_target`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cache.encoding import WHITENING_EPS, TargetDecoder, normed, whiten
from pipeline.cache.reader import Cache
from pipeline.errors import ConfigError
from pipeline.objectives.losses import TargetKind, exact
from pipeline.objectives.needs import Needs
from pipeline.objectives.objective import Batch, Targets


def make_target(
    whitened: Tensor,
    mean: Tensor,
    std: Tensor,
    kind: TargetKind,
    post_norm: Tensor | None = None,
    eps: float = WHITENING_EPS,
) -> Tensor:
    """Return the target (..., D) of a kind from whitened features (..., D), and mean and std (...) per token.

    `whiten` returns them as they are, `none` undoes the whitening, `l2` gives that unit length, `post_norm`
    applies the tower's final norm, gamma and beta (2, D), and whitens again, as feature distillation does.
    All but the first are at least float32.
    """
    if kind == "whiten":
        return whitened
    whitened, std = exact(whitened), exact(std)
    if kind == "post_norm":
        assert post_norm is not None
        return F.layer_norm(normed(whitened, std, post_norm, eps), whitened.shape[-1:])
    raw = whitened * std[..., None] + exact(mean)[..., None]
    return raw if kind == "none" else F.normalize(raw, dim=-1)


class CachedTargets(nn.Module):
    """Decodes codes and stats of the chosen levels, all M of them or only the last, to targets of one kind.

    Level by level: compiled, each target is made where the loss reads it. Values that levels share would be
    written to memory first.
    """

    post_norm: Tensor | None

    def __init__(
        self,
        decoder: TargetDecoder,
        kind: TargetKind,
        post_norm: Tensor | None = None,
        eps: float = WHITENING_EPS,
    ) -> None:
        """Take the decoder of the M chosen levels, and the final norm (2, D) where `kind` needs it."""
        super().__init__()
        self.decoder, self.kind, self._eps = decoder, kind, eps
        self.register_buffer("post_norm", post_norm)

    def forward(self, batch: Batch) -> Targets:
        """Decode the targets of visible and hidden tokens that the batch has."""
        return Targets(self._levels(batch, "visible"), self._levels(batch, "hidden"))

    def _levels(self, batch: Batch, part: str) -> list[Tensor]:
        if f"{part}_codes" not in batch:
            return []
        levels = zip(batch[f"{part}_codes"].unbind(1), batch[f"{part}_stats"].unbind(1), strict=True)
        first = len(self.decoder.channel_mean) - batch[f"{part}_codes"].shape[1]
        return [
            make_target(*self.decoder.level(level, *stored), self.kind, self.post_norm, self._eps)
            for level, stored in enumerate(levels, first)
        ]


class TeacherTargets(nn.Module):
    """Runs the teacher on whole `views` (B, S, S, 3) uint8 and picks the tokens that a cache would have.

    `hidden_states` maps views to one (B, CLS + N, D) for each of the M chosen levels. It is not a submodule:
    it must not be trained.
    """

    def __init__(
        self,
        hidden_states: Callable[[Tensor], Sequence[Tensor]],
        has_cls: bool,
        kind: TargetKind,
        needs: Needs,
        post_norm: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._hidden_states, self._has_cls = hidden_states, has_cls
        self.kind, self.needs, self.post_norm = kind, needs, post_norm

    def forward(self, batch: Batch) -> Targets:
        """Compute the targets of visible and hidden tokens that the objective needs."""
        states = self._hidden_states(batch["views"])
        found: dict[str, list[Tensor]] = {"visible": [], "hidden": []}
        for part, levels in self.needs.targets(tuple(range(len(states)))).items():
            tokens = batch[part] + int(self._has_cls)
            if part == "visible" and self._has_cls:
                tokens = nn.functional.pad(tokens, (1, 0))
            for level in levels:
                chosen = states[level].gather(1, tokens[..., None].expand(-1, -1, states[level].shape[-1]))
                found[part].append(make_target(*whiten(chosen), self.kind, self.post_norm))
        return Targets(**found)


def cached_targets(cache: Cache, levels: tuple[int, ...], target: TargetKind) -> CachedTargets:
    """Return what decodes targets of the chosen levels, which are indices of the stored ones."""
    mean, std = (torch.from_numpy(values[list(levels)]) for values in cache.calibration())
    decoder, eps = TargetDecoder(mean, std, cache.schema.encoding), cache.schema.teacher.post_norm_eps
    if target != "post_norm":
        return CachedTargets(decoder, target)
    assert eps is not None
    return CachedTargets(decoder, target, torch.from_numpy(cache.teacher_output()["post_norm"]), eps)


def refuse_target(cache: Cache, levels: tuple[int, ...], target: TargetKind) -> None:
    """Raise ConfigError if the cache lacks what a target is made of, or has it for another level only."""
    if target != "post_norm":
        return
    schema, substitute = cache.schema, "set objective.target=whiten as a substitute"
    last = schema.teacher.depth - 1
    if schema.teacher.post_norm_eps is None:
        raise ConfigError(
            f"objective.target 'post_norm' needs the teacher's final norm, which cache {cache.address!r} "
            f"(schema {schema.version}) does not have: {substitute}, or extract again with this version "
            "if the teacher has that norm"
        )
    if schema.levels[levels[-1]] != last:
        raise ConfigError(
            f"objective.target 'post_norm' follows the teacher's last block {last}, "
            f"not block {schema.levels[levels[-1]]}: "
            f"choose data.levels that end with {last}, or {substitute}"
        )
