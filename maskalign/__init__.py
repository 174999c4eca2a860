"""MaskAlign's caches, students and both stages from Python: docs/library.md has an example of each name.

Names are imported when they are first used, so that `import maskalign` loads neither torch nor NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.errors import MaskAlignError
    from pipeline.library.cache import Cache
    from pipeline.library.dataset import CacheDataset
    from pipeline.library.join_stage import with_targets
    from pipeline.library.runs import run_evaluation, run_extraction, run_training
    from pipeline.library.student import load_student
    from pipeline.teacher.module import ModuleTeacher, transformers_teacher
    from pipeline.teacher.tower import Importance

    __version__: str

_HOMES = {
    "Cache": "pipeline.library.cache",
    "CacheDataset": "pipeline.library.dataset",
    "Importance": "pipeline.teacher.tower",
    "MaskAlignError": "pipeline.errors",
    "ModuleTeacher": "pipeline.teacher.module",
    "load_student": "pipeline.library.student",
    "run_evaluation": "pipeline.library.runs",
    "run_extraction": "pipeline.library.runs",
    "run_training": "pipeline.library.runs",
    "transformers_teacher": "pipeline.teacher.module",
    "with_targets": "pipeline.library.join_stage",
}

__all__ = [
    "Cache",
    "CacheDataset",
    "Importance",
    "MaskAlignError",
    "ModuleTeacher",
    "load_student",
    "run_evaluation",
    "run_extraction",
    "run_training",
    "transformers_teacher",
    "with_targets",
]


if not TYPE_CHECKING:  # so that a name which does not exist is found by mypy and editors

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("maskalign")
        if name not in _HOMES:
            raise AttributeError(f"module 'maskalign' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
