"""What follows from recipe and machine, and what is refused."""

import pytest
import torch

from pipeline.benchmark.options import PARTS, RECIPES, choose_options
from pipeline.errors import ConfigError

PLAIN = {
    "recipe": "b",
    "teacher": None,
    "device": torch.device("cuda"),
    "cores": 16,
    "workers": None,
    "batch_size": None,
    "steps": None,
    "rounds": None,
    "images": None,
    "only": [],
    "quick": False,
    "shards": None,
    "cache": None,
}


def choose(**changes):
    return choose_options(**(PLAIN | changes))


def test_a_gpu_takes_the_papers_batch_many_steps_and_all_but_two_cores():
    options = choose()
    assert (options.batch_size, options.workers, options.effort.steps, options.parts) == (
        1024,
        14,
        200,
        PARTS,
    )
    assert options.effort.images >= 4 * 1024
    assert options.extracts


def test_a_cpu_shares_its_cores_among_step_and_workers():
    options = choose(device=torch.device("cpu"), cores=2)
    assert (options.workers, options.threads) == (1, 1)
    assert not options.extracts
    assert choose(recipe="tiny", device=torch.device("cpu"), cores=2).extracts


def test_what_is_given_is_taken():
    options = choose(batch_size=7, workers=3, steps=5, rounds=2, images=9, only=["reads", "step"])
    assert (options.batch_size, options.workers, options.effort.steps, options.effort.rounds) == (7, 3, 5, 2)
    assert options.effort.images == 9
    assert options.parts == ("step", "reads")


@pytest.mark.parametrize("recipe", RECIPES)
def test_quick_is_less(recipe):
    quick, whole = choose(recipe=recipe, quick=True).effort, choose(recipe=recipe).effort
    assert quick.steps < whole.steps
    assert quick.rounds < whole.rounds


def test_a_cache_behind_a_url_has_no_raw_reads():
    assert "reads" not in choose(cache="s3://bucket/a.cache").parts
    with pytest.raises(
        ConfigError,
        match=r"--only reads compares with raw reads from a disk, and --cache 's3://.*' is on none",
    ):
        choose(cache="s3://bucket/a.cache", only=["reads"])


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"--recipe 'xl' is unknown: give tiny, s, b, l"):
        choose(recipe="xl")
    with pytest.raises(
        ConfigError, match=r"--only 'stepp' is no part of the benchmark: give step, loader, .*, scaling"
    ):
        choose(only=["stepp"])
