"""Study files. The rows of a study are the product of its [axes], then its [[variants]]."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config import Section, parse_config, read_settings
from pipeline.errors import ConfigError, suggestion
from pipeline.training.sections import replaced_steps

CACHE = "cache"  # the axis of named caches
SEED = "train.seed"
_STUDY_KEYS = ("title", "seeds", "budget", "recipe", "evaluations", "untrained")  # that --set may change


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by "section.key", from settings in this form or in tables of sections."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if "." in name:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            raise ValueError(f"{name!r} is not of the form section.key, such as mask.ratio")
    return found


Settings = Annotated[dict[str, Any], AfterValidator(flattened)]  # by "section.key"


class Row(Section):
    """A line of the table, trained once for each seed: its settings on top of the study's base.

    `cache` is its cache, if there are several; "a+b" trains from caches a and b of the same views. With
    `teacher_in_the_loop` the teacher computes the targets from the cached crops in every step.
    """

    label: str = Field(min_length=1)
    settings: Settings = Field(default_factory=dict)
    cache: str | None = None
    teacher_in_the_loop: bool = False

    @property
    def slug(self) -> str:
        """The label as part of a folder name."""
        return re.sub(r"(?:[^\w.]|_)+", "-", self.label.lower()).strip("-.") or "row"


class Study(Section):
    """The content of a study file.

    `recipe` is a recipe of train-student, relative to the study file; `base` has settings of all runs on top.
    Every row is trained once for each of the `seeds`. `budget` is epochs=N, steps=N or flops=F.
    """

    title: str = Field(min_length=1)
    recipe: str | None = None
    base: Settings = Field(default_factory=dict)
    axes: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    variants: tuple[Row, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: str | None = None
    evaluations: dict[Literal["knn", "probe"], dict[str, Any]] = {"knn": {}, "probe": {}}  # noqa: RUF012
    untrained: bool = True

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("it is empty: give at least one seed, such as [0, 1, 2]")
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(str, twice))} is given twice: give each seed once")
        return seeds

    @model_validator(mode="after")
    def _some_rows(self) -> Self:
        for key, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {key!r} is empty: give it values, or remove it")
            texts = [json.dumps(value, sort_keys=True) for value in values]
            if len(set(texts)) < len(texts):
                raise ValueError(f"axis {key!r} has a value twice: give each value once")
        if not self.axes and not self.variants:
            raise ValueError("the study has no rows: give [axes], [[variants]] or both")
        return self


def nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return settings by "section.key" as sections."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        found.setdefault(section, {})[key] = value
    return found


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by whole keys with changes; epochs among these replace steps."""
    gone = replaced_steps(changes.keys())
    return {key: value for key, value in settings.items() if key not in gone} | dict(changes)


def read_study(file: Path, assignments: Sequence[str] = ()) -> Study:
    """Read a study file and its recipe; assignments change a key of all runs, or one of the study itself.

    Raises ConfigError for a file that cannot be read, unknown keys, and keys that a row sets as well.
    """
    own = [each for each in assignments if each.partition("=")[0].strip().partition(".")[0] in _STUDY_KEYS]
    try:
        values = read_settings(file, own)
    except ConfigError as error:
        text = str(error).replace("configuration file", "study file").replace("TOML recipe", "study file")
        raise ConfigError(text) from None
    try:
        study = parse_config(Study, values)
    except ConfigError as error:
        raise ConfigError(str(error).replace("configuration key", f"key of study {str(file)!r}")) from None
    recipe = flattened(read_settings(file.parent / study.recipe)) if study.recipe else {}
    try:
        given = flattened(read_settings(None, [each for each in assignments if each not in own]))
    except ValueError as error:
        raise ConfigError(f"--set {error}, nor a key of the study: {', '.join(_STUDY_KEYS)}") from None
    varied = {*study.axes, *(key for variant in study.variants for key in variant.settings)}
    if both := sorted(varied & given.keys()):
        raise ConfigError(
            f"--set {both[0]} would replace a key in which rows of the study differ: edit {str(file)!r}"
        )
    study = study.model_copy(update={"base": changed(changed(recipe, study.base), given)})
    _refuse_unknown(study)
    return study


def rows_of(study: Study) -> tuple[Row, ...]:
    """Return the rows: the product of the axes, then the variants; raises ConfigError for equal names."""
    rows = []
    for values in product(*study.axes.values()) if study.axes else ():
        chosen, label = dict(zip(study.axes, values, strict=True)), []
        for key, value in chosen.items():  # a text stands alone, another value follows its key's last part
            text = " ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
            label.append(value if isinstance(value, str) else f"{key.rpartition('.')[2]} {text}")
        cache = chosen.pop(CACHE, None)
        rows.append(Row.model_construct(label=", ".join(label), settings=chosen, cache=cache))
    rows += study.variants
    names = [row.slug for row in rows]
    if twice := [row.label for row in rows if names.count(row.slug) > 1]:
        raise ConfigError(
            f"{len(twice)} rows of the study have the name {twice[0]!r}: give each row its own label"
        )
    return tuple(rows)


def _refuse_unknown(study: Study) -> None:
    """Raise ConfigError, with a suggestion, for a key that no section and no objective has."""
    from pipeline.training.config import objective_kinds
    from pipeline.training.sections import Sections

    sections = {
        name: field.annotation for name, field in Sections.model_fields.items() if name != "objective"
    }
    known = [f"{name}.{key}" for name, kind in sections.items() for key in kind.model_fields]  # type: ignore[union-attr]
    objective = [key for kind in objective_kinds().values() for key in kind.model_fields]
    known += list(dict.fromkeys(f"objective.{key}" for key in (*objective, "preset")))
    places = {key: "axis" for key in study.axes if key != CACHE}
    places |= {key: "setting" for row in study.variants for key in row.settings}
    places |= {key: "setting" for key in study.base}
    for key, place in places.items():
        if key == SEED:
            raise ConfigError(
                f"{place} {SEED!r}: give seeds with the key `seeds` of the study, such as [0, 1, 2]"
            )
        if key.startswith("evaluate."):
            raise ConfigError(
                f"{place} {key!r}: a study evaluates finished runs, so use its key `evaluations`"
            )
        if key not in known:
            hint = suggestion(key, known, most=1).rstrip() or "train-student --print-config prints all keys"
            raise ConfigError(f"{place} {key!r} of the study is not a key of train-student: {hint}")
