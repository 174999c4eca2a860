"""A plot of what the queries of an attentive probe attend to."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.crops import LeftOut, load_views
from pipeline.evaluation.images import LabelledImage
from pipeline.evaluation.probes.token_heads import Head, tokens
from pipeline.evaluation.task import Task
from pipeline.report.attention_plots import gallery, heat_panel
from pipeline.report.scores import Plot
from pipeline.storage.files import replace_file

_COLUMNS = 8  # queries in a row

Pixels = NDArray[np.uint8]


@torch.no_grad()
def save_query_maps(
    task: Task, head: Head, images: Sequence[LabelledImage], with_cls: bool, file: Path
) -> Plot:
    """Write the attention of each query to the patches of some images as `file`.png."""
    subject, rows = task.subject, list[Mapping[str, Pixels]]()
    for batch in load_views(images, subject.image_size, task.batch_size, task.workers, LeftOut()):
        maps = head.maps(tokens(subject, batch.pixels.to(subject.device), with_cls))
        maps = maps[:, :, int(with_cls) :].reshape(len(maps), -1, *subject.grid).cpu()
        for pixels, weights in zip(batch.pixels.numpy(), maps.numpy(), strict=True):
            rows += _rows(pixels, weights)
    file = file.with_name(f"{file.name}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, gallery(rows))
    return Plot(file=file.name, caption="Attention of each query, and of all on average")


def _rows(pixels: Pixels, weights: NDArray[np.float32]) -> Iterator[Mapping[str, Pixels]]:
    """Yield rows of eight queries of an image (S, S, 3) with maps (Q, h, w); the first shows the image."""
    count = len(weights)
    columns = min(_COLUMNS, count)
    for start in range(0, count, columns):
        row = {} if start else {"image": pixels, "all queries": heat_panel(pixels, weights.mean(0))}
        for query in range(start, min(start + columns, count)):
            numbers = ", ".join(str(number + 1) for number in range(query - start, count, columns))
            row[f"query: {numbers}"] = heat_panel(pixels, weights[query])
        yield row
