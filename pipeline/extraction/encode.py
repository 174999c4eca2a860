"""Runs the teacher: batches of fixed composition in, encoded arrays out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cache.encoding import encode_level
from pipeline.cache.layout import feature_array
from pipeline.cache.schema import CacheSchema
from pipeline.cache.units import Unit
from pipeline.errors import CacheError, ConfigError, cause_of
from pipeline.extraction.options import Compile, Precision
from pipeline.runtime.device import DeviceEvent, SideStream, compiled, to_host
from pipeline.teacher.teacher import Teacher, TeacherFeatures
from pipeline.views.masking import rank_of_view

_LARGEST_HALF = 65504

Encoded = tuple[list[Tensor], Tensor, Tensor | None]  # codes by level, stats, importance


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """Return the arithmetic of the teacher's forward pass.

    `auto` is float32 on a CPU, bfloat16 on a GPU, and float16 on a GPU before Ampere, which emulates
    bfloat16.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"


def run_teacher(teacher: Teacher, pixels: Tensor) -> TeacherFeatures:
    """Run the teacher on views (B, S, S, 3) uint8 in its precision."""
    with in_precision(teacher, pixels.device):
        return teacher.features(pixels)


@contextmanager
def in_precision(teacher: Teacher, device: torch.device) -> Iterator[None]:
    """Run a teacher in its precision, without gradients."""
    dtype = getattr(torch, teacher.facts.precision)
    if dtype != torch.float32:
        with torch.inference_mode(), torch.autocast(device.type, dtype):
            yield
        return
    # cuDNN would round the inputs of the patch embedding to TF32
    no_tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    exact = no_tf32 if device.type == "cuda" else nullcontext()
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), exact:
        yield


def refuse_features(moments: Tensor, levels: Sequence[int], keys: Sequence[str]) -> None:
    """Raise CacheError, naming block and image, if a value of (B, T, M, ...) float16 is not finite."""
    bad = ~moments.isfinite().transpose(1, 2).flatten(2).all(-1)
    if bad.any():
        sample, level = bad.nonzero()[0].tolist()
        raise CacheError(
            f"block {levels[level]} of the teacher gives {keys[sample]!r} features that are not finite, or "
            f"whose mean or std exceeds {_LARGEST_HALF:g}; check the teacher's weights, give --precision "
            "float32, or leave the image out"
        )


@dataclass
class EncodingBatch:
    """A batch in flight: what stays on the device, and what is copied to the host at once."""

    keys: Sequence[str]
    unit: Unit
    codes: list[Tensor]  # M levels (n, T, W), all tokens
    stats: Tensor  # (n, T, M, 2 + G)
    importance: Tensor | None  # (n, N) float32, on the host once `done` has come
    finite: Tensor  # () bool, likewise: whether all stats are
    done: DeviceEvent


