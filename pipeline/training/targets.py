"""The two sources of targets: a cache, or the teacher in the loop. Both are modules from Batch to Targets.

One cache of whitened features serves every form of target, see `make_target`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cache.encoding import WHITENING_EPS, TargetDecoder, normed, whiten
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema
from pipeline.errors import ConfigError
from pipeline.objectives.losses import exact
from pipeline.objectives.needs import Needs, TargetKind, target_field
from pipeline.objectives.objective import Batch, Targets
from pipeline.training.phi_s import PhiStandardisation

AFTER_THE_LAST_BLOCK: tuple[TargetKind, ...] = ("post_norm", "projected")


class TeacherOutput(nn.Module):
    """A tower's output after its last block: the norm, gamma and beta (2, D), and a projection (D, E)."""

    post_norm: Tensor
    projection: Tensor | None

    def __init__(
        self, post_norm: Tensor, eps: float = WHITENING_EPS, projection: Tensor | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("post_norm", post_norm)
        self.register_buffer("projection", projection)

    def forward(self, whitened: Tensor, std: Tensor, *, projected: bool) -> Tensor:
        """Return norm(h) (..., D), or its projection (..., E), of whitened tokens (..., D)."""
        values = normed(whitened, std, self.post_norm, self.eps)
        if not projected:
            return values
        assert self.projection is not None
        return values @ self.projection


def make_target(
    whitened: Tensor, mean: Tensor, std: Tensor, kind: TargetKind, output: TeacherOutput | None = None
) -> Tensor:
    """Return the target (..., D) of a kind from whitened features (..., D), and mean and std (...) per token.

    `whiten` returns them as they are, `none` undoes the whitening, and `l2` gives that unit length.
    `post_norm` applies the tower's final norm and whitens again, as feature distillation does. `projected`
    (..., E) applies that norm and the projection, as CLIP does. All but the first are at least float32.
    """
    if kind == "whiten":
        return whitened
    whitened, std = exact(whitened), exact(std)
    if kind in AFTER_THE_LAST_BLOCK:
        assert output is not None
        values: Tensor = output(whitened, std, projected=kind == "projected")
        return values if kind == "projected" else F.layer_norm(values, whitened.shape[-1:])
    raw = whitened * std[..., None] + exact(mean)[..., None]
    return raw if kind == "none" else F.normalize(raw, dim=-1)


class CachedTargets(nn.Module):
    """Decodes codes and stats of the chosen levels, all M of them or only the last, to targets of one kind.

    Level by level: compiled, each target is made where the loss reads it. Values that levels share would be
    written to memory first.
    """

    def __init__(
        self,
        decoder: TargetDecoder,
        kind: TargetKind,
        output: TeacherOutput | None = None,
        teacher: int = 0,
        standard: PhiStandardisation | None = None,
    ) -> None:
        """Take the decoder of the M chosen levels, and the tower's output where `kind` needs it.

        `teacher` is the place of the teacher among several; `standard` is applied last.
        """
        super().__init__()
        self.decoder, self.kind, self.output = decoder, kind, output
        self.teacher, self.standard = teacher, standard

    def forward(self, batch: Batch) -> Targets:
        """Decode the targets of visible and hidden tokens that the batch has."""
        found: dict[str, list[Tensor]] = {"visible": [], "hidden": []}
        for part, targets in found.items():
            names = (target_field(part, what, self.teacher) for what in ("codes", "stats"))
            stored = [batch[name].unbind(1) for name in names if name in batch]
            first = len(self.decoder.channel_mean) - len(stored[0]) if stored else 0
            for level, of_level in enumerate(zip(*stored, strict=True), first):
                target = make_target(*self.decoder.level(level, *of_level), self.kind, self.output)
                targets.append(self.standard(level, target) if self.standard else target)
        return Targets(**found)


class TargetsOfTeachers(nn.Module):
    """The targets of each teacher, one after the other."""

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, batch: Batch) -> Targets:
        """Decode the targets of all teachers."""
        found = [teacher(batch) for teacher in self.teachers]
        visible = [target for targets in found for target in targets.visible]
        return Targets(visible, [target for targets in found for target in targets.hidden])


