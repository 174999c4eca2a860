"""What SOURCE is: a folder of images, a list, parquet files, or a data set that `datasets` saved."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.json_text import load_json
from pipeline.packing.folder import folder_source
from pipeline.packing.listing import listed_source
from pipeline.packing.options import PackingOptions
from pipeline.packing.source import Source
from pipeline.packing.tables import table_source

_ACCEPTED = (
    "give a folder of class folders or of images, a CSV with the columns path and label, parquet files "
    "(a folder or a pattern such as 'data/train-*.parquet'), or a folder of save_to_disk"
)
_UNUSED = {  # options without effect, by kind of source
    "folder": ("path_column", "label_column", "image_column"),
    "list": ("image_column",),
}
# as the Hugging Face hub and `datasets` name files
_SPLIT = re.compile(r"(?P<split>.+?)-\d+-of-\d+.*\.(?:parquet|arrow)")


def open_source(options: PackingOptions) -> Source:
    """Return the images of SOURCE in a fixed order; raises ConfigError, OSError."""
    path = Path(os.path.expanduser(options.source))  # noqa: PTH111  # which leaves an unknown user's as it is
    if path.is_dir():
        source = _in_folder(path, options)
    elif path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        source = listed_source(path, options.path_column, options.label_column)
    elif path.is_file():
        source = _tables(path, [path], options)
    else:
        found = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207  # Path.glob refuses some patterns
        files = sorted(file for file in found if file.is_file())
        if not files:
            fault = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise ConfigError(f"SOURCE {options.source!r} {fault}: {_ACCEPTED}")
        source = _tables(path, files, options)
    for name in _UNUSED.get(source.kind, ()):
        if (value := getattr(options, name)) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} {value!r} has no effect on a {source.kind}: leave it out")
    return source


def _in_folder(folder: Path, options: PackingOptions) -> Source:
    shown = f"folder {str(folder)!r}"
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(one.parent.name for one in folder.glob("*/dataset_info.json"))
        ways = " or ".join(repr(str(folder / split)) for split in splits)
        raise ConfigError(f"{shown} holds a data set of several splits: give one of them, {ways}")
    if tar := next(iter(sorted(folder.glob("*.tar"))), None):
        raise ConfigError(
            f"{shown} holds tars, such as {str(tar)!r}: give them to extract-teacher as they are"
        )
    if (folder / "dataset_info.json").is_file():
        return _tables(folder, _saved_files(folder), options)
    patterns = ("*.parquet", "data/*.parquet", "*.arrow")
    tables = next(filter(None, (sorted(folder.glob(pattern)) for pattern in patterns)), [])
    return _tables(folder, tables, options) if tables else folder_source(folder)


def _saved_files(folder: Path) -> list[Path]:
    """Return the Arrow files of a saved data set in its order; raises ConfigError if one is missing."""
    try:
        state = load_json((folder / "state.json").read_bytes())
        files = [folder / one["filename"] for one in state["_data_files"]]
    except FileNotFoundError:  # a folder of the cache of `datasets` has only its files
        files = sorted(folder.glob("*.arrow"))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(folder / 'state.json')!r} is damaged ({error}): save the data set again"
        ) from None
    if missing := next((file for file in files if not file.is_file()), None):
        raise ConfigError(f"folder {str(folder)!r} lacks {missing.name!r}: copy the data set whole")
    if not files:
        raise ConfigError(f"folder {str(folder)!r} has dataset_info.json, but no .arrow file: {_ACCEPTED}")
    return files


def _tables(address: Path, files: Sequence[Path], options: PackingOptions) -> Source:
    kinds = {file.suffix.lower() for file in files}
    if kinds == {".tar"}:
        tar = f"SOURCE {str(address)!r} is a tar"
        raise ConfigError(
            f"{tar}: give it to extract-teacher if it holds KEY.jpg and KEY.cls, else unpack it"
        )
    if kinds not in ({".parquet"}, {".arrow"}):
        other = max(files, key=lambda file: file.suffix.lower() not in (".parquet", ".arrow"))
        what = (
            f"is one of several kinds, {', '.join(sorted(kinds))}"
            if len(kinds) > 1
            else "is not of a known kind"
        )
        raise ConfigError(f"SOURCE {str(other)!r} {what}: {_ACCEPTED}")
    splits = {found["split"]: file for file in files if (found := _SPLIT.fullmatch(file.name))}
    if len(splits) > 1:
        split, file = min(splits.items())
        raise ConfigError(
            f"{str(address)!r} holds the splits {', '.join(sorted(splits))}: pack each into its own tars, "
            f"such as pack-images '{file.parent / split}-*{file.suffix}'"
        )
    if options.path_column:
        raise ConfigError("--path-column is for a CSV: give --image-column for the column of the images")
    kind: Literal["parquet", "arrow"] = "parquet" if kinds == {".parquet"} else "arrow"
    return table_source(kind, str(address), files, options.image_column, options.label_column)
