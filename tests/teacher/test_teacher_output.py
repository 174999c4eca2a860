"""The final norm and the projection that a cache stores give what the tower itself gives of a token."""

import numpy as np
import pytest
import torch
from caches import real
from tars import make_tars
from test_teacher_towers import SHAPE, teacher_of
from timm.models.vision_transformer import VisionTransformer
from tiny_clip import load_clip, write_clip

from pipeline.cache.encoding import normed, whiten
from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.reader import Cache
from pipeline.teacher.load import load_teacher


def largest_error(found, wanted):
    """Relative to the length of a token: a single value may be near zero."""
    return ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max()


def test_a_cache_has_what_the_tower_itself_gives(tmp_path):
    model = write_clip(tmp_path / "clip").eval()
    path = real(
        tmp_path,
        shards=make_tars(tmp_path / "tars", tars=1, images_per_tar=12),
        teacher=f"open_clip:local-dir:{tmp_path / 'clip'}",
        levels="2,",
        views=1,
        encoding="float16",
        image_size=32,
        patch_size=8,
    )
    cache, teacher = Cache(path), load_clip(tmp_path / "clip", levels="2,")
    chunk = read_joined(cache, next(cache.commits()), 0, ["features/block_02", "stats"])
    crops = [decode_crop(cache, crop, key) for crop, key in zip(chunk.crops, chunk.keys, strict=True)]
    whitened = torch.from_numpy(chunk.arrays["features/block_02"]).float()
    std = torch.from_numpy(chunk.arrays["stats"][:, 0, :, 1]).float()
    output = {name: torch.from_numpy(values) for name, values in cache.teacher_output().items()}
    assert cache.schema.teacher.post_norm_eps == 1e-5
    assert cache.schema.teacher.projection_width == 16

    (hidden,) = teacher.features(torch.from_numpy(np.stack(crops))).hidden
    ours = normed(whitened, std, output["post_norm"], 1e-5)
    assert largest_error(ours, teacher.tower.final_norm(hidden)) < 1e-3
    assert largest_error(output["post_norm"][0] * whitened + output["post_norm"][1], ours) < 1e-3
    with torch.no_grad():  # the CLS of open_clip itself, with its own pooling and projection
        own = teacher.tower.module._pool(hidden)[0] @ model.visual.proj
    assert largest_error(ours[:, 0] @ output["projection"], own) < 1e-3


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_a_norm_with_another_eps_follows_too(pixels, eps):
    model = VisionTransformer(**SHAPE)
    model.norm.eps = eps
    teacher = teacher_of(model)
    hidden = teacher.features(pixels).hidden[-1] * 0.02
    whitened, _, std = whiten(hidden)
    post_norm = torch.from_numpy(teacher.tower.output()["post_norm"])
    assert teacher.facts.post_norm_eps == eps
    assert largest_error(normed(whitened, std, post_norm, eps), teacher.tower.final_norm(hidden)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({}, ["post_norm", "projection"]),
        ({"pool_type": "avg"}, ["post_norm", "projection"]),
        ({"pool_type": "avg", "final_ln_after_pool": True}, []),
        ({"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}, []),
    ],
    ids=["CLS", "average", "norm after the average", "attention pool"],
)
def test_open_clip_towers_store_what_each_token_passes(tmp_path, changes, stored):
    write_clip(tmp_path / "clip", **changes)
    assert list(load_clip(tmp_path / "clip").tower.output()) == stored


def test_timm_towers_store_a_norm_before_the_pooling():
    pooled = {"class_token": False, "global_pool": "map"}
    assert list(teacher_of(VisionTransformer(**SHAPE)).tower.output()) == ["post_norm"]
    assert list(teacher_of(VisionTransformer(**SHAPE, **pooled)).tower.output()) == ["post_norm"]
    average = load_teacher("timm:test_vit2.random", image_size=48, patch_size=12, levels="2")  # fc_norm
    assert average.tower.output() == {}
    assert average.facts.post_norm_eps is None
    assert average.facts.projection_width is None


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({}, ["post_norm", "projection"]),
        ({"timm_proj": "mlp"}, ["post_norm"]),
        ({"timm_proj_bias": True}, ["post_norm"]),
    ],
    ids=["linear", "MLP", "bias"],
)
def test_a_timm_trunk_in_open_clip_may_have_a_projection(tmp_path, changes, stored):
    trunk = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "token"}
    model = write_clip(tmp_path / "clip", **trunk, **{"timm_proj": "linear"} | changes)
    teacher = load_clip(tmp_path / "clip", image_size=160, patch_size=16)
    assert list(teacher.tower.output()) == stored
    if "projection" in stored:
        hidden = torch.randn(2, 5, 64)
        with torch.no_grad():
            own = model.visual.head(model.visual.trunk.forward_head(model.visual.trunk.norm(hidden)))
            ours = teacher.tower.final_norm(hidden)[:, 0] @ torch.from_numpy(
                teacher.tower.output()["projection"]
            )
        torch.testing.assert_close(ours, own)
