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
    numbers = None if source.kind == "folder" else _all_numbers(source.labels)
    if numbers is not None:
        if source.class_names and (beyond := numbers.max(initial=-1)) >= len(source.class_names):
            raise ConfigError(
                f"{source.address!r} has the label {beyond}, but names only {len(source.class_names)} "
                "classes: correct its names, or give --classes FILE"
            )
        return numbers, source.class_names
    distinct = set(source.labels) - {None}
    if source.kind != "folder":
        _refuse_mixture(source, distinct)
    names = in_class_order(map(str, distinct))
    by_name = {name: number for number, name in enumerate(names)}
    return _looked_up(source.labels, {label: by_name[str(label)] for label in distinct}), tuple(names)


def _refuse_mixture(source: Source, distinct: set[RawLabel]) -> None:
    """Raise ConfigError for numbers beside names: as names in order, the numbers would become others."""
    texts = sorted(map(str, distinct))
    if number := next(filter(_NUMBER.fullmatch, texts), None):
        name = next(text for text in texts if not _NUMBER.fullmatch(text))
        raise ConfigError(
            f"{source.kind} {source.address!r} has labels that are whole numbers, such as {number!r}, and "
            f"others, such as {name!r}: correct them, or give --classes FILE with the names of all classes"
        )


def _all_numbers(labels: Sequence[RawLabel]) -> NDArray[np.int64] | None:
    """Return the labels as numbers, None if one of them is not a number."""
    numbers: dict[RawLabel, int] = {}
    for label in set(labels) - {None}:
        if not (found := _NUMBER.fullmatch(str(label))):
            return None
        numbers[label] = max(NO_NUMBER, int(found[1]))
    return _looked_up(labels, numbers)


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
