"""The same labelled images as a folder, a list and tables, and what tars hold of them."""

import csv
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from tars import CLASSES, image

CLASS_NAMES = ("ant", "bee", "cow", "dog")
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": list(CLASS_NAMES), "_type": "ClassLabel"},
}
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(count=30):
    """{class/name.jpg: bytes}; image n has class n % 4 and some are PNG, grey or CMYK."""
    return {f"{CLASS_NAMES[n % CLASSES]}/{n:03d}.jpg": image(n) for n in range(count)}


def write_folder(folder, count=30):
    """Write images into class folders; return the folder."""
    for name, data in images(count).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_list(folder, count=30, names=("path", "label")):
    """Write class folders, and a CSV beside them; return the CSV."""
    write_folder(folder, count)
    with (folder / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(names)
        rows.writerows((name, name.partition("/")[0]) for name in images(count))
    return folder / "list.csv"


def hugging_face_table(count=30):
    """A table as `datasets` writes it: image {bytes, path}, and numbers with names in the metadata."""
    rows = images(count)
    pictures = [{"bytes": data, "path": name.replace("/", "-")} for name, data in rows.items()]
    labels = [CLASS_NAMES.index(name.partition("/")[0]) for name in rows]
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    schema = pa.schema([("image", IMAGE_TYPE), ("label", pa.int64())], metadata)
    return pa.table({"image": pictures, "label": labels}, schema)


def write_parquet(folder, count=30, files=2):
    """Write parquet files with row groups of four rows, named as on the hub; return the folder."""
    folder.mkdir(parents=True)
    table, size = hugging_face_table(count), -(-count // files)
    for number in range(files):
        part = table.slice(number * size, size)
        name = f"train-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(part, folder / name, row_group_size=4, compression="snappy")
    return folder


def write_saved(folder, count=30, files=2):
    """Write what `Dataset.save_to_disk` leaves: Arrow streams, state.json, dataset_info.json."""
    folder.mkdir(parents=True)
    table, size = hugging_face_table(count), -(-count // files)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    for number, name in enumerate(names):
        part = table.slice(number * size, size)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part, max_chunksize=4)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


def members(out):
    """{tar: [(name, bytes), ...]} of all tars of a folder."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.name] = [(info.name, tar.extractfile(info).read()) for info in tar]
    return found


def samples(out):
    """{bytes of the image: label} of all tars; None for no label."""
    found = {}
    for files in members(out).values():
        labels = {name.removesuffix(".cls"): int(data) for name, data in files if name.endswith(".cls")}
        for name, data in files:
            if not name.endswith(".cls"):
                assert data not in found
                found[data] = labels.get(name.partition(".")[0])
    return found


def expected(count=30):
    """{bytes: class number} of the images."""
    return {data: CLASS_NAMES.index(name.partition("/")[0]) for name, data in images(count).items()}


def contents(folder):
    """{path: bytes} of all files of a folder, without those that hold no data."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
