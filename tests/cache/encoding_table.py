"""What each encoding costs and loses: `python tests/cache/encoding_table.py` prints docs/encodings.md.

Of the shape of a cache of CLIP ViT-B/16: 5 levels of 768 channels, CLS and 14 x 14 patches.
"""

import math
from itertools import product

import numpy as np
import torch
from caches import make_schema
from feature_sets import SETS, feature_set

from pipeline.cache.encoding import TargetDecoder, channel_statistics, encode_level, whiten
from pipeline.cache.layout import array_specs, row_arrays, shard_bytes
from pipeline.cache.schema import ENCODINGS

KEEPS = (1.0, 0.3)
UNIT = 1000  # rows of the unit that is told
_VIEWS = 64
_WIDTH = 768


def b16_schema(encoding, keep):
    """The schema of a cache of CLIP ViT-B/16, of 5 levels."""
    return make_schema(width=_WIDTH, image_size=224, levels=(7, 8, 9, 10, 11), encoding=encoding, keep=keep)


def row_bytes(schema):
    """Bytes of one row of features and stats, without the checksum of its block."""
    return sum(
        spec.bytes_of(1)
        for name, spec in array_specs(schema).items()
        if name.startswith("features/") or name == "stats"
    )


def view_bytes(schema):
    """Bytes of all shards of a unit of UNIT rows, for each row, checksums and indices included."""
    return sum(shard_bytes(spec, UNIT) for spec in row_arrays(schema).values()) / UNIT


def byte_cells(encoding, keep):
    """The columns of the table that follow from the sizes of arrays."""
    schema = b16_schema(encoding, keep)
    return [f"{row_bytes(schema):,}", f"{view_bytes(schema):,.0f}"]


def decoded(features, encoding):
    """Encode and decode features (B, T, D) with their own calibration: whitened (true, found, bound)."""
    mean, std = (
        (values[0] for values in channel_statistics([(features,)]))
        if encoding != "float16"
        else (torch.zeros(1), torch.ones(1))
    )
    codes, stats = encode_level(features, mean, std, encoding)
    found = TargetDecoder(mean[None], std[None], encoding)(codes[:, None], stats[:, None])[0][:, 0]
    true = whiten(features)[0]
    if encoding == "float16":
        return true, found, (true.abs() * 2.0**-11).clamp(min=2.0**-25)
    scales = stats[..., 2:].float().repeat_interleave(64, dim=-1)[..., : features.shape[-1]]
    return true, found, scales * std / 2 + 2.0**-20 * (true.abs() + mean.abs())


def cosines(true, found):
    """The cosine (...) of every token."""
    return torch.cosine_similarity(found.double(), true.double(), dim=-1)


def kept_places(views, keep, seed=0):
    """CLS and the patches (B, T) that a cache with this keep has of some views, drawn at random."""
    rng, count = np.random.default_rng(seed), math.floor(196 * keep + 1e-6)
    patches = np.stack([1 + rng.permutation(196)[:count] for _ in range(views)])
    return torch.from_numpy(np.pad(patches, ((0, 0), (1, 0))))


def measured(encoding, keep, views=_VIEWS):
    """Mean and least cosine of the stored tokens by set, and the largest error as a share of its bound."""
    found_by_set, largest = {}, 0.0
    places = kept_places(views, keep)[..., None]
    for name in SETS:
        values = decoded(feature_set(name, views, 197, _WIDTH), encoding)
        true, found, bound = (torch.take_along_dim(part, places, dim=1) for part in values)
        by_token = cosines(true, found)
        found_by_set[name] = (float(by_token.mean()), float(by_token.min()))
        largest = max(largest, float(((found - true).abs() / bound).max()))
    return found_by_set, largest


def table():
    """Yield the lines of the table."""
    sets = [f"{name}: mean / worst" for name in SETS]
    columns = ["encoding", "keep", "bytes a row", "bytes a view", *sets, "error / bound"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for encoding, keep in product(ENCODINGS, KEEPS):
        found, largest = measured(encoding, keep)
        cells = [encoding, f"{keep:g}", *byte_cells(encoding, keep)]
        cells += [f"{mean:.6f} / {worst:.6f}" for mean, worst in found.values()]
        yield f"| {' | '.join([*cells, f'{largest:.3f}'])} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(table()))
