"""What the parts of a benchmark share: images, teacher, caches and configuration, each made when it is first needed."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pipeline.benchmark.options import RECIPES, BenchOptions
from pipeline.benchmark.photographs import IMAGE_BYTES, write_photographs
from pipeline.benchmark.synthetic import made_up_cache
from pipeline.cache.reader import Cache
from pipeline.cache.schema import CacheSchema, TeacherFacts, array_specs
from pipeline.errors import ConfigError, MaskAlignError
from pipeline.extraction.extractor import Extractor
from pipeline.extraction.job import build_schema, build_teacher, run_extraction
from pipeline.extraction.options import ExtractionOptions
from pipeline.teacher.request import LOCAL, RANDOM
from pipeline.teacher.teacher import Teacher
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import TrainingJob, build_job
from pipeline.views.maker import ViewMaker
from pipeline.views.sample import SourceSample
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar, resolve_tars

_IMAGES_OF_A_TAR = 512
_BLOCK_IMAGES = 128  # of the cache on which reads are measured with the tiny recipe
_LARGEST_TEACHER_BATCH = 256
_CROP_BYTES = 27_000
_LEAST_BATCH = 64


class Workbench:
    """Everything lies in `folder`, which is the caller's to remove; `tell` says what is written before it is."""

    def __init__(
        self, options: BenchOptions, recipe: RunConfig, folder: Path, tell: Callable[[str], None]
    ) -> None:
        self.options, self.folder, self.tell, self._recipe = options, folder, tell, recipe

    @cached_property
    def shards(self) -> list[SourceTar]:
        """The source tars: the first of the user's, as many as hold enough images, or drawn ones."""
        images = self.options.effort.images
        if self.options.shards:
            found = resolve_tars(self.options.shards)
            before = itertools.accumulate((shard.size for shard in found), initial=0)
            return [shard for shard, size in zip(found, before, strict=False) if size < images * IMAGE_BYTES]
        self.tell(f"drawing {images} images, {images * IMAGE_BYTES / 1e6:.0f} MB, in {self.folder}")
        write_photographs(self.folder / "images", images, max(2, images // _IMAGES_OF_A_TAR))
        return resolve_tars(str(self.folder / "images"))

    def samples(self, count: int) -> list[SourceSample]:
        """Return the first samples of the source tars."""
        return list(
            itertools.islice((sample for shard in self.shards for sample in read_samples(shard)), count)
        )

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher on the device; its weights mean nothing for its speed, so that of a cache is made anew, untrained."""
        return build_teacher(self.extraction_options())

    @cached_property
    def cache(self) -> Cache:
        """The cache that training is fed from: the user's, else one that is made of the source tars."""
        if self.options.cache:
            return Cache(self.options.cache)
        if not self.options.extracts:
            return self._made_up(
                "made-up.cache", build_schema(self.extraction_options(), self.teacher), self.shards
            )
        self.extract("bench.cache")
        return Cache(self.folder / "bench.cache")

    @cached_property
    def block_cache(self) -> Cache:
        """The cache on which reading is measured: as large blocks as those of B/16, which the tiny recipe's are not."""
        if self.options.cache or self.options.recipe != "tiny":
            return self.cache
        plain = build_schema(self.extraction_options(), self.teacher)
        large = plain.teacher.model_copy(update={"width": 768, "depth": 12})
        shards = self.shards
        if not self.options.shards:
            write_photographs(self.folder / "few-images", _BLOCK_IMAGES, 1)
            shards = resolve_tars(str(self.folder / "few-images"))
        schema = plain.model_copy(update={"teacher": large, "levels": tuple(range(7, 12))})
        return self._made_up("blocks.cache", schema, shards[:1])

    @cached_property
    def job(self) -> TrainingJob:
        """Student, optimiser and stream of a training on the cache."""
        return build_job(self.config, self.cache, self.folder / "no-run", Ranks(), self.options.device)

    @cached_property
    def block_job(self) -> TrainingJob:
        """The same on the cache whose reads are measured; its batch, which nothing is measured of, fits few blocks."""
        train = self.config.train.model_copy(
            update={"global_batch": min(_LEAST_BATCH, self.options.batch_size)}
        )
        config = self.config.model_copy(update={"train": train})
        return build_job(config, self.block_cache, self.folder / "no-run", Ranks(), self.options.device)

    @property
    def config(self) -> RunConfig:
        """The recipe with the batch and the workers of the benchmark."""
        train = self._recipe.train.model_copy(
            update={"global_batch": self.options.batch_size, "accumulate": 1}
        )
        data = self._recipe.data.model_copy(update={"workers": self.options.workers})
        return self._recipe.model_copy(update={"train": train, "data": data})

    @property
    def maker(self) -> ViewMaker:
        """What makes the first view of an image."""
        return self.extraction_options().maker

    def extraction_options(self, cache: str = "", shards: Sequence[SourceTar] = ()) -> ExtractionOptions:
        """Return the options of an extraction into a folder of the workbench: those of the user's cache, else the paper's."""
        options = ExtractionOptions(
            shards=shards,
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
        return replace(
            options,
            teacher=self.options.teacher or untrained_twin(given.teacher),
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
        options = self.extraction_options(name, self.shards)
        self._tell_size(name, build_schema(options, self.teacher), self.shards)
        extractor, missing = run_extraction(options)
        if missing:
            raise MaskAlignError("; ".join(extractor.tally.failed.values()))
        return extractor

    def _made_up(self, name: str, schema: CacheSchema, shards: list[SourceTar]) -> Cache:
        self._tell_size(name, schema, shards)
        return made_up_cache(self.folder / name, schema, shards, self.maker)

    def _tell_size(self, name: str, schema: CacheSchema, shards: list[SourceTar]) -> None:
        """Say about how large a cache will be."""
        images = sum(shard.size for shard in shards) / IMAGE_BYTES
        view = _CROP_BYTES + sum(spec.block_bytes(1) for spec in array_specs(schema).values() if spec.by_rows)
        self.tell(f"making {name}, about {images * view / 1e6:,.0f} MB, in {self.folder}")


def untrained_twin(teacher: TeacherFacts) -> str:
    """Return the address of an untrained teacher of the same shape; raises ConfigError if its name is that of a folder."""
    if teacher.tag == LOCAL:
        raise ConfigError(
            f"the teacher of the cache, {teacher.name!r}, came from a folder: give one of its shape by --teacher"
        )
    return teacher.address(RANDOM)
