"""The network to evaluate: a student, an untrained student, a teacher or a timm model, as one timm ViT."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.config import parse_config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.report.scores import SubjectFacts, student_digest
from pipeline.student.config import STUDENT_FILE
from pipeline.student.encoder import build_encoder
from pipeline.teacher.request import LOCAL
from pipeline.training.config import RunConfig
from pipeline.training.initial import seed_initial_weights
from pipeline.training.run_folder import read_run
from pipeline.weights import weights_sha256


@dataclass(frozen=True, eq=False)
class Tokens:
    """A block's output for B images after the final norm: CLS (B, C), if any, and patches (B, g, g, C)."""

    cls: Tensor | None
    patches: Tensor


@dataclass(frozen=True, eq=False)
class Subject:
    """One network to evaluate, in evaluation mode on its device.

    `patch_size` counts pixels of the images given. A network with other patches sees them resized, so that
    the grid fits: a ViT-L/14 sees images of 224 pixels in patches of 16 as 196 pixels. All methods take uint8
    pixels (B, H, W, 3) of the size that `resized` set, on `device`, and normalise them by `mean` and `std`.
    """

    facts: SubjectFacts
    vit: VisionTransformer
    patch_size: int
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        device: torch.device = next(self.vit.parameters()).device
        return device

    @property
    def identity(self) -> tuple[object, ...]:
        """All that determines the network's output for an image; stored files are named by it."""
        return self.facts.weights, self.grid, self.patch_size, self.mean, self.std

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return tuple(self.vit.patch_embed.grid_size)

    @property
    def image_size(self) -> int:
        """Height of the images in pixels, which is their width unless `resized` was given another."""
        return self.grid[0] * self.patch_size

    @property
    def own_patch_size(self) -> int:
        """Side of a patch in pixels of the images that the network computes."""
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def width(self) -> int:
        """Channels C of a token."""
        return int(self.vit.embed_dim)

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self.vit.blocks)

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: CLS first if there is one, then registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def has_cls(self) -> bool:
        """Whether there is a CLS token."""
        return self.vit.cls_token is not None

    def resized(self, height: int, width: int | None = None) -> "Subject":
        """Return the network for other images, its position embeddings resized (bicubic); may share weights.

        Raises ConfigError for sizes that are not multiples of the patch size.
        """
        sides = (height, width or height)
        if any(side < self.patch_size or side % self.patch_size for side in sides):
            raise ConfigError(
                f"images of {sides[0]} x {sides[1]} pixels do not divide into patches of {self.patch_size}: "
                f"give multiples of {self.patch_size}"
            )
        grid = (sides[0] // self.patch_size, sides[1] // self.patch_size)
        if grid == self.grid:
            return self
        vit, own = copy.deepcopy(self.vit), self.own_patch_size
        vit.set_input_size(img_size=(grid[0] * own, grid[1] * own))
        return replace(self, vit=vit)

    def trainable(self, drop_path: float = 0.0) -> VisionTransformer:
        """Return a copy of the network in training mode, its drop path rising linearly to a rate."""
        vit = copy.deepcopy(self.vit).train().requires_grad_(True)
        for block, rate in zip(vit.blocks, torch.linspace(0, drop_path, self.depth).tolist(), strict=True):
            block.drop_path1 = block.drop_path2 = DropPath(rate) if rate else nn.Identity()
        return vit

    def images(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (B, H, W, 3) uint8, and resize them where patches differ: (B, 3, H', W')."""
        images = pixels.permute(0, 3, 1, 2).float() / 255
        size = tuple(self.vit.patch_embed.img_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", align_corners=False)
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def hidden(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yield the first block's input and each block's output, unnormed: L + 1 of (B, prefix + N, C)."""
        vit = self.vit
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(self.images(pixels)))))
        yield tokens
        for block in vit.blocks:
            tokens = block(tokens)
            yield tokens

    def normed(self, tokens: Tensor) -> Tensor:
        """Apply the final norm; timm has it in fc_norm where the model pools by averaging."""
        normed: Tensor = self.vit.fc_norm(self.vit.norm(tokens))
        return normed

    def split(self, tokens: Tensor) -> Tokens:
        """Split tokens (B, prefix + N, C) into CLS and the grid of patches, without registers."""
        patches = tokens[:, self.prefix :].reshape(len(tokens), *self.grid, -1)
        return Tokens(tokens[:, 0] if self.has_cls else None, patches)

    def tokens(self, pixels: Tensor, block: int = -1) -> Tokens:
        """Return CLS and patches after a block, counted from the end if negative, and the final norm."""
        for index, tokens in enumerate(self.hidden(pixels)):
            if index - 1 == block % self.depth:
                return self.split(self.normed(tokens))
        raise AssertionError("a block modulo the depth is found")


