"""Labelled images, and a finished tiny study."""

import pytest
from calls import call
from study_runs import study_file
from tars import image, write_tar

from stages.run_study import run_study


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Options that name 24 labelled images to learn from and 12 to test on."""
    folder = tmp_path_factory.mktemp("labelled")
    sets = {"shards": range(200, 224), "test-shards": range(300, 312)}
    words = []
    for name, numbers in sets.items():
        images, labels = {f"{n}": image(n) for n in numbers}, {f"{n}": n % 4 for n in numbers}
        words += [f"--{name}", str(write_tar(folder / f"{name}.tar", images, labels))]
    return [*words, "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="session")
def finished(small_cache_path, data, tmp_path_factory):
    """The folder of a finished study of two objectives and two seeds. Do not change it."""
    folder = tmp_path_factory.mktemp("study")
    out = folder / "out"
    result = call(run_study, study_file(folder), "--cache", small_cache_path, "--out", out, *data)
    assert result.exit_code == 0, result.output
    return out
