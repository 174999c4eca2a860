"""The objective before its first step: a function of configuration and caches."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from pipeline.cache.reader import Cache
from pipeline.objectives.objective import Objective, Setting
from pipeline.objectives.operations import training_operations
from pipeline.seeding import derived_seed
from pipeline.training.codebook import unfitted_tokenizer
from pipeline.training.config import RunConfig

_counted: dict[str, int] = {}  # operations by all that they depend on


def initial_objective(config: RunConfig, cache: Cache, others: Sequence[Cache] = ()) -> Objective:
    """Build the objective as it is before the first step: a function of configuration and caches."""
    setting = objective_setting(config, cache, others)
    seed_initial_weights(config)
    return config.objective.build(config.student, setting)


def image_operations(
    config: RunConfig, objective: Objective, cache: Cache, others: Sequence[Cache] = ()
) -> int:
    """Return the operations (FLOP) of one image in training, without a teacher in the loop.

    Counting takes some tenths of a second, so a process counts what it has not counted yet.
    """
    visible = config.mask.visible_count(cache.schema.patches)
    setting = objective_setting(config, cache, others)
    shape = repr((config.objective, config.student, replace(setting, tokenizer=None), visible))
    if shape not in _counted:
        _counted[shape] = training_operations(objective, setting, visible)
    return _counted[shape]


def objective_setting(config: RunConfig, cache: Cache, others: Sequence[Cache] = ()) -> Setting:
    """Return the facts that an objective is built from. A tokenizer has no codes yet."""
    request, settings = config.objective.codebook_request, []
    for at, each in enumerate((cache, *others)):
        schema, chosen = each.schema, each.level_indices(config.data.levels_of(at))
        settings.append(
            Setting(
                schema.view.image_size,
                schema.view.patch_size,
                tuple(schema.levels[level] for level in chosen),
                schema.teacher.depth,
                schema.teacher.width,
                schema.teacher.has_cls,
                schema.teacher.projection_width,
                teacher_name=schema.teacher.name,
            )
        )
    setting = replace(settings[0], others=tuple(settings[1:]))
    return replace(setting, tokenizer=unfitted_tokenizer(request, setting)) if request else setting


def seed_initial_weights(config: RunConfig) -> None:
    """Seed torch for the drawing of a run's initial weights, the encoder's first."""
    torch.manual_seed(derived_seed(config.train.seed, "initial weights"))
