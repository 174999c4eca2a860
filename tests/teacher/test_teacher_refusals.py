"""What is refused, before any download, and what the message says."""

import json

import huggingface_hub.constants
import open_clip
import pytest
from open_clip.pretrained import get_pretrained_cfg
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from tiny_clip import load_clip, write_clip

from pipeline.errors import ConfigError
from pipeline.teacher.load import load_teacher
from pipeline.teacher.request import Address
from pipeline.teacher.tower import build_tower


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def refusal(spec, levels="2", image_size=32, patch_size=8):
    with pytest.raises(ConfigError) as error:
        load_teacher(spec, image_size=image_size, patch_size=patch_size, levels=levels)
    return str(error.value)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("timm:swin_tiny_patch4_window7_224", "is a SwinTransformer"),
        ("timm:convnext_tiny", "is a ConvNeXt"),
        ("timm:resnet18", "is a ResNet"),
        ("timm:test_resnet.random", "is a ResNet"),
        ("timm:eva02_tiny_patch14_224", "is an Eva"),
        ("timm:vit_relpos_small_patch16_224", "is a VisionTransformerRelPos"),
        ("timm:vitamin_small_224", "is a VisionTransformer with a HybridEmbed stem"),
        ("open_clip:RN50/openai", "is a ModifiedResNet"),
        ("open_clip:convnext_base/laion400m_s13b_b51k", "is a ConvNeXt"),
        ("open_clip:EVA02-B-16/merged2b_s8b_b131k", "is an Eva"),
    ],
)
def test_a_tower_that_is_no_plain_vit_is_refused_by_name(spec, fault):
    message = refusal(spec)
    assert message.startswith(
        f"teacher {spec!r} {fault}, not a plain ViT: choose a VisionTransformer such as "
    )


def test_a_tower_of_other_parts_is_refused():
    for part, fault in (
        ({"pos_embed": "none"}, "without position embeddings"),
        ({"block_fn": ParallelScalingBlock}, "made of ParallelScalingBlock"),
    ):
        model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, **part)
        with pytest.raises(ConfigError, match=f"'timm:own' is a VisionTransformer {fault}, not a plain ViT"):
            build_tower(model, Address("timm", "own"), 4)


def test_a_network_is_called_what_the_option_calls_it():
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=4)
    with pytest.raises(ConfigError, match=r"^model 'timm:own' has 1 block: a model needs at least 2$"):
        build_tower(model, Address("timm", "own", "model"), 4)


@pytest.mark.parametrize(
    ("spec", "right"),
    [
        ("open_clip:ViT-B-16/openai", "open_clip:ViT-B-16-quickgelu/openai"),
        ("open_clip:ViT-L-14/dfn2b", "open_clip:ViT-L-14-quickgelu/dfn2b"),
        ("open_clip:ViT-B-16-quickgelu/laion2b_s34b_b88k", "open_clip:ViT-B-16/laion2b_s34b_b88k"),
        ("timm:vit_base_patch16_clip_224.openai", "timm:vit_base_patch16_clip_quickgelu_224.openai"),
    ],
)
def test_weights_of_another_activation_are_refused(spec, right):
    message = refusal(spec)
    assert "QuickGELU" in message
    assert message.endswith(f"give {right!r}")


def test_every_open_clip_tag_of_another_activation_is_refused():
    names = [
        (name, tag)
        for name, tag in open_clip.list_pretrained()
        if bool(get_pretrained_cfg(name, tag).get("quick_gelu"))
        != bool(open_clip.get_model_config(name).get("quick_gelu"))
    ]
    assert len(names) > 20
    for name, tag in names:
        assert (
            "not a plain ViT" in (message := refusal(f"open_clip:{name}/{tag}")) or "trained with" in message
        )


