"""A cache compared with its teacher: the teacher runs again on stored crops, and what is stored must be what it gives."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.cache.encoding import TargetDecoder, error_bound, whiten
from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.reader import Cache
from pipeline.cache.schema import Encoding, TeacherSchema, feature_array
from pipeline.errors import CacheError, ConfigError
from pipeline.extraction.description import describe_teacher
from pipeline.extraction.encode import precision_of, run_teacher
from pipeline.seeding import generator
from pipeline.teacher.load import load_teacher
from pipeline.teacher.teacher import Teacher

LEAST_COSINE: dict[Encoding, float] = {"float16": 0.999, "int8": 0.999, "int4": 0.98}
_ROWS_OF_BLOCK = 16


@dataclass(frozen=True)
class LevelComparison:
    """One level: cosines and absolute errors of the stored whitened features; `within`: the share of values within the stated bound."""

    level: int
    mean_cosine: float
    least_cosine: float
    mean_error: float
    largest_error: float
    within: float


@dataclass(frozen=True)
class _BlockComparison:
    """The same of a block's first rows, by level: means, least and largest (M,)."""

    rows: int
    cosine: Tensor
    least_cosine: Tensor
    error: Tensor
    largest_error: Tensor
    within: Tensor


def load_teacher_of(cache: Cache, spec: str | None, device: torch.device) -> Teacher:
    """Load a cache's teacher, from `spec` if given; raises CacheError if its identity is not the cache's."""
    schema = cache.schema
    levels = "".join(
        f"{level}," for level in schema.levels
    )  # without a comma, one number is a count of blocks
    wanted = spec or _spec_of(schema.teacher)
    teacher = load_teacher(
        wanted, image_size=schema.view.image_size, patch_size=schema.view.patch_size, levels=levels
    ).to(device)
    here = describe_teacher(teacher, device).model_dump(
        include=schema.teacher.model_fields_set - {"precision"}
    )
    there = schema.teacher.model_dump()
    if differing := [
        f"{key}: {here[key]!r} here, {there[key]!r} in the cache" for key in here if here[key] != there[key]
    ]:
        found = "; ".join(differing)
        raise CacheError(
            f"teacher {wanted!r} is not the one of cache {cache.address!r} ({found}): give the right one by --teacher-spec"
        )
    return teacher


def _spec_of(teacher: TeacherSchema) -> str:
    if teacher.tag == "local":
        raise ConfigError(
            "the cache's teacher came from a folder: say where it is, with --teacher-spec open_clip:local-dir:PATH"
        )
    return f"{teacher.library}:{teacher.name}{'.' if teacher.library == 'timm' else '/'}{teacher.tag}"


def compare_with_teacher(
    cache: Cache, teacher: Teacher, device: torch.device, rows: int
) -> list[LevelComparison]:
    """Run the teacher on about `rows` stored crops, 16 from each of some chunks, and compare level by level.

    Raises CacheError if the stored final norm or projection is not the teacher's.
    """
    for name, values in cache.teacher_output().items():
        if not np.array_equal(values, teacher.output()[name]):
            raise CacheError(f"array {name!r} of cache {cache.address!r} is not its teacher's: extract again")
    mean, std = (torch.from_numpy(values) for values in cache.calibration())
    decoding = (mean, std, _tolerance(cache, device)[0])
    parts = [
        _compare_block(cache, teacher, device, decoding, *place) for place in _sampled_blocks(cache, rows)
    ]
    rows_of = torch.tensor([part.rows for part in parts], dtype=torch.float64)[:, None]

    def mean_of(name: str) -> list[float]:
        values: list[float] = (
            (torch.stack([getattr(part, name) for part in parts]) * rows_of).sum(0) / rows_of.sum()
        ).tolist()
        return values

    least = torch.stack([part.least_cosine for part in parts]).amin(0).tolist()
    largest = torch.stack([part.largest_error for part in parts]).amax(0).tolist()
    columns = zip(
        cache.schema.levels,
        mean_of("cosine"),
        least,
        mean_of("error"),
        largest,
        mean_of("within"),
        strict=True,
    )
    return [LevelComparison(*column) for column in columns]


