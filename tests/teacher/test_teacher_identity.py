"""A teacher's identity is that of its weights; loading leaves no trace."""

import hashlib
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import PREPROCESS, load_clip, write_clip

from pipeline.teacher.load import load_teacher

RANDOM = {
    "timm:test_vit.random": ("timm", "test_vit", "random"),
    "open_clip:ViT-S-32-alt/random": ("open_clip", "ViT-S-32-alt", "random"),
}


def load(spec, image_size=32):
    return load_teacher(spec, image_size=image_size, patch_size=8, levels="2")


@pytest.mark.parametrize("spec", RANDOM)
def test_untrained_weights_are_the_same_in_every_load(spec):
    """The facts name the model, too."""
    torch.manual_seed(1)
    first = load(spec)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = load(spec, image_size=40)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.facts.weights_sha256 == second.facts.weights_sha256
    assert not first.facts.trained
    assert (first.facts.library, first.facts.name, first.facts.tag) == RANDOM[spec]
    pairs = zip(first.tower.module.named_parameters(), second.tower.module.parameters(), strict=True)
    assert all(torch.equal(mine, other) for (name, mine), other in pairs if "pos" not in name)


def test_sha256_covers_the_vision_tensors_by_name(tmp_path):
    model = write_clip(tmp_path / "clip")
    digest = hashlib.sha256()
    state = model.visual.state_dict()
    for name in sorted(state):
        shape = ", ".join(map(str, state[name].shape)) + ("," if state[name].ndim == 1 else "")
        digest.update(f"{name} float32 ({shape})\n".encode() + state[name].numpy().tobytes())
    assert load_clip(tmp_path / "clip", image_size=40).facts.weights_sha256 == digest.hexdigest()


def test_a_folder_is_known_by_what_it_holds(tmp_path):
    write_clip(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other" / "place")
    first, second = load_clip(tmp_path / "one"), load_clip(tmp_path / "other" / "place")
    assert first.facts == second.facts
    assert first.facts.trained
    assert first.facts.tag == "local"
    assert first.facts.name.startswith("ViT-patch8-width32-layers3-")
    assert (list(first.facts.mean), list(first.facts.std)) == (PREPROCESS["mean"], PREPROCESS["std"])


def test_one_vision_weight_changes_the_digest(tmp_path):
    write_clip(tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    first = load_clip(tmp_path / "clip").facts
    state = load_file(file)
    save_file(state | {"text_projection": state["text_projection"] + 1}, file)
    assert load_clip(tmp_path / "clip").facts == first
    state["visual.ln_post.bias"][3] += 1e-3
    save_file(state, file)
    second = load_clip(tmp_path / "clip").facts
    assert second.name == first.name
    assert second.weights_sha256 != first.weights_sha256


def test_the_activation_is_part_of_a_folders_name(tmp_path):
    write_clip(tmp_path / "clip")
    first = load_clip(tmp_path / "clip").facts
    config = tmp_path / "clip" / "open_clip_config.json"
    config.write_text(config.read_text().replace('"quick_gelu": true', '"quick_gelu": false'))
    second = load_clip(tmp_path / "clip").facts
    assert second.weights_sha256 == first.weights_sha256
    assert second.name != first.name


def test_half_precision_folders_load_as_float32(tmp_path):
    write_clip(tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file)
    module = load_clip(tmp_path / "clip").tower.module
    assert {value.dtype for value in module.parameters()} == {torch.float32}


def test_loading_is_quiet(caplog, capfd):
    handlers = list(logging.getLogger().handlers)
    load("open_clip:ViT-S-32-alt/random")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
