"""Zero-shot classification: images and class names in a CLIP's common space, without a single label.

A student has no text tower, but what it has learnt to predict is its teacher's CLS token. The teacher's final
norm and projection, which a cache of schema 1.1 stores, turn that prediction into a point of the teacher's
space (CLIP, arXiv 2103.00020).
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.cache.reader import Cache
from pipeline.config import Section, parse_config
from pipeline.errors import ConfigError
from pipeline.evaluation.crops import LeftOut, Named
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.features import describe_data
from pipeline.evaluation.metrics import classification_outcome, rank_classes
from pipeline.evaluation.subject import Subject, recorded_teacher
from pipeline.evaluation.task import Task
from pipeline.report.scores import Outcome
from pipeline.student.config import STUDENT_FILE
from pipeline.student.patches import cut_patches
from pipeline.training.checkpoint import choose_checkpoint, load_checkpoint
from pipeline.training.config import RunConfig
from pipeline.training.initial import initial_objective
from pipeline.training.run_folder import CHECKPOINTS, caches_of, read_run
from pipeline.weights import weights_sha256

Embed = Callable[[Tensor], Tensor]  # pixels (B, S, S, 3) uint8 to points (B, E)


class ZeroShot(Section):
    """The class whose name is nearest in the teacher's space wins; names are put into templates and averaged.

    `teacher` is the address of the CLIP whose text tower reads the names; the default is that of the run.
    `templates` are CLIP's seven (simple), its eighty (openai), or your own with {} for the name.
    """

    name: ClassVar[str] = "zero-shot"
    protocol: ClassVar[str] = "CLIP zero-shot, version 1"
    unused: ClassVar = {
        "test_shards": "it learns nothing, so give its images as --shards",
        "features": "it keeps no features",
    }

    teacher: str | None = None
    templates: Literal["simple", "openai"] | tuple[str, ...] = "simple"

    def run(self, task: Task) -> list[Outcome]:
        """Score the test images, or all images if there are no others."""
        from pipeline.teacher.text import load_clip  # open_clip takes seconds to import

        data, subject = task.test or task.data, task.subject
        names = data.class_names
        if not names:
            raise ConfigError("zero-shot reads the names of the classes: give --class-names FILE")
        if isinstance(data, LabelledImages):
            largest = max((one.label for one in data.of.images if one.label is not None), default=-1)
            if largest >= len(names):
                raise ConfigError(
                    f"--class-names has {len(names)} names, but there are images of class {largest}: "
                    f"give a name for each class from 0 to {largest}"
                )
        spec = self._teacher(task)
        if not self.templates or not (
            isinstance(self.templates, str) or all("{}" in text for text in self.templates)
        ):
            raise ConfigError("each of templates must have {} where the name of the class belongs")
        of_student = _of_student(task) if subject.facts.kind == "run" else None
        clip = load_clip(spec)  # takes long, so a run is refused before
        embed = of_student or _of_teacher(clip.projection, subject)
        teacher = read_run(task.run)["cache"]["teacher"] if task.run else {}
        if weights_sha256(clip.model.visual) != teacher.get("weights_sha256", subject.facts.weights):
            raise ConfigError(
                f"{spec!r} has other weights than the teacher, so its texts are in another space: "
                "give the teacher's address with --set teacher=ADDRESS"
            )
        classes = clip.classes(names, self.templates).to(subject.device)
        left_out, ranked, used = LeftOut(), list[Tensor](), list[Named]()
        with torch.inference_mode():
            for batch in data.views(subject.image_size, task.batch_size, left_out):
                points = F.normalize(embed(batch.pixels.to(subject.device)).float(), dim=1)
                ranked.append(rank_classes(points @ classes))
                used += batch.names
        if not used:
            raise ConfigError(f"{data.address!r} has no image that is whole and labelled: give others")
        facts = describe_data(data, subject.image_size, used, left_out)
        truth = torch.tensor([label for _, _, label in used])
        return [
            classification_outcome(
                "CLS", torch.cat(ranked), truth, facts, facts, known=torch.arange(len(names)),
                selection="none: the templates are given", details={"text tower": spec},
            )
        ]  # fmt: skip

    def _teacher(self, task: Task) -> str:
        facts = task.subject.facts
        recorded = recorded_teacher(task.run) if task.run and facts.kind == "run" else None
        spec = self.teacher or task.teacher or recorded
        if facts.kind not in ("run", "teacher"):
            raise ConfigError(
                f"a network of kind {facts.kind} has no place in the space of a CLIP's texts: "
                "evaluate --run or --teacher"
            )
        if spec is None and task.run:
            teacher = read_run(task.run)["cache"]["teacher"]
            spec = None if teacher["library"] == "open_clip" else f"{teacher['library']}:{teacher['name']}"
        if spec is None:
            raise ConfigError(
                "the run's teacher was loaded from a folder, which the run does not name: "
                "give it with --set teacher=open_clip:local-dir:PATH"
            )
        if not spec.startswith("open_clip:"):
            raise ConfigError(
                f"zero-shot needs a CLIP with a text tower, not {spec!r}: "
                "give its address with --set teacher=open_clip:MODEL/TAG or open_clip:local-dir:PATH"
            )
        return spec


def _of_teacher(projection: Tensor | None, subject: Subject) -> Embed:
    """Return what puts images into a CLIP's space by its own tower and projection (D, E)."""
    if projection is None:
        raise ConfigError("this teacher's image tower has no linear projection of CLS: evaluate another CLIP")

    def embed(pixels: Tensor) -> Tensor:
        cls = subject.tokens(pixels).cls
        assert cls is not None
        points: Tensor = cls @ projection.to(cls.device)
        return points

    return embed


