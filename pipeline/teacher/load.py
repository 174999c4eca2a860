"""From an address to a teacher: `open_clip:MODEL/TAG`, `open_clip:local-dir:PATH` or `timm:MODEL[.TAG]`; tag `random` means untrained."""

from pipeline.errors import ConfigError
from pipeline.teacher.geometry import resolve_levels, student_grid
from pipeline.teacher.open_clip_zoo import load_open_clip
from pipeline.teacher.source import Source, suggestion
from pipeline.teacher.teacher import Teacher
from pipeline.teacher.timm_zoo import load_timm
from pipeline.teacher.tower import build_tower

_LOADERS = {"open_clip": load_open_clip, "timm": load_timm}
_FORMS = "open_clip:MODEL/TAG, open_clip:local-dir:PATH or timm:MODEL[.TAG]"


def load_teacher(spec: str, *, image_size: int, patch_size: int, levels: str = "5") -> Teacher:
    """Load a frozen teacher whose token grid is that of a student with this image and patch size.

    levels: the last N blocks as `N`, or block numbers from 0 as `7,9,11`. Trained weights are downloaded or taken from the library's cache.
    Raises ConfigError for an unknown address, a tower that is no plain ViT, weights that cannot be loaded, sizes or levels that do not fit.
    """
    grid = student_grid(image_size, patch_size)
    source = _load(spec)
    tower = build_tower(source.module, spec, grid)
    return Teacher(tower, source.identity, resolve_levels(levels, tower.depth), grid, source.mean, source.std)


def _load(spec: str) -> Source:
    library, _, name = spec.partition(":")
    if library not in _LOADERS or not name:
        hint = "" if library in _LOADERS else suggestion(library, _LOADERS)
        raise ConfigError(f"teacher {spec!r} is not the address of a teacher: {hint}accepted is {_FORMS}")
    return _LOADERS[library](spec, name)
