"""A network as a timm ViT: equal to open_clip, to the student's encoder, and to attention by hand."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from tiny_clip import PREPROCESS, load_clip, peaky, write_clip

from pipeline.errors import ConfigError
from pipeline.evaluation.subject import Subject, block_attention, teacher_subject, untrained_subject
from pipeline.report.scores import SubjectFacts
from pipeline.student.encoder import build_encoder
from pipeline.training.config import RunConfig
from pipeline.training.initial import seed_initial_weights

FACTS = SubjectFacts(kind="model", name="tiny", weights="00")
SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 0}


def pixels(size=32, count=2):
    random = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=random)


def tiny(**options):
    return Subject(FACTS, peaky(VisionTransformer(**SHAPE | options)).eval(), 8)


def normalised(images, mean, std):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


@pytest.mark.parametrize(
    "changes",
    [{}, {"layers": 5, "ls_init_value": 0.3}, {"no_ln_pre": True}, {"patch_size": 4}],
    ids=["plain", "layer scale", "no first norm", "smaller patches"],
)
def test_an_open_clip_tower_as_timm_vit_has_equal_tokens(tmp_path, changes):
    patch_size = changes.get("patch_size", 8)
    visual = write_clip(tmp_path / "clip", **changes).visual.eval()
    spec = f"open_clip:local-dir:{tmp_path / 'clip'}"
    subject = teacher_subject(spec, 32, patch_size, torch.device("cpu"))
    assert type(subject.vit) is VisionTransformer
    assert (subject.mean, subject.facts.kind) == (tuple(PREPROCESS["mean"]), "teacher")
    images = normalised(pixels(), PREPROCESS["mean"], PREPROCESS["std"])
    visual.output_tokens, visual.proj = True, None
    with torch.no_grad():
        cls, patches = visual(images)  # open_clip pools after the final norm
        found = subject.tokens(pixels())
        first = next(subject.hidden(pixels()))
        norm = visual.ln_pre(visual._embeds(images)) if "no_ln_pre" in changes else visual._embeds(images)
    torch.testing.assert_close(found.cls, cls, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.patches.flatten(1, 2), patches, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first, norm, rtol=1e-5, atol=1e-5)


def test_hidden_states_of_a_teacher_are_those_that_extraction_stores(tmp_path):
    write_clip(tmp_path / "clip")
    teacher = load_clip(tmp_path / "clip", levels="3")
    subject = teacher_subject(f"open_clip:local-dir:{tmp_path / 'clip'}", 32, 8, torch.device("cpu"))
    with torch.no_grad():
        expected = teacher.tower.outputs(subject.images(pixels()), [0, 1, 2])
        found = list(subject.hidden(pixels()))
    assert len(found) == 4
    for level, tokens in zip(expected, found[1:], strict=True):
        torch.testing.assert_close(tokens, level, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 2])
def test_tokens_are_those_of_timm(registers):
    subject = tiny(reg_tokens=registers)
    with torch.no_grad():
        expected = subject.vit.forward_features(normalised(pixels(), subject.mean, subject.std))
        found = subject.tokens(pixels())
    torch.testing.assert_close(found.cls, expected[:, 0])
    torch.testing.assert_close(found.patches, expected[:, 1 + registers :].reshape(2, 4, 4, 32))
    assert (subject.prefix, subject.has_cls, subject.grid) == (1 + registers, True, (4, 4))


def test_tokens_after_an_earlier_block_go_through_the_final_norm():
    subject = tiny()
    with torch.no_grad():
        _, first, second, _ = subject.hidden(pixels())
        norm = subject.vit.norm
        for block, expected in ((0, first), (1, second), (-2, second), (-3, first)):
            torch.testing.assert_close(subject.tokens(pixels(), block).cls, norm(expected)[:, 0])


def test_without_cls_there_are_patches_only():
    subject = tiny(class_token=False, global_pool="avg")
    with torch.no_grad():
        found = subject.tokens(pixels())
        expected = subject.vit.fc_norm(
            subject.vit.forward_features(normalised(pixels(), subject.mean, subject.std))
        )
    assert found.cls is None
    torch.testing.assert_close(found.patches.flatten(1, 2), expected)


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"reg_tokens": 3}], ids=["plain", "norm", "registers"]
)
def test_attention_sums_to_1_and_gives_the_blocks_output(options):
    subject = tiny(**options)
    for index, block in enumerate(subject.vit.blocks):
        with torch.no_grad():
            inputs, output = list(subject.hidden(pixels()))[index : index + 2]
            weights = block_attention(block, inputs)
            value = block.attn.qkv(block.norm1(inputs))[..., 64:].unflatten(-1, (4, 8)).transpose(1, 2)
            mixed = (weights @ value).transpose(1, 2).flatten(2)
            half = inputs + block.attn.proj(mixed)
            by_hand = half + block.mlp(block.norm2(half))
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
        torch.testing.assert_close(by_hand, output, rtol=1e-4, atol=1e-4)
        assert weights.std(-1).min() > 0.001  # far from uniform, or equality would be cheap


def test_positions_are_resized_bicubically_and_the_network_kept():
    subject = tiny()
    wide = subject.resized(48, 64)
    own, grid = subject.vit.pos_embed, subject.vit.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (6, 8), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(wide.vit.pos_embed[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(wide.vit.pos_embed[:, :1], own[:, :1])
    assert (wide.grid, subject.grid, wide.image_size) == ((6, 8), (4, 4), 48)
    images = torch.zeros(1, 48, 64, 3, dtype=torch.uint8)
    assert wide.tokens(images).patches.shape == (1, 6, 8, 32)
    assert subject.resized(32) is subject


@pytest.mark.parametrize("sides", [(30,), (32, 33), (4,)])
def test_sizes_that_do_not_divide_are_refused(sides):
    with pytest.raises(ConfigError, match=r"pixels do not divide into patches of 8: give multiples of 8"):
        tiny().resized(*sides)


def test_a_teacher_of_other_patches_sees_resized_images(tmp_path):
    write_clip(tmp_path / "clip")
    subject = teacher_subject(f"open_clip:local-dir:{tmp_path / 'clip'}", 64, 16, torch.device("cpu"))
    assert (subject.grid, subject.image_size) == ((4, 4), 64)
    assert subject.images(pixels(64)).shape == (2, 3, 32, 32)
    flat = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    torch.testing.assert_close(
        subject.images(flat), normalised(flat, subject.mean, subject.std)[..., ::2, ::2]
    )


@pytest.mark.parametrize("changes", [{"patch_size": 4}, {"patch_size": 16}], ids=str)
def test_a_teacher_has_its_own_patches_where_none_are_asked_for(tmp_path, changes):
    write_clip(tmp_path / "clip", **changes)
    subject = teacher_subject(f"open_clip:local-dir:{tmp_path / 'clip'}", 64, None, torch.device("cpu"))
    own = changes["patch_size"]
    assert (subject.patch_size, subject.own_patch_size, subject.grid) == (own, own, (64 // own, 64 // own))
    expected = normalised(pixels(64), subject.mean, subject.std)
    torch.testing.assert_close(subject.images(pixels(64)), expected)


def test_a_student_equals_its_encoder_with_all_patches():
    config = RunConfig.model_validate(
        {
            "student": {
                "model": "vit_tiny_patch16_224",
                "options": {"depth": 2, "embed_dim": 32, "num_heads": 2},
            }
        }
    )
    subject = untrained_subject(config, 32, 8, torch.device("cpu"))
    seed_initial_weights(config)
    encoder = build_encoder(config.student, 32, 8).eval()
    everything = torch.arange(16).expand(2, 16)
    patches = pixels().reshape(2, 4, 8, 4, 8, 3).permute(0, 1, 3, 2, 4, 5).reshape(2, 16, -1)
    with torch.no_grad():
        tokens = encoder.embed(patches, everything)  # normalises uint8
        states = [tokens, *encoder.blocks(tokens)]
        for found, expected in zip(subject.hidden(pixels()), states, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_trainable_copy_has_drop_path_that_rises_and_changes_nothing_here():
    subject = tiny()
    copy = subject.trainable(0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0) for block in copy.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    assert copy.training
    assert all(parameter.requires_grad for parameter in copy.parameters())
    assert not subject.vit.training
    with torch.no_grad():
        copy.pos_embed.add_(1)
    assert not torch.equal(copy.pos_embed, subject.vit.pos_embed)


def test_a_timm_model_in_a_folder_is_a_subject(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", **SHAPE)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": '
        '{"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4},'
        '"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 32, 32]}}'
    )
    subject = teacher_subject(f"timm:local-dir:{tmp_path}", 32, 8, torch.device("cpu"), kind="model")
    with torch.no_grad():
        expected = model.eval().forward_features(normalised(pixels(), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
        torch.testing.assert_close(subject.tokens(pixels()).cls, expected[:, 0])
    assert (subject.facts.kind, subject.facts.name) == ("model", tmp_path.name)
