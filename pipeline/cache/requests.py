"""What a cache would cost on an object store: requests to write and to read it, and dollars, all computed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.cache.layout import feature_array
from pipeline.cache.prices import ORIGIN_OF_PRICES, Prices
from pipeline.cache.schema import BLOCK_ROWS, CacheSchema
from pipeline.cache.sizes import Inventory
from pipeline.storage.folder import PART_BYTES


@dataclass(frozen=True)
class StoreForecast:
    """A finished cache on an object store. `gets` are those of a chunk of 64 images."""

    prices: Prices
    stored_bytes: float
    puts: float
    gets: int
    epoch_images: float
    image_bytes: float

    @property
    def epoch_gets(self) -> float:
        """GETs of an epoch, which shows each image in one view."""
        return self.epoch_images / BLOCK_ROWS * self.gets

    @property
    def epoch_dollars(self) -> float:
        """Dollars for an epoch: its requests, and its bytes if those have a price."""
        read = self.epoch_images * self.image_bytes / 1e9 * self.prices.read
        return self.epoch_gets / 1e6 * self.prices.get + read

    @property
    def write_dollars(self) -> float:
        """Dollars for the requests that write the cache once."""
        return self.puts / 1e6 * self.prices.put

    @property
    def month_dollars(self) -> float:
        """Dollars for keeping the cache for a month."""
        return self.stored_bytes / 1e9 * self.prices.month

    def gets_a_second(self, images_per_second: float) -> float:
        """GETs a second at a rate of images."""
        return images_per_second / BLOCK_ROWS * self.gets


def forecast_store(
    schema: CacheSchema, inventory: Inventory, stored_bytes: float, levels: Sequence[int], prices: Prices
) -> StoreForecast:
    """Return what a finished cache of `stored_bytes` takes on a store, scaled from its finished units."""
    scale = stored_bytes / inventory.stored.total()
    mean = (size / inventory.units for size in inventory.stored.values())  # of a file of each kind
    puts = inventory.units * scale * sum(puts_of_file(size) for size in mean)
    images, views = inventory.views * scale / len(inventory.rows), inventory.views
    read = {*(feature_array(level) for level in levels), *arrays_beside(schema), "crops"}
    image_bytes = sum(inventory.stored[name] for name in read) / views
    return StoreForecast(prices, stored_bytes, puts, gets_of_chunk(schema, levels), images, image_bytes)


def describe_store(store: StoreForecast, images_per_second: float) -> Iterator[tuple[str, str]]:
    """Yield the forecast as rows of a table: name, value."""
    prices, rate = store.prices, store.gets_a_second(images_per_second)
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


def arrays_beside(schema: CacheSchema) -> list[str]:
    """Return the arrays that training reads beside its levels, with a mask that follows the attention."""
    masks = ["tokens"] if schema.keep < 1 else ["attention"] if schema.teacher.has_importance else []
    return ["stats", "index", *masks]


def puts_of_file(size: float) -> int:
    """Return the requests that write a file: one, or one for each part, one before and one after them."""
    parts = max(1, -int(-size // PART_BYTES))
    return parts + 2 if parts > 1 else 1
