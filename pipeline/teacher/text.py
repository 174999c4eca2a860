"""The text side of an open_clip model: class names as points in the space that images are projected to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
from torch import Tensor

from pipeline.teacher.request import LOCAL_DIR, RANDOM, Address
from pipeline.teacher.source import build

_TEMPLATES = {"simple": open_clip.SIMPLE_IMAGENET_TEMPLATES, "openai": open_clip.OPENAI_IMAGENET_TEMPLATES}


@dataclass(frozen=True, eq=False)
class Clip:
    """An open_clip model with its tokenizer; `projection` (D, E) follows the final norm of CLS, if linear."""

    model: Any
    tokenizer: Any
    projection: Tensor | None

    def classes(self, names: Sequence[str], templates: str | Sequence[str]) -> Tensor:
        """Return points (E, classes) of unit length, means over templates: of a set, or with {} for names."""
        texts: Any = _TEMPLATES[templates] if isinstance(templates, str) else templates
        points: Tensor = open_clip.build_zero_shot_classifier(self.model, self.tokenizer, names, texts)
        return points


def load_clip(spec: str) -> Clip:
    """Load `open_clip:MODEL/TAG`, `MODEL/random` or `local-dir:PATH` of open_clip; raises ConfigError."""
    address = Address("open_clip", spec.removeprefix("open_clip:"))
    local = address.name.startswith(LOCAL_DIR)
    name, tag = (address.name, "") if local else address.name.partition("/")[::2]
    trained: dict[str, Any] = {"pretrained": tag, "require_pretrained": True}
    remedy = "check the network, or give open_clip:local-dir:PATH"
    arguments = {} if local or tag == RANDOM else trained
    model: Any = build(address, remedy, lambda: open_clip.create_model(name, **arguments))
    projection = getattr(model.visual, "proj", None)
    tokenizer = open_clip.get_tokenizer(name)
    return Clip(model.eval(), tokenizer, None if projection is None else projection.detach())
