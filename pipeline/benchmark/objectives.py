"""Compares the steps of objectives on resident data with a plain ViT's pass over whole images.

The plain pass is timm's, forward and backward without an optimiser. No change of this project makes it faster
or slower, so a ratio that falls means an objective that has become slower.
"""

from collections.abc import Iterator

import torch

from pipeline.benchmark.measure import Figure, ratio, take_turns, wall_seconds
from pipeline.benchmark.steps import repeated, resident_batch
from pipeline.benchmark.workbench import Workbench
from pipeline.errors import ConfigError
from pipeline.student.backbone import create_backbone
from pipeline.student.initialise import initialise
from pipeline.training.trainer import Trainer

OBJECTIVES = ("maskalign", "mae", "maskdistill", "milan")
# With the published decoders a step of the tiny recipe would take seconds on a CPU.
_SMALL_DECODER = {"decoder_depth": 2, "decoder_width": 192, "decoder_heads": 3}
_LARGEST_BATCH = 256  # whole images take more memory than visible patches
_FEWER = 10  # a round here has this many times fewer steps than a round of `step`


def measure_objectives(bench: Workbench) -> Iterator[Figure]:
    """Yield the rate of each objective's step, and its ratio to the plain pass, round by round."""
    options = bench.options
    batch, count = min(options.batch_size, _LARGEST_BATCH), max(1, options.steps // _FEWER)
    student, view = bench.config.student, bench.cache.schema.view
    vit = create_backbone(student.model, student.options, student.drop_path, view.image_size, view.patch_size)
    initialise(vit)
    vit.to(options.device)
    images = torch.randn(batch, 3, view.image_size, view.image_size, device=options.device)

    def plain() -> float:
        passes = range(count)
        seconds = wall_seconds(lambda: [vit(images).mean().backward() for _ in passes], options.device)
        return count * batch / seconds

    vit(images).mean().backward()
    variants = {"plain": plain}
    for name in OBJECTIVES:
        decoder = _SMALL_DECODER if options.recipe == "tiny" and name in ("mae", "milan") else {}
        try:
            job = bench.job_of({"name": name, **decoder}, batch)
        except ConfigError as error:  # the cache has few patches, or its teacher lacks what the mask needs
            bench.log(f"objective {name} is left out: {error}")
            continue
        trainer = Trainer(job, job.build_step().train())
        variants[name] = repeated(trainer, resident_batch(job), 1, count)
    rates = {
        name: Figure(f"objective.{name}", values, "images/s", f"objective {name}")
        for name, values in take_turns(variants, options.rounds, warm_up=False).items()
    }
    yield from rates.values()
    of_plain = rates.pop("plain")
    for name, rate in rates.items():
        yield ratio(f"ratio.{name}_to_plain", rate, of_plain, f"{name} / plain ViT")
