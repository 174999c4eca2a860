"""The options of an extraction and their defaults, for command, schema and benchmark; imports little."""

import math
import shlex
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.errors import CacheError, ConfigError

if TYPE_CHECKING:
    import torch

    from pipeline.cache.reader import Cache
    from pipeline.cache.schema import Compressor, Encoding
    from pipeline.cache.units import Unit
    from pipeline.teacher.module import ModuleTeacher
    from pipeline.views.codec import ViewFormat
    from pipeline.views.maker import ViewMaker
    from pipeline.views.masking import RankStrategy
    from pipeline.views.source_tars import SourceTar

MOST_VIEWS = 100
_SHARES = ("keep", "flip", "max_bad")
_RANGES: dict[str, tuple[float, float]] = {
    "views": (1, MOST_VIEWS),
    "image_size": (1, math.inf),
    "patch_size": (1, math.inf),
    "seed": (-math.inf, math.inf),
    "batch_size": (1, math.inf),
    "workers": (0, math.inf),
    "limit": (1, math.inf),
    "keep": (-math.inf, math.inf),
    "flip": (0, 1),
    "max_bad": (0, 1),
}
Precision = Literal["auto", "bfloat16", "float16", "float32"]
Compile = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class ExtractionOptions:
    """Options of an extraction. Raises ConfigError for values that are wrong with any teacher."""

    shards: "Sequence[SourceTar]"
    cache: str
    teacher: "str | ModuleTeacher"
    device: "torch.device"
    levels: str = "5"
    views: int = 1
    encoding: "Encoding" = "int8"
    compressor: "Compressor" = "none"
    keep: float = 1.0
    keep_rank: "RankStrategy" = "attention"
    view_format: "ViewFormat" = "jpeg"
    image_size: int = 224
    patch_size: int = 16
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    seed: int = 0
    batch_size: int = 256
    workers: int = 0
    precision: Precision = "auto"
    compile: Compile = "auto"
    max_bad: float = 0.01
    limit: int | None = None
    views_from: str | None = None  # a cache, with what `options_of_views` gives for it
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Check what typer cannot, and what it has checked for the command."""
        from pipeline.cache.schema import COMPRESSORS, ENCODINGS
        from pipeline.teacher.request import parse_levels, split_address, student_grid
        from pipeline.views.codec import VIEW_FORMATS
        from pipeline.views.masking import RANK_STRATEGIES, count_of_share

        for option, value, accepted in (
            ("--encoding", self.encoding, ENCODINGS),
            ("--compressor", self.compressor, COMPRESSORS),
            ("--view-format", self.view_format, VIEW_FORMATS),
            ("--keep-rank", self.keep_rank, RANK_STRATEGIES),
            ("--precision", self.precision, get_args(Precision)),
            ("--compile", self.compile, get_args(Compile)),
        ):
            if value not in accepted:
                *others, last = accepted
                raise ConfigError(f"{option} {value!r} is unknown; give {', '.join(others)} or {last}")
        self._check_numbers()
        parse_levels(self.levels)
        if isinstance(self.teacher, str):
            split_address(self.teacher)
        else:
            from pipeline.teacher.module import ModuleTeacher

            if not isinstance(self.teacher, ModuleTeacher):
                raise ConfigError(
                    f"teacher is a {type(self.teacher).__name__}: give an address such as 'timm:MODEL', or "
                    "describe a network by maskalign.ModuleTeacher or maskalign.transformers_teacher"
                )
        patches = student_grid(self.image_size, self.patch_size) ** 2
        if not count_of_share(patches, self.keep):
            raise ConfigError(
                f"--keep {self.keep:g} leaves 0 of {patches} patches; "
                f"give {math.ceil(1e4 / patches) / 1e4:g} to 1"
            )

    def _check_numbers(self) -> None:
        """Raise ConfigError for a value of another type or out of range; a crop scale may be a list."""
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            whole = name not in _SHARES
            if name == "limit" and value is None:
                continue
            if not isinstance(value, int if whole else int | float) or not least <= value <= most:
                accepted = f"from {least} on" if most == math.inf else f"from {least} to {most}"
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value!r} is not accepted: give a {'whole ' * whole}number"
                    f"{f' {accepted}' * (name != 'seed')}"
                )
        if not isinstance(self.levels, str):
            raise ConfigError(
                f"--levels {self.levels!r} is not a text: give '5' for the last 5 blocks, '5,' for "
                "block 5, or '7,9,11'"
            )
        try:
            least, most = map(float, self.crop_scale)
        except (TypeError, ValueError):
            raise ConfigError(f"--crop-scale {self.crop_scale!r} is not two shares: give 0.2, 1.0") from None
        object.__setattr__(self, "crop_scale", (least, most))
        if not 0 < least <= most <= 1:
            raise ConfigError(
                f"--crop-scale {least:g} {most:g} is not a range of shares; give 0 < least <= greatest <= 1"
            )
        if not 0 < self.keep <= 1:
            raise ConfigError(
                f"--keep {self.keep:g} is not a share; give more than 0 and at most 1, such as 0.3"
            )

    def maker(self, views: tuple[int, ...] = (0,), source: str | None = None) -> "ViewMaker":
        """Return the maker of views of a source tar, as `ViewMaker` takes them."""
        from pipeline.views.crop import CropPolicy
        from pipeline.views.maker import ViewMaker

        policy = CropPolicy(self.image_size, self.crop_scale, self.flip, self.seed)
        return ViewMaker(policy, views, self.view_format, source)

    @property
    def tars(self) -> "Sequence[SourceTar]":
        """The tars that this run covers."""
        return self.shards[: self.limit]

    def covered(self, units: "Iterable[Unit]") -> "list[Unit]":
        """Return those units of a cache that this run covers."""
        names = {tar.name for tar in self.tars}
        return [unit for unit in units if unit.source in names and unit.view < self.views]


def source_options(
    shards: "Sequence[str]", cache: str, views_from: str | None, given: "Container[str]"
) -> dict[str, Any]:
    """Return the tars of an extraction and, with `views_from`, the options that its views decide.

    `given` names the options that were chosen. Raises ConfigError for those that the views decide.
    """
    from pipeline.cache.reader import Cache
    from pipeline.storage.address import absolute
    from pipeline.views.source_tars import is_cache, resolve_tars

    if views_from is None:
        if not shards:
            raise ConfigError("no source tars are named: give SHARDS, or --views-from CACHE")
        tars = resolve_tars(shards)
        for folder in dict.fromkeys(Path(tar.address).parent for tar in tars):
            if folder.name == "views" and is_cache(folder.parent):
                raise ConfigError(
                    f"the tars of {str(folder)!r} are the views of a cache, crops of images: give "
                    f"--views-from {shlex.quote(str(folder.parent))} for another teacher, or the source tars"
                )
        return {"shards": tars}
    if absolute(views_from) == absolute(cache):
        raise ConfigError(f"--cache and --views-from are both {cache!r}: give a new --cache")
    found = options_of_views(Cache(views_from))
    decided = [name for name in found if name in given and name not in ("shards", "patch_size")]
    if decided or shards:
        names = [*(["SHARDS"] if shards else []), *(f"--{name.replace('_', '-')}" for name in decided)]
        raise ConfigError(
            f"{' and '.join(names)} cannot be given with --views-from: that cache decides the views; leave "
            f"{'them' if len(names) > 1 else 'it'} out"
        )
    return {name: value for name, value in found.items() if name not in given}


def options_of_views(cache: "Cache") -> dict[str, Any]:
    """Return the options that the views of a cache decide, by field, for another teacher on the same views.

    Any `patch_size` that divides the image is possible, but teachers are trained together only with the same.
    Raises CacheError if the cache has no finished unit yet.
    """
    from pipeline.cache.commit import committed
    from pipeline.views.source_tars import SourceTar

    # a list of units that was rebuilt does not have the sizes
    sizes = {unit.source: max(1, unit.source_bytes) for unit in committed(cache.folder, cache.units)}
    if not sizes:
        raise CacheError(
            f"--views-from {cache.address!r} has no finished unit yet; run this command again when it has"
        )
    view = cache.schema.view
    return {
        "shards": [SourceTar(source, size) for source, size in sizes.items()],
        "views": 1 + max(unit.view for unit in cache.units),
        "view_format": view.format,
        **{key: getattr(view, key) for key in ("image_size", "patch_size", "crop_scale", "flip", "seed")},
        "max_bad": 1.0,  # the other cache has decided which images are skipped
    }
