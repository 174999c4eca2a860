"""What follows from recipe and machine, and what is refused."""

import pytest
import torch

from pipeline.benchmark.options import PARTS, choose_options
from pipeline.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def choose(recipe="b", **changes):
    return choose_options(recipe, **({"device": GPU, "cores": 16} | changes))


def test_a_gpu_takes_the_papers_batch_and_all_but_two_cores():
    options = choose()
    assert (options.batch_size, options.workers, options.steps, options.parts) == (1024, 14, 200, PARTS)
    assert options.images >= 4 * 1024


def test_what_is_given_is_taken():
    options = choose(batch_size=7, workers=0, steps=5, rounds=2, images=9, only=["reads", "step"])
    assert (options.batch_size, options.workers, options.steps, options.rounds) == (7, 0, 5, 2)
    assert (options.images, options.parts) == (9, ("step", "reads"))


def test_a_cache_behind_a_url_has_no_raw_reads():
    assert "reads" not in choose(cache="s3://bucket/a.cache").parts
    message = r"--only reads needs a cache on a disk, not 's3://.*': leave it out"
    with pytest.raises(ConfigError, match=message):
        choose(cache="s3://bucket/a.cache", only=["reads"])
