"""Export a network in the form of another library, with a model card beside it."""

import copy
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.config import Section
from pipeline.errors import ConfigError, StorageError
from pipeline.evaluation.exporting.export_detection import write_detection
from pipeline.evaluation.exporting.export_onnx import write_onnx
from pipeline.evaluation.exporting.export_plain import write_torchvision, write_transformers
from pipeline.evaluation.exporting.export_timm import write_timm
from pipeline.evaluation.exporting.model_card import model_card
from pipeline.evaluation.task import Task
from pipeline.report.scores import Outcome

_WRITERS = {
    "timm": write_timm,
    "transformers": write_transformers,
    "torchvision": write_torchvision,
    "onnx": write_onnx,
    "detection": write_detection,
}


class Export(Section):
    """A folder with the network as `format` has it, and README.md, a model card.

    `folder` is by default FORMAT in the run's evaluation/; one that holds something is replaced only with
    `overwrite`. `license` and `datasets` are fields of the card that only the user knows.
    """

    name: ClassVar[str] = "export"
    protocol: ClassVar[str] = "export, version 1"
    unused: ClassVar = {
        **dict.fromkeys(("cache", "shards", "test_shards", "class_names", "features"), "it needs no data"),
        **dict.fromkeys(("out", "report"), "it has no scores; give --set folder=PATH for the files"),
    }

    format: Literal["timm", "transformers", "torchvision", "onnx", "detection"] = "timm"
    folder: str | None = None
    overwrite: bool = False
    license: str = "other"
    datasets: tuple[str, ...] = ()

    def run(self, task: Task) -> list[Outcome]:
        """Write the folder, whole or not at all; raises ConfigError for parts that a format does not have."""
        if self.folder is None and task.subject.facts.kind != "run":
            raise ConfigError("only a run has a place for its export: give --set folder=PATH")
        target = task.folder / self.format if self.folder is None else Path(self.folder)
        holds = target.is_dir() and any(target.iterdir())
        is_file = target.exists() and not target.is_dir()
        if self.folder is not None and (is_file or (holds and not self.overwrite)):
            raise ConfigError(
                f"folder {self.folder!r} {'holds files' if holds else 'is a file'}: give another "
                "--set folder=PATH, or --set overwrite=true to replace all that is in it"
            )
        vit = copy.deepcopy(task.subject.vit).cpu().eval()
        subject = replace(task.subject, vit=vit)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
                made = Path(scratch) / target.name
                made.mkdir()
                written = _WRITERS[self.format](subject, made)
                card = model_card(task, written, self.license, self.datasets)
                (made / "README.md").write_text(card, encoding="utf-8")
                if target.exists():
                    shutil.rmtree(target)
                made.rename(target)
        except OSError as error:
            raise StorageError(
                f"folder {str(target)!r} cannot be written ({error.strerror or error}): make room, or give "
                "another --set folder=PATH"
            ) from None
        for file in sorted(target.iterdir()):
            task.log(f"wrote {file} ({file.stat().st_size:,} bytes)")
        return []
