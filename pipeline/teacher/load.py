"""From an address such as `open_clip:MODEL/TAG` to a teacher on the student's grid, with its facts."""

from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.schema import TeacherFacts
from pipeline.teacher.open_clip_zoo import load_open_clip
from pipeline.teacher.request import RANDOM, resolve_levels, split_address, student_grid
from pipeline.teacher.source import Source
from pipeline.teacher.teacher import Teacher
from pipeline.teacher.timm_zoo import load_timm
from pipeline.teacher.tower import Tower, build_tower, native_patch_size
from pipeline.weights import weights_sha256

_LOADERS = {"open_clip": load_open_clip, "timm": load_timm}


def load_teacher(
    spec: str,
    *,
    image_size: int,
    patch_size: int | None,
    levels: str | tuple[int, ...] = "5",
    precision: str = "float32",
    noun: str = "teacher",
) -> Teacher:
    """Load a frozen teacher on the token grid of a student with this image and patch size.

    A teacher with other patches sees images resized to this grid; without `patch_size` it has its own grid.
    levels: the last N blocks as `N`, or block numbers from 0 as `7,9,11`. Trained weights are downloaded or
    taken from the library's cache. Raises ConfigError for an unknown address, a tower that is not a plain
    ViT, weights that cannot be loaded, sizes or levels that do not fit; it calls the network a `noun`.
    """
    grid = student_grid(image_size, patch_size) if patch_size else None
    address = split_address(spec, noun)
    source = _LOADERS[address.library](address)
    grid = grid or student_grid(image_size, native_patch_size(source.module))
    digest = weights_sha256(source.module)  # first: fitting replaces the positions
    return describe(build_tower(source.module, address, grid), source, digest, grid, levels, precision)


def describe(
    tower: Tower, source: Source, digest: str, grid: int, levels: str | tuple[int, ...], precision: str
) -> Teacher:
    """Return a teacher with the facts of a tower on a grid; raises ConfigError for levels it has not."""
    facts = TeacherFacts(
        library=source.library,
        name=source.name,
        tag=source.tag,
        weights_sha256=digest,
        trained=source.tag != RANDOM,
        depth=tower.depth,
        width=tower.width,
        patch_size=tower.patch_size,
        input_size=grid * tower.patch_size,
        mean=source.mean,
        std=source.std,
        has_cls=tower.has_cls,
        has_importance=tower.importance is not None,
        precision=precision,
        post_norm_eps=tower.post_norm.eps if tower.post_norm else None,
        projection_width=None if tower.projection is None else tower.projection.shape[1],
        output_sha256=digest_of_arrays(*tower.output().values()),
    )
    chosen = resolve_levels(levels, tower.depth) if isinstance(levels, str) else levels
    return Teacher(tower, facts, chosen, grid)
