"""What an objective needs of the data; the stream delivers only that. Stream workers import no torch here."""

from dataclasses import dataclass
from typing import Literal

Levels = Literal["none", "last", "chosen"]
TargetKind = Literal["whiten", "none", "l2", "post_norm", "projected"]


@dataclass(frozen=True)
class Needs:
    """Which tokens' targets, which levels and which pixels the workers send.

    A batch has these tensors: `patches` (B, K, P) uint8, or (B, N, P) with the visible ones first where
    `pixels` is "all"; `visible` (B, K) int64 ascending; `hidden` (B, U) int64 ascending where `positions` is
    set; `visible_codes` (B, M, T, W) and `visible_stats` (B, M, T, 2 + G) of CLS, if the teacher has one, and
    the visible patches; `hidden_codes` and `hidden_stats` of the hidden patches. Those of a second teacher
    end in _1, and so on. The step decodes them to the form `target`. `labels` (B,) int64 are there where
    `classes` is not 0: each is below it.
    """

    visible: Levels = "chosen"
    hidden: Levels = "none"
    pixels: Literal["visible", "all"] = "visible"
    positions: bool = False
    target: TargetKind = "whiten"
    classes: int = 0

    def targets(self, levels: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return the levels that are delivered for "visible" and for "hidden" tokens, if any."""
        named: dict[str, Levels] = {"visible": self.visible, "hidden": self.hidden}
        return {
            part: levels if which == "chosen" else levels[-1:]
            for part, which in named.items()
            if which != "none"
        }

    @property
    def hides(self) -> bool:
        """Whether the objective means nothing without hidden patches."""
        return self.hidden != "none" or self.positions


def target_field(part: str, what: str, teacher: int = 0) -> str:
    """Return the name in a batch of the `codes` or `stats` of a teacher, the second being number 1."""
    return f"{part}_{what}" + (f"_{teacher}" if teacher else "")


@dataclass(frozen=True)
class CodebookRequest:
    """The codes that an objective predicts: what they code, their kind and number, and the tokens to fit.

    `target` is the form of the coded features. `path` is the codebook of another run, or the folder of
    that run. `steps` and `blocks` are the steps of VQ-KD's training and the blocks of its decoder, which
    predicts the features in the form `reconstructs`.
    """

    source: Literal["features", "pixels"]
    kind: Literal["kmeans", "vqkd"]
    size: int
    target: TargetKind
    tokens: int
    path: str | None = None
    steps: int = 0
    blocks: int = 0
    reconstructs: TargetKind | None = None


VISIBLE_ALONE = Needs()
