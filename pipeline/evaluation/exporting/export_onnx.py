"""A ViT as an ONNX graph for batches of any size."""

import warnings
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.evaluation.exporting.exported import (
    Written,
    all_tokens,
    compare,
    library_of_format,
    preprocessing,
    sample_images,
    write_json,
)
from pipeline.evaluation.subject import Subject

_EXTRA = "'maskalign[onnx]'"
_ONE_FILE = 1 << 30  # bytes of weights; protobuf ends at 2 GB


class _Outputs(nn.Module):
    """Normalised images (B, 3, H, W) to CLS (B, C), if there is one, and patches (B, N, C)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.vit, self.prefix, self.has_cls = subject.vit, subject.prefix, subject.has_cls

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tokens = all_tokens(self.vit, images)
        patches = tokens[:, self.prefix :]
        return (tokens[:, 0], patches) if self.has_cls else (patches,)


def write_onnx(subject: Subject, folder: Path) -> Written:
    """Write model.onnx and config.json; raises ConfigError if a library is missing."""
    for name in ("onnx", "onnxscript"):
        library_of_format(name, _EXTRA)
    runtime = library_of_format("onnxruntime", _EXTRA)
    names, file = [*(["cls"] if subject.has_cls else []), "patches"], folder / "model.onnx"
    size = sum(value.numel() * value.element_size() for value in subject.vit.state_dict().values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        torch.onnx.export(
            _Outputs(subject).eval(),
            (sample_images(subject),),
            file,
            input_names=["images"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=size > _ONE_FILE,
            verbose=False,
        )
    write_json(folder / "config.json", {"outputs": names, "preprocessing": preprocessing(subject)})
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def read(images: Tensor) -> Tensor:
        found = session.run(names, {"images": images.numpy()})
        return torch.from_numpy(np.concatenate([each.reshape(2, -1, subject.width) for each in found], 1))

    cls, first = int(subject.has_cls), subject.prefix

    def expected(vit: VisionTransformer, images: Tensor) -> Tensor:
        tokens = all_tokens(vit, images)
        return torch.cat([tokens[:, :cls], tokens[:, first:]], dim=1)

    compare(subject, read, expected, "onnxruntime")
    code = f"""\
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
{", ".join(names)}{"" if subject.has_cls else ","} = session.run({names}, {{"images": images}})"""
    patches = f"`patches` (B, {subject.grid[0] * subject.grid[1]}, {subject.width})"
    beside = f"`cls` (B, {subject.width}) and " if subject.has_cls else ""
    return Written("onnx", code, f"{beside}{patches} are float32, after the final norm; B may be any number.")