def test_weights_without_a_right_model_are_refused():
    assert refusal("open_clip:roberta-ViT-B-32/laion2b_s12b_b32k").endswith(
        "open_clip has no right model for them, choose another tag"
    )


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (
            "openclip:ViT-B-16/openai",
            ["'openclip:ViT-B-16/openai'", "did you mean 'open_clip'?", "timm:MODEL[.TAG]"],
        ),
        ("vit_base_patch16_224", ["open_clip:MODEL/TAG, open_clip:local-dir:PATH, timm:MODEL[.TAG] or"]),
        ("timm:", ["accepted is"]),
        ("timm:vit_base_patch16_244", ["is not a model of timm", "'vit_base_patch16_224'"]),
        (
            "timm:vit_base_patch16_224.dnio",
            ["no tag 'dnio'", "did you mean 'dino'?", "timm:vit_base_patch16_224.random"],
        ),
        ("timm:vit_base_patch16_224.", ["no tag ''", "timm:vit_base_patch16_224.dino"]),
        ("open_clip:ViT-B/16/openai", ["is not a model of open_clip", "'ViT-B-16'"]),
        ("open_clip:ViT-B-16", ["no tag ''", "open_clip:ViT-B-16/random"]),
        ("open_clip:ViT-B-16/datacomp_xl", ["no tag 'datacomp_xl'", "'datacomp_xl_s13b_b90k'"]),
        (
            "open_clip:ViT-B-16//models/clip.pt",
            ["names a file where a tag belongs", "open_clip:local-dir:FOLDER"],
        ),
        ("open_clip:ViT-B-16/clip.safetensors", ["names a file where a tag belongs"]),
        ("open_clip:hf-hub:laion/CLIP", ["download the model and give open_clip:local-dir:PATH"]),
    ],
)
def test_an_unknown_address_is_told_what_is_accepted(spec, parts):
    message = refusal(spec)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    "spec", ["timm:test_vit", "timm:test_vit.r160_in1k", "open_clip:ViT-B-32-quickgelu/openai"]
)
def test_weights_that_cannot_be_fetched_name_the_remedy(spec):
    message = refusal(spec)
    assert message.startswith(f"teacher {spec!r} cannot be loaded (")
    assert "check the network" in message
    assert "random' for untrained weights" in message


def test_a_folder_needs_a_configuration(tmp_path):
    assert "is not a folder" in refusal(f"open_clip:local-dir:{tmp_path / 'none'}")
    wrong = json.dumps({"model_cfg": {"embed_dim": 1, "vision_cfg": {}}})
    for text in (None, "{", "[]", "{}", wrong):
        if text is not None:
            (tmp_path / "open_clip_config.json").write_text(text)
        message = refusal(f"open_clip:local-dir:{tmp_path}")
        assert "open_clip_config.json" in message
        assert "give a folder that holds" in message


def test_a_folder_needs_the_weights_of_a_known_model(tmp_path):
    write_clip(tmp_path / "clip")
    config, spec = tmp_path / "clip" / "open_clip_config.json", f"open_clip:local-dir:{tmp_path / 'clip'}"
    sound = config.read_text()
    for part, other, fault in (
        ('"layers": 3', '"layers": 2', "the weights must be those of the model"),
        ('"image_size": 32', '"timm_model_name": "vit_of_mine"', "timm must have the model"),
    ):
        config.write_text(sound.replace(part, other))
        assert fault in refusal(spec)
    (tmp_path / "clip" / "open_clip_model.safetensors").rename(tmp_path / "elsewhere")
    config.write_text(sound)
    assert "has no weights" in refusal(spec)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"scaled_cosine_attn": True}, "scaled cosine attention"),
        ({"patch_size": [8, 8]}, "square"),
        ({"layers": 1}, "at least 2"),
    ],
)
def test_open_clip_variants_that_cannot_teach_are_refused(tmp_path, changes, part):
    write_clip(tmp_path / "clip", **changes)
    with pytest.raises(ConfigError, match=part):
        load_clip(tmp_path / "clip", levels="1")


def test_sizes_and_levels_that_do_not_fit_are_refused():
    assert refusal("timm:test_vit.random", image_size=225, patch_size=16) == (
        "image size 225 is not a multiple of patch size 16; give image size 224 or 240"
    )
    assert "the teacher has 6 blocks" in refusal("timm:test_vit.random", levels="7")
