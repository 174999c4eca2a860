"""A sample that leaves a worker is as small as what its objective needs (int8, B/16, 196 patches)."""

import pytest
from caches import make_schema

from pipeline.config import load_config
from pipeline.stream.samples import StreamSpec, sample_fields
from pipeline.training.config import RunConfig

LEVELS = (7, 8, 9, 10, 11)
KILOBYTES = {
    "maskalign": 280,
    "fd": 308,
    "maskdistill": 153,
    "beit": 153,
    "beit2": 153,
    "mae": 151,
    "milan": 195,
    "cae": 229,
    "combined": 391,
    "supervised": 152,
}


@pytest.mark.parametrize("name", KILOBYTES)
def test_a_sample_is_as_small_as_its_needs(name):
    config, schema = (
        load_config(RunConfig, None, [f"objective.name={name}"]),
        make_schema(width=768, image_size=224, levels=LEVELS),
    )
    spec = StreamSpec("", None, tuple(range(len(LEVELS))), config.mask, 1, config.objective.needs)
    found = sum(field.bytes_of(1) for field in sample_fields(schema, spec).values())
    assert found / 1000 == pytest.approx(KILOBYTES[name], rel=0.01)
