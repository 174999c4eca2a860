"""Hidden states and importance equal those of an independent implementation of the same architectures."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from tiny_clip import PREPROCESS, VISION, load_clip, own_teacher, peaky, write_clip
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def images_of(pixels, size, mean, std):
    images = F.interpolate(
        pixels.permute(0, 3, 1, 2).float() / 255, (size, size), mode="bicubic", align_corners=False
    )
    return (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def renamed(state, names):
    """Rename tensors by parts of their names and stack q, k and v."""
    found = {}
    for name, value in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = value
    for name in [name for name in found if ".q_proj." in name]:
        parts = [found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        found[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    return found


CLIP_NAMES = {
    "embeddings.patch_embedding": "conv1",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "encoder.layers": "transformer.resblocks",
    "self_attn": "attn",
    "layer_norm": "ln_",
    "fc1": "c_fc",
    "fc2": "c_proj",
}
SIGLIP_NAMES = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.position_embedding.weight": "pos_embed",
    "post_layernorm": "norm",
    "encoder.layers": "blocks",
    "self_attn.out_proj": "attn.proj",
    "self_attn": "attn",
    "layer_norm": "norm",
    "head.probe": "attn_pool.latent",
    "head.layernorm": "attn_pool.norm",
    "head.attention.out_proj": "attn_pool.proj",
    "head.mlp": "attn_pool.mlp",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """transformers' CLIP and a folder with the same weights for open_clip."""
    theirs = peaky(
        CLIPVisionModel(CLIPVisionConfig(**SHAPE, hidden_act="quick_gelu", attn_implementation="eager"))
    ).eval()
    folder = tmp_path_factory.mktemp("clip") / "model"
    model = write_clip(folder)
    state = renamed(theirs.state_dict(), CLIP_NAMES)
    state = {name.replace("qkv.", "in_proj_"): value for name, value in state.items()}
    assert model.visual.load_state_dict(state, strict=False).missing_keys == ["proj"]
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return theirs, folder


@pytest.mark.parametrize(("image_size", "patch_size", "grid"), [(32, 8, 4), (40, 8, 5), (60, 20, 3)])
def test_clip_equals_transformers(clip, pixels, image_size, patch_size, grid):
    theirs, folder = clip
    teacher = load_clip(folder, image_size, patch_size)
    assert (teacher.grid, teacher.facts.input_size, teacher.facts.patch_size) == (grid, grid * 8, 8)
    assert (teacher.facts.depth, teacher.facts.width, teacher.levels) == (3, VISION["width"], (0, 1, 2))
    found = teacher.features(pixels)
    images = images_of(pixels, grid * 8, PREPROCESS["mean"], PREPROCESS["std"])
    with torch.no_grad():
        wanted = theirs(
            images, output_hidden_states=True, output_attentions=True, interpolate_pos_encoding=grid != 4
        )
    for mine, other in zip(found.hidden, wanted.hidden_states[1:], strict=True):
        assert mine.shape == (2, 1 + grid * grid, 32)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found.importance, wanted.attentions[-1][:, :, 0, 1:].mean(1), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        teacher.tower.final_norm(found.hidden[-1]),
        theirs.post_layernorm(wanted.hidden_states[-1]),
        rtol=1e-5,
        atol=1e-5,
    )
    assert found.importance.max() > 1.3 * found.importance.mean()


def siglip_state(theirs):
    state = renamed(theirs.state_dict(), SIGLIP_NAMES)
    for kind in ("weight", "bias"):
        stacked = state.pop(f"head.attention.in_proj_{kind}")
        state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"] = stacked[:32], stacked[32:]
    return state | {"pos_embed": state["pos_embed"][None]}


@pytest.mark.parametrize("grid", [4, 5])
def test_siglip_equals_transformers(pixels, grid):
    theirs = peaky(
        SiglipVisionModel(SiglipVisionConfig(**SHAPE, hidden_act="gelu", attn_implementation="eager"))
    ).eval()
    model = VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=3,
        num_heads=4,
        num_classes=0,
        global_pool="map",
        class_token=False,
        qkv_bias=True,
    )
    model.load_state_dict(siglip_state(theirs), strict=True)
    teacher = own_teacher(model, grid, (0, 2))
    found = teacher.features(pixels)
    with torch.no_grad():
        images = images_of(pixels, grid * 8, (0.5,) * 3, (0.5,) * 3)
        wanted = theirs(images, output_hidden_states=True, interpolate_pos_encoding=grid != 4)
        tokens = wanted.last_hidden_state
        _, attention = theirs.head.attention(
            theirs.head.probe.repeat(2, 1, 1), tokens, tokens, average_attn_weights=True
        )
    assert not teacher.facts.has_cls
    for mine, level in zip(found.hidden, teacher.levels, strict=True):
        torch.testing.assert_close(mine, wanted.hidden_states[level + 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(teacher.tower.final_norm(found.hidden[-1]), tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.importance, attention[:, 0], rtol=1e-5, atol=1e-5)
    assert found.importance.max() > 1.3 * found.importance.mean()
