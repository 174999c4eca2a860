"""The computed figures of docs/imagenet.md, from the sizes that the code states and the assumed rates."""

import math
import re

import open_clip
import pytest
from caches import make_schema
from test_documents import PAGES, ROOT

from pipeline.cache.layout import row_arrays, shard_bytes
from pipeline.cache.sizes import view_bytes
from pipeline.config import load_config
from pipeline.evaluation.features import _LAST
from pipeline.objectives.objective import Setting
from pipeline.training.checkpoint import _KEPT
from pipeline.training.config import RunConfig

PAGE = PAGES["docs/imagenet.md"]
IMAGES, TEST_IMAGES, TARS, TAR_IMAGES, VIEWS, CROP = 1_281_167, 50_000, 1_282, 1_000, 4, 26_500
RATES = {"B/16": 8_900, "L/14": 3_400, "H/14": 1_780}  # views/s of one teacher
STUDENTS = {"vit_b16": 10_700, "vit_l16": 3_480}  # images/s
WIDTHS = {"B/16": 768, "L/14": 1024, "H/14": 1280}
LEVELS = (7, 8, 9, 10, 11)


def cached(width, encoding="int8", keep=1.0):
    options = {"image_size": 224, "levels": LEVELS, "encoding": encoding, "keep": keep}
    return make_schema(width=width, keep_rank="attention", **options)


def stored_bytes(*chosen):
    """Bytes of a view in a tar of 1,000 images: shards of whole chunks, and the crop."""
    shards = sum(shard_bytes(spec, TAR_IMAGES) for spec in row_arrays(cached(*chosen)).values())
    return shards / TAR_IMAGES + CROP


def terabytes(*chosen):
    return f"{stored_bytes(*chosen) * TARS * TAR_IMAGES * VIEWS / 1e12:.2f} TB"


def hours(images, rate, gpus=1):
    return images / rate / gpus / 3600


def rows(first):
    """The cells of each table row that has a text in its first cell."""
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line[:1] == "|"
    ]
    return [row for row in cells if first in row[0]]


@pytest.mark.parametrize("name", WIDTHS)
def test_the_table_of_caches_is_that_of_the_code(name):
    (row,) = rows(f"CLIP {name}")
    choices = [("int8", 1.0), ("int8", 0.3), ("int4", 1.0), ("int4", 0.3)]
    expected = [f"{stored_bytes(WIDTHS[name]) / 1000:,.0f}"]
    expected += [terabytes(WIDTHS[name], *choice) for choice in choices]
    assert row[2:] == [*expected, f"{hours(IMAGES * VIEWS, RATES[name]):.2f}"]
    model, tag = re.fullmatch(r"`open_clip:(\S+)/(\w+)`", row[1]).groups()
    assert tag in open_clip.list_pretrained_tags_by_model(model)
    assert open_clip.get_model_config(model)["vision_cfg"]["width"] == WIDTHS[name]


def test_the_steps_have_the_computed_sizes_and_hours():
    (extract,) = rows("[extract]")
    whole = terabytes(768)
    written = hours(float(whole.split()[0]) * 1e12, 1.3e9)
    assert extract[2] == f"{whole} (computed)"
    assert f"{hours(IMAGES * VIEWS, RATES['B/16'], 8):.2f} (computed)" in extract[3]
    assert f"{written:.1f} (computed) with a disk of 1.3 GB/s" in extract[3]
    stored = (1 + 1 + _LAST) * 768 * 2 * (IMAGES + TEST_IMAGES)  # mean, CLS and last4, float16
    assert rows("[evaluate]")[0][2] == f"{stored / 1e9:.1f} GB of features (computed)"
    assert f"the disk must take {stored_bytes(768) * RATES['B/16'] / 1e9:.1f} GB/s" in PAGE
    for rate in (*RATES.values(), *STUDENTS.values()):
        assert f"{rate:,}" in PAGE


def test_cores_follow_from_the_measured_rate_of_one():
    measured = re.search(
        r"\| decode, crop, encode: four views, one core \| (\d+) ", PAGES["docs/performance.md"]
    )
    (rate,) = measured.groups()
    assert f"crops {rate} views a second" in PAGE
    assert f"needs {math.ceil(RATES['B/16'] / int(rate))} cores" in PAGE
    assert math.ceil(RATES["L/14"] / int(rate)) == 5


@pytest.mark.faults  # too slow for every run
@pytest.mark.parametrize("number", range(2))
def test_a_run_takes_two_checkpoints_and_the_student(number):
    recipe = [*STUDENTS][number]
    config = load_config(RunConfig, ROOT / "stages" / "recipes" / f"{recipe}.toml")
    setting = Setting(224, 16, LEVELS, teacher_depth=12, teacher_width=768, teacher_has_cls=True)
    objective = config.objective.build(config.student, setting)
    sizes = [sum(each.numel() for each in part.parameters()) for part in (objective, objective.encoder)]
    row = rows("[train]")[number]
    assert row[2].startswith(f"{(_KEPT * 3 * 4 * sizes[0] + 4 * sizes[1]) / 1e9:.1f} GB (computed")
    assert row[3] == f"{hours(IMAGES * config.optim.epochs, STUDENTS[recipe], 8):.1f} (computed)"


def test_a_student_reads_as_many_bytes_as_the_page_says():
    read = [
        view_bytes(cached(768, *choice)) + CROP for choice in (("int8", 1.0), ("int8", 0.3), ("int4", 0.3))
    ]
    found = re.search(
        r"reads ([\d.]+) GB/s from an int8 cache, ([\d.]+) GB/s .*? ([\d.]+) GB/s", PAGE, re.DOTALL
    )
    assert [f"{each * STUDENTS['vit_b16'] / 1e9:.1f}" for each in read] == [*found.groups()]
