"""Images, teacher, caches and training for all parts of a benchmark, each made when first needed."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.benchmark.options import RECIPES, BenchOptions
from pipeline.benchmark.synthetic import IMAGE_BYTES, synthetic_cache, write_photographs
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema
from pipeline.cache.sizes import view_bytes
from pipeline.config import parse_config
from pipeline.errors import ConfigError, MaskAlignError
from pipeline.extraction.extractor import Extractor
from pipeline.extraction.job import build_schema, build_teacher, run_extraction
from pipeline.extraction.options import ExtractionOptions
from pipeline.teacher.request import LOCAL, RANDOM
from pipeline.teacher.teacher import Teacher
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import TrainingJob, build_job
from pipeline.views.source_tars import SourceTar, resolve_tars

_IMAGES_OF_A_TAR = 512
_CHUNK_IMAGES = 128  # of the cache on which reads are measured with the tiny recipe
_LARGEST_TEACHER_BATCH = 256
_CROP_BYTES = 27_000
_LEAST_BATCH = 64


class Workbench:
    """All files are in `folder`, which the caller removes; `log` gets a line before a large write."""

    def __init__(
        self, options: BenchOptions, recipe: RunConfig, folder: Path, log: Callable[[str], None]
    ) -> None:
        self.options, self.folder, self.log, self._recipe = options, folder, log, recipe

    @cached_property
    def tars(self) -> list[SourceTar]:
        """The source tars: the user's, as many as it takes for enough images, or drawn ones."""
        images = self.options.images
        if not self.options.shards:
            return self._drawn("images", images, max(2, images // _IMAGES_OF_A_TAR))
        found = resolve_tars(self.options.shards)
        before = itertools.accumulate((tar.size for tar in found), initial=0)
        return [tar for tar, size in zip(found, before, strict=False) if size < images * IMAGE_BYTES]

    def _drawn(self, name: str, images: int, tars: int) -> list[SourceTar]:
        self.log(f"drawing {images} images, {images * IMAGE_BYTES / 1e6:,.0f} MB, in {self.folder}")
        write_photographs(self.folder / name, images, tars)
        return resolve_tars(str(self.folder / name))

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher on the device; an untrained one, equally fast, if the cache's own is not given."""
        return build_teacher(self.extraction_options())

    @cached_property
    def cache(self) -> Cache:
        """The cache that training reads: the user's, else one of the source tars with random features."""
        if self.options.cache:
            return Cache(self.options.cache)
        schema = build_schema(self.extraction_options(), self.teacher)
        return self._synthetic("bench.cache", schema, self.tars)

    @cached_property
    def read_cache(self) -> Cache:
        """The cache for measuring reads: its chunks are as large as B/16's, unlike the tiny recipe's."""
        if self.options.cache or self.options.recipe != "tiny":
            return self.cache
        plain = build_schema(self.extraction_options(), self.teacher)
        large = plain.teacher.model_copy(update={"width": 768, "depth": 12})
        schema = plain.model_copy(update={"teacher": large, "levels": tuple(range(7, 12))})
        return self._synthetic("reads.cache", schema, self._few_tars)

    @cached_property
    def _few_tars(self) -> list[SourceTar]:
        """The tars of `read_cache`."""
        if self.options.recipe != "tiny":
            return self.tars
        return (self.tars if self.options.shards else self._drawn("few-images", _CHUNK_IMAGES, 1))[:1]

    def two_teachers(self) -> tuple[TrainingJob, TrainingJob]:
        """Return trainings that read the same bytes: from `read_cache` and another one, and from one alone.

        The second has one cache with twice the levels.
        """
        schema, batch = self.read_cache.schema, self.read_job.spec.batch_size
        other = self._synthetic("other.cache", schema, self._few_tars)
        levels = 2 * len(schema.levels)
        teacher = schema.teacher.model_copy(update={"depth": max(levels, schema.teacher.depth)})
        twice = schema.model_copy(update={"teacher": teacher, "levels": tuple(range(levels))})
        whole = self._synthetic("twice.cache", twice, self._few_tars)
        return (
            self._build_job(self.config, self.read_cache, batch, [other]),
            self._build_job(self.config, whole, batch),
        )

    @cached_property
    def job(self) -> TrainingJob:
        """Student, optimiser and stream of a training on the cache."""
        return self._build_job(self.config, self.cache, self.options.batch_size)

    @cached_property
    def read_job(self) -> TrainingJob:
        """The same on `read_cache`, with a batch that few chunks fill."""
        return self._build_job(self.config, self.read_cache, min(_LEAST_BATCH, self.options.batch_size))

    def job_of(self, objective: Mapping[str, Any], batch: int) -> TrainingJob:
        """Return a training of another objective, with its own mask; raises ConfigError."""
        changed = {**self.config.model_dump(mode="json"), "objective": dict(objective), "mask": {}}
        return self._build_job(parse_config(RunConfig, changed), self.cache, batch)

    def _build_job(
        self, config: RunConfig, cache: Cache, batch: int, others: Sequence[Cache] = ()
    ) -> TrainingJob:
        train = config.train.model_copy(update={"global_batch": batch})
        config = config.model_copy(update={"train": train})
        ranks, device = Ranks(), self.options.device
        return build_job(config, cache, self.folder / "no-run", ranks, device, others=others)

    @property
    def config(self) -> RunConfig:
        """The recipe with the batch and the workers of the benchmark, which has one lane."""
        batch = {"global_batch": self.options.batch_size, "accumulate": 1}
        train = self._recipe.train.model_copy(update=batch)
        own = {"workers": self.options.workers, "lanes": "auto", "window_blocks": "auto"}
        data = self._recipe.data.model_copy(update=own)
        return self._recipe.model_copy(update={"train": train, "data": data})

    def extraction_options(self, cache: str = "", tars: Sequence[SourceTar] = ()) -> ExtractionOptions:
        """Return the options of an extraction: those of the user's cache, else the paper's."""
        options = ExtractionOptions(
            shards=tars,
            cache=str(self.folder / cache),
            teacher=self.options.teacher or RECIPES[self.options.recipe].teacher,
            batch_size=min(self.options.batch_size, _LARGEST_TEACHER_BATCH),
            workers=self.options.workers,
            max_bad=1.0,
            device=self.options.device,
        )
        if not self.options.cache:
            return options
        given = self.cache.schema
        if not self.options.teacher and given.teacher.tag == LOCAL:
            raise ConfigError(f"the cache's teacher {given.teacher.name!r} has no address: give --teacher")
        return replace(
            options,
            teacher=self.options.teacher or given.teacher.address(RANDOM),  # untrained, equally fast
            levels="".join(f"{level}," for level in given.levels),
            encoding=given.encoding,
            keep=given.keep,
            keep_rank=given.keep_rank or "attention",
            view_format=given.view.format,
            image_size=given.view.image_size,
            patch_size=given.view.patch_size,
        )

    def extract(self, name: str) -> Extractor:
        """Run the whole of stage one into a new cache; raises MaskAlignError if it fails."""
        options = self.extraction_options(name, self.tars)
        self._log_size(name, build_schema(options, self.teacher), self.tars)
        extractor, missing = run_extraction(options)
        if missing:
            raise MaskAlignError("; ".join(extractor.tally.failed.values()))
        return extractor

    def _synthetic(self, name: str, schema: CacheSchema, tars: list[SourceTar]) -> Cache:
        self._log_size(name, schema, tars)
        return synthetic_cache(self.folder / name, schema, tars, self.extraction_options().maker())

    def _log_size(self, name: str, schema: CacheSchema, tars: list[SourceTar]) -> None:
        images = sum(tar.size for tar in tars) / IMAGE_BYTES
        view = _CROP_BYTES + view_bytes(schema)
        self.log(f"making {name}, about {images * view / 1e6:,.0f} MB, in {self.folder}")
