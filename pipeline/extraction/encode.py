"""The teacher's part: batches of fixed composition in, encoded arrays out."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cache.encoding import encode_level
from pipeline.cache.schema import Encoding, feature_array
from pipeline.errors import CacheError
from pipeline.teacher.teacher import Teacher, TeacherFeatures
from pipeline.views.codec import Pixels


def precision_of(device: torch.device) -> str:
    """Return the arithmetic in which the teacher runs: bfloat16 autocast on a GPU, float32 on a CPU."""
    return "bfloat16" if device.type == "cuda" else "float32"


def run_teacher(teacher: Teacher, pixels: Tensor) -> TeacherFeatures:
    """Run the teacher on views (B, S, S, 3) uint8 in the device's precision."""
    autocast: AbstractContextManager[object] = torch.autocast("cuda", torch.bfloat16) if pixels.is_cuda else nullcontext()
    with torch.inference_mode(), autocast:
        return teacher.features(pixels)


class FeatureEncoder:
    """Turns batches of views into the feature, stats and attention rows of a unit."""

    def __init__(
        self,
        teacher: Teacher,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        encoding: Encoding,
        device: torch.device,
        batch_size: int,
    ) -> None:
        """Take the teacher and the calibration (M, D)."""
        self._teacher, self._encoding, self._device, self._batch_size = teacher, encoding, device, batch_size
        self._mean, self._std = (torch.from_numpy(values).to(device) for values in (mean, std))

    def encode(self, views: Sequence[Pixels]) -> dict[str, NDArray[np.generic]]:
        """Encode up to one batch of views (S, S, 3) uint8 to arrays by name; raises CacheError for features that are not finite.

        A short batch is padded, so that no row depends on how many come with it.
        """
        pixels = np.zeros((self._batch_size, *views[0].shape), np.uint8)
        np.stack(views, out=pixels[: len(views)])
        features = run_teacher(self._teacher, torch.from_numpy(pixels).to(self._device))
        codes, stats = zip(*map(self._encode_level, features.hidden, self._mean, self._std), strict=True)
        arrays = {feature_array(level): part for level, part in zip(self._teacher.levels, codes, strict=True)}
        arrays["stats"] = torch.stack(stats, dim=1)
        if features.importance is not None:
            arrays["attention"] = features.importance.float()
        rows = {name: values[: len(views)].cpu().numpy() for name, values in arrays.items()}
        self._refuse_nonfinite(rows)
        return rows

    def _encode_level(self, hidden: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        return encode_level(hidden, mean, std, self._encoding)

    def _refuse_nonfinite(self, rows: dict[str, NDArray[np.generic]]) -> None:
        for name in ("stats", "attention"):
            if name in rows and not np.isfinite(rows[name]).all():
                raise CacheError(
                    f"the teacher's {name} are not finite or exceed half precision: "
                    "check the teacher's weights, or run it in float32 on --device cpu"
                )
