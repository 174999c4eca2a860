"""From what labels say to class numbers."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.classes import in_class_order, read_classes
from pipeline.errors import ConfigError
from pipeline.packing.source import RawLabel, Source

NO_NUMBER = -1
_NUMBER = re.compile(r"(-?\d{1,18})(?:\.0+)?", re.ASCII)  # 3.0 is what pandas makes of 3 beside an empty cell


def numbered_labels(source: Source, classes: Path | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the class numbers (N,), -1 where there is none, and the names of the classes if they have any.

    A file of classes decides if it is given, then the names that the source gives to its numbers. Else
    numbers stay what they are, also negative ones, which mean no label, and names are numbered in order.
    Class folders are names. Raises ConfigError for a label without a class, and for numbers beside names.
    """
    if classes:
        return _by_file(source, classes)
    distinct = set(source.labels) - {None}
    matches = {label: _NUMBER.fullmatch(str(label)) for label in distinct if source.kind != "folder"}
    if source.kind != "folder" and all(matches.values()):
        numbers = {label: max(NO_NUMBER, int(match[1])) for label, match in matches.items() if match}
        beyond = max(numbers.values(), default=NO_NUMBER)
        if source.class_names and beyond >= len(source.class_names):
            raise ConfigError(
                f"{source.address!r} has the label {beyond}, but names only {len(source.class_names)} "
                "classes: correct its names, or give --classes FILE"
            )
        return _looked_up(source.labels, numbers), source.class_names
    if any(matches.values()):  # as names in order, the numbers would become others
        number = min(str(label) for label, match in matches.items() if match)
        name = min(str(label) for label, match in matches.items() if not match)
        raise ConfigError(
            f"{source.kind} {source.address!r} has labels that are whole numbers, such as {number!r}, and "
            f"others, such as {name!r}: correct them, or give --classes FILE with the names of all classes"
        )
    names = in_class_order(map(str, distinct))
    by_name = {name: number for number, name in enumerate(names)}
    return _looked_up(source.labels, {label: by_name[str(label)] for label in distinct}), tuple(names)


def _looked_up(labels: Sequence[RawLabel], numbers: dict[RawLabel, int]) -> NDArray[np.int64]:
    found = (NO_NUMBER if label is None else numbers[label] for label in labels)
    return np.fromiter(found, np.int64, len(labels))


def _by_file(source: Source, file: Path) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    classes = read_classes(file, "--classes")
    meant: dict[str, int] = {}
    for number, one in enumerate(classes):
        for text in one.texts:
            if meant.setdefault(text, number) != number:
                raise ConfigError(
                    f"--classes {str(file)!r} has {text!r} for class {meant[text]} and for class {number}: "
                    "give each name once"
                )
    numbers: dict[RawLabel, int] = {}
    for label in set(source.labels) - {None}:
        text, named = str(label), source.class_names
        if isinstance(label, int) and 0 <= label < len(named):
            text = named[label]
        found = _NUMBER.fullmatch(text)
        if text in meant:
            numbers[label] = meant[text]
        elif found and int(found[1]) < len(classes):
            numbers[label] = max(NO_NUMBER, int(found[1]))
        else:
            first = ", ".join(repr(one.name) for one in classes[:3])
            raise ConfigError(
                f"label {text!r} is not in --classes {str(file)!r}, which has {len(classes)} classes such as "
                f"{first}: add it there"
            )
    return _looked_up(source.labels, numbers), tuple(one.name for one in classes)
