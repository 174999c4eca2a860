"""An image folder: a subfolder for each class, or images alone."""

from collections import Counter
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.packing.source import FilePlaces, Source, fingerprint
from pipeline.storage.address import name_fault
from pipeline.storage.files import files_below
from pipeline.views.sample import IMAGE_EXTENSIONS

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def folder_source(folder: Path) -> Source:
    """List the images of a folder in the order of their paths. The first part of a path is the class.

    Images directly in the folder have no label. Hidden files and folders are passed over, links are
    followed. Raises ConfigError for a folder without images, or of several splits.
    """
    names, others = list[str](), Counter[str]()
    for name in files_below(folder):
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