def _of_student(task: Task) -> Embed:
    """Return what puts images into the teacher's space by a student's prediction of the teacher's CLS."""
    assert task.run is not None, "a student is of a run"
    described = read_run(task.run)
    config = parse_config(RunConfig, described["config"])
    if config.objective.needs.visible == "none" or config.objective.standardises:
        what = "with balance 'phi-s' " * config.objective.standardises
        raise ConfigError(
            f"objective {config.objective.name!r} {what}does not predict the teacher's CLS, which zero-shot "
            "compares with texts: evaluate the run of another objective, such as 'maskalign'"
        )
    cache, *others = (Cache(each["path"]) for each in caches_of(described))
    output, schema = cache.teacher_output(), cache.schema
    missing = [name for name in ("post_norm", "projection") if name not in output]
    if missing:
        raise ConfigError(
            f"cache {cache.address!r} (schema {schema.version}) has no {' and no '.join(missing)} of its "
            "teacher, which take a token to the space of texts: extract again with this version, from a CLIP "
            "with a linear projection"
        )
    levels, target = cache.level_indices(config.data.levels), config.objective.needs.target
    if schema.levels[levels[-1]] != schema.teacher.depth - 1 or target == "post_norm":
        raise ConfigError(
            "zero-shot needs a student that has learnt the last block of its teacher with objective.target "
            f"whiten, none, l2 or projected; this run has blocks up to {schema.levels[levels[-1]]} and "
            f"{target}"
        )
    if task.subject.image_size != schema.view.image_size:
        raise ConfigError(
            f"the head that predicts the teacher is for views of {schema.view.image_size} pixels, not "
            f"{task.subject.image_size}: leave --image-size out"
        )
    objective = initial_objective(config, cache, others)
    chosen = choose_checkpoint(task.run / CHECKPOINTS)
    if chosen is None:
        raise ConfigError(
            f"run {str(task.run)!r} has no checkpoint, which holds the head that predicts the teacher: "
            "zero-shot is not possible without it"
        )
    objective.load_state_dict(load_checkpoint(chosen).student)
    if weights_sha256(objective.encoder.vit) != weights_sha256(task.subject.vit):
        raise ConfigError(
            f"checkpoint {str(chosen[0])!r} has other weights than {str(task.run / STUDENT_FILE)!r}: finish "
            "the run with train-student --resume, then evaluate it"
        )
    device = task.subject.device
    objective.eval().to(device)
    norm, projection = (torch.from_numpy(output[name]).to(device) for name in ("post_norm", "projection"))
    patch, count = schema.view.patch_size, schema.patches

    def embed(pixels: Tensor) -> Tensor:
        everything = torch.arange(count, device=device).expand(len(pixels), -1)
        cls = objective.predict_last(cut_patches(pixels, patch), everything)[:, 0].float()
        return cls if target == "projected" else among_texts(cls, norm, projection)

    return embed


def among_texts(cls: Tensor, norm: Tensor, projection: Tensor) -> Tensor:
    """Return points (B, E) of CLS after the teacher's last block (B, D), raw, whitened or of unit length.

    `norm` (2, D) is gamma and beta of the teacher's final norm, `projection` (D, E) follows it.
    """
    points: Tensor = F.layer_norm(cls, cls.shape[-1:], *norm) @ projection
    return points
