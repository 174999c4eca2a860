"""What a cache would cost on an object store: requests to write and to read it, and dollars, all computed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.cache.layout import feature_array
from pipeline.cache.prices import ORIGIN_OF_PRICES, Prices
from pipeline.cache.schema import BLOCK_ROWS, CacheSchema
from pipeline.cache.sizes import Inventory, arrays_beside
from pipeline.storage.folder import PART_BYTES


@dataclass(frozen=True)
class StoreForecast:
    """A finished cache on an object store. `gets` are those of a chunk of 64 images."""

    prices: Prices
    puts: float
    gets: int
    image_bytes: float
    epoch_images: float  # an epoch shows each image in one view
    epoch_gets: float
    epoch_dollars: float  # for its requests, and for its bytes if those have a price
    write_dollars: float  # for the requests that write the cache once
    month_dollars: float  # for keeping it


def forecast_store(
    schema: CacheSchema, inventory: Inventory, stored_bytes: float, levels: Sequence[int], prices: Prices
) -> StoreForecast:
    """Return what a finished cache of `stored_bytes` takes on a store, scaled from its finished units."""
    scale = stored_bytes / inventory.stored.total()
    mean = (size / inventory.units for size in inventory.stored.values())  # of a file of each kind
    puts = inventory.units * scale * sum(puts_of_file(size) for size in mean)
    read = {*(feature_array(level) for level in levels), *arrays_beside(schema), "crops"}
    image_bytes = sum(inventory.stored[name] for name in read) / inventory.views
    images, gets = inventory.views * scale / len(inventory.rows), gets_of_chunk(schema, levels)
    epoch_gets = images / BLOCK_ROWS * gets
    return StoreForecast(
        prices=prices,
        puts=puts,
        gets=gets,
        image_bytes=image_bytes,
        epoch_images=images,
        epoch_gets=epoch_gets,
        epoch_dollars=epoch_gets / 1e6 * prices.get + images * image_bytes / 1e9 * prices.read,
        write_dollars=puts / 1e6 * prices.put,
        month_dollars=stored_bytes / 1e9 * prices.month,
    )


def describe_store(store: StoreForecast, images_per_second: float) -> Iterator[tuple[str, str]]:
    """Yield the forecast as rows of a table: name, value."""
    prices, rate = store.prices, images_per_second / BLOCK_ROWS * store.gets
    origin = f"default prices: {ORIGIN_OF_PRICES}" if prices == Prices() else "prices as given"
    dollars = f"${store.epoch_dollars:,.2f} an epoch, ${store.write_dollars:,.2f} to write"
    requests = f"${prices.get:g} and ${prices.put:g} for a million GETs and PUTs"
    yield "on a store", f"at most {store.gets} GETs for 64 images, {rate:,.0f} a second,"
    yield "", f"{store.epoch_gets:,.0f} GETs in an epoch of {store.epoch_images:,.0f} images"
    yield "", f"about {store.puts:,.0f} PUTs and POSTs to write it"
    yield "cost", f"{dollars}, ${store.month_dollars:,.2f} a month; computed, {origin}"
    yield "", f"{requests}, ${prices.month:g} for a GB a month, ${prices.read:g} for a GB read"


def gets_of_chunk(schema: CacheSchema, levels: Sequence[int]) -> int:
    """Return the GETs of a chunk at most: one for each array, for the crops, and for the unit's commit."""
    indexes = 0 if schema.compressor == "none" else len(levels)  # of shards with chunks of any size
    return len(levels) + len(arrays_beside(schema)) + 2 + indexes


def puts_of_file(size: float) -> int:
    """Return the requests that write a file: one, or one for each part, one before and one after them."""
    parts = max(1, -int(-size // PART_BYTES))
    return parts + 2 if parts > 1 else 1
