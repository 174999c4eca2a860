"""The configuration of train-student. Defaults are the paper's recipe for B (MaskAlign, arXiv 2211.08887)."""

from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import Discriminator as Choice
from pydantic import Tag, model_validator

from pipeline.config import named
from pipeline.errors import ConfigError, printable
from pipeline.objectives.beit import Beit
from pipeline.objectives.beit2 import Beit2
from pipeline.objectives.cae import ContextAutoencoder
from pipeline.objectives.combined import Combined
from pipeline.objectives.fd import FeatureDistillation
from pipeline.objectives.mae import MaskedAutoencoder
from pipeline.objectives.maskalign import MaskAlign
from pipeline.objectives.maskdistill import MaskDistill
from pipeline.objectives.milan import Milan
from pipeline.objectives.objective import ObjectiveConfig
from pipeline.objectives.supervised import Supervised
from pipeline.training.sections import OptimConfig, Sections, TrainConfig
from pipeline.views.masking import MaskConfig

# Every objective has one line here.
AnyObjective = Annotated[
    Annotated[MaskAlign, Tag("maskalign")]
    | Annotated[FeatureDistillation, Tag("fd")]
    | Annotated[MaskedAutoencoder, Tag("mae")]
    | Annotated[ContextAutoencoder, Tag("cae")]
    | Annotated[MaskDistill, Tag("maskdistill")]
    | Annotated[Milan, Tag("milan")]
    | Annotated[Combined, Tag("combined")]
    | Annotated[Beit, Tag("beit")]
    | Annotated[Beit2, Tag("beit2")]
    | Annotated[Supervised, Tag("supervised")],
    Choice(named("maskalign")),
]


# The mask that preset "same-mask" gives every objective with a mask.
SAME_MASK = {"mask.strategy": "attention", "mask.ratio": 0.7}


def objective_kinds() -> dict[str, type[ObjectiveConfig]]:
    """Return the section of each objective by its name."""
    members = (get_args(member) for member in get_args(get_args(AnyObjective)[0]))
    return {tag.tag: kind for kind, tag in members}


class RunConfig(Sections):
    """Everything that a run depends on but the cache. What [mask] leaves unset comes from the objective."""

    objective: AnyObjective = MaskAlign()

    def recorded(self) -> dict[str, Any]:
        """Return plain values to write to files, without the passwords of addresses."""
        values = self.model_dump(mode="json")
        for name in ("shards", "test_shards"):
            values["evaluate"][name] = [*map(printable, values["evaluate"][name])]
        return values

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Replace `objective.preset` by its values, for keys that are not set."""
        given = values.get("objective")
        if not isinstance(given, Mapping) or "preset" not in given:
            return values
        name, preset = given.get("name", "maskalign"), given["preset"]
        kind = objective_kinds().get(str(name))
        presets: dict[str, Mapping[str, Any]] = {"common": {}, **(kind.presets if kind else {})}
        if kind and kind.masked:
            presets["same-mask"] = SAME_MASK
        if kind and str(preset) not in presets:
            raise ConfigError(
                f"configuration key 'objective.preset' is {preset!r}: objective {name!r} has "
                f"{', '.join(map(repr, presets))}"
            )
        found = {**values, "objective": {key: value for key, value in given.items() if key != "preset"}}
        for key_of_section, value in presets.get(str(preset), {}).items():
            section, _, key = key_of_section.partition(".")
            keys = found.get(section, {})
            if isinstance(keys, Mapping) and not (key_of_section == "mask.ratio" and "hidden" in keys):
                found[section] = {key: value, **keys}
        return found

    @model_validator(mode="after")
    def _fit_the_objective(self) -> Self:
        """Complete the mask, and refuse by name what the objective does not use."""
        name, needs = self.objective.name, self.objective.needs
        defaults = MaskConfig.model_validate(self.objective.mask)
        chosen = {key: getattr(self.mask, key) for key in self.mask.model_fields_set}
        unused = sorted(f"mask.{key}" for key in chosen if chosen[key] != getattr(defaults, key))
        if unused and not self.objective.masked:
            are, them = ("are", "them") if len(unused) > 1 else ("is", "it")
            usual = {key: getattr(defaults, key.partition(".")[2]) for key in unused}
            unset = " ".join(f"--set {key}={value}" for key, value in usual.items() if value is not None)
            raise ValueError(
                f"{' and '.join(unused)} {are} set: objective {name!r} hides no patches; remove {them}"
                + (f", or give {unset}" if unset else "")
            )
        if self.data.levels and len(self.data.levels) > 1 and "chosen" not in (needs.visible, needs.hidden):
            use = "one; name only that" if needs.targets((0,)) else "none; remove data.levels"
            raise ValueError(
                f"data.levels names {len(self.data.levels)} levels: objective {name!r} learns from {use}"
            )
        merged = {**defaults.model_dump(), **chosen}
        if chosen.get("hidden") is not None:
            merged["ratio"] = None
        elif chosen.get("ratio") is not None:
            merged["hidden"] = None
        object.__setattr__(self, "mask", MaskConfig(**merged))
        return self


def with_preset(earlier: Mapping[str, Any], assigned: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of an earlier configuration, changed by assigned values with a preset.

    The earlier configuration sets all keys, so without this a preset would change none.
    """
    objective = {"name": earlier["objective"]["name"], **assigned["objective"]}
    changes = RunConfig.completed({**assigned, "objective": objective})
    return {name: {**earlier.get(name, {}), **changes.get(name, {})} for name in {**earlier, **changes}}


def batch_of_rank(train: TrainConfig, world_size: int, lanes: int) -> int:
    """Return the samples of one rank's step; raises ConfigError if the global batch does not divide."""
    parts, batch = world_size * train.accumulate, train.global_batch
    if batch % parts:
        raise ConfigError(
            f"train.global_batch {batch} is not a multiple of "
            f"{world_size} rank{'s' * (world_size > 1)} x train.accumulate {train.accumulate}: "
            f"choose a multiple of {parts}"
        )
    if batch % lanes:
        fewer = max(number for number in range(world_size, lanes, world_size) if batch % number == 0)
        raise ConfigError(
            f"train.global_batch {batch} is not a multiple of data.lanes {lanes}: choose a multiple of "
            f"{lanes}, or in a new run data.lanes={fewer}"
        )
    return batch // world_size


def steps_of_run(optim: OptimConfig, steps_per_epoch: int) -> tuple[int, int]:
    """Return all steps and the warm-up steps among them; raises ConfigError if the warm-up is not shorter."""
    steps = optim.steps or max(1, round(optim.epochs * steps_per_epoch))
    warmup = optim.warmup_steps
    if warmup is None:
        warmup = round(optim.warmup_epochs * steps_per_epoch)
    if warmup >= steps:
        raise ConfigError(
            f"the warm-up of {warmup} steps is not shorter than the run of {steps}: "
            "lower optim.warmup_epochs or optim.warmup_steps, or train longer"
        )
    return steps, warmup