class FeatureEncoder:
    """Turns batches of views into the feature, stats, attention and token rows of a unit.

    On a GPU `launch` returns at once: launch the next batch before collecting the last one, and the GPU never
    waits.
    """

    def __init__(
        self,
        teacher: Teacher,
        mean: NDArray[np.float32],
        std: NDArray[np.float32],
        schema: CacheSchema,
        device: torch.device,
        batch_size: int,
        compile: Compile = "off",
    ) -> None:
        """Take the teacher and the calibration (M, D). `auto`: on a GPU compiled, if that works."""
        self.device, self.batch_size = device, batch_size
        self._teacher, self._schema = teacher, schema
        self._mean, self._std = (torch.from_numpy(values).to(device) for values in (mean, std))
        self._copies = SideStream(device)
        self.must_compile = compile == "on"
        self.compiled = self.must_compile or (compile == "auto" and device.type == "cuda")
        self.compiler_fault = ""  # why the teacher runs uncompiled although compiling was tried
        self._features = compiled(self.features) if self.compiled else self.features

    def prepare(self) -> None:
        """Compile for whole batches now: it takes minutes, which must not count in a rate."""
        if self.compiled:
            side = self._schema.view.image_size
            pixels = torch.zeros(self.batch_size, side, side, 3, dtype=torch.uint8, device=self.device)
            with in_precision(self._teacher, self.device):
                self._run(pixels)
            DeviceEvent(self.device).wait()

    def launch(self, pixels: Tensor, keys: Sequence[str], unit: Unit) -> EncodingBatch:
        """Begin to encode the first of the views (b, S, S, 3) uint8 on the device: images `keys` of a unit.

        The rows behind them only fill up the batch.
        """
        begun = DeviceEvent(self.device)
        count = len(keys)
        with in_precision(self._teacher, self.device):
            codes, stats, importance = self._run(pixels)
            on_host = None if importance is None else to_host(importance[:count].float())
            finite = to_host(stats[:count].isfinite().all())
        done = DeviceEvent(self.device, since=begun)
        return EncodingBatch(
            keys, unit, [part[:count] for part in codes], stats[:count], on_host, finite, done
        )

    def _run(self, pixels: Tensor) -> Encoded:
        """Run the compiled teacher; where compiling fails, the uncompiled one, or raise ConfigError.

        Each batch size is compiled when it first comes, so the compiler may fail late. It fails with errors
        of all kinds: no C compiler, a GPU too old for Triton or for its bfloat16, a full cache folder.
        """
        if not self.compiled:
            return self.features(pixels)
        try:
            return self._features(pixels)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            fault = cause_of(error)
            if self.must_compile:
                raise ConfigError(f"the teacher cannot be compiled ({fault}); give --compile off") from error
            self.compiled, self.compiler_fault = False, fault
            return self.features(pixels)

    def features(self, pixels: Tensor) -> Encoded:
        """Encode views (b, S, S, 3): codes M x (b, T, W), stats (b, T, M, 2 + G), importance (b, N)."""
        features = self._teacher.features(pixels)
        # Encoding is float32 arithmetic, and under autocast to bfloat16 `stack` refuses float16 tensors.
        with torch.autocast(self.device.type, enabled=False):
            levels = zip(features.hidden, self._mean, self._std, strict=True)
            encoded = [encode_level(*level, self._schema.encoding) for level in levels]
            stats = torch.stack([stats for _, stats in encoded], dim=2)
        return [codes for codes, _ in encoded], stats, features.importance

    def collect(self, batch: EncodingBatch) -> dict[str, NDArray[np.generic]]:
        """Wait for a batch and return its rows by array; raises CacheError if they are not finite."""
        batch.done.wait()
        schema = self._schema
        if not batch.finite:
            refuse_features(batch.stats, schema.levels, batch.keys)
        rows: dict[str, NDArray[np.generic]] = {}
        importance = None if batch.importance is None else batch.importance.numpy()
        if importance is not None:
            bad = np.flatnonzero(~np.isfinite(importance).all(axis=1))
            if len(bad):
                raise CacheError(
                    f"the attention of the teacher's last block to the patches of {batch.keys[bad[0]]!r} is "
                    "not finite; check the teacher's weights, give --precision float32, or leave the image "
                    "out"
                )
            rows["attention"] = importance
        if schema.keep_rank is not None:  # on the host, while the device is at the next batch
            source, view = schema.source_of_draws(batch.unit.source), batch.unit.view
            rates = [None] * len(batch.keys) if importance is None else importance
            rankings = [
                rank_of_view(schema.keep_rank, rate, schema.patches, schema.view.seed, source, key, view)
                for rate, key in zip(rates, batch.keys, strict=True)
            ]
            rows["tokens"] = np.stack(rankings)[:, : schema.stored_patches].astype(np.uint16)
        with self._copies.running():
            stored = self._stored(batch.codes, batch.stats, rows.get("tokens"))
            copies = {name: to_host(values) for name, values in stored.items()}
        self._copies.wait()
        return {name: values.numpy() for name, values in copies.items()} | rows

    def _stored(
        self, codes: list[Tensor], stats: Tensor, ranked: NDArray[np.generic] | None
    ) -> dict[str, Tensor]:
        """Return the rows of the stored tokens. All tokens were encoded, so that --keep changes no value."""
        if ranked is not None:
            tokens = torch.from_numpy(ranked.astype(np.int64)).to(self.device)
            tokens = F.pad(tokens + 1, (1, 0)) if self._schema.teacher.has_cls else tokens
            samples = torch.arange(len(tokens), device=self.device)[:, None]
            codes, stats = [part[samples, tokens] for part in codes], stats[samples, tokens]
        arrays = {feature_array(level): part for level, part in zip(self._schema.levels, codes, strict=True)}
        return arrays | {"stats": stats.transpose(1, 2)}
