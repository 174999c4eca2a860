"""The names of the classes that pack-images put beside tars, so that two sets number their classes alike."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.classes import CLASSES_FILE, read_classes
from pipeline.errors import ConfigError
from pipeline.storage.address import is_url
from pipeline.views.source_tars import SourceTar

_RECORD = "packing.json"  # of pack-images: without it, a file of that name may be anybody's


def packed_class_names(tars: Sequence[SourceTar]) -> tuple[str, ...]:
    """Return the names of packed tars' classes by number, () where none are known.

    Raises ConfigError for folders with tars that number their classes otherwise.
    """
    names, first = tuple[str, ...](), Path()
    for folder in dict.fromkeys(Path(tar.address).parent for tar in tars if not is_url(tar.address)):
        if (folder / _RECORD).is_file() and (file := folder / CLASSES_FILE).is_file():
            found = tuple(one.name for one in read_classes(file, "--class-names"))
            refuse_other_numbers(names, repr(str(first)), found, repr(str(folder)))
            if len(found) > len(names):
                names, first = found, folder
    return names


def refuse_other_numbers(names: Sequence[str], of: str, others: Sequence[str], where: str) -> None:
    """Raise ConfigError if a number stands for one class in `of` and for another in `where`.

    Scores would compare different classes. One list may be longer than the other.
    """
    for number, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            raise ConfigError(
                f"class {number} is {name!r} in {of} and {other!r} in {where}: pack the images to test on "
                f"with the classes of those to learn from, pack-images --classes LEARN/{CLASSES_FILE}"
            )
