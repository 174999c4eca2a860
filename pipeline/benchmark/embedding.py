"""Measures evaluation's pass over images, decoding and storing included, against the bare forward pass."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.benchmark.measure import Figure, ratio, take_turns, wall_seconds
from pipeline.benchmark.workbench import Workbench
from pipeline.evaluation.data import LabelledImages
from pipeline.evaluation.features import extract_features, represent
from pipeline.evaluation.images import tar_images
from pipeline.evaluation.subject import untrained_subject


def measure_embedding(bench: Workbench) -> Iterator[Figure]:
    """Yield images per second of `extract_features` with the benchmark's workers, and of resident pixels."""
    options, sizes, device = bench.options, bench.extraction_options(), bench.options.device
    subject = untrained_subject(bench.config, sizes.image_size, sizes.patch_size, device)
    images = tar_images(bench.tars, "the benchmark's images", bench.folder)
    data = LabelledImages(images.subset(range(min(options.images, len(images.images)))), options.workers)
    count = len(data.of.images)
    shape = (options.batch_size, sizes.image_size, sizes.image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)

    def forward() -> None:
        with torch.inference_mode():
            for start in range(0, count, len(pixels)):
                represent(subject, pixels[: count - start])

    def embed() -> None:
        with tempfile.TemporaryDirectory(dir=bench.folder) as store:
            extract_features(subject, data, options.batch_size, Path(store))

    work = {"bare": lambda: wall_seconds(forward, device), "whole": lambda: wall_seconds(embed, device)}
    rates = {
        name: [count / one for one in seconds] for name, seconds in take_turns(work, options.rounds).items()
    }
    bare = Figure(
        "embedding.forward", rates["bare"], "images/s", "evaluation: forward pass of resident pixels"
    )
    whole = Figure(
        "embedding.whole", rates["whole"], "images/s", f"evaluation: features, {options.workers_text}"
    )
    yield from (bare, whole, ratio("ratio.embedding_to_forward", whole, bare, "features / forward pass"))
