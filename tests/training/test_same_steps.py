"""Ten steps of three configurations still give what was recorded before objectives became modules."""

import json

import pytest
import torch
from record_steps import CACHE, FILE, TINY, VARIANTS, machine, merged, recorded
from training_runs import CPU, metrics

from pipeline.cache.reader import Cache
from pipeline.config import parse_config
from pipeline.training.config import RunConfig
from pipeline.training.distributed import Ranks
from pipeline.training.job import build_job
from pipeline.training.run import run_job

RECORD = json.loads(FILE.read_text())
MOVED = {"mode": "mode", "head": "head", "kind": "loss", "target": "target"}


def translated(variant):
    """A recorded configuration in today's keys."""
    old = merged(TINY, variant)
    objective = {
        MOVED[key]: value for name in ("alignment", "loss") for key, value in old.pop(name, {}).items()
    }
    return parse_config(RunConfig, old | {"objective": objective})


@pytest.mark.parametrize("name", VARIANTS)
def test_ten_steps_are_those_of_the_record(tmp_path, name):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        job = build_job(translated(VARIANTS[name]), Cache(CACHE), tmp_path, Ranks(), CPU)
        run_job(job, 0)
    finally:
        torch.set_num_threads(threads)
    losses = [[line["loss"], *line["loss_terms"].values()] for line in metrics(tmp_path)]
    found, expected = recorded(losses, job.objective.state_dict()), RECORD["runs"][name]
    if machine() == RECORD["machine"]:
        assert found == expected
        return
    assert found["weights"].keys() == expected["weights"].keys()
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected["losses"]), rtol=1e-4, atol=1e-5)
    for weight, (_, length) in found["weights"].items():
        assert length == pytest.approx(expected["weights"][weight][1], rel=1e-3, abs=1e-4), weight
