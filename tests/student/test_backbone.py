"""What timm models a student may be, and how others are refused."""

import pytest
from timm.models.vision_transformer import VisionTransformer

from pipeline.config import parse_config
from pipeline.errors import ConfigError
from pipeline.student.backbone import create_backbone
from pipeline.student.config import StudentConfig

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def create(model="vit_tiny_patch16_224", image_size=32, patch_size=8, **options):
    return create_backbone(model, options, 0.2, image_size, patch_size)


@pytest.mark.parametrize(
    "model", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224"]
)
def test_plain_models_are_made_without_a_classifier(model):
    vit = create(model, **TINY)
    assert type(vit) is VisionTransformer
    assert vit.num_classes == 0
    assert vit.patch_embed.grid_size == (4, 4)
    assert len(vit.blocks) == 2


def test_drop_path_grows_to_its_rate():
    blocks = create(**TINY).blocks
    assert not hasattr(blocks[0].drop_path1, "drop_prob")
    assert blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)


def test_an_unknown_name_gets_close_matches():
    message = r"'vit_bas_patch16_224' is unknown to timm .*: did you mean 'vit_base_patch16_224'"
    with pytest.raises(ConfigError, match=message):
        create("vit_bas_patch16_224")


@pytest.mark.parametrize("model", ["what is this", "hf-hub:someone/something"])
def test_a_name_like_no_other_gets_an_example(model):
    with pytest.raises(ConfigError, match="is unknown to timm"):
        create(model)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("swin_tiny_patch4_window7_224", {}),
        ("test_convnext", {}),
        ("eva02_tiny_patch14_224", {}),
        ("vit_base_patch16_rope_224", {}),
        ("vit_tiny_r_s16_p8_224", {}),
        ("deit_tiny_distilled_patch16_224", TINY),
        ("vit_tiny_patch16_224", TINY | {"pos_embed": "none"}),
    ],
)
def test_what_is_not_a_plain_vit_is_refused_by_name(model, options):
    message = f"'{model}' is not a plain vision transformer: .* such as 'vit_base_patch16_224'"
    with pytest.raises(ConfigError, match=message):
        create(model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dept": 3}, "unexpected keyword argument 'dept'"),
        ({"embed_dim": 50, "num_heads": 3}, "divisible by num_heads"),
        ({"depth": "3"}, "do not fit student.model 'vit_tiny_patch16_224'"),
        ({"depth": -1}, "do not fit"),
        ({"class_token": False}, "Token pooling needs the class token"),
        ({"img_size": 64, "drop_path_rate": 0.1}, "sets 'drop_path_rate', 'img_size', which pretraining"),
        ({"checkpoint_path": "somewhere"}, "sets 'checkpoint_path'"),
        ({"depth": 0}, "student.options {'depth': 0} leave no block: give a depth of at least 1"),
        ({"depth": 1, "embed_dim": 42, "num_heads": 3}, "width 42 .* choose a multiple of 4"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        create(**options)


def test_a_model_tag_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="Invalid pretrained tag"):
        create("vit_tiny_patch16_224.nothing", **TINY)


@pytest.mark.parametrize("sizes", [(30, 8), (8, 16), (16, 0)])
def test_sizes_that_do_not_divide_are_refused(sizes):
    message = f"image size {sizes[0]} is not a multiple of patch size {sizes[1]}"
    with pytest.raises(ConfigError, match=message):
        create(image_size=sizes[0], patch_size=sizes[1])


def test_options_keep_their_types_in_a_recipe():
    options = {"depth": 3, "qkv_bias": False, "mlp_ratio": 2.5, "global_pool": "avg"}
    parsed = parse_config(StudentConfig, {"options": options}).options
    assert parsed == options
    assert [type(value) for value in parsed.values()] == [int, bool, float, str]


def test_a_drop_path_out_of_range_is_refused():
    message = r"'drop_path' is 1.0: the rate of dropped paths must be at least 0 and less than 1"
    with pytest.raises(ConfigError, match=message):
        parse_config(StudentConfig, {"drop_path": 1.0})
