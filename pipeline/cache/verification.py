"""A complete verification: restore metadata, check, repair, read everything, and report the result."""

from collections.abc import Callable, Iterable

from pipeline.cache.commit import committed
from pipeline.cache.reader import Cache
from pipeline.cache.repair import repair, restore_metadata
from pipeline.cache.verify import Finding, count_unfinished, foreign_files, verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.errors import CacheError, printable
from pipeline.progress import ProgressDisplay
from pipeline.runtime.ordered import ordered_map
from pipeline.storage.address import open_folder


def verify_cache(
    address: str, *, full: bool, repairing: bool, workers: int, report: Callable[[str], None]
) -> tuple[Cache, str]:
    """Verify a cache, with `full` every byte, and mend it if `repairing`; each finding is reported as a line.

    Returns the cache as it is now, and the sentence to report. Raises CacheError if something is damaged and
    was not repaired.
    """
    restored = restore_metadata(open_folder(address)) if repairing else []
    for line in restored:
        report(line)
    cache = Cache(address)
    findings = _reported(verify_quickly(cache), report)
    if unfinished := count_unfinished(cache):
        report(f"note: {unfinished} files of unfinished units; the next extraction replaces them")
    for name in foreign_files(cache):
        report(f"note: {name!r} is not part of a cache")
    if repairing:
        for line in repair(cache, findings):
            report(line)
        cache = Cache(address)
    if full and not repairing and any(finding.metadata for finding in findings):
        report("note: the arrays can be read after their metadata is repaired; add --repair")
    elif full:
        known, damaged = {one.unit.unit for one in findings if one.unit}, list[Finding]()
        units = [unit for unit in committed(cache.folder, cache.units) if unit.unit not in known]
        with ProgressDisplay("verify", len(units), unit="units") as progress:
            results = ordered_map(lambda unit: verify_unit(cache, unit), units, workers)
            for done, found in enumerate(results, start=1):
                progress.update(done, "")
                damaged += _reported(found, report)
        for line in repair(cache, damaged) if repairing else ():
            report(line)
        findings += damaged
    return cache, _verdict(cache, findings, restored, full, repairing)


def _reported(findings: Iterable[Finding], report: Callable[[str], None]) -> list[Finding]:
    """Report findings as they come."""
    found = []
    for finding in findings:
        report(f"damaged: {finding.text}")
        found.append(finding)
    return found


def _verdict(cache: Cache, findings: list[Finding], restored: list[str], full: bool, repaired: bool) -> str:
    """Return the sentence to report; raises CacheError if something is damaged and stays so."""
    shown = printable(cache.address)
    left = [finding for finding in findings if not (repaired and (finding.unit or finding.metadata))]
    if left:
        cure = ": add --repair to remove what is damaged, then run the same extract-teacher command"
        if not cache.folder.can_list:
            cure = ": repair it where it is stored, or see whether the server sends other bytes"
        elif repaired:
            cure = " that --repair cannot fix; the lines above say what to do about each"
        raise CacheError(f"cache {cache.address!r} has {len(left)} problem{'s' * (len(left) > 1)}{cure}")
    if any(finding.unit for finding in findings):
        cure = "the same extract-teacher command makes them again"
        return f"cache {shown!r}: damaged units are removed; {cure}"
    if findings or restored:
        return f"cache {shown!r}: its metadata is written again, and no unit had to be removed"
    units = f"{len(committed(cache.folder, cache.units)):,} of {len(cache.units):,} units"
    what = "every byte is" if full else "names, sizes and metadata are"
    return f"cache {shown!r}, {units}: {what} what was committed"
