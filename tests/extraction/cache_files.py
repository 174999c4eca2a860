"""What the extraction's tests compare: the files of a cache, and an extraction in one line."""


def contents(cache):
    """Return the bytes of every file but logs/, which alone may depend on time, host and process."""
    found = {path.relative_to(cache).as_posix(): path for path in cache.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(found.items()) if not name.startswith("logs/")}


def changed(before, after):
    """Return the names of files that differ or are in one of the two only."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def stamps(folder):
    """Return when each file below a folder was last changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
