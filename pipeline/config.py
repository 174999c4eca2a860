"""Strict configuration: frozen models, TOML recipes, `--set key=value`, one line for each wrong key."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import ConfigError


class Section(BaseModel):
    """A part of the configuration: immutable, no unknown keys, no conversions but int to float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Model = TypeVar("Model", bound=Section)


def load_config(model: type[Model], file: Path | None, assignments: Iterable[str] = ()) -> Model:
    """Read a recipe (or the defaults) and apply `key=value` assignments, dotted keys and TOML values.

    Raises ConfigError with a line for each key that is unknown or has a wrong value.
    """
    values = _read_toml(file) if file else {}
    for assignment in assignments:
        _assign(values, assignment)
    return parse_config(model, values)


def parse_config(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Validate plain values; raises ConfigError."""
    try:
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, detail) for detail in error.errors())) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {str(file)!r} does not exist: give the path of a TOML recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {str(file)!r} is not valid TOML ({error}): correct it at that place") from None


def _assign(values: dict[str, Any], assignment: str) -> None:
    """Set one dotted key; text that is no TOML value counts as a string."""
    name, separator, text = assignment.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"--set {assignment!r} is not of the form section.key=value, such as --set mask.ratio=0.6")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = name.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {assignment!r}: {section!r} is a value, not a section")
    values[key] = value


def _explain(model: type[Section], detail: ErrorDetails) -> str:
    """Put one finding of pydantic into a line: name, value, what is accepted."""
    path = [part for part in detail["loc"] if isinstance(part, str)]
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        return f"unknown configuration key {name!r}: {hint}"
    if detail["type"] == "missing":
        return f"configuration key {name!r} is missing: set it in the recipe or by --set {name}=VALUE"
    message = detail["msg"].removeprefix("Value error, ")
    return f"configuration key {name!r} is {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(model: type[Section], path: list[str]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return []
        model = annotation
    return list(model.model_fields)
