"""How costs grow is measured to the end, here with few images; it takes too long for every run."""

import pytest

from pipeline.benchmark import scaling
from pipeline.benchmark.measure import Figure
from pipeline.benchmark.reading import read_growth


@pytest.mark.bench
def test_every_figure_of_growth_is_there(bench, monkeypatch):
    for name, value in {
        "THOUSAND": 100,
        "ROWS": 100,
        "READ": 200,
        "SIZES": (1, 2),
        "PROCESSES": (1, 2),
        "IMAGENET_TARS": 3,
    }.items():
        monkeypatch.setattr(scaling, name, value)
    figures = {figure.name: figure for figure in scaling.measure_scaling(bench)}
    sizes, processes = (["1k", "2k"], ["1p", "2p"])
    assert set(figures) == {
        f"scaling.{work}_{one}" for work in ("extraction", "stream") for one in sizes + processes
    } | {"scaling.start"}
    assert all(figure.median > 0 for figure in figures.values())


def test_growth_is_read_from_the_ends():
    names = (
        "extraction_1k",
        "extraction_10k",
        "extraction_100k",
        "extraction_1p",
        "extraction_2p",
        "extraction_4p",
    )
    values = (1000.0, 900.0, 1100.0, 50.0, 51.0, 60.0)
    figures = {
        f"scaling.{name}": Figure(f"scaling.{name}", (value,), "us", "")
        for name, value in zip(names, values, strict=True)
    }
    assert list(read_growth(figures)) == [
        "extraction: an image takes 1.10 times as long among 100,000 as among 1,000, and 1.20 times the core time in 4 processes as in 1"
    ]
