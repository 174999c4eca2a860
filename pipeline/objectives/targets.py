"""One training step as a module: targets decoded and normalised, student run, loss taken, so that it compiles as one graph."""

from torch import Tensor, nn

from pipeline.cache.encoding import TargetDecoder
from pipeline.objectives.losses import TargetKind, normalise_target
from pipeline.objectives.maskalign import MaskAlignStudent


class CachedTargets(nn.Module):
    """Codes (B, M, T, W) and stats (B, M, T, 2 + G) of the cache to M targets (B, T, D) of one kind.

    Level by level, so that compiled each is made where the loss reads it: values that several levels share would be written first.
    """

    def __init__(self, decoder: TargetDecoder, kind: TargetKind) -> None:
        super().__init__()
        self.decoder, self.kind = decoder, kind

    def forward(self, codes: Tensor, stats: Tensor) -> list[Tensor]:
        """Decode and normalise."""
        levels = zip(codes.unbind(1), stats.unbind(1), strict=True)
        return [
            normalise_target(*self.decoder.level(place, *level), self.kind)
            for place, level in enumerate(levels)
        ]


class TrainingStep(nn.Module):
    """Student and targets together. `targets` may be any module of the same arguments, such as one that runs the teacher itself."""

    def __init__(self, student: MaskAlignStudent, targets: nn.Module) -> None:
        super().__init__()
        self.student, self.targets = student, targets

    def forward(
        self, patches: Tensor, visible: Tensor, codes: Tensor, stats: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss () and its part at each level (M,)."""
        loss, per_level = self.student(patches, visible, self.targets(codes, stats))
        return loss, per_level