class TeacherTargets(nn.Module):
    """Runs the teacher on whole `views` (B, S, S, 3) uint8 and picks the tokens that a cache would have.

    `hidden_states` maps views to one (B, CLS + N, D) for each of the M chosen levels. It is not a submodule:
    it must not be trained.
    """

    def __init__(
        self,
        hidden_states: Callable[[Tensor], Sequence[Tensor]],
        has_cls: bool,
        needs: Needs,
        output: TeacherOutput | None = None,
    ) -> None:
        super().__init__()
        self._hidden_states, self._has_cls = hidden_states, has_cls
        self.needs, self.output = needs, output

    def forward(self, batch: Batch) -> Targets:
        """Compute the targets of visible and hidden tokens that the objective needs."""
        if not self.needs.targets((0,)):  # such as mae, which needs no teacher
            return Targets([], [])
        states = self._hidden_states(batch["views"])
        found: dict[str, list[Tensor]] = {"visible": [], "hidden": []}
        for part, levels in self.needs.targets(tuple(range(len(states)))).items():
            tokens = batch[part] + int(self._has_cls)
            if part == "visible" and self._has_cls:
                tokens = nn.functional.pad(tokens, (1, 0))
            for level in levels:
                chosen = states[level].gather(1, tokens[..., None].expand(-1, -1, states[level].shape[-1]))
                found[part].append(make_target(*whiten(chosen), self.needs.target, self.output))
        return Targets(**found)


def cached_targets(
    cache: Cache,
    levels: tuple[int, ...],
    target: TargetKind,
    teacher: int = 0,
    standard: PhiStandardisation | None = None,
) -> CachedTargets:
    """Return what decodes targets of the chosen levels, which are indices of the stored ones."""
    mean, std = (torch.from_numpy(values[list(levels)]) for values in cache.calibration())
    decoder = TargetDecoder(mean, std, cache.schema.encoding)
    return CachedTargets(decoder, target, teacher_output(cache, target), teacher, standard)


def teacher_output(cache: Cache, target: TargetKind) -> TeacherOutput | None:
    """Return the stored norm and projection for a target that is made of them, None for another."""
    if target not in AFTER_THE_LAST_BLOCK:
        return None
    arrays = {name: torch.from_numpy(values) for name, values in cache.teacher_output().items()}
    eps = cache.schema.teacher.post_norm_eps
    assert eps is not None
    return TeacherOutput(arrays["post_norm"], eps, arrays.get("projection"))


def lacking_output(schema: CacheSchema, target: TargetKind) -> str:
    """Return what a cache lacks of its teacher's output for a target: "final norm", "projection" or ""."""
    if target not in AFTER_THE_LAST_BLOCK:
        return ""
    if schema.teacher.post_norm_eps is None:
        return "final norm"
    return "projection" if target == "projected" and schema.teacher.projection_width is None else ""


def refuse_target(cache: Cache, levels: tuple[int, ...], needs: Needs) -> None:
    """Raise ConfigError if the cache lacks the norm or projection of a target, or a level is not the last."""
    target, schema = needs.target, cache.schema
    used = sorted({schema.levels[level] for part in needs.targets(levels).values() for level in part})
    if target not in AFTER_THE_LAST_BLOCK or not used:
        return
    last, substitute = schema.teacher.depth - 1, "set objective.target=whiten as a substitute"
    if lacking := lacking_output(schema, target):
        raise ConfigError(
            f"objective.target {target!r} needs the teacher's {lacking}, which cache {cache.address!r} "
            f"(schema {schema.version}) does not have: {substitute}, or extract again with this version "
            f"if the teacher has that {lacking.split()[-1]}"
        )
    if used != [last]:
        raise ConfigError(
            f"objective.target {target!r} follows the teacher's last block {last}, not "
            f"{'block' if len(used) == 1 else 'blocks'} {', '.join(map(str, used))}: "
            f"set data.levels=[{last}] if the cache has it, or {substitute}"
        )
