"""Which images there are: of tars or of a folder, each as a place in a file, to be read in any order.

Beside an image may be a class index (KEY.cls, or the folder of a class), a mask (KEY.seg.png), and notes
(KEY.json, such as boxes). Folders may be laid out as ADE20K (images/, annotations/) or COCO
(annotations/instances_NAME.json).
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from pipeline.classes import in_class_order, printable_name
from pipeline.errors import ConfigError, SourceError, printable
from pipeline.evaluation.class_numbers import packed_class_names, refuse_other_numbers
from pipeline.json_text import load_json
from pipeline.storage.address import is_url, name_fault
from pipeline.storage.files import files_below, open_regular
from pipeline.storage.tar_streams import open_tar
from pipeline.views.sample import IMAGE_EXTENSIONS, NO_LABEL, SourceSample, label_of, name_with_dots
from pipeline.views.source import MAX_CARRIED_BYTES
from pipeline.views.source_tars import SourceTar, resolve_tars
from pipeline.views.tar_index import index_members

MASK, NOTES, CAPTION = "seg.png", "json", "txt"
_BESIDE = (MASK, NOTES, CAPTION, "caption")


@dataclass(frozen=True)
class Place:
    """Bytes of a file: `size` from `offset` on."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes; raises SourceError."""
        try:
            with open_regular(self.path) as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise SourceError(f"cannot be read ({error.strerror})") from None
        if len(data) != self.size:
            raise SourceError(f"has {len(data)} of {self.size} bytes: the file was cut meanwhile")
        return data


@dataclass(frozen=True)
class LabelledImage:
    """An image, its class index if it has one, and the places of what belongs to it by extension."""

    key: str
    source: str  # the tar or folder
    image: Place
    label: int | None
    label_fault: str = "has no label"  # why there is none
    members: Mapping[str, Place] = field(default_factory=dict)
    annotations: Mapping[str, Any] | None = None  # of a folder in COCO's form

    @property
    def name(self) -> str:
        """What a message calls the image."""
        return f"{self.source}/{self.key}"


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, with the names of their classes where these are known."""

    address: str
    kind: Literal["tars", "folder"]
    images: tuple[LabelledImage, ...]
    class_names: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of keys, labels and sizes.

        It leaves out the bytes: reading them takes as long as the pass that a store of features saves.
        """
        lines = (f"{one.source} {one.key} {one.label} {one.image.size}\n" for one in self.images)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def subset(self, indices: Sequence[int]) -> "ImageSet":
        """Return some of the images, in the order of `indices`."""
        return ImageSet(self.address, self.kind, tuple(self.images[i] for i in indices), self.class_names)


def open_images(specs: Sequence[str], scratch: Path, known: tuple[str, ...] = ()) -> ImageSet:
    """Index tars, or list an image folder with classes numbered as in `known`, see `folder_images`.

    Tars behind URLs are copied to the folder `scratch`. Raises ConfigError, also for tars that pack-images
    has numbered otherwise than `known`, or SourceError.
    """
    folder = Path(specs[0])
    if len(specs) == 1 and folder.is_dir() and not any(folder.glob("*.tar")):
        return folder_images(folder, known)
    if len(specs) == 1 and not (
        folder.suffix or folder.exists() or is_url(specs[0]) or {*specs[0]} & {*"*?[{"}
    ):
        raise ConfigError(f"{specs[0]!r} does not exist: give labelled tars, or an image folder")
    tars, address = resolve_tars(specs), ", ".join(map(printable, specs))
    names = packed_class_names(tars)
    refuse_other_numbers(known, "the images to learn from", names, repr(address))
    return replace(tar_images(tars, address, scratch), class_names=names)


def tar_images(tars: Sequence[SourceTar], address: str, scratch: Path) -> ImageSet:
    """Index tars; those behind URLs are copied to the folder `scratch` first. Raises SourceError."""
    found = []
    for tar in tars:
        path = tar.address
        if is_url(path):
            path = str(scratch / tar.name)
            with open_tar(tar.address) as source, Path(path).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        with Path(path).open("rb") as file:
            for key, members in groupby(index_members(path), itemgetter(0)):
                places = {extension: Place(path, offset, size) for _, extension, offset, size in members}
                image = next((places[each] for each in IMAGE_EXTENSIONS if each in places), None)
                if image is None:
                    if fault := name_with_dots(key, places.keys() - {MASK}):
                        raise SourceError(f"tar {tar.name!r} has no image of {key!r}: {fault}")
                    continue
                label, fault = NO_LABEL, "has no .cls member"
                if extension := next((name for name in ("cls", NOTES) if name in places), ""):
                    file.seek(places[extension].offset)
                    text = file.read(min(places[extension].size, MAX_CARRIED_BYTES))
                    label, fault = label_of(SourceSample(key, None, {extension: text}, label_fault=fault))
                beside = {name: place for name, place in places.items() if name in _BESIDE}
                known = None if label == NO_LABEL else label
                found.append(LabelledImage(key, tar.name, image, known, fault, beside))
    return ImageSet(address, "tars", tuple(found))


