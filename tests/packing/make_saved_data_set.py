"""Makes tests/packing/saved_by_datasets with the real library: pip install datasets==5.2.0 pillow."""

import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

NAMES = ["ant", "bee", "cow"]


def drawn(number):
    """A JPEG of 16 x 12 pixels in a colour of its own."""
    pixels = np.full((12, 16, 3), (number * 40, 255 - number * 40, 128), np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def main():
    """Write six labelled images in two shards, and the same as parquet."""
    folder = Path(__file__).parent / "saved_by_datasets"
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    rows = {
        "image": [{"bytes": drawn(n), "path": f"photo_{n}.JPEG"} for n in range(6)],
        "label": [n % 3 for n in range(6)],
    }
    data = Dataset.from_dict(rows, features)
    data.save_to_disk(folder / "saved", num_shards=2)
    data.to_parquet(folder / "hub" / "train-00000-of-00001.parquet")


if __name__ == "__main__":
    main()
