"""The paper's recipe as defaults, the learning rate of every step, and what is decayed."""

import math

import pytest
import torch
from training_runs import tiny_job

from pipeline.errors import ConfigError
from pipeline.training.config import RunConfig, steps_of_run
from pipeline.training.job import build_optimiser, build_schedule
from pipeline.training.sections import OptimConfig

PAPER = {
    "objective": {
        "name": "maskalign",
        "mode": "dynamic",
        "head": "linear",
        "loss": "smooth_l1",
        "target": "whiten",
    },
    "mask": {"strategy": "attention", "ratio": 0.7},
    "student": {"model": "vit_base_patch16_224", "options": {}, "drop_path": 0.1},
    "optim": {
        **{"epochs": 200, "warmup_epochs": 20, "steps": None, "warmup_steps": None, "clip_grad": None},
        **{"base_lr": 1.5e-4, "min_lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.05},
    },
    "train": {"global_batch": 1024, "accumulate": 1, "seed": 0, "precision": "auto", "compile": "auto"},
    "data": {"levels": None, "views": None, "allow_partial": False},
    "evaluate": {"every_epochs": None, "shards": ()},
    "log": {},
}


def test_defaults_are_the_papers_recipe_for_b():
    found = RunConfig().model_dump()
    assert {
        section: {key: found[section][key] for key in values} for section, values in PAPER.items()
    } == PAPER
    assert found.keys() == PAPER.keys()


def test_the_paper_run_on_imagenet_has_its_steps():
    assert steps_of_run(OptimConfig(), 1251) == (250_200, 25_020)
    assert steps_of_run(OptimConfig(epochs=0.5, warmup_epochs=0.1), 100) == (50, 10)
    assert steps_of_run(OptimConfig(steps=7, warmup_steps=0), 100) == (7, 0)
    message = r"^the warm-up of 2000 steps is not shorter than the run of 100: lower"
    with pytest.raises(ConfigError, match=message):
        steps_of_run(OptimConfig(steps=100), 100)


def rates(optim, global_batch, steps, warmup):
    """The learning rate of each step, as the trainer sets it."""
    optimiser = build_optimiser(torch.nn.Linear(2, 2), set(), optim, global_batch)
    schedule, found = build_schedule(optimiser, optim.min_lr, steps, warmup), []
    for step in range(steps):
        schedule.step_update(step + 1)
        assert len({group["lr"] for group in optimiser.param_groups}) == 1
        found.append(optimiser.param_groups[0]["lr"])
    return found


def expected_rate(finished, peak, lowest, steps, warmup):
    """Linear from 0 to the peak, then half a cosine to the lowest; `finished` includes the current step."""
    if finished < warmup:
        return peak * finished / warmup
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * (finished - warmup) / (steps - warmup))) / 2


@pytest.mark.parametrize(
    ("global_batch", "steps", "warmup"), [(1024, 50, 5), (256, 20, 1), (4096, 30, 0), (64, 3, 2)]
)
def test_the_rate_of_every_step(global_batch, steps, warmup):
    """It is scaled by the batch at its peak and not at its end, and no step has none."""
    peak = 1.5e-4 * global_batch / 256
    found = rates(OptimConfig(), global_batch, steps, warmup)
    expected = [expected_rate(step + 1, peak, 1e-5, steps, warmup) for step in range(steps)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert min(found) > 0


def test_nothing_but_matrices_of_layers_is_decayed(small_cache_path, tmp_path):
    job = tiny_job(small_cache_path, tmp_path / "run", "objective.head='norm_linear'")
    names = {id(parameter): name for name, parameter in job.objective.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]}
        for group in job.optimiser.param_groups
    }
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    decayed = {f"encoder.vit.blocks.{block}.{layer}.weight" for block in range(2) for layer in layers}
    decayed |= {f"alignment.heads.{level}.1.weight" for level in range(3)} | {
        "encoder.vit.patch_embed.proj.weight"
    }
    trained = {name for name, parameter in job.objective.named_parameters() if parameter.requires_grad}
    assert groups == {0.05: decayed, 0.0: trained - decayed}
    assert {"encoder.vit.cls_token", "alignment.weights", "encoder.vit.blocks.0.norm1.weight"} <= groups[0.0]
    frozen = {"encoder.vit.pos_embed", "encoder.vit.norm.weight", "encoder.vit.norm.bias"}
    assert set(names.values()) - trained == frozen


@pytest.mark.parametrize("eps", [1e-8, 1e-6])
def test_the_optimiser_is_adamw_with_the_papers_betas(eps):
    optimiser = build_optimiser(torch.nn.Linear(2, 2), set(), OptimConfig(eps=eps), 512)
    assert isinstance(optimiser, torch.optim.AdamW)
    facts = [(group["betas"], group["lr"], group["eps"]) for group in optimiser.param_groups]
    assert facts == [((0.9, 0.95), 3e-4, eps)] * 2


def test_the_initial_student_is_a_function_of_the_seed(small_cache_path, tmp_path):
    first, again, other = (
        tiny_job(small_cache_path, tmp_path / "run", f"train.seed={seed}").objective.state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
