"""README.md of a cache: a data set card of Hugging Face, with what a stranger must know to use the cache.

The form is that of https://huggingface.co/docs/hub/datasets-cards: YAML between two lines of dashes, then
Markdown. A string of JSON is one of YAML, too.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.cache.description import describe_cache
from pipeline.cache.reader import Cache
from pipeline.cache.sizes import Inventory
from pipeline.errors import ConfigError, printable
from pipeline.storage.address import is_url

UNKNOWN_LICENSE = "unknown"
_CARD = """\
---
license: {license}
pretty_name: {pretty_name}
task_categories:
- image-feature-extraction
tags:
- maskalign
- webdataset
- zarr
- knowledge-distillation
size_categories:
- {size_category}
configs:{configs}
maskalign:
  digest: {digest}
  units: {units}
  teacher: {teacher}
  weights_sha256: {weights}
---
# {title}

A cache of [MaskAlign](https://arxiv.org/abs/2211.08887): crops of images, and for each crop what a vision
transformer computed from exactly these pixels. A student learns from it without the teacher and without the
source images. Made by `extract-teacher` of the project maskalign.

## What is in it

{content}

## Sizes

{sizes}

## How to use it

{served}```
inspect-cache info {where}
inspect-cache copy {where} part.cache --levels {level} --views {view}
inspect-cache verify part.cache --full
train-student --cache {where} --run runs/student
```

```python
import maskalign

cache = maskalign.Cache("{where}")
images = cache.images(slice(0, 8), view={view})
features = cache.features({level}, slice(0, 8), view={view})
```

The format is zarr v3 and webdataset tars. Its specification, cache_schema.md of the project, is enough to
read it without the project. A unit of the cache exists if its file in `commits/` does. That file has the
size and SHA-256 of every other file of the unit.
"""
_CONFIG = """
- config_name: view-{view}
  data_files:
  - split: train
    path: "views/*.v{view:02d}.tar\""""
_SERVED = """\
`URL` is where this folder is served, such as
`https://huggingface.co/datasets/OWNER/NAME/resolve/main`, or the path of a copy of it.
A server must serve ranges of bytes and need not list folders.

"""
_NO_LICENSE = """
## Licence

Not stated. Crops are derived from the source images and features from the teacher's weights, so the terms of
both apply. Fill in `license` above, or write the card again with `--license`.
"""
_MADE = "\n<!-- made by inspect-cache card, text "  # an invisible line with the digest of what is above it
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def check_license(name: str) -> str:
    """Return an identifier as Hugging Face writes them; raises ConfigError for any other text."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", name):
        raise ConfigError(
            f"--license {name!r} is not an identifier of a licence: give one such as cc-by-4.0, mit, other "
            f"or {UNKNOWN_LICENSE}"
        )
    return name


def make_card(cache: Cache, inventory: Inventory, license_name: str) -> str:
    """Return the text of a cache's card, given what its finished units hold."""
    teacher = cache.schema.teacher
    title = f"Features of {teacher.address(teacher.tag)} and the image crops it saw"
    configs = [_CONFIG.format(view=view) for view in sorted(inventory.rows)]
    configs[:1] = [f"{config}\n  default: true" for config in configs[:1]]
    stored = [*sorted(inventory.stored.items()), ("in all", inventory.stored.total())]
    sizes = [(name, f"{size:,}", f"{size / max(1, inventory.views):,.0f}") for name, size in stored]
    address = printable(cache.address) if is_url(cache.address) else None
    card = _CARD.format(
        license=json.dumps(license_name),
        pretty_name=json.dumps(title),
        size_category=json.dumps(size_category(inventory.views)),
        configs="".join(configs),
        digest=json.dumps(cache.digest),
        units=json.dumps(inventory.digest),
        teacher=json.dumps(teacher.address(teacher.tag)),
        weights=json.dumps(teacher.weights_sha256),
        title=title,
        content=markdown_table(("", ""), _rows(cache, inventory, license_name)),
        sizes=markdown_table(("part", "bytes", "bytes a view"), sizes),
        served="" if address else _SERVED,
        where=address or "URL",
        level=cache.schema.levels[-1],
        view=min(unit.view for unit in cache.units),
    )
    text = card + (_NO_LICENSE if license_name == UNKNOWN_LICENSE else "")
    return f"{text}{_MADE}{_short_digest(text)} -->\n"


def is_edited(card: str) -> bool:
    """Return whether a card is not as `make_card` has made it, so that its words would be lost."""
    text, _, end = card.rpartition(_MADE)
    return end != f"{_short_digest(text)} -->\n"


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def size_category(rows: int) -> str:
    """Return the name that Hugging Face has for a number of rows."""
    place = sum(rows >= 1000 * 10**step for step in range(len(_SIZES)))
    if place == 0:
        return f"n<{_SIZES[0]}"
    return f"n>{_SIZES[-1]}" if place == len(_SIZES) else f"{_SIZES[place - 1]}<n<{_SIZES[place]}"


def _rows(cache: Cache, inventory: Inventory, license_name: str) -> Iterator[tuple[str, str]]:
    """Yield the rows of `inspect-cache info`, continued ones joined, and what identifies the content."""
    rows: dict[str, list[str]] = {}
    name = ""
    for label, text in describe_cache(cache):
        name = label or name
        rows.setdefault(name, []).append(text.removesuffix(","))
    del rows["cache"]  # its address here
    yield from ((name, ", ".join(texts)) for name, texts in rows.items())
    finished, listed = inventory.units, len(cache.units)
    yield "units", f"{finished:,}" + (f" of {listed:,}: the cache is unfinished" if finished < listed else "")
    for view, count in sorted(inventory.rows.items()):
        yield f"view {view}", f"{count:,} images"
    if inventory.skipped:
        yield "skipped", f"{inventory.skipped:,} images, named in the commits"
    yield "licence", license_name
    yield "schema", f"{cache.schema.version}, digest `{cache.digest}`"
    yield "units' digest", f"`{inventory.digest}`"
    yield "weights", f"SHA-256 of the teacher's vision tower `{cache.schema.teacher.weights_sha256}`"


def markdown_table(head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table of Markdown."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
