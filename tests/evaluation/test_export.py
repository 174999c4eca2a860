"""Exports: real libraries reload them with equal outputs, and a card says what is known."""

import json
import re
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from calls import call
from huggingface_hub import ModelCard
from networks import task, tiny_subject
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.models import VisionTransformer
from transformers import AutoImageProcessor, VitDetBackbone, VitDetConfig, ViTModel

from pipeline.cache.reader import Cache
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.evaluation.crops import centre_crop
from pipeline.evaluation.exporting.export import Export
from pipeline.evaluation.subject import Subject, teacher_subject
from pipeline.report.scores import SubjectFacts, add_scores, read_scores
from pipeline.training.config import RunConfig
from pipeline.training.run import run_training
from stages.evaluate_student import app

CPU = torch.device("cpu")
PLAINEST = {"init_values": 0.5, "no_embed_class": True, "qkv_bias": False}
WITHOUT_CLS = {"class_token": False, "global_pool": "avg"}
RICHEST = {"reg_tokens": 2, "qk_norm": True, "init_values": 0.5}
TINY = [
    "student.model=vit_tiny_patch16_224",
    "student.options={depth=2, embed_dim=32, num_heads=2}",
    *("mask.ratio=0.5", "data.workers=0", "data.window_blocks=1"),
    *("optim.steps=2", "optim.warmup_steps=1", "train.global_batch=16"),
]


def export(folder, subject, format="timm", **options):
    """Export to a new folder and return it."""
    target = folder / format
    data = None
    assert Export(format=format, folder=str(target), **options).run(task(folder, subject, data)) == []
    return target


