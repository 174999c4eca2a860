"""Networks described in Python as teachers: their blocks' outputs reach the cache, for several libraries."""

import caches
import numpy as np
import pytest
import timm
import torch
from tars import make_tars
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

import maskalign
from pipeline.errors import ConfigError
from pipeline.extraction.job import build_schema, build_teacher
from pipeline.teacher.attention import cls_importance, timm_attention

HALF = (0.5, 0.5, 0.5)
SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT = {**SIZE, "intermediate_size": 64, "image_size": 64, "patch_size": 16}


def dinov2(image_size=64):
    return Dinov2Model(Dinov2Config(**SIZE, image_size=image_size, patch_size=16, mlp_ratio=2))


MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**VIT), add_pooling_layer=False),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**VIT)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**VIT)),
    "dinov2": dinov2,
    "registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SIZE, image_size=64, patch_size=16, mlp_ratio=2, num_register_tokens=3)
    ),
}


def teacher_of(given, **changes):
    options = caches.extraction_options(shards=[], cache="unused", teacher=given, **changes)
    return build_teacher(options)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_are_described_by_their_config(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    teacher = teacher_of(maskalign.transformers_teacher(model, name, mean=HALF, std=HALF), levels="1,2")
    assert teacher.facts.address(teacher.facts.tag) == f"module:{name}.local"
    assert (teacher.facts.depth, teacher.facts.width, teacher.facts.patch_size) == (3, 32, 16)
    assert teacher.facts.has_cls == (name != "siglip")
    assert teacher.facts.post_norm_eps is not None
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    images = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        states = model(images, output_hidden_states=True).hidden_states
    dropped = slice(1, 4) if name == "registers" else slice(0, 0)
    for found, state in zip(teacher.features(pixels).hidden, states[2:], strict=True):
        assert np.allclose(found, np.delete(state.numpy(), dropped, axis=1), atol=1e-5)


def test_positions_are_resized_where_the_model_can():
    teacher = teacher_of(maskalign.transformers_teacher(dinov2(image_size=128), mean=HALF, std=HALF))
    assert teacher.features(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).hidden[0].shape == (1, 17, 32)


def described(vit, **changes):
    given = {
        "module": vit,
        "name": "own",
        "blocks": vit.blocks,
        "width": 64,
        "patch_size": 16,
        "mean": HALF,
        "std": list(HALF),
    }
    return maskalign.ModuleTeacher(**(given | changes))


@pytest.fixture
def vit():
    """The network of the caches' teacher, as `timm:test_vit.random` builds it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_vit", img_size=64)


def test_a_described_network_gives_the_same_cache_as_its_address(vit, tmp_path):
    tars = make_tars(tmp_path / "tars", 1, 20)
    caches.extract(tmp_path / "by_address", tars)
    known = maskalign.Cache(tmp_path / "by_address")
    vit.load_state_dict(teacher_of(caches.TEACHER).tower.module.state_dict(), strict=False)
    last = vit.blocks[-1]
    importance = maskalign.Importance(4, lambda tokens: cls_importance(timm_attention(last), tokens, 1))
    cache = maskalign.run_extraction(
        tmp_path / "tars",
        tmp_path / "described",
        described(
            vit,
            importance=importance,
            mean=vit.pretrained_cfg["mean"],
            std=vit.pretrained_cfg["std"],
            final_norm=vit.norm,
        ),
        device="cpu",
        levels="3",
        views=2,
        image_size=64,
        crop_scale=(0.4, 1.0),
        batch_size=8,
        workers=0,
    )
    assert cache.schema.teacher.library == "module"
    for view in cache.views:
        for name in ("features/block_05", "stats", "attention", "index"):
            assert np.array_equal(cache.read([name], view=view)[name], known.read([name], view=view)[name])


def test_a_wrong_description_is_refused(vit, tmp_path):
    wrong = {
        r"gives \(2, 17, 64\) .* expected \(2, 17 or more tokens, width 65\)": {"width": 65},
        r"gives \(2, 5, 64\) .* 32 pixels: expected \(2, 17 or more tokens, width 64\)": {"patch_size": 8},
        "block 1 of `blocks` did not run": {"blocks": [vit.blocks[0], nn.Identity()]},
        r"teacher 'module:own' has 1 block: give at least 2": {"blocks": vit.blocks[:1]},
        r"cannot see images of 64 x 64 pixels \(TypeError": {"arguments": {"nothing": 1}},
        r"ran in the order \[1, 0\]: give them in the order of the network": {"blocks": vit.blocks[1::-1]},
        "has a module twice in `blocks`": {"blocks": [*vit.blocks, vit.blocks[0]]},
        "has 'blocks.0' in `blocks`: give submodules of `module`": {"blocks": ["blocks.0", "blocks.1"]},
        "has a function as `module`: give an nn.Module": {"module": vit.forward.__func__},
        "has the patch_size 16.0: give a whole number from 1 on": {"patch_size": 16.0},
        r"has the mean \(123.7, 116.3, 103.5\): give three numbers in \[0, 1\]": {
            "mean": (123.7, 116.3, 103.5)
        },
        r"has the std \[0.2\]: give three numbers in \[0, 1\]": {"std": [0.2]},
        r"has the std \(0.2, 0.2, 0\): give three numbers above 0": {"std": (0.2, 0.2, 0)},
        r"has the name 'a\\nb': give a text in one line": {"name": "a\nb"},
        r"has a `final_norm` over \(7,\): give one over the width 64": {"final_norm": nn.LayerNorm(7)},
        "has a str as `final_norm`": {"final_norm": "norm"},
        "has `importance` of block 6: give 0 to 5": {"importance": maskalign.Importance(6, torch.relu)},
        r"`importance` of .* gives \(2, 17, 64\) for 2 images: expected \(2, 16\)": {
            "importance": maskalign.Importance(5, torch.relu)
        },
    }
    for message, changes in wrong.items():
        with pytest.raises(ConfigError, match=message):
            teacher_of(described(vit, **changes))
    with pytest.raises(ConfigError, match="levels '9' asks for 9 blocks"):
        teacher_of(described(vit), levels="9")
    with pytest.raises(ConfigError, match="Linear is not a plain vision transformer of transformers"):
        maskalign.transformers_teacher(nn.Linear(2, 2), mean=HALF, std=HALF)
    options = caches.extraction_options(
        shards=make_tars(tmp_path, 1, 4), cache="unused", teacher=described(vit), keep=0.5
    )
    with pytest.raises(ConfigError, match=r"--keep-rank 'attention' needs .* 'module:own' has neither"):
        build_schema(options, build_teacher(options))


class Blocks(nn.Module):
    """Patches of 16 pixels with no CLS, and three blocks with outputs of any form."""

    def __init__(self, form):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 16, 16)
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(3))
        self.form = form

    def forward(self, images):
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        for number, block in enumerate(self.blocks):
            block(self.form(tokens, number))


@pytest.mark.parametrize(
    ("form", "patch_size", "message"),
    [
        (lambda tokens, _: {"tokens": tokens}, 16, "gives a dict: expected floats"),
        (lambda tokens, _: tokens.reshape(1, -1, 8), 16, r"gives \(1, 32, 8\) for 2 images of 64 pixels"),
        (lambda tokens, _: tokens.long(), 16, "gives torch.int64: expected floats"),
        (lambda tokens, _: tokens.transpose(0, 1), 16, r"gives \(16, 2, 8\) for 2 images of 64 pixels"),
        (
            lambda tokens, block: tokens[:, :4] if block == 1 else tokens,
            16,
            r"block 1 of .* gives \(2, 4, 8\)",
        ),
        (lambda tokens, block: tokens[..., :4] if block == 1 else tokens, 16, r"block 1 of .*\(2, 16, 4\)"),
        (
            lambda tokens, block: torch.cat([tokens[:, block:], tokens], 1),
            16,
            r"the blocks of .* give \[32, 31, 30\] tokens",
        ),
        (lambda tokens, _: tokens, 32, "64 tokens for an image of 128 pixels, 48 more than 4 x 4 patches:"),
        (lambda tokens, _: tokens[:, :25], 32, "25 tokens for an image of 128 pixels, 9 more than 4 x 4"),
    ],
)
def test_outputs_that_are_no_tokens_of_the_grid_are_refused(form, patch_size, message):
    network = Blocks(form)
    given = described(network, width=8, patch_size=patch_size, has_cls=False, mean=HALF, std=HALF)
    with pytest.raises(ConfigError, match=message):
        teacher_of(given)
