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
    """A part of the configuration: immutable, no unknown keys, no conversion but int to float, finite."""

    moved: ClassVar[Mapping[str, str]] = {}  # keys of earlier versions and what they are called now

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return plain values, with any shorthand such as a preset replaced; raises ConfigError."""
        return values


Model = TypeVar("Model", bound=Section)


def named(default: str) -> Callable[[Any], str]:
    """Return the discriminator of a union of sections with different values of `name`."""
    return lambda value: (
        value.get("name", default) if isinstance(value, Mapping) else getattr(value, "name", default)
    )


def load_config(model: type[Model], file: Path | None, assignments: Iterable[str] = ()) -> Model:
    """Read a recipe and apply assignments `section.key=value`, whose values are TOML or plain text.

    Without a recipe it starts from the defaults. Raises ConfigError with a line for each wrong key.
    """
    return parse_config(model, read_settings(file, assignments))


def read_settings(
    file: Path | None, assignments: Iterable[str] = (), base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the plain values of a recipe, else of `base`; raises ConfigError for what cannot be read."""
    values = copy.deepcopy(dict(base or {}))
    if file:
        name, remedy = f"configuration file {str(file)!r}", "give the path of a TOML recipe"
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            beside = [one.stem for one in file.parent.glob("*.toml")]
            close = difflib.get_close_matches(file.stem, beside, n=1)
            meant = f"did you mean '{close[0]}.toml'? " if close else ""
            raise ConfigError(f"{name} does not exist: {meant}{remedy}") from None
        except OSError as error:
            raise ConfigError(f"{name} cannot be read ({error.strerror}): {remedy}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{name} is not valid TOML ({error}): correct it there") from None
    for assignment in assignments:
        _assign(values, assignment)
    return values


def parse_config(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Validate plain values; raises ConfigError."""
    values = model.completed(values)
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


def _assign(values: dict[str, Any], assignment: str) -> None:
    """Set one dotted key; text that is not a TOML value is a string."""
    name, separator, text = assignment.partition("=")
    if not separator or not name.strip():
        raise ConfigError(
            f"--set {assignment!r} is not of the form section.key=value, such as --set mask.ratio=0.6"
        )
    if not text.strip():
        raise ConfigError(
            f"--set {assignment!r} has no value: give one, or check that the shell's variable is set"
        )
    try:
        assignment.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"--set {assignment!r} is not UTF-8: give a value that is") from None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
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
        wrong.setdefault(_name(values, detail), []).append(detail)
    for name, found in wrong.items():
        unknown, keys = found[0]["type"] == "extra_forbidden", found[0]["input"]
        if unknown and any(old.startswith(f"{name}.") for old in model.moved) and isinstance(keys, dict):
            for old in (f"{name}.{key}" for key in keys):
                if now := model.moved.get(old):
                    yield f"configuration key {old!r} is now called {now!r}"
                else:
                    now = " and ".join(
                        repr(new) for key, new in model.moved.items() if key.startswith(f"{name}.")
                    )
                    yield f"unknown configuration key {old!r}: section [{name}] has become {now}"
        elif unknown:
            yield _explain_unknown(model, name, [str(part) for part in found[0]["loc"]], keys)
        else:
            yield _explain_value(name, found)


def _name(values: Any, detail: ErrorDetails) -> str:
    """Return the key as it is written, without the members of a union that pydantic puts into it."""
    name = ""
    for part in detail["loc"]:
        if isinstance(part, int) and isinstance(values, list):
            name, values = f"{name}[{part}]", dict(enumerate(values)).get(part)
        elif isinstance(part, str) and isinstance(values, dict):
            if part in values or (part == detail["loc"][-1] and detail["type"] == "missing"):
                name, values = f"{name}.{part}".removeprefix("."), values.get(part)
        else:
            break
    return name


def _explain_unknown(model: type[Section], name: str, path: list[str], value: Any) -> str:
    """Suggest the whole key that was meant: mask.ratio for mask.ratoi, maks.ratio, ratio, data.ratio."""
    known, prefix = _known_keys(model, path[:-1]), name.rpartition(".")[0]
    meant = [f"{prefix}.{key}".lstrip(".") for key in difflib.get_close_matches(path[-1], known, n=1)]
    if len(path) == 1 and isinstance(value, dict) and len(value) == 1:  # a section that is misspelled
        (key,) = value
        name = f"{name}.{key}"
        inside = _known_keys(model, meant) if meant else []
        meant = [f"{meant[0]}.{each}" for each in difflib.get_close_matches(key, inside, n=1)] or meant
    else:  # maybe a key without its section, or in a wrong one
        places: dict[str, list[str]] = {}
        for section in model.model_fields:
            for key in _known_keys(model, [section]):
                places.setdefault(key, []).append(f"{section}.{key}")
        there = places.get(path[-1], [])
        if len(path) == 1:
            meant = there or meant or [places[key][0] for key in difflib.get_close_matches(name, places, n=1)]
        meant = meant or [place for place in there if place != name]
    hint = f"did you mean {' or '.join(map(repr, meant))}?" if meant else f"known are {', '.join(known)}"
    return f"unknown configuration key {name!r}: {hint}"


def _explain_value(name: str, found: list[ErrorDetails]) -> str:
    detail = found[0]
    if detail["type"] == "missing":
        remedy = f"set it in the recipe or by --set {name.partition('[')[0]}=VALUE"
        return f"configuration key {name!r} is missing: {remedy}"
    if detail["type"] == "union_tag_invalid":
        tag, tags = detail["ctx"]["tag"], detail["ctx"]["expected_tags"]
        return f"configuration key '{name}.name' is {tag!r}: input should be {tags}"
    first, *others = (each["msg"].removeprefix("Value error, ") for each in found)
    accepted = [first[0].lower() + first[1:], *(each.removeprefix("Input should be ") for each in others)]
    value = f"configuration key {name!r} is {detail['input']!r}: " if name else ""
    return value + " or ".join(accepted)


def _known_keys(model: type[Section], path: list[str]) -> list[str]:
    """Return the keys of the section at a path; of a union those of all members or of the one named next."""
    annotation: Any = model
    for part in path:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            annotation = annotation.model_fields[part].annotation
        else:
            annotation = next(section for section, tag in _members(annotation) if tag.tag == part)
    if isinstance(annotation, type):
        return list(annotation.model_fields) if issubclass(annotation, Section) else []
    return list(dict.fromkeys(key for section, _ in _members(annotation) for key in section.model_fields))


def _members(union: Any) -> list[tuple[type[Section], Any]]:
    """Return the sections of a discriminated union with their tags; of any other type none."""
    members = (get_args(member) for member in get_args(union))
    return [(member[0], member[1]) for member in members if len(member) == 2 and hasattr(member[1], "tag")]
