"""An image folder: a subfolder for each class, or images alone."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.packing.source import FilePlaces, Source, fingerprint
from pipeline.storage.address import name_fault
from pipeline.views.sample import IMAGE_EXTENSIONS

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def folder_source(folder: Path) -> Source:
    """List the images of a folder in the order of their paths. The first part of a path is the class.

    Images directly in the folder have no label. Hidden files and folders are passed over, links are
    followed. Raises ConfigError for a folder without images, or of several splits.
    """
    names, others = list[str](), Counter[str]()
    for name in _files(folder):
        kind = name.rpartition("/")[2].rpartition(".")[2].lower()
        if kind in IMAGE_EXTENSIONS:
            names.append(name)
        else:
            others[f".{kind}" if name.lower().endswith(f".{kind}") else ""] += 1
    if not names:
        raise ConfigError(
            f"folder {str(folder)!r} holds no images ({', '.join(IMAGE_EXTENSIONS)}): give a folder of "
            "images or of class folders, a CSV, parquet files, or a data set of save_to_disk"
        )
    names.sort()
    labels = [name.partition("/")[0] if "/" in name else None for name in names]
    found = {label for label in labels if label}
    for label in sorted(found):
        if fault := name_fault(label):
            raise ConfigError(f"class folder {str(folder / label)!r} has a name that {fault}: rename it")
    if found and {label.lower() for label in found} <= _SPLITS:
        first = str(folder / min(found))
        raise ConfigError(
            f"folder {str(folder)!r} holds the splits {', '.join(sorted(found))}, which are not classes: "
            f"pack each into its own tars, such as pack-images {first!r}"
        )
    places = FilePlaces(folder, names)
    return Source("folder", str(folder), places, names, labels, fingerprint(names), left_out=others)


def _files(folder: Path) -> Iterator[str]:
    """Yield paths below a folder, with slashes. A folder that links lead to twice is read once."""
    seen = set[tuple[int, int]]()
    for root, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        status = os.stat(root)  # noqa: PTH116  # a folder of a million images is walked
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        below = os.path.relpath(root, folder)
        start = "" if below == "." else f"{below}/"
        yield from (f"{start}{file}" for file in files if not file.startswith("."))


def _refuse(error: OSError) -> None:
    raise error
