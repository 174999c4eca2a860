"""The network to evaluate: a student, an untrained student, a teacher or a timm model, in one form."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import parse_config
from pipeline.errors import CheckpointError
from pipeline.report.scores import SubjectFacts, student_digest
from pipeline.student.encoder import MaskedEncoder, build_encoder
from pipeline.student.export import STUDENT_FILE
from pipeline.student.patches import cut_patches
from pipeline.teacher.source import weights_sha256
from pipeline.training.config import RunConfig
from pipeline.training.job import seed_initial_weights
from pipeline.training.run_folder import read_run


@dataclass(frozen=True, eq=False)
class Tokens:
    """A block's normed output for B images: CLS (B, C) if there is one, and patches (B, g, g, C)."""

    cls: Tensor | None
    patches: Tensor


@dataclass(frozen=True, eq=False)
class Subject:
    """One network to evaluate, in evaluation mode on its device.

    `module` is what a fine-tuning trains. `outputs` maps uint8 pixels (B, S, S, 3) of side `image_size` and
    ascending block numbers to a tensor (B, prefix + N, C) for each block, after the final norm; it normalises
    pixels itself. Attention maps (B, heads, g, g) will be a further function beside `outputs`.
    """

    facts: SubjectFacts
    module: nn.Module
    image_size: int
    grid: int
    depth: int
    prefix: int
    has_cls: bool
    outputs: Callable[[Tensor, list[int]], list[Tensor]]

    @property
    def device(self) -> torch.device:
        """The device of the network; pixels must be on it, too."""
        return next(self.module.parameters()).device

    def tokens(self, pixels: Tensor, block: int = -1) -> Tokens:
        """Run images (B, S, S, 3) uint8 up to a block, counted from the end if negative; no registers."""
        (tokens,) = self.outputs(pixels, [block % self.depth])
        patches = tokens[:, self.prefix :].reshape(len(tokens), self.grid, self.grid, -1)
        return Tokens(tokens[:, 0] if self.has_cls else None, patches)


def student_subject(run: Path, device: torch.device) -> Subject:
    """Load a run's student; raises CheckpointError for weights that are missing or do not fit."""
    config, sizes = read_run_config(run)
    encoder = build_encoder(config.student, *sizes)
    try:
        encoder.vit.load_state_dict(load_file(run / STUDENT_FILE))
    except (OSError, SafetensorError, RuntimeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{str(run / STUDENT_FILE)!r} cannot be loaded ({str(error).splitlines()[0]}): "
            "finish the run, with --resume if it stopped"
        ) from None
    # A run that was continued and killed has newer steps, but its student is that of the last good end.
    steps = [start["last_step"] for start in read_run(run).get("starts", ()) if "last_step" in start]
    facts = SubjectFacts(
        kind="run", name="student", weights=student_digest(run) or "", step=steps[-1] if steps else None
    )
    return _of_encoder(facts, encoder, device)


def untrained_subject(config: RunConfig, image_size: int, patch_size: int, device: torch.device) -> Subject:
    """Build a student as it is before its first step."""
    seed_initial_weights(config)
    encoder = build_encoder(config.student, image_size, patch_size)
    facts = SubjectFacts(
        kind="untrained", name="untrained student", weights=weights_sha256(encoder.vit), step=0
    )
    return _of_encoder(facts, encoder, device)


def read_run_config(run: Path) -> tuple[RunConfig, tuple[int, int]]:
    """Return a run's configuration, and the image and patch size of its views; raises CheckpointError."""
    described = read_run(run)
    view = described["view"]
    return parse_config(RunConfig, described["config"]), (view["image_size"], view["patch_size"])


def _of_encoder(facts: SubjectFacts, encoder: MaskedEncoder, device: torch.device) -> Subject:
    vit = encoder.eval().to(device).vit

    def outputs(pixels: Tensor, blocks: list[int]) -> list[Tensor]:
        everything = torch.arange(encoder.grid**2, device=device).expand(len(pixels), -1)
        tokens = encoder.embed(cut_patches(pixels, encoder.patch_size), everything)
        # timm has its final norm in fc_norm where the model pools by averaging
        return [
            vit.fc_norm(vit.norm(each))
            for block, each in enumerate(encoder.blocks(tokens))
            if block in blocks
        ]

    side = encoder.grid * encoder.patch_size
    return Subject(
        facts, vit, side, encoder.grid, encoder.depth, encoder.prefix_tokens, encoder.has_cls, outputs
    )


def teacher_subject(
    spec: str,
    image_size: int,
    patch_size: int,
    device: torch.device,
    kind: Literal["teacher", "model"] = "teacher",
) -> Subject:
    """Load a teacher, or a plain ViT of timm, on the grid of these sizes; raises ConfigError."""
    from pipeline.teacher.geometry import teacher_images
    from pipeline.teacher.load import load_teacher  # open_clip takes seconds to import

    teacher = load_teacher(spec, image_size=image_size, patch_size=patch_size, levels="1").to(device)
    tower, known = teacher.tower, teacher.facts

    def outputs(pixels: Tensor, blocks: list[int]) -> list[Tensor]:
        images = teacher_images(pixels, known.input_size, known.mean, known.std)
        return [teacher.final_norm(tokens) for tokens in tower.outputs(images, blocks)]

    name = spec.rstrip("/").rpartition("/")[2] if "local-dir:" in spec else spec
    facts = SubjectFacts(kind=kind, name=name, weights=known.weights_sha256)
    return Subject(
        facts,
        tower.module,
        image_size,
        image_size // patch_size,
        tower.depth,
        tower.prefix,
        tower.has_cls,
        outputs,
    )
