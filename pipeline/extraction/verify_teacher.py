"""Compares a cache with its teacher, which runs again on stored crops and must give the stored features."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.cache.encoding import TargetDecoder, error_bound, whiten
from pipeline.cache.join import decode_crops, read_joined
from pipeline.cache.layout import chunk_count, feature_array
from pipeline.cache.reader import Cache
from pipeline.cache.schema import Encoding
from pipeline.errors import CacheError, ConfigError
from pipeline.extraction.encode import run_teacher
from pipeline.seeding import generator
from pipeline.teacher.load import load_teacher
from pipeline.teacher.request import LIBRARIES, LOCAL
from pipeline.teacher.teacher import Teacher

LEAST_COSINE: dict[Encoding, float] = {"float16": 0.999, "int8": 0.999, "int4": 0.98}
_ROWS_OF_CHUNK = 16


@dataclass(frozen=True)
class LevelComparison:
    """One level: cosines and errors of whitened features; `within`: the share of values within the bound."""

    level: int
    mean_cosine: float
    least_cosine: float
    mean_error: float
    largest_error: float
    within: float


def load_teacher_of(cache: Cache, spec: str | None, device: torch.device) -> Teacher:
    """Load a cache's teacher, from `spec` if given; raises CacheError if its identity is not the cache's.

    It runs in the cache's precision, but on a CPU in float32.
    """
    schema, stored = cache.schema, cache.schema.teacher
    if spec is None and stored.tag == LOCAL:
        if stored.library not in LIBRARIES:
            raise ConfigError(
                f"the cache's teacher {stored.name!r} was a network given in Python, which no address loads: "
                "leave --teacher out"
            )
        address = f"{stored.library}:local-dir:PATH"
        raise ConfigError(f"the cache's teacher came from a folder; name it with --teacher-spec {address}")
    wanted = spec or stored.address(stored.tag)
    teacher = load_teacher(
        wanted,
        image_size=schema.view.image_size,
        patch_size=schema.view.patch_size,
        levels=schema.levels,
        precision=stored.precision if device.type == "cuda" else "float32",
    ).to(device)
    keys = stored.model_fields_set - {"precision"}
    here, there = (facts.model_dump(include=keys) for facts in (teacher.facts, stored))
    differing = [
        f"{key}: {here[key]!r} here, {there[key]!r} in the cache" for key in here if here[key] != there[key]
    ]
    if differing:
        raise CacheError(
            f"teacher {wanted!r} is not the one of cache {cache.address!r} ({'; '.join(differing)}); "
            "give the right one by --teacher-spec"
        )
    return teacher


def compare_with_teacher(
    cache: Cache, teacher: Teacher, device: torch.device, rows: int
) -> list[LevelComparison]:
    """Run the teacher on about `rows` stored crops, 16 from each of some chunks, and compare level by level.

    Raises CacheError if the stored final norm or projection is not the teacher's.
    """
    output = teacher.tower.output()
    for name, values in cache.teacher_output().items():
        if not np.array_equal(values, output[name]):
            raise CacheError(f"array {name!r} of cache {cache.address!r} is not its teacher's; extract again")
    channel_mean, std = (torch.from_numpy(values) for values in cache.calibration())
    decoder, rounding = TargetDecoder(channel_mean, std, cache.schema.encoding), _tolerance(cache)[0]
    found = []  # for each chunk (n, 5, M): mean and least cosine, mean and largest error, share within
    units = cache.finished(None, allow_partial=True)
    chunks = [(unit, chunk) for unit in units for chunk in range(chunk_count(int(unit["rows"])))]
    order = generator(0, "blocks to compare").permutation(len(chunks))
    for unit, chunk in (chunks[chosen] for chosen in order[: -(-rows // _ROWS_OF_CHUNK)].tolist()):
        given, codes, stats = _read_chunk(cache, teacher, device, unit, chunk)
        stored = decoder(codes, stats)[0]
        error = (stored - given).abs()
        inside = error <= error_bound(stored, stats, std, cache.schema.encoding) + rounding
        cosine = F.cosine_similarity(stored, given, dim=-1)
        cosine, error, inside = cosine.double(), error.double(), inside.double()
        cosines, errors = (cosine.mean(2), cosine.amin(2)), (error.mean((2, 3)), error.amax((2, 3)))
        found.append(torch.stack([*cosines, *errors, inside.mean((2, 3))], dim=1))
    images = torch.cat(found)
    mean, least, largest = images.mean(0), images.amin(0), images.amax(0)
    columns = (mean[0], least[1], mean[2], largest[3], mean[4])
    rows_of_levels = zip(cache.schema.levels, *(column.tolist() for column in columns), strict=True)
    return [LevelComparison(*row) for row in rows_of_levels]


def refuse_differences(cache: Cache, found: list[LevelComparison]) -> None:
    """Raise CacheError naming the levels that are not what the teacher gives."""
    cosine, (rounding, share) = LEAST_COSINE[cache.schema.encoding], _tolerance(cache)
    sound = [one.level for one in found if one.mean_cosine >= cosine and one.within >= share]  # NaN is not
    if wrong := [one.level for one in found if one.level not in sound]:
        raise CacheError(
            f"levels {wrong} of cache {cache.address!r} are not what the teacher gives here (required: "
            f"mean cosine at least {cosine}, and {share:.1%} of values off by at most the encoding's "
            f"error bound plus {rounding}); "
            "use the library versions in logs/, or extract again"
        )


def _tolerance(cache: Cache) -> tuple[float, float]:
    """Return what rounding may add to an error, and the share of values that must then be within the bound.

    bfloat16 on one side gives the demo's CLIP errors of 0.006 on average and of 0.02 for one value in a
    hundred.
    """
    return (1e-3, 0.999) if cache.schema.teacher.precision == "float32" else (0.05, 0.95)


def _read_chunk(
    cache: Cache, teacher: Teacher, device: torch.device, unit: np.void, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return whitened features (n, M, T, D) of a chunk's rows by the teacher; stored codes and stats."""
    names = [feature_array(level) for level in cache.schema.levels]
    kept = ["tokens"] if cache.schema.keep < 1 else []
    joined = read_joined(cache, cache.pinned_commit(unit), chunk, [*names, "stats", *kept])
    arrays = {name: rows[:_ROWS_OF_CHUNK] for name, rows in joined.arrays.items()}
    pixels = decode_crops(cache, joined, _ROWS_OF_CHUNK)
    hidden = torch.stack(run_teacher(teacher, torch.from_numpy(pixels).to(device)).hidden, dim=1).cpu()
    given = whiten(hidden)[0]
    if kept:
        patches = torch.from_numpy(arrays["tokens"].astype(np.int64))  # (n, K) in rank order
        tokens = F.pad(patches + 1, (1, 0)) if cache.schema.teacher.has_cls else patches
        given = given[torch.arange(len(given))[:, None], :, tokens].transpose(1, 2)
    codes = torch.from_numpy(np.stack([arrays[name] for name in names], axis=1))
    return given, codes, torch.from_numpy(arrays["stats"])
