"""From options and teacher to the schema of the cache, and whether a cache that exists is the one that is asked for."""

import math

import torch

from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema, CalibrationSchema, TeacherSchema, ViewSchema, differing_keys
from pipeline.errors import ConfigError
from pipeline.extraction.encode import precision_of
from pipeline.extraction.options import ExtractionOptions
from pipeline.teacher.teacher import Teacher
from pipeline.views.codec import DECODER
from pipeline.views.crop import RESIZE
from pipeline.views.masking import RankStrategy, count_of_share

_UNCALIBRATED = CalibrationSchema(pictures=0, sha256="")


def describe_teacher(teacher: Teacher, device: torch.device) -> TeacherSchema:
    """Describe a teacher as a cache of its features does."""
    return TeacherSchema(
        library=teacher.identity.library,
        name=teacher.identity.name,
        tag=teacher.identity.tag,
        weights_sha256=teacher.identity.weights_sha256,
        trained=teacher.trained,
        depth=teacher.depth,
        width=teacher.width,
        patch_size=teacher.patch_size,
        input_size=teacher.input_size,
        mean=teacher.mean,
        std=teacher.std,
        has_cls=teacher.has_cls,
        has_importance=teacher.has_importance,
        precision=precision_of(device),
        post_norm_eps=teacher.post_norm_eps,
        projection_width=teacher.projection_width,
        output_sha256=digest_of_arrays(*teacher.output().values()),
    )


def build_schema(options: ExtractionOptions, teacher: Teacher) -> CacheSchema:
    """Describe the cache that the options ask for, before calibration; raises ConfigError for a --keep that the teacher does not allow."""
    keep, keep_rank = _keep_of(options, teacher)
    return CacheSchema(
        teacher=describe_teacher(teacher, options.device),
        view=ViewSchema(
            format=options.view_format,
            image_size=options.image_size,
            patch_size=options.patch_size,
            crop_scale=options.crop_scale,
            flip=options.flip,
            seed=options.seed,
            decoder=DECODER,
            resize=RESIZE,
        ),
        levels=teacher.levels,
        encoding=options.encoding,
        keep=keep,
        keep_rank=keep_rank,
        calibration=_UNCALIBRATED,
    )


def _keep_of(options: ExtractionOptions, teacher: Teacher) -> tuple[float, RankStrategy | None]:
    """Return share and ranking of the stored patches; 1 and None for a share that leaves out none."""
    patches = (options.image_size // options.patch_size) ** 2
    count = count_of_share(patches, options.keep)
    if not count:
        least = math.ceil(1e4 / patches) / 1e4
        raise ConfigError(f"--keep {options.keep:g} leaves 0 of {patches} patches: give {least:g} to 1")
    if count == patches:
        return 1.0, None
    if options.keep_rank == "attention" and not teacher.has_importance:
        raise ConfigError(
            f"--keep-rank 'attention' needs a teacher that ranks patches, and {options.teacher!r} has neither CLS nor a pooling query: "
            "give --keep-rank random, or --keep 1"
        )
    return options.keep, options.keep_rank


def refuse_other_configuration(options: ExtractionOptions, teacher: Teacher) -> None:
    """Raise ConfigError, naming the keys that differ, if the cache exists with another configuration."""
    differences = differing_keys(build_schema(options, teacher), Cache(options.cache).schema)
    if differences:
        raise ConfigError(
            f"cache {options.cache!r} was made with another configuration ({'; '.join(differences)}): "
            "repeat its options or use another --cache"
        )