def block_attention(block: nn.Module, tokens: Tensor) -> Tensor:
    """Return a timm block's softmax attention (B, heads, T, T) float32, query by key, of input (B, T, C)."""
    layer = block.attn
    with torch.autocast(tokens.device.type, enabled=False):
        queries, keys, _ = (
            layer.qkv(block.norm1(tokens.float()))  # type: ignore[operator, union-attr]
            .unflatten(-1, (3, layer.num_heads, -1))  # type: ignore[union-attr]
            .permute(2, 0, 3, 1, 4)
        )
        queries, keys = layer.q_norm(queries), layer.k_norm(keys)  # type: ignore[operator, union-attr]
        weights: Tensor = (queries @ keys.transpose(-2, -1) * layer.scale).softmax(-1)  # type: ignore[union-attr]
    return weights


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
    return Subject(facts, encoder.vit.eval().to(device), sizes[1])


def untrained_subject(config: RunConfig, image_size: int, patch_size: int, device: torch.device) -> Subject:
    """Build a student as it is before its first step."""
    seed_initial_weights(config)
    vit = build_encoder(config.student, image_size, patch_size).vit
    facts = SubjectFacts(kind="untrained", name="untrained student", weights=weights_sha256(vit), step=0)
    return Subject(facts, vit.eval().to(device), patch_size)


def read_run_config(run: Path) -> tuple[RunConfig, tuple[int, int]]:
    """Return a run's configuration, and the image and patch size of its views; raises CheckpointError."""
    described = read_run(run)
    view = described["view"]
    return parse_config(RunConfig, described["config"]), (view["image_size"], view["patch_size"])


def recorded_teacher(run: Path) -> str | None:
    """Return the address of a run's teacher, None if it was loaded from a folder."""
    teacher = read_run(run)["cache"]["teacher"]
    if teacher["tag"] == LOCAL:
        return None
    separator = "/" if teacher["library"] == "open_clip" else "."
    return f"{teacher['library']}:{teacher['name']}{separator}{teacher['tag']}"


def teacher_subject(
    spec: str,
    image_size: int,
    patch_size: int | None,
    device: torch.device,
    kind: Literal["teacher", "model"] = "teacher",
) -> Subject:
    """Load a teacher, or a plain ViT of timm, on the grid of these sizes; raises ConfigError.

    Without `patch_size`, patches have the network's own size, and crops are not resized.
    """
    from pipeline.teacher.as_timm import timm_vit
    from pipeline.teacher.load import load_teacher  # open_clip takes seconds to import

    teacher = load_teacher(spec, image_size=image_size, patch_size=patch_size, levels="1", noun=kind)
    known = teacher.facts
    name = spec.rstrip("/").rpartition("/")[2] if "local-dir:" in spec else spec
    facts = SubjectFacts(kind=kind, name=name, weights=known.weights_sha256)
    vit = timm_vit(teacher.to(device).tower, spec).eval()
    return Subject(facts, vit, patch_size or known.patch_size, known.mean, known.std)