@torch.no_grad()
def run_code(folder, **given):
    """Run the code of a card; returns its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(code.replace("FOLDER", str(folder)), given)
    return given


def images(count=3, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def tokens(subject, pixels):
    """All tokens after the final norm, by timm."""
    return subject.vit.fc_norm(subject.vit.forward_features(pixels))


def close(found, wanted):
    return found.shape == wanted.shape and float((found - wanted).abs().max().detach()) < 1e-5


@pytest.mark.parametrize("options", [{}, RICHEST, WITHOUT_CLS, {"pre_norm": True, "mlp_ratio": 2}])
def test_timm_reloads_any_form(tmp_path, options):
    subject = tiny_subject(**options)
    model = timm.create_model(f"local-dir:{export(tmp_path, subject)}", pretrained=True).eval()
    assert close(model.fc_norm(model.forward_features(images())), tokens(subject, images()))
    assert json.loads((tmp_path / "timm/config.json").read_text())["pretrained_cfg"]["crop_pct"] == 0.875


def test_timm_reloads_a_tower_of_open_clip(tmp_path):
    subject = teacher_subject("open_clip:ViT-S-32-alt/random", 64, 32, CPU)
    model = timm.create_model(f"local-dir:{export(tmp_path, subject)}", pretrained=True).eval()
    assert close(model.forward_features(images(side=64)), tokens(subject, images(side=64)))
    assert tuple(model.pretrained_cfg["mean"]) == subject.mean


@pytest.mark.parametrize("options", [{}, PLAINEST, {"global_pool": "avg", "act_layer": "quick_gelu"}])
def test_transformers_reloads_it(tmp_path, options):
    subject = tiny_subject(**options)
    folder = export(tmp_path, subject, "transformers")
    model, loading = ViTModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(loading.values())
    with torch.no_grad():
        assert close(model.eval()(images()).last_hidden_state, tokens(subject, images()))


def test_the_image_processor_prepares_images_as_evaluations_do(tmp_path):
    facts = SubjectFacts(kind="model", name="tiny", weights="0" * 64)
    subject = Subject(facts, tiny_subject().vit, 8, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    processor = AutoImageProcessor.from_pretrained(export(tmp_path, subject, "transformers"))
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(noise).resize(
        (76, 74), Image.BICUBIC
    )  # an even margin: halves are rounded otherwise
    found = processor(image, return_tensors="pt")["pixel_values"]
    wanted = subject.images(torch.from_numpy(np.array(centre_crop(32)(image)))[None])
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1.01 / 255 / 0.5  # a step of uint8, where rounding differs


@pytest.mark.parametrize("options", [{}, PLAINEST])
def test_torchvision_reloads_it(tmp_path, options):
    subject = tiny_subject(**options)
    folder = export(tmp_path, subject, "torchvision")
    config = json.loads((folder / "config.json").read_text())
    model = VisionTransformer(**config["arguments"])
    model.heads = nn.Identity()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        assert close(model.eval()(images()), tokens(subject, images())[:, 0])
    assert config["preprocessing"]["mean"] == list(subject.mean)


def test_onnx_takes_any_batch_and_leaves_registers_out(tmp_path):
    subject = tiny_subject(**RICHEST)
    session = onnxruntime.InferenceSession(export(tmp_path, subject, "onnx") / "model.onnx")
    for count in (1, 5):
        cls, patches = session.run(["cls", "patches"], {"images": images(count).numpy()})
        wanted = tokens(subject, images(count))
        assert close(torch.from_numpy(cls), wanted[:, 0])
        assert close(torch.from_numpy(patches), wanted[:, 3:])


def test_onnx_without_cls_has_patches_alone(tmp_path):
    subject = tiny_subject(depth=1, **WITHOUT_CLS)
    given = run_code(export(tmp_path, subject, "onnx"), images=images().numpy())
    assert close(torch.from_numpy(given["patches"]), tokens(subject, images()))


@torch.no_grad()
def patches_alone(vit, pixels):
    """Patches (B, C, 4, 4) of the last block, of the network without a CLS token."""
    patches = vit.blocks(vit.patch_embed(pixels).flatten(1, -2) + vit.pos_embed[:, -16:])
    return patches.mT.unflatten(-1, (4, 4))


@pytest.mark.parametrize(
    "options", [{}, PLAINEST, WITHOUT_CLS, {"act_layer": "quick_gelu"}, {"dynamic_img_size": True}]
)
def test_vitdet_gives_the_patches_of_a_backbone(tmp_path, options):
    subject = tiny_subject(**options)
    given = run_code(export(tmp_path, subject, "detection"), images=images())
    assert given["patches"].shape == (3, 32, 4, 4)
    assert close(given["patches"], patches_alone(subject.vit, images()))


def test_vitdet_takes_larger_images_and_windows(tmp_path):
    """The positions are resized, as in detectron2; a window as large as the image is global attention."""
    folder = export(tmp_path, tiny_subject(), "detection")
    larger = {"image_size": 64, "window_size": 8, "window_block_indices": [0]}
    windowed = VitDetBackbone.from_pretrained(folder, **larger).eval()
    plain = VitDetBackbone.from_pretrained(folder, image_size=64).eval()
    (found,), (wanted,) = (model(images(side=64)).feature_maps for model in (windowed, plain))
    assert found.shape == (3, 32, 8, 8)
    assert close(found, wanted)


@pytest.mark.parametrize(("options", "with_cls"), [({}, True), (PLAINEST, False), (WITHOUT_CLS, False)])
def test_backbone_has_the_names_and_arguments_of_detectron2(tmp_path, options, with_cls):
    """transformers' VitDet is detectron2's ViT with other names."""
    subject = tiny_subject(**options)
    folder = export(tmp_path, subject, "detection")
    state = torch.load(folder / "backbone.pth", weights_only=True)["model"]
    config = json.loads((folder / "backbone.json").read_text())
    arguments = config["arguments"]
    assert state["pos_embed"].shape == (1, 16 + with_cls, 32)
    assert arguments["pretrain_use_cls_token"] is with_cls
    assert config["pixel_mean"] == pytest.approx([123.675, 116.28, 103.53])

    names = {"pos_embed": "embeddings.position_embeddings"}
    for name in state:
        new = re.sub(r"^blocks\.(\d+)\.", r"encoder.layer.\1.", name).replace(".attn.", ".attention.")
        names.setdefault(name, new.replace("patch_embed.proj", "embeddings.projection"))
    model = VitDetBackbone(
        VitDetConfig(
            hidden_size=arguments["embed_dim"],
            num_hidden_layers=arguments["depth"],
            num_attention_heads=arguments["num_heads"],
            mlp_ratio=int(arguments["mlp_ratio"]),
            image_size=arguments["img_size"],
            pretrain_image_size=arguments["pretrain_img_size"],
            patch_size=arguments["patch_size"],
            layer_norm_eps=config["norm_eps"],
        )
    ).eval()
    if not with_cls:
        state["pos_embed"] = F.pad(state["pos_embed"], (0, 0, 1, 0))
    model.load_state_dict({names[name]: value for name, value in state.items()})
    assert close(model(images()).feature_maps[0], patches_alone(subject.vit, images()))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"reg_tokens": 4}, "has 4 registers"),
        (WITHOUT_CLS, "has no CLS token"),
        ({"qk_norm": True, "pre_norm": True}, "normalises queries and keys (qk_norm) and has a norm before"),
        ({"act_layer": "silu"}, "has activation SiLU"),
        ({"img_size": (32, 64)}, "takes images of 4 x 8 patches"),
    ],
)
def test_what_a_library_cannot_express_is_refused(tmp_path, options, fault):
    subject = tiny_subject(**options)
    for format, name in (
        ("transformers", "Hugging Face's ViTModel"),
        ("torchvision", "torchvision's Vision"),
    ):
        with pytest.raises(ConfigError) as error:
            export(tmp_path, subject, format)
        assert f"this network {fault}" in str(error.value)
        assert f", which {name}" in str(error.value)
        assert str(error.value).endswith("give --set format=timm or --set format=onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_a_detector_cannot_express_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"has 4 registers and has MLPs of 2\.5 times its width, which the ViT"
    ):
        export(tmp_path, tiny_subject(reg_tokens=4, mlp_ratio=2.5), "detection")


@pytest.mark.parametrize(
    ("format", "library", "remedy"),
    [
        ("transformers", "transformers", "pip install transformers"),
        ("onnx", "onnxruntime", "pip install 'maskalign[onnx]'"),
    ],
)
def test_a_missing_library_is_named_with_its_remedy(tmp_path, monkeypatch, format, library, remedy):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError) as error:
        export(tmp_path, tiny_subject(), format)
    wanted = f"this format needs {library}, which is not installed: {remedy}, or give --set format=timm"
    assert str(error.value) == wanted


def test_a_folder_that_holds_something_is_kept(tmp_path):
    kept = tmp_path / "timm/notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(ConfigError, match="holds files: give another --set folder=PATH, or --set overwrite"):
        export(tmp_path, tiny_subject())
    assert kept.exists()
    export(tmp_path, tiny_subject(), overwrite=True)
    assert {path.name for path in kept.parent.iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_without_a_run_a_folder_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="only a run has a place for its export: give --set folder=PATH"):
        Export().run(task(tmp_path, tiny_subject(), None))


@pytest.fixture(scope="module")
def run(small_cache_path, tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("export") / "my run"
    run_training(Cache(small_cache_path), folder, load_config(RunConfig, None, TINY), device=CPU)
    return folder


def evaluate(*arguments):
    return call(app, *arguments, "--device", "cpu", code=0).stdout


@pytest.mark.parametrize("format", ["timm", "transformers", "torchvision"])
def test_the_code_of_a_card_loads_a_student(run, small_cache_path, format):
    folder = run / "evaluation" / format
    assert f"wrote {folder / 'README.md'}" in evaluate("export", "--run", run, "--set", f"format={format}")
    side = Cache(small_cache_path).schema.view.image_size
    given = run_code(folder, image=Image.new("RGB", (80, 70)), images=images(2, side))
    assert given["cls" if "cls" in given else "tokens"].shape[-1] == 32


def test_a_card_has_the_scores_of_these_weights_and_the_origin(run, small_cache_path, tmp_path):
    run = shutil.copytree(run, tmp_path / "run", symlinks=True)
    evaluate("knn", "--run", run, "--cache", small_cache_path, "--set", "k=5", "--workers", "0")
    current = read_scores(run)
    old = current[0].subject.model_copy(update={"weights": "f" * 64})
    add_scores(run, [current[0].model_copy(update={"subject": old, "metrics": {"old metric": 0.5}})])
    evaluate("export", "--run", run, "--set", "license=mit", "--set", 'datasets=["imagenet-1k"]')
    card = ModelCard.load(run / "evaluation/timm/README.md")
    assert (card.data.license, card.data.library_name, card.data.datasets) == ("mit", "timm", ["imagenet-1k"])
    assert "maskalign" in card.data.tags
    described = json.loads((run / "run.json").read_text())
    for part in (
        "pretrained on the features of a teacher",
        f"| weights, SHA-256 | {current[0].subject.weights} |",
        "| steps | 2 of 2, each of 16 images |",
        f"| teacher's weights, SHA-256 | {described['cache']['teacher']['weights_sha256']} |",
        f"| digest of the cache | {described['cache']['digest']} |",
        'model = "vit_tiny_patch16_224"',
        f"| knn (weighted k-NN, version 2) | cls | top-1 | {current[0].metrics['top-1']:.1%} |",
    ):
        assert part in card.content, part
    assert "old metric" not in card.content
    assert str(tmp_path) not in card.content


def test_the_card_of_a_run_on_labels_names_no_teacher(small_cache_path, tmp_path):
    config = load_config(RunConfig, None, [*TINY, "objective.name=supervised", "objective.classes=4"])
    run_training(Cache(small_cache_path), tmp_path / "run", config, device=CPU)
    evaluate("export", "--run", tmp_path / "run")
    card = (tmp_path / "run/evaluation/timm/README.md").read_text()
    assert "that MaskAlign trained on labels." in card
    assert "teacher" not in card.partition("<details>")[0]


def test_an_untrained_student_says_so(run, tmp_path):
    folder = tmp_path / "untrained"
    evaluate("export", "--untrained", "--run", run, "--set", f"folder={folder}")
    card = (folder / "README.md").read_text()
    assert "before its first step: it has learnt nothing" in card
    assert "No evaluation of these weights is recorded." in card