def refuse_differences(cache: Cache, found: list[LevelComparison], device: torch.device) -> None:
    """Raise CacheError naming the levels that are not what the teacher gives."""
    cosine, (rounding, share) = LEAST_COSINE[cache.schema.encoding], _tolerance(cache, device)
    sound = [one.level for one in found if one.mean_cosine >= cosine and one.within >= share]  # NaN is not
    if wrong := [one.level for one in found if one.level not in sound]:
        raise CacheError(
            f"levels {wrong} of cache {cache.address!r} are not what the teacher gives here (expected: a mean cosine of at least {cosine} "
            f"and {share:.1%} of values within {rounding} of the bound): use the library versions in logs/, or extract again"
        )


def _tolerance(cache: Cache, device: torch.device) -> tuple[float, float]:
    """Return what rounding may add to the error of a whitened value, and the share of values that must be within bound and rounding.

    bfloat16 on one of the sides gives the demo's CLIP errors of 0.006 on average and of 0.02 for one value in a hundred.
    """
    in_float32 = precision_of(device) == cache.schema.teacher.precision == "float32"
    return (1e-3, 0.999) if in_float32 else (0.05, 0.95)


def _sampled_blocks(cache: Cache, rows: int) -> Iterator[tuple[np.void, int]]:
    """Yield (finished unit, block) pairs, each once, drawn by a fixed seed."""
    units = cache.finished(None, allow_partial=True)
    blocks = [
        (place, block)
        for place, unit in enumerate(units)
        for block in range(-(-int(unit["rows"]) // cache.schema.block_rows))
    ]
    order = generator(0, "blocks to compare").permutation(len(blocks))
    for chosen in order[: -(-rows // _ROWS_OF_BLOCK)].tolist():
        place, block = blocks[chosen]
        yield units[place], block


def _compare_block(
    cache: Cache,
    teacher: Teacher,
    device: torch.device,
    decoding: tuple[Tensor, Tensor, float],
    unit: np.void,
    block: int,
) -> _BlockComparison:
    """Compare the first rows of a block.

    `decoding` is channel mean and deviation (M, D), and what rounding may add to the bound.
    """
    schema, (mean, std, rounding) = cache.schema, decoding
    names = [feature_array(level) for level in schema.levels]
    kept = ["tokens"] if schema.keep < 1 else []
    joined = read_joined(cache, cache.pinned_commit(unit), block, [*names, "stats", *kept])
    pixels = np.stack(
        [decode_crop(cache, crop, key) for crop, key in zip(joined.crops, joined.keys, strict=True)][
            :_ROWS_OF_BLOCK
        ]
    )
    hidden = torch.stack(run_teacher(teacher, torch.from_numpy(pixels).to(device)).hidden, dim=1).cpu()
    given = whiten(hidden)[0]
    if kept:
        given = _stored_tokens(
            given,
            torch.from_numpy(joined.arrays["tokens"][:_ROWS_OF_BLOCK].astype(np.int64)),
            schema.teacher.has_cls,
        )
    codes = torch.from_numpy(np.stack([joined.arrays[name][:_ROWS_OF_BLOCK] for name in names], axis=1))
    stats = torch.from_numpy(joined.arrays["stats"][:_ROWS_OF_BLOCK])
    stored = TargetDecoder(mean, std, schema.encoding)(codes, stats)[0]
    errors = (stored - given).abs()
    within = errors <= error_bound(stored, stats, std, schema.encoding) + rounding
    cosines = F.cosine_similarity(stored, given, dim=-1)
    return _BlockComparison(
        rows=len(stored),
        cosine=cosines.double().mean((0, 2)),
        least_cosine=cosines.amin((0, 2)),
        error=errors.double().mean((0, 2, 3)),
        largest_error=errors.amax((0, 2, 3)),
        within=within.double().mean((0, 2, 3)),
    )


def _stored_tokens(values: Tensor, patches: Tensor, has_cls: bool) -> Tensor:
    """Pick the stored tokens (n, M, T, D) of all tokens (n, M, N + CLS, D); `patches` (n, K) are in rank order."""
    places = F.pad(patches + 1, (1, 0)) if has_cls else patches
    return values[torch.arange(len(values))[:, None], :, places].transpose(1, 2)
