"""Which files of a cache are kept on a local disk while a run reads it from far away: those of its units."""

from typing import cast

from pipeline.cache.layout import COMMITS, GROUP, VIEWS
from pipeline.cache.reader import Cache, FinishedUnits
from pipeline.storage.folder import Folder
from pipeline.storage.tier import LocalTier, TieredFolder


def read_through(cache: Cache, units: FinishedUnits, tier: LocalTier) -> TieredFolder:
    """Make a cache read shards, crops and commits of some units through a tier; return its new folder.

    What is kept is named by the digest of the cache, that of the unit's commit, the file and the range: a
    unit that is made again, and another cache in the same place, are other entries.
    """
    digests = {int(unit["unit"]): unit["digest"].decode() for unit in units}
    stems = {cache.units[number].stem: digest for number, digest in digests.items()}

    def version(key: str) -> str | None:
        folder, _, rest = key.partition("/")
        digest = None
        if folder in (COMMITS, VIEWS):
            digest = stems.get(rest.rpartition(".")[0])
        elif folder == GROUP and "/c/" in rest:
            digest = digests.get(int(rest.partition("/c/")[2].partition("/")[0]))
        return digest

    tiered = TieredFolder(cache.folder, tier, cache.digest, version)
    cache.use_folder(cast("Folder", tiered))
    return tiered
