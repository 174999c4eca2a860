"""`import maskalign` is light, and names exactly what it has."""

import subprocess
import sys

import maskalign

HEAVY = {"torch", "numpy", "timm", "open_clip", "zarr", "pydantic", "webdataset", "pipeline"}


def loaded_by(code):
    """The modules at the top level that a Python process has after some code."""
    program = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split())


def test_importing_the_package_loads_nothing_else():
    assert loaded_by("import maskalign") - loaded_by("import importlib, typing") == {"maskalign"}


def test_a_cache_opens_without_torch(small_cache_path):
    opened = f"import maskalign; cache = maskalign.Cache({str(small_cache_path)!r})"
    loaded = loaded_by(f"{opened}; cache.keys([0]); cache.labels(); cache.images(0)")
    assert loaded & HEAVY == HEAVY - {"torch", "timm", "open_clip", "webdataset"}


def test_all_names_are_there_and_documented():
    assert sorted(maskalign.__all__) == maskalign.__all__
    assert set(maskalign.__all__) == set(maskalign._HOMES)
    assert [name for name in maskalign.__all__ if not getattr(maskalign, name).__doc__] == []
    assert set(dir(maskalign)) == {*maskalign.__all__, "__version__"}
