"""Which tokens are kept, what ranks them, and how the tower runs, for each kind of prefix and pooling."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from tiny_clip import load_clip, own_teacher, peaky, write_clip

from pipeline.teacher.load import load_teacher
from pipeline.teacher.request import Address
from pipeline.teacher.tower import build_tower

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 0}


def teacher_of(model, grid=5):
    return own_teacher(peaky(model), grid)


def seen_by_timm(model, teacher, pixels):
    """All tokens after each block, and the last block's attention, by hooks on timm's unfused path."""
    outputs, attention = [], []
    hooks = [block.register_forward_hook(lambda *args: outputs.append(args[-1])) for block in model.blocks]
    model.blocks[-1].attn.fused_attn = False
    hooks.append(
        model.blocks[-1].attn.attn_drop.register_forward_hook(lambda *args: attention.append(args[-1]))
    )
    images = F.interpolate(pixels.permute(0, 3, 1, 2) / 255, (teacher.facts.input_size,) * 2, mode="bicubic")
    with torch.no_grad():
        model.forward_features((images - 0.5) / 0.5)
    for hook in hooks:
        hook.remove()
    return outputs, attention[0]


@pytest.mark.parametrize(
    ("kind", "options", "prefix"),
    [
        (VisionTransformer, {}, 1),
        (VisionTransformer, {"reg_tokens": 4, "no_embed_class": True}, 5),
        (VisionTransformer, {"reg_tokens": 2, "qk_norm": True, "init_values": 0.5, "pre_norm": True}, 3),
        (VisionTransformer, {"dynamic_img_size": True, "global_pool": "avg"}, 1),
        (VisionTransformerDistilled, {}, 2),
    ],
    ids=["cls", "registers", "qk-norm", "dynamic-average", "distilled"],
)
@pytest.mark.parametrize("grid", [4, 5])
def test_cls_towers_keep_cls_and_patches(pixels, kind, options, prefix, grid):
    model = kind(**SHAPE, **options)
    teacher = teacher_of(model, grid)
    found = teacher.features(pixels)
    outputs, attention = seen_by_timm(model, teacher, pixels)
    for level, hidden in zip(teacher.levels, found.hidden, strict=True):
        assert hidden.shape == (2, 1 + grid * grid, 32)
        torch.testing.assert_close(
            hidden, torch.cat([outputs[level][:, :1], outputs[level][:, prefix:]], 1), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(found.importance, attention[:, :, 0, prefix:].mean(1), rtol=1e-5, atol=1e-5)
    assert teacher.facts.has_cls
    assert teacher.facts.has_importance


def test_prefix_positions_are_kept():
    model = VisionTransformer(**SHAPE, reg_tokens=2)
    before = peaky(model).pos_embed.detach().clone()
    build_tower(model, Address("timm", "own"), 5)
    assert model.pos_embed.shape == (1, 28, 32)
    assert torch.equal(model.pos_embed[:, :3], before[:, :3])


@pytest.mark.parametrize("include_prefix", [False, True])
def test_a_pooling_query_ranks_the_patches(pixels, include_prefix):
    model = VisionTransformer(
        **SHAPE,
        class_token=False,
        reg_tokens=1,
        global_pool="map",
        pool_include_prefix=include_prefix,
        qkv_bias=True,
    )
    teacher = teacher_of(model)
    outputs, _ = seen_by_timm(model, teacher, pixels)
    pool = model.attn_pool
    with torch.no_grad():
        tokens = model.norm(outputs[-1])[:, 0 if include_prefix else 1 :].transpose(0, 1)
        weight, bias = torch.cat([pool.q.weight, pool.kv.weight]), torch.cat([pool.q.bias, pool.kv.bias])
        query = pool.latent.expand(2, -1, -1).transpose(0, 1)
        _, wanted = F.multi_head_attention_forward(
            query,
            tokens,
            tokens,
            32,
            4,
            weight,
            bias,
            None,
            None,
            False,
            0.0,
            pool.proj.weight,
            pool.proj.bias,
            training=False,
        )
    found = teacher.features(pixels)
    torch.testing.assert_close(found.importance, wanted[:, 0, -25:], rtol=1e-5, atol=1e-5)
    assert [hidden.shape for hidden in found.hidden] == [(2, 25, 32)] * 2


def test_a_tower_that_averages_has_no_importance(pixels):
    teacher = load_teacher("timm:test_vit2.random", image_size=48, patch_size=12, levels="2")
    found = teacher.features(pixels)
    assert found.importance is None
    assert (teacher.facts.has_cls, teacher.facts.has_importance) == (False, False)
    assert [hidden.shape for hidden in found.hidden] == [(2, 16, 64)] * 2
    normed = teacher.tower.final_norm(found.hidden[-1])  # timm moves it behind the pooling
    torch.testing.assert_close(normed, F.layer_norm(found.hidden[-1], (64,), eps=1e-6))


def test_open_clip_blocks_with_normed_queries(tmp_path, pixels):
    write_clip(tmp_path / "clip", qk_norm=True)
    teacher = load_clip(tmp_path / "clip")
    queries, keys = [], []
    attention = teacher.tower.module.transformer.resblocks[-1].attn
    attention.ln_q.register_forward_hook(lambda *args: queries.append(args[-1]))
    attention.ln_k.register_forward_hook(lambda *args: keys.append(args[-1]))
    importance = teacher.features(pixels).importance
    scores = queries[0] @ keys[0].transpose(-2, -1) / 8**0.5
    torch.testing.assert_close(importance, scores.softmax(-1)[:, :, 0, 1:].mean(1), rtol=1e-5, atol=1e-5)


def test_a_tower_with_an_attention_pool_is_normed_by_the_pool(tmp_path, pixels):
    model = write_clip(tmp_path / "clip", attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2)
    teacher = load_clip(tmp_path / "clip")
    found = teacher.features(pixels)
    assert found.importance.shape == (2, 16)
    torch.testing.assert_close(
        teacher.tower.final_norm(found.hidden[-1]), model.visual.attn_pool.ln_k(found.hidden[-1]).detach()
    )


def test_levels_do_not_change_what_a_level_is(tmp_path, pixels):
    write_clip(tmp_path / "clip")
    all_levels = load_clip(tmp_path / "clip").features(pixels)
    first = load_clip(tmp_path / "clip", levels="0,").features(pixels)
    assert len(first.hidden) == 1
    assert torch.equal(first.hidden[0], all_levels.hidden[0])
    assert torch.equal(first.importance, all_levels.importance)


def test_the_residual_stream_stays_float32_under_autocast(pixels):
    teacher = load_teacher("open_clip:ViT-S-16/random", image_size=96, patch_size=16, levels="1")
    exact = teacher.features(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher.features(pixels)
    assert rounded.hidden[0].dtype == rounded.importance.dtype == torch.float32
    cosine = F.cosine_similarity(rounded.hidden[0].double(), exact.hidden[0].double(), dim=-1)
    assert 1e-7 < (1 - cosine).mean() < 1.5e-5
    torch.testing.assert_close(rounded.importance, exact.importance, rtol=0.3, atol=0.02)


def test_targets_may_be_saved_for_backward(tmp_path, pixels):
    write_clip(tmp_path / "clip")
    teacher = load_clip(tmp_path / "clip")
    module = teacher.to("cpu").tower.module
    assert not module.training
    assert {(value.dtype, value.requires_grad) for value in module.parameters()} == {(torch.float32, False)}
    target = teacher.features(pixels).hidden[0]
    student = torch.zeros_like(target, requires_grad=True)
    (student * target).sum().backward()
    assert torch.equal(student.grad, target)
