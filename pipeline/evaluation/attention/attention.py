"""Attention of student, untrained student and teacher on the same images: plots and numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.transforms import v2

from pipeline.config import Section
from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.attention.measures import TOP, principal_colours
from pipeline.evaluation.attention.observations import (
    Observations,
    agreement_of,
    artefacts_by_block,
    by_head,
    describe,
    inside_masks,
    observe,
)
from pipeline.evaluation.crops import CROP_FRACTION, LeftOut, Named, ViewBatch
from pipeline.evaluation.data import Data, LabelledImages
from pipeline.evaluation.features import describe_data
from pipeline.evaluation.images import MASK
from pipeline.evaluation.segmentation.dense import VOID, read_masked
from pipeline.evaluation.subject import (
    Subject,
    read_run_config,
    recorded_teacher,
    teacher_subject,
    untrained_subject,
)
from pipeline.evaluation.task import Task
from pipeline.report.attention_plots import Pixels, gallery, head_plot, heat_panel
from pipeline.report.scores import Outcome, Plot
from pipeline.seeding import generator
from pipeline.storage.files import replace_file
from pipeline.views.masking import Strategy, count_of_share, draw_around_blocks, rank_by_arrival


class Attention(Section):
    """Maps of the last block for `images` images, `shown` of them in plots; heads of all blocks in numbers.

    The network is compared with `teacher`: by default the run's, unless it was loaded from a folder.
    `row` and `column` choose the patch, in shares of the image; a plot shows its attention. Plots also show
    the visible patches of the run's own mask. With `hidden`, or without a run, they show those of an
    attentive mask that hides this share (0.7 without a run). `foreground` lists the mask values that count as
    foreground; the default is all but 0 and 255.
    """

    name: ClassVar[str] = "attention"
    protocol: ClassVar[str] = "attention maps, version 1"
    unused: ClassVar = {
        "test_shards": "it learns nothing, so give its images as --shards",
        "features": "it keeps no features",
        "class_names": "it looks at no labels",
    }

    teacher: str | None = None
    images: int = Field(256, ge=1)
    shown: int = Field(6, ge=1, le=24)
    row: float = Field(0.5, ge=0, lt=1)
    column: float = Field(0.5, ge=0, lt=1)
    hidden: float | None = Field(None, ge=0, lt=1)
    foreground: tuple[int, ...] = ()
    seed: int = 0

    def run(self, task: Task) -> list[Outcome]:
        """Score the network's agreement with the teacher, if one is given, and describe all networks."""
        left_out = LeftOut()
        networks = self._networks(task)
        data = task.test or task.data
        batches = list(_first(data, task.subject.image_size, task.batch_size, self.images, left_out))
        if not batches:
            raise ConfigError(
                f"{data.address!r} has no readable image ({left_out.reasons()}): give other images"
            )
        found = {who: Observations() for who in networks}
        for batch in batches:
            for who, subject in networks.items():
                observe(subject, batch.pixels.to(subject.device), found[who], (self.row, self.column))
            if not all(one.last[-1].isfinite().all() for one in found.values()):
                raise ConfigError(
                    "patch tokens are not finite: training of a network diverged; compare other networks"
                )
        names = [name for one in batches for name in one.names]
        facts = describe_data(data, task.subject.image_size, names, left_out)
        foreground = _foregrounds(data, self.foreground, task.subject, names, faults := LeftOut())
        who, own, teacher = next(iter(found)), next(iter(found.values())), found.get("teacher")
        teacher = None if teacher is own else teacher
        inside = {name: inside_masks(one, foreground) for name, one in found.items()} if foreground else {}
        metrics, chance = {}, 0.0
        if teacher:
            metrics["overlap of top 30% with the teacher"] = agreement_of(own, teacher)["overlap"]
            chance = TOP
        elif foreground:  # equal attention has this share inside
            chance = float(torch.stack([*foreground.values()]).mean())
        metrics |= inside.get(who, {})
        last = list(artefacts_by_block(own).values())[-1]
        return [
            Outcome(
                representation="last block", bank=facts, test=facts,
                metrics=metrics or {"tokens without artefacts": 1 - last},
                per_class={}, class_images={}, chance=chance,
                selection="none: nothing is chosen", seeds=(self.seed,),
                details=describe(found, own, teacher, inside),
                plots=self._plots(task, networks, found, batches, facts.digest),
                notes=(f"masks that do not fit were left out: {faults.reasons()}",) if faults.counts else (),
            )
        ]  # fmt: skip

    def _networks(self, task: Task) -> dict[str, Subject]:
        """Return by name the network, the untrained student of a run, and the network to compare with.

        The last is called "teacher", even if the first is a teacher too.
        """
        own, run = task.subject, task.run if task.subject.facts.kind == "run" else None
        sizes = (own.image_size, own.patch_size, own.device)
        spec = self.teacher or (recorded_teacher(run) if run else None)
        name = "network" if spec and own.facts.kind == "teacher" else own.facts.kind
        found: dict[str, Subject] = {"student" if run else name: own}
        if run:
            config, trained = read_run_config(run)
            found["untrained"] = untrained_subject(config, *trained, own.device).resized(own.image_size)
        if spec:
            found["teacher"] = teacher_subject(spec, *sizes)
        return found

    def _plots(
        self,
        task: Task,
        networks: Mapping[str, Subject],
        found: Mapping[str, Observations],
        batches: list[ViewBatch],
        digest: str,
    ) -> tuple[Plot, Plot]:
        """Write the gallery and the plot of the heads."""
        pixels = torch.cat([batch.pixels for batch in batches])[: self.shown].numpy()
        keys = [key for batch in batches for _, key, _ in batch.names]
        teacher = found.get("teacher", next(iter(found.values())))
        colours = {
            who: principal_colours(torch.cat(one.last)[: self.shown]).mul(255).round().byte().numpy()
            for who, one in found.items()
        }
        strategy, masked = self._masked(task, pixels, keys, torch.cat(teacher.cls).numpy())
        rows = []
        for i, image in enumerate(pixels):
            panels = {"image": image, f"visible: {strategy} mask": masked[i]}
            for who, one in found.items():
                for kind, maps in (("CLS", one.cls), ("patch", one.patch)):
                    weights = torch.cat(maps)[i].reshape(networks[who].grid)
                    panels[f"{who}: {kind}"] = heat_panel(image, weights.numpy())
                panels[f"{who}: PCA"] = colours[who][i]
            rows.append(panels)
        file = task.file(self.name, self, digest).name
        replace_file(task.folder / f"{file}.png", gallery(rows))
        heads = {
            "distance, pixels": {who: by_head(one.distance) for who, one in found.items()},
            "entropy of CLS, nats": {who: by_head(one.entropy) for who, one in found.items()},
        }
        replace_file(task.folder / f"{file}-heads.png", head_plot(heads))
        caption = "Last block: attention of CLS and of a patch, PCA of the patch tokens"
        return (
            Plot(file=f"{file}.png", caption=caption),
            Plot(file=f"{file}-heads.png", caption="All blocks: a dot for each head, a line for the mean"),
        )

    def _masked(
        self, task: Task, pixels: Pixels, keys: Sequence[str], importance: NDArray[np.float32]
    ) -> tuple[Strategy, list[Pixels]]:
        """Return the mask's strategy, a run's own by default, and images (n, H, W, 3) hidden by it in grey.

        `keys` and `importance` (n or more, N) are those of the images.
        """
        (rows, columns), size = task.subject.grid, task.subject.patch_size
        strategy: Strategy = "attention"
        share = 1 - (0.7 if self.hidden is None else self.hidden)
        if task.run and task.subject.facts.kind == "run" and self.hidden is None:
            config, (image_size, patch_size) = read_run_config(task.run)
            patches = (image_size // patch_size) ** 2
            share, strategy = config.mask.visible_count(patches) / patches, config.mask.strategy
        count, found = max(1, count_of_share(rows * columns, share)), []
        for image, key, weights in zip(pixels, keys, importance, strict=False):
            rng = generator(self.seed, "shown mask", key)
            if strategy == "block":
                visible = draw_around_blocks(rows, count, rng)
            else:
                visible = rank_by_arrival(strategy, weights, rng.standard_exponential(weights.size))[:count]
            seen = np.zeros((rows, columns), bool)
            seen.flat[visible] = True
            shown = seen.repeat(size, 0).repeat(size, 1)[..., None]
            found.append(np.where(shown, image, np.uint8(120)))
        return strategy, found


def _first(data: Data, size: int, batch_size: int, count: int, left_out: LeftOut) -> Iterator[ViewBatch]:
    """Yield the first views, whether labelled or not."""
    for batch in data.views(size, min(batch_size, count), left_out, labelled=False):
        yield ViewBatch(batch.pixels[:count], batch.names[:count])
        count -= len(batch.names)
        if count <= 0:
            return


def _foregrounds(
    data: Data,
    values: tuple[int, ...],
    subject: Subject,
    names: Sequence[Named],
    faults: LeftOut,
) -> dict[int, Tensor]:
    """Return the share of foreground in each patch (N,), by number of the image, where there are masks.

    `names` are source, key and label of each image; masks that do not fit are added to `faults`.
    Raises ConfigError for `values` that no mask has.
    """
    images = data.of.images if isinstance(data, LabelledImages) else ()
    size = subject.image_size
    crop = v2.Compose(
        [v2.Resize(round(size / CROP_FRACTION), v2.InterpolationMode.NEAREST), v2.CenterCrop(size)]
    )
    masked = {(one.source, one.key): one for one in images if MASK in one.members}
    found = {}
    for number, name in enumerate(names):
        if one := masked.get(name[:2]):
            try:
                mask = crop(read_masked(one)["mask"][None])[0].numpy()
            except SourceError as error:
                faults.add("masks", one.name, str(error))
                continue
            chosen = np.isin(mask, values) if values else (mask != 0) & (mask != VOID)
            share = adaptive_avg_pool2d(torch.from_numpy(chosen).float()[None], subject.grid).flatten()
            if share.sum() > 0:
                found[number] = share
    if values and not found:
        raise ConfigError(
            f"foreground is {list(values)}, but no mask (KEY.seg.png) of {data.address!r} has these values"
        )
    return found