def folder_images(folder: Path, known: tuple[str, ...] = ()) -> ImageSet:
    """List an image folder: a subfolder for each class, or images beside masks (ADE20K) or boxes (COCO).

    Classes are numbered as in `known`, such as those of the images to learn from, then in the order of their
    names. Hidden files and folders are ignored, links are followed. Raises ConfigError for a folder without
    images, and for names that cannot be stored.
    """
    below = (folder / name for name in files_below(folder))
    files = sorted(file for file in below if file.suffix[1:].lower() in IMAGE_EXTENSIONS)
    for kind, path in (("folder", folder), *(("image", file) for file in files)):
        if fault := name_fault(str(path)):
            raise ConfigError(f"{kind} {str(path)!r} has a name that {fault}: rename it")
    if not files:
        raise ConfigError(f"folder {str(folder)!r} holds no images: give tars, or a folder of images")
    # ADE20K's layout has the masks in annotations/NAME beside images/NAME.
    twin = folder.parent.parent / "annotations" / folder.name
    masks = twin if folder.parent.name == "images" and twin.is_dir() else None
    notes = folder.parent / "annotations" / f"instances_{folder.name}.json"
    names = in_class_order(file.relative_to(folder).parts[0] for file in files if file.parent != folder)
    names = [*known, *(name for name in names if name not in known)]
    numbers = {name: number for number, name in enumerate(names)}
    annotations, categories = _coco(notes) if notes.is_file() else ({}, ())
    found = []
    stems = Counter(file.with_suffix("") for file in files)  # a.jpg beside a.png keeps its extension
    for file in files:
        relative = file.relative_to(folder)
        key = relative if stems[file.with_suffix("")] > 1 else relative.with_suffix("")
        mask = masks / relative.with_suffix(".png") if masks else None
        members = {MASK: Place(str(mask), 0, mask.stat().st_size)} if mask and mask.is_file() else {}
        label = numbers.get(relative.parts[0]) if len(relative.parts) > 1 and not masks else None
        found.append(
            LabelledImage(
                key=str(key),
                source=folder.name,
                image=Place(str(file), 0, file.stat().st_size if file.exists() else 0),
                label=label,
                label_fault="is in no class folder",
                members=members,
                annotations=annotations.get(relative.as_posix()),
            )
        )
    return ImageSet(str(folder), "folder", tuple(found), categories or (() if masks else tuple(names)))


def _coco(file: Path) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Return the annotations of each image by file name, and the names of the categories in id order.

    Labels are numbered 0, 1, ... in the order of the ids. Raises ConfigError for another file.
    """
    try:
        content = load_json(file.read_text(encoding="utf-8-sig"))
        categories = sorted(content["categories"], key=itemgetter("id"))
        numbers = {one["id"]: number for number, one in enumerate(categories)}
        class_names = tuple(printable_name(one["name"]) for one in categories)
        if len(numbers) < len(categories) or not all(class_names):
            raise ValueError("two categories have one id, or one has no printable name")
        names = {one["id"]: one["file_name"] for one in content["images"]}
        found: dict[str, dict[str, Any]] = {
            name: {"boxes": [], "labels": [], "polygons": [], "area": [], "iscrowd": []}
            for name in names.values()
        }
        for one in content["annotations"]:
            x, y, width, height = one["bbox"]
            of_image = found[names[one["image_id"]]]
            of_image["boxes"].append([x, y, x + width, y + height])
            of_image["labels"].append(numbers[one["category_id"]])
            of_image["polygons"].append(one.get("segmentation"))
            of_image["area"].append(one.get("area"))
            of_image["iscrowd"].append(one.get("iscrowd", 0))
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"{str(file)!r} is not in COCO's form ({type(error).__name__}: {error}): "
            "give images, annotations and categories"
        ) from None
    return found, class_names
