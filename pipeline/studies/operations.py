"""The training operations of one image, for a run that has not begun."""

from pipeline.cache.reader import Cache
from pipeline.errors import MaskAlignError
from pipeline.objectives.operations import training_operations
from pipeline.training.config import RunConfig
from pipeline.training.job import initial_objective, objective_setting


def planned_operations(config: RunConfig, cache: Cache) -> int | None:
    """Return the operations (FLOP) of one image in training, None if they cannot be counted beforehand.

    Once a run has begun, run.json has them.
    """
    try:
        objective, setting = initial_objective(config, cache), objective_setting(config, cache)
        return training_operations(objective, setting, config.mask.visible_count(cache.schema.patches))
    except (MaskAlignError, AssertionError, AttributeError):  # an objective of codes, before they are fitted
        return None
