"""Fine-tuning of the whole network on labelled images, by published recipes and timm's parts.

It learns from augmented crops and is tested on centre crops. A command that was killed and is given again
continues where it was, if its results have a folder: that of a run, of --report or of --out.
"""

from typing import ClassVar

import torch
from pydantic import Field

from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.crops import LeftOut, open_image
from pipeline.evaluation.draws import Few, draw_few, few_notes
from pipeline.evaluation.features import describe_data
from pipeline.evaluation.finetuning.attempt import Try, labels_of
from pipeline.evaluation.finetuning.recipe import TrySettings
from pipeline.evaluation.images import ImageSet
from pipeline.evaluation.metrics import classification_outcome
from pipeline.evaluation.task import SharedKeys, Task
from pipeline.report.scores import Outcome


class Finetune(TrySettings):
    """Train all weights with a new head; options of a recipe without a value are those of the preset.

    `batch` is the global one: ranks and `accumulate` divide it. Several values of `lr` are compared on a
    tenth of the training images, and the best is trained on all. `select` is the epoch that is tested: the
    last, the best on a tenth that is then not trained on (train), or the best on the test set, as MAE and
    MaskAlign report (test). `freeze` keeps the embeddings and that many first blocks. `lp_ft` starts from a
    linear probe. `few` images of each class (a share if below 1) are drawn by seed; `tries` are seeds.
    """

    name: ClassVar[str] = "finetune"
    protocol: ClassVar[str] = "fine-tuning, version 1"
    several_ranks: ClassVar[bool] = True
    crops_fit: ClassVar[bool] = True  # crops need no resizing
    unused: ClassVar = {"features": "all weights are trained, so no features are kept"}

    few: Few | None = None
    tries: int = Field(1, ge=1)
    seed: int = 0
    shared_keys: SharedKeys = "refuse"

    def run(self, task: Task) -> list[Outcome]:
        """Train and test, once for each try."""
        left_out = LeftOut()
        learnt, tested = task.separate_images(self.name, self.shared_keys, left_out)
        bank = labelled(learnt, left_out)
        check_readable(labelled(tested, LeftOut()))
        tries = []
        for seed in range(self.seed, self.seed + self.tries):
            drawn = bank
            if self.few is not None:
                drawn = bank.subset(draw_few(labels_of(bank), self.few, seed).tolist())
            tries.append(Try(self, task, drawn, tested, seed))
        for one in tries:
            one.check()
        found, size = [one.run() for one in tries], task.subject.vit.patch_embed.img_size[0]
        first = found[0]
        for key, fault in first.faults.items():
            left_out.add("damaged", key, fault)
        outcome = classification_outcome(
            first.pool,
            torch.stack([one.predictions.ranked for one in found]),
            first.predictions.truth,
            describe_data(bank, size, first.names, left_out),
            describe_data(tested, size, first.predictions.names, first.predictions.left_out),
            selection=first.selection,
            known=first.known,
            notes=(*first.notes, *few_notes(labels_of(bank), self.few)),
            seeds=tuple(one.seed for one in tries),
            details=first.details | {"tries": [one.predictions.accuracy for one in found]},
        )
        return [outcome]


def labelled(images: ImageSet, left_out: LeftOut) -> ImageSet:
    """Return the images with a label and count the others; raises ConfigError if none has one."""
    for one in images.images:
        if one.label is None:
            left_out.add("unlabelled", one.name, one.label_fault)
    found = images.subset([i for i, one in enumerate(images.images) if one.label is not None])
    if not found.images:
        raise ConfigError(
            f"no image of {images.address!r} has a label: give tars with a KEY.cls beside each image, or a "
            "folder with a subfolder for each class"
        )
    return found


def check_readable(images: ImageSet) -> None:
    """Raise SourceError if none of the images can be decoded; usually the first one can."""
    reason = ""
    for one in images.images:
        try:
            open_image(one)
        except SourceError as error:
            reason = reason or f"{one.name} {error}"
        else:
            return
    raise SourceError(
        f"no image of {images.address!r} can be decoded (the first: {reason}): give other --test-shards"
    )
