"""From options and teacher to the schema of the cache, and whether a cache that exists is the one that is asked for."""

from pipeline.cache.schema import CacheSchema, CalibrationSchema, differing_keys
from pipeline.errors import ConfigError
from pipeline.extraction.options import ExtractionOptions
from pipeline.teacher.teacher import Teacher
from pipeline.views.masking import count_of_share

_UNCALIBRATED = CalibrationSchema(pictures=0, sha256="")


def build_schema(options: ExtractionOptions, teacher: Teacher) -> CacheSchema:
    """Describe the cache that the options ask for, before calibration.

    Raises ConfigError for a ranking that the teacher cannot give. A --keep that leaves out no patch is stored as 1, without a ranking.
    """
    patches = teacher.grid**2
    whole = count_of_share(patches, options.keep) == patches
    if not whole and options.keep_rank == "attention" and not teacher.facts.has_importance:
        raise ConfigError(
            f"--keep-rank 'attention' needs a teacher that ranks patches, and {options.teacher!r} has neither CLS nor "
            "a pooling query; give --keep-rank random, or --keep 1"
        )
    return CacheSchema(
        teacher=teacher.facts,
        view=options.view,
        levels=teacher.levels,
        encoding=options.encoding,
        keep=1.0 if whole else options.keep,
        keep_rank=None if whole else options.keep_rank,
        calibration=_UNCALIBRATED,
    )


def refuse_other_configuration(cache: str, asked: CacheSchema, found: CacheSchema) -> None:
    """Raise ConfigError, naming the keys that differ, if a cache that exists is not the one that is asked for."""
    if differences := differing_keys(asked, found):
        raise ConfigError(
            f"cache {cache!r} was made with another configuration ({'; '.join(differences)}); "
            "repeat its options or use another --cache"
        )
