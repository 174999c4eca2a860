"""Makes the golden caches of today's schema version, and what must be read of them.

    PYTHONPATH=.:tests python tests/golden/make_golden.py

They go to tests/golden/schema_MAJOR_MINOR/, once: the script refuses a folder that is there. Those of a
released version are never made again, since they stand for the caches that its users have.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import caches
import numpy as np
import torch
from tars import image, write_tar

from pipeline.cache.encoding import TargetDecoder
from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.layout import row_arrays
from pipeline.cache.reader import Cache
from pipeline.cache.schema import SCHEMA_VERSION
from pipeline.views.source_tars import SourceTar

GOLDEN = Path(__file__).parent
TEACHER_DIR = GOLDEN.parents[1] / "pipeline/demo/teacher"
EXPECTED = "expected.json"
_VARIANTS = {  # what each version added; 1.0 had the first three
    "1.1": {
        "int8": {"levels": "3,5", "views": 2},
        "int4_keep": {"levels": "1", "views": 1, "encoding": "int4", "keep": 0.5},
        "float16_raw": {"levels": "1", "views": 1, "encoding": "float16", "view_format": "raw"},
        "int8_clip": {"levels": "1", "views": 1, "teacher": f"open_clip:local-dir:{TEACHER_DIR}"},
    },
    "1.2": {
        "int4_zstd": {"levels": "3,5", "views": 1, "encoding": "int4", "compressor": "zstd"},
        "float16_blosc": {"levels": "1", "views": 1, "encoding": "float16", "compressor": "blosc"},
    },
}
VARIANTS = _VARIANTS[SCHEMA_VERSION]
_SHOWN = 6  # decoded numbers of the first and of the last token


def make_golden(folder):
    """Extract every variant from one small tar, and write down what today's reader finds."""
    folder.mkdir()
    expected = {}
    with tempfile.TemporaryDirectory() as temporary:
        shard = _source(Path(temporary))
        for name, options in VARIANTS.items():
            made = caches.real(
                temporary, name=f"{name}.cache", shards=[shard], image_size=32, batch_size=4, **options
            )
            shutil.rmtree(made / "logs")
            shutil.copytree(made, folder / made.name)
            expected[name] = found_in(folder / made.name)
    (folder / EXPECTED).write_text(json.dumps(expected, indent=1) + "\n")


def _source(folder):
    """Write a tar of five images: one without a label, one that cannot be decoded, one with a caption."""
    images = {f"gold/{number}": image(number) for number in range(4, 9)} | {"gold/5": b"no image"}
    labels = {key: None if key == "gold/4" else 10 * place for place, key in enumerate(images)}
    path = write_tar(folder / "gold-0.tar", images, labels, {"gold/8.txt": "Schlußbild".encode()})
    return SourceTar(path, path.stat().st_size)


def found_in(path):
    """Return all that a reader finds in a cache, in JSON's types."""
    cache = Cache(path)
    output = {name: _sha256(values) for name, values in cache.teacher_output().items()}
    found = {"digest": cache.digest, "units": [_unit(cache, commit) for commit in cache.commits()]}
    return found | ({"output": output} if output else {})


def _unit(cache, commit):
    names = list(row_arrays(cache.schema))
    joined = read_joined(cache, commit, 0, names)
    pixels = np.stack(
        [decode_crop(cache, crop, key) for key, crop in zip(joined.keys, joined.crops, strict=True)]
    )
    whitened, mean, deviation = _decoded(cache, joined.arrays)
    return {
        "unit": commit.unit,
        "view": commit.view,
        "digest": commit.digest,
        "skipped": [image.key for image in commit.skipped],
        "keys": joined.keys,
        "labels": joined.labels.tolist(),
        "pixels": _sha256(pixels),
        "arrays": {name: _sha256(joined.arrays[name]) for name in names},
        "whitened": [whitened[0, 0, 0, :_SHOWN].tolist(), whitened[-1, -1, -1, -_SHOWN:].tolist()],
        "mean": mean[0, 0].tolist(),
        "deviation": deviation[0, 0].tolist(),
    }


def _decoded(cache, arrays):
    """Return the whitened features (B, M, T, D) of a block, their mean and deviation (B, M, T)."""
    decoder = TargetDecoder(*map(torch.from_numpy, cache.calibration()), cache.schema.encoding)
    codes = np.stack([arrays[f"features/block_{level:02d}"] for level in cache.schema.levels], axis=1)
    return decoder(torch.from_numpy(codes), torch.from_numpy(arrays["stats"]))


def _sha256(values):
    """Of the values as cache_schema.md orders them: little-endian, C order."""
    return hashlib.sha256(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()).hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = GOLDEN / f"schema_{SCHEMA_VERSION.replace('.', '_')}"
    if target.exists():
        sys.exit(f"{target} exists: golden caches are never made again")
    make_golden(target)
