"""Names of classes: files that list them, and the order in which names become numbers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.json_text import load_json
from pipeline.storage.address import name_fault

CLASSES_FILE = "classes.json"  # what pack-images puts beside tars


@dataclass(frozen=True)
class NamedClass:
    """A class: its name, and all texts that mean it, such as a WordNet id beside the name."""

    name: str
    texts: frozenset[str]


def read_classes(file: Path, option: str) -> tuple[NamedClass, ...]:
    """Read a JSON list of names, or of objects with a name, or a text file with a name in each line.

    The place in the file is the number of the class. Raises ConfigError that names the option.
    """
    named = f"{option} {str(file)!r}"
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = load_json(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{named} cannot be read: {error}") from None
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{named} is not a list of names: give one name for each class")
    classes = []
    for index, one in enumerate(found):
        texts = list(one.values()) if isinstance(one, dict) else [one]
        if not (name := printable_name(one.get("name") if isinstance(one, dict) else one)):
            raise ConfigError(f"{named} has no printable name for class {index}: give one for each from 0 on")
        meant = frozenset(text.strip() for text in texts if isinstance(text, str))
        classes.append(NamedClass(name, meant))
    return tuple(classes)


def printable_name(value: Any) -> str:
    """Return the name of a class; "" for what is none, or what a terminal or a file cannot show."""
    name = value.strip() if isinstance(value, str) else ""
    return "" if name_fault(name) else name


def in_class_order(names: Iterable[str]) -> list[str]:
    """Return distinct names in the order of their numbers: sorted, by value if all are whole numbers."""
    distinct = sorted(set(names))
    if all(name.isascii() and name.isdigit() for name in distinct):
        distinct.sort(key=int)
    return distinct
