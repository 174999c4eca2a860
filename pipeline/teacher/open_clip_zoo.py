"""open_clip's vision towers by model and tag or from a folder, checked before any weights are fetched."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg
from torch import nn

from pipeline.errors import ConfigError, suggestion
from pipeline.json_text import load_json
from pipeline.teacher.request import LOCAL, LOCAL_DIR, RANDOM, Address
from pipeline.teacher.source import Source, build, freeze, not_plain
from pipeline.teacher.timm_zoo import require_plain_timm

Config = dict[str, Any]
_CONFIG_FILE = "open_clip_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # what open_clip looks for
_QUICK = "-quickgelu"
# an untrained tower needs no text tower, and open_clip always builds one
_TINY_TEXT = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8, "context_length": 8}


def load_open_clip(address: Address) -> Source:
    """Load `MODEL/TAG`, `MODEL/random` or `local-dir:PATH`; raises ConfigError."""
    name = address.name
    if name.startswith(LOCAL_DIR):
        return _load_folder(address, Path(name.removeprefix(LOCAL_DIR)))
    if ":" in name:
        raise ConfigError(
            f"{address} is not of open_clip; download the model and give open_clip:local-dir:PATH"
        )
    model_name, _, tag = name.partition("/")
    if model_name not in (known := open_clip.list_models()):
        raise ConfigError(
            f"{address} is not a model of open_clip; {suggestion(model_name, known)}"
            "open_clip.list_models() has all names"
        )
    config: Config = open_clip.get_model_config(model_name)
    _require_plain(address, config)
    if tag == RANDOM:
        options: Config = {"text_cfg": _TINY_TEXT}
        if "multimodal_cfg" in config:
            options["multimodal_cfg"] = _TINY_TEXT
    else:
        _require_tag(address, config, model_name, tag)
        options = {"pretrained": tag, "require_pretrained": True}
    untrained = f"'open_clip:{model_name}/{RANDOM}' for untrained weights"
    remedy = f"check the network, give open_clip:local-dir:PATH, or {untrained}"
    create = partial(open_clip.create_model, model_name, pretrained_text=False, **options)
    return _source(build(address, remedy, create), model_name, tag)


def _load_folder(address: Address, folder: Path) -> Source:
    """Load a folder with the model's configuration and weights; raises ConfigError if one is wrong."""
    needed = f"give a folder that holds {_CONFIG_FILE} with model_cfg and the weights"
    if not folder.is_dir():
        raise ConfigError(f"{address} is not a folder: {needed}")
    try:
        values = load_json((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{address} has no readable {_CONFIG_FILE} ({type(error).__name__}: {error}): {needed}"
        ) from None
    config = values.get("model_cfg") if isinstance(values, dict) else None
    parts = ("vision_cfg", "text_cfg")
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in parts):
        raise ConfigError(
            f"{_CONFIG_FILE} of {address} must contain model_cfg with vision_cfg and text_cfg; {needed}"
        )
    _require_plain(address, config)
    if not any(found for pattern in _WEIGHTS for found in folder.glob(pattern)):
        raise ConfigError(
            f"{address} has no weights; the folder needs {', '.join(_WEIGHTS)} beside {_CONFIG_FILE}"
        )
    remedy = f"the weights must be those of the model in {_CONFIG_FILE}, as open_clip saves them"
    create = partial(open_clip.create_model, address.name, require_pretrained=True, pretrained_text=False)
    # Whatever its folder, a model is named by its vision configuration, such as activation and heads.
    vision = config["vision_cfg"]
    keys = [key for key in ("patch_size", "width", "layers") if key in vision]
    shape = "".join(f"-{key.removesuffix('_size')}{vision[key]}" for key in keys)
    facts = json.dumps([vision, config.get("embed_dim"), bool(config.get("quick_gelu"))], sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    model_name = f"{vision.get('timm_model_name', 'ViT')}{shape}-{digest}"
    return _source(build(address, remedy, create), model_name, LOCAL)


def _source(model: nn.Module, name: str, tag: str) -> Source:
    """Keep the vision tower, free the text tower."""
    visual = freeze(model.visual)  # type: ignore[arg-type]
    preprocess: Config = visual.preprocess_cfg  # type: ignore[assignment]
    return Source(visual, "open_clip", name, tag, tuple(preprocess["mean"]), tuple(preprocess["std"]))


def _require_plain(address: Address, config: Config) -> None:
    vision = config["vision_cfg"]
    if timm_name := vision.get("timm_model_name"):
        require_plain_timm(address, timm_name)
    elif isinstance(vision.get("layers"), list):
        raise not_plain(address, "is a ModifiedResNet")
    elif isinstance(vision.get("patch_size"), list):
        raise not_plain(address, "has patches that need not be square")
    elif vision.get("scaled_cosine_attn"):
        raise not_plain(address, "is a VisionTransformer with scaled cosine attention")


def _require_tag(address: Address, config: Config, model_name: str, tag: str) -> None:
    """Refuse an unknown tag, a file instead of a tag, and weights of another activation than the model's."""
    if "/" in tag or Path(tag).suffix:
        remedy = f"put it into a folder with its {_CONFIG_FILE} and give open_clip:local-dir:FOLDER"
        raise ConfigError(f"{address} names a file where a tag belongs: {remedy}")
    # the same model with the other activation, which open_clip may not have
    sibling = model_name.removesuffix(_QUICK) if model_name.endswith(_QUICK) else model_name + _QUICK
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag not in tags and tag not in open_clip.list_pretrained_tags_by_model(sibling):
        accepted = ", ".join(f"open_clip:{model_name}/{one}" for one in (*tags, RANDOM))
        raise ConfigError(f"{address} has no tag {tag!r}: {suggestion(tag, tags)}accepted is {accepted}")
    quick = bool(config.get("quick_gelu"))
    if tag not in tags or bool(get_pretrained_cfg(model_name, tag).get("quick_gelu")) != quick:
        model_has, weights_want = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
        remedy = "open_clip has no right model for them, choose another tag"
        if sibling in open_clip.list_models():
            remedy = f"give 'open_clip:{sibling}/{tag}'"
        raise ConfigError(
            f"{address} has {model_has}, but its weights were trained with {weights_want} "
            f"(quick_gelu); {remedy}"
        )
