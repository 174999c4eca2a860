"""The options of extract-teacher, checked one by one; whether they fit a teacher is found out later."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.cache.schema import Encoding
from pipeline.views.codec import ViewFormat
from pipeline.views.crop import CropPolicy
from pipeline.views.maker import ViewMaker
from pipeline.views.masking import RankStrategy
from pipeline.views.source_tars import SourceTar


@dataclass(frozen=True)
class ExtractionOptions:
    """The options of extract-teacher."""

    shards: Sequence[SourceTar]
    cache: str
    teacher: str
    levels: str
    views: int
    encoding: Encoding
    keep: float
    keep_rank: RankStrategy
    view_format: ViewFormat
    image_size: int
    patch_size: int
    crop_scale: tuple[float, float]
    flip: float
    seed: int
    batch_size: int
    workers: int
    max_bad: float
    limit: int | None
    device: torch.device
    rank: int
    processes: int

    @property
    def policy(self) -> CropPolicy:
        """How views are drawn."""
        return CropPolicy(self.image_size, self.crop_scale, self.flip, self.seed)

    @property
    def maker(self) -> ViewMaker:
        """What makes the first view."""
        return ViewMaker(self.policy, (0,), self.view_format)

    @property
    def sources(self) -> list[tuple[str, int]]:
        """Names and sizes of the tars that this run covers."""
        return [(shard.name, shard.size) for shard in self.shards[: self.limit]]
