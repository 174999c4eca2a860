"""Strict configuration: frozen models, TOML recipes, `--set key=value`, one line for each wrong key."""

import copy
import difflib
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import ConfigError


class Section(BaseModel):
    """A part of the configuration: immutable, no unknown keys, no conversions but int to float, no infinite numbers."""

    moved: ClassVar[Mapping[str, str]] = {}  # keys of earlier versions and what they are called now

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Section)


def named(default: str) -> Callable[[Any], str]:
    """Return the discriminator of a union of sections that are told apart by their key `name`."""
    return lambda value: (
        value.get("name", default) if isinstance(value, Mapping) else getattr(value, "name", default)
    )


def load_config(
    model: type[Model],
    file: Path | None,
    assignments: Iterable[str] = (),
    base: Mapping[str, Any] | None = None,
) -> Model:
    """Read a recipe (without one: the values of `base`, else the defaults) and apply `key=value` assignments, dotted keys and TOML values.

    Raises ConfigError with a line for each key that is unknown or has a wrong value.
    """
    return parse_config(model, read_settings(file, assignments, base))


def read_settings(
    file: Path | None, assignments: Iterable[str] = (), base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the plain values that `load_config` validates; raises ConfigError for what cannot be read."""
    values = _read_toml(file) if file else copy.deepcopy(dict(base or {}))
    for assignment in assignments:
        _assign(values, assignment)
    return values


def parse_config(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Validate plain values; raises ConfigError."""
    try:
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, values, error.errors()))) from None


def dump_toml(config: Section) -> str:
    """Return a configuration as a recipe; a key without a value is a comment."""
    lines: list[str | None] = []
    for section, values in config.model_dump(mode="json").items():
        lines += ["" if lines else None, f"[{section}]"]
        for key, value in values.items():
            lines.append(f"# {key} is not set" if value is None else f"{key} = {_toml(value)}")
    return "".join(f"{line}\n" for line in lines if line is not None)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"configuration file {str(file)!r} does not exist: give the path of a TOML recipe"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"configuration file {str(file)!r} cannot be read ({error.strerror}): give the path of a TOML recipe"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"configuration file {str(file)!r} is not valid TOML ({error}): correct it at that place"
        ) from None


def _assign(values: dict[str, Any], assignment: str) -> None:
    """Set one dotted key; text that is no TOML value counts as a string."""
    name, separator, text = assignment.partition("=")
    if not separator or not name.strip():
        raise ConfigError(
            f"--set {assignment!r} is not of the form section.key=value, such as --set mask.ratio=0.6"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, key = name.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {assignment!r}: {section!r} is a value, not a section")
    values[key] = value


def _explain(
    model: type[Section], values: Mapping[str, Any], details: Iterable[ErrorDetails]
) -> Iterator[str]:
    """Put the findings of pydantic into one line for each key: name, value, what is accepted."""
    wrong: dict[str, list[ErrorDetails]] = {}
    for detail in details:
        name = _name(values, detail)
        if detail["type"] == "extra_forbidden" and any(old.startswith(f"{name}.") for old in model.moved):
            yield from _explain_moved(model, name, detail["input"])
        else:
            wrong.setdefault(name, []).append(detail)
    for name, found in wrong.items():
        yield _explain_key(model, name, found)


def _explain_moved(model: type[Section], section: str, keys: Any) -> Iterator[str]:
    for key in keys if isinstance(keys, dict) else ():
        now = model.moved.get(f"{section}.{key}")
        yield (
            f"configuration key '{section}.{key}' is now called {now!r}"
            if now
            else (f"unknown configuration key '{section}.{key}': section [{section}] is gone")
        )


def _name(values: Any, detail: ErrorDetails) -> str:
    """Return the key as it is written: without the alternatives of a union that pydantic's location has between or behind."""
    name = ""
    for part in detail["loc"]:
        if isinstance(part, int) and isinstance(values, list):
            name, values = f"{name}[{part}]", dict(enumerate(values)).get(part)
        elif isinstance(part, str) and isinstance(values, dict):
            if part in values or part == detail["loc"][-1]:
                name, values = f"{name}.{part}".removeprefix("."), values.get(part)
        else:
            break
    return name


def _explain_key(model: type[Section], name: str, found: list[ErrorDetails]) -> str:
    detail = found[0]
    if detail["type"] == "extra_forbidden":
        path = [str(part) for part in detail["loc"]]
        known, prefix = _known_keys(model, path[:-1]), name.rpartition(".")[0]
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = (
            f"did you mean {f'{prefix}.{close[0]}'.lstrip('.')!r}?"
            if close
            else f"known are {', '.join(known)}"
        )
        if len(path) == 1:  # perhaps a key without its section
            inside = [f"{section}.{path[0]}" for section in known if path[0] in _known_keys(model, [section])]
            hint = f"did you mean {' or '.join(map(repr, inside))}?" if inside else hint
        return f"unknown configuration key {name!r}: {hint}"
    if detail["type"] == "missing":
        return f"configuration key {name!r} is missing: set it in the recipe or by --set {name.partition('[')[0]}=VALUE"
    if detail["type"] == "union_tag_invalid":
        context = detail["ctx"]
        return f"configuration key '{name}.name' is {context['tag']!r}: input should be {context['expected_tags']}"
    first, *others = (each["msg"].removeprefix("Value error, ") for each in found)
    accepted = " or ".join(
        [f"{first[0].lower()}{first[1:]}", *(other.removeprefix("Input should be ") for other in others)]
    )
    return f"configuration key {name!r} is {detail['input']!r}: {accepted}" if name else accepted


def _known_keys(model: type[Section], path: list[str]) -> list[str]:
    """Return the keys of the section at a path; behind the key of a union comes the name of one of its sections."""
    annotation: Any = model
    for part in path:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            annotation = annotation.model_fields[part].annotation
        else:
            members = (get_args(member) for member in get_args(annotation))
            annotation = next(section for section, tag in members if tag.tag == part)
    known = isinstance(annotation, type) and issubclass(annotation, Section)
    return list(annotation.model_fields) if known else []
