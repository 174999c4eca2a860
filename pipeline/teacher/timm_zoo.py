"""timm's vision transformers by name and tag, checked on the meta device before any weights are fetched."""

from typing import Any

import timm
import torch
from timm.layers import QuickGELU
from timm.models import get_pretrained_cfg

from pipeline.errors import ConfigError, suggestion
from pipeline.teacher.request import LOCAL, LOCAL_DIR, RANDOM, Address
from pipeline.teacher.source import Source, build, freeze
from pipeline.teacher.tower import require_plain


def load_timm(address: Address) -> Source:
    """Load `MODEL[.TAG]`, by default timm's tag, `MODEL.random` or `local-dir:PATH`; raises ConfigError."""
    name = address.name
    if name.startswith(LOCAL_DIR):  # weights and config.json as timm writes them; train-student exports such
        remedy = "give a folder with config.json and model.safetensors, as timm saves a model"
        module: Any = build(address, remedy, lambda: timm.create_model(name, pretrained=True))
        model_name, tag = str(module.pretrained_cfg["architecture"]), LOCAL
    else:
        model_name, dot, tag = name.partition(".")
        if model_name not in (known := timm.list_models()):
            raise ConfigError(
                f"{address} is not a model of timm; {suggestion(model_name, known)}"
                "timm.list_models() has all names"
            )
        tags = [entry.partition(".")[2] for entry in timm.list_pretrained(model_name)]
        if not dot and tags:
            tag = get_pretrained_cfg(model_name).tag
        elif tag not in (*tags, RANDOM):
            accepted = ", ".join(f"timm:{model_name}.{one}" for one in (*tags, RANDOM))
            raise ConfigError(f"{address} has no tag {tag!r}: {suggestion(tag, tags)}accepted is {accepted}")
        if trained := tag != RANDOM:
            require_plain_timm(address, model_name, tag)
        remedy = f"check the network, or give 'timm:{model_name}.{RANDOM}' for untrained weights"
        entry = f"{model_name}.{tag}" if trained else model_name
        module = build(address, remedy, lambda: timm.create_model(entry, pretrained=trained))
    require_plain(module, address)
    module.reset_classifier(0)  # only now, so that trained weights load strictly
    mean, std = (tuple(module.pretrained_cfg[part]) for part in ("mean", "std"))
    return Source(freeze(module), "timm", model_name, tag, mean, std)


def require_plain_timm(address: Address, model_name: str, tag: str = RANDOM) -> None:
    """Raise ConfigError for what is not a plain ViT or has weights of another activation; loads none."""
    with torch.device("meta"):
        skeleton = build(address, "timm must have the model", lambda: timm.create_model(model_name))
    require_plain(skeleton, address)
    if tag == RANDOM:
        return
    # timm only notes which weights of a name with plain GELU are QuickGELU ones
    notes = get_pretrained_cfg(f"{model_name}.{tag}").notes or ()
    native = any("natively quickgelu" in note.lower() for note in notes)
    if native != any(isinstance(part, QuickGELU) for part in skeleton.modules()):
        names = ("_clip_", "_clip_quickgelu_") if native else ("_quickgelu", "")
        raise ConfigError(
            f"{address} has the wrong activation, its weights need {'Quick' if native else ''}GELU; "
            f"give 'timm:{model_name.replace(*names)}.{tag}'"
        )
