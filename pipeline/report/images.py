"""Images of a run: whole, with the teacher's importance, and with the hidden patches hatched."""

import base64
import html
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.cache.join import decode_crop, read_joined
from pipeline.cache.reader import Cache
from pipeline.cache.several import same_units
from pipeline.config import parse_config
from pipeline.errors import MaskAlignError
from pipeline.report.attention_plots import Pixels, heat_panel
from pipeline.report.page import PageSection
from pipeline.stream.masks import MaskSource
from pipeline.training.config import RunConfig
from pipeline.training.run_folder import caches_of

_HATCH = ((46, 40, 82), (124, 112, 190))  # ground and lines, RGB
_SHOWN = 6  # images of a run
_HEAT = 0.6  # share of the colour of importance in the overlay


@dataclass(frozen=True)
class MaskedImage:
    """An image (H, W, 3) uint8, its visible patches (K,) int64, and the importance (N,) float32 if any.

    Patches are squares of `patch_size` pixels, numbered row by row; N = H * W / patch_size^2.
    """

    pixels: Pixels
    visible: NDArray[np.int64]
    patch_size: int
    importance: NDArray[np.float32] | None
    key: str

    @property
    def patches(self) -> int:
        """N."""
        height, width, _ = map(int, self.pixels.shape)
        assert height % self.patch_size == width % self.patch_size == 0, "patches tile the image"
        return height * width // self.patch_size**2


def masked(image: MaskedImage) -> Pixels:
    """Return the image (H, W, 3) uint8 with hatched hidden patches, which look like no photograph."""
    seen = np.zeros(image.patches, bool)
    seen[image.visible] = True
    row, column = np.indices(image.pixels.shape[:2])
    hatch = np.where(((row + column) // 2 % 4 == 0)[..., None], _HATCH[1], _HATCH[0]).astype(np.uint8)
    grid = seen.reshape(len(image.pixels) // image.patch_size, -1)
    shown = grid.repeat(image.patch_size, 0).repeat(image.patch_size, 1)
    return np.where(shown[..., None], image.pixels, hatch)


def overlaid(image: MaskedImage) -> Pixels:
    """Return the image (H, W, 3) uint8 in grey under a heat map of importance, lightest at the largest."""
    assert image.importance is not None
    weights = image.importance.reshape(len(image.pixels) // image.patch_size, -1)
    return heat_panel(image.pixels, weights, quantile=1, share=_HEAT)


def strip(image: MaskedImage) -> str:
    """Return a figure element: the panels of one image side by side, each under its heading, and its key."""
    count, key = image.patches, html.escape(image.key)
    panels = [_panel("image", image.pixels, f"Image {key}")]
    if image.importance is not None:
        alt = f"Heat map of the teacher's importance over image {key}"
        panels.append(_panel("teacher's importance", overlaid(image), alt))
    alt = f"Image {key} with the {count - len(image.visible)} hidden of its {count} patches hatched"
    panels.append(_panel("what the student sees", masked(image), alt))
    caption = f"<b>{key}</b> <span>{len(image.visible)} of {count} patches visible</span>"
    return f'<figure class="strip"><div>{"".join(panels)}</div><figcaption>{caption}</figcaption></figure>'


def _panel(heading: str, pixels: Pixels, alt: str) -> str:
    buffer = io.BytesIO()
    # Full colour resolution, or the colour of a hidden patch would bleed into its neighbours.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    source = f"data:image/jpeg;base64,{data}"
    return f'<div><h3>{heading}</h3><img src="{source}" width="{width}" height="{height}" alt="{alt}"></div>'


def image_section(run: Mapping[str, Any]) -> PageSection:
    """Return the first images of a run with their masks, or why there are none."""
    try:
        body = f'<div class="card strips">{"".join(map(strip, _masked_images(run)))}</div>'
    except (MaskAlignError, OSError) as error:
        body = f"<p>{html.escape(f'No images: {error}')}</p>"
    return PageSection("Images", body)


def _masked_images(run: Mapping[str, Any]) -> Iterator[MaskedImage]:
    """Yield the first images of a run with the masks of epoch 0; raises CacheError without its cache."""
    config = parse_config(RunConfig, run["config"])
    cache, *others = (Cache(each["path"]) for each in caches_of(run))
    units = cache.pinned(run["units"][:1])
    schema, commit = cache.schema, cache.pinned_commit(units[0])
    schemas = [other.schema for other in others]
    masks = MaskSource(schema, config.mask, config.train.seed, config.objective.needs, schemas)
    importance = ["attention"] if schema.teacher.has_importance else []
    beside = [
        (other, other.pinned_commit(same_units(cache, units, other)[0]), list(arrays))
        for other, arrays in zip(others, masks.arrays[1:], strict=True)
    ]
    chunk = read_joined(cache, commit, 0, sorted({*masks.arrays[0], *importance}), beside)
    visible = masks.draw(chunk, epoch=0).visible
    for row, (key, crop) in enumerate(zip(chunk.keys[:_SHOWN], chunk.crops[:_SHOWN], strict=True)):
        weights = chunk.arrays["attention"][row] if importance else None
        yield MaskedImage(decode_crop(cache, crop, key), visible[row], schema.view.patch_size, weights, key)
