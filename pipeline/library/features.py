"""Targets of chosen levels for users' own code: which arrays they come from, and how a row is decoded."""

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pipeline.cache.layout import feature_array
from pipeline.cache.reader import Cache
from pipeline.cache.store import Values
from pipeline.errors import ConfigError
from pipeline.objectives.needs import TargetKind
from pipeline.training.targets import AFTER_THE_LAST_BLOCK, cached_targets, lacking_output

Levels = int | Sequence[int] | None


def whole_numbers(name: str, given: object) -> tuple[int, ...]:
    """Return a number, or those of a list or array, as ints; raises ConfigError for others and for none."""
    try:
        numbers = tuple(map(index, given if isinstance(given, Iterable) else [given]))
    except TypeError:
        raise ConfigError(f"{name} {given!r} are not whole numbers: give one, or a list of them") from None
    if not numbers:
        raise ConfigError(f"{name} is empty: give at least 1, or leave it out")
    return numbers


class FeatureDecoder(nn.Module):
    """Turns the stored codes and stats of chosen levels into features, on whatever device it is moved to.

    With one level given as an int, the axis M of the levels is missing, as in NumPy's indexing.
    """

    def __init__(self, cache: Cache, levels: Levels = None, target: TargetKind = "whiten") -> None:
        """Choose levels (None: all) and the form of `objective.target`; raises ConfigError."""
        super().__init__()
        self.levels = cache.schema.levels if levels is None else whole_numbers("levels", levels)
        self.single = not isinstance(levels, Iterable | None)
        self.indices = cache.level_indices(self.levels)
        teacher = cache.schema.teacher
        if target not in get_args(TargetKind):
            raise ConfigError(f"target {target!r} is unknown: give one of {', '.join(get_args(TargetKind))}")
        if lacking := lacking_output(cache.schema, target):
            raise ConfigError(
                f"target {target!r} needs the teacher's {lacking}, which cache {cache.address!r} does not "
                "have: give target='whiten', 'none' or 'l2'"
            )
        if target in AFTER_THE_LAST_BLOCK and self.levels != (teacher.depth - 1,):
            raise ConfigError(
                f"target {target!r} follows the teacher's last block {teacher.depth - 1}, not levels "
                f"{list(self.levels)}: give levels={teacher.depth - 1}"
            )
        self._targets = cached_targets(cache, self.indices, target)

    @property
    def arrays(self) -> list[str]:
        """The names of the arrays that a row's features are made of."""
        return [*map(feature_array, self.levels), "stats"]

    def stored(self, arrays: Mapping[str, Values], row: int) -> dict[str, Tensor]:
        """Return `codes` ([M,] T, W) and `stats` ([M,] T, 2 + G) of a row of a chunk."""
        codes = torch.stack([torch.from_numpy(arrays[name][row]) for name in self.arrays[:-1]])
        stats = torch.from_numpy(arrays["stats"][row])[list(self.indices)]
        return {"codes": codes[0], "stats": stats[0]} if self.single else {"codes": codes, "stats": stats}

    def forward(self, codes: Tensor, stats: Tensor) -> Tensor:
        """Decode codes (B[, M], T, W) and stats (B[, M], T, 2 + G) to features (B[, M], T, D), CLS first.

        The result is float32, or float16 as it is stored. Raises ConfigError for codes and stats of other
        shapes, which are those of other levels.
        """
        axes = codes.shape[1:2] if self.single else codes.shape[1:3]
        if (
            codes.ndim != len(axes) + 2
            or codes.shape[:-1] != stats.shape[:-1]
            or (not self.single and axes[0] != len(self.levels))
        ):
            batch = f"({'B' if self.single else f'B, {len(self.levels)}'}, T, ...)"
            raise ConfigError(
                f"codes {tuple(codes.shape)} and stats {tuple(stats.shape)} are not a batch of levels "
                f"{list(self.levels)}: give {batch} of both"
            )
        if self.single:
            codes, stats = codes[:, None], stats[:, None]
        levels = self._targets({"visible_codes": codes, "visible_stats": stats}).visible
        return levels[0] if self.single else torch.stack(levels, dim=1)


def sample_arrays(cache: Cache, decoder: FeatureDecoder) -> list[str]:
    """Return the names of the arrays that a sample is made of."""
    extra = [("attention", cache.schema.teacher.has_importance), ("tokens", cache.schema.keep < 1)]
    return [*decoder.arrays, *(name for name, stored in extra if stored)]


def sample_fields(
    decoder: FeatureDecoder, arrays: Mapping[str, Values], row: int, decoded: bool
) -> dict[str, Any]:
    """Return the fields of a sample that come from its row; `codes` and `stats` unless `decoded`."""
    fields = decoder.stored(arrays, row)
    if decoded:
        fields = {"features": decoder(fields["codes"][None], fields["stats"][None])[0]}
    if "attention" in arrays:
        fields["attention"] = torch.from_numpy(arrays["attention"][row])
    if "tokens" in arrays:
        fields["patches"] = torch.from_numpy(arrays["tokens"][row].astype("int64"))
    return fields
