"""Schemas and made-up units for the tests of the cache."""

import numpy as np

from pipeline.cache.digests import digest_of_arrays
from pipeline.cache.schema import CacheSchema, CalibrationSchema, TeacherSchema, ViewSchema, array_specs


def make_schema(
    *,
    width=64,
    image_size=64,
    levels=(3, 5),
    encoding="int8",
    keep=1.0,
    has_cls=True,
    has_importance=True,
    post_norm_eps=None,
    projection_width=None,
    **changes,
):
    """A valid schema of a small teacher on a grid of patches of 16 pixels."""
    teacher = TeacherSchema(
        **{
            "library": "timm",
            "name": "test_vit",
            "tag": "random",
            "weights_sha256": "00",
            "trained": False,
            "precision": "float32",
        },
        **{
            "depth": 12,
            "width": width,
            "patch_size": 16,
            "input_size": image_size,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
        },
        **{"has_cls": has_cls, "has_importance": has_importance},
        **{"post_norm_eps": post_norm_eps, "projection_width": projection_width},
        output_sha256=digest_of_arrays(),
    )
    view = ViewSchema(
        format="jpeg",
        image_size=image_size,
        patch_size=16,
        crop_scale=(0.2, 1.0),
        flip=0.5,
        seed=0,
        decoder="any",
        resize="any",
    )
    calibration = CalibrationSchema(pictures=0, sha256="00")
    keep_rank = None if keep == 1 else changes.pop("keep_rank", "random")
    kept = {"keep": keep, "keep_rank": keep_rank}
    return CacheSchema(
        teacher=teacher,
        view=view,
        levels=levels,
        encoding=encoding,
        calibration=calibration,
        **kept,
        **changes,
    )


def made_up_rows(schema, rows, seed=0):
    """Random values for every array with rows, by name."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, spec in array_specs(schema).items():
        if spec.by_rows:
            arrays[name] = rng.integers(1, 100, (rows, *spec.item_shape)).astype(spec.dtype)
    return arrays
