"""The tables of docs/scale.md are what the sizes of files give, as in the caches of tests."""

from pathlib import Path

import pytest
from caches import make_schema
from scale_table import commit_of, files_of_unit, metadata_table, request_table, size_table

from pipeline.cache.layout import COMMITS, UNITS_FILE

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.mark.parametrize("table", [size_table, request_table, metadata_table])
def test_the_table_of_the_page_is_computed(table):
    assert "\n\n" + "\n".join(table()) + "\n\n" in PAGE.read_text(encoding="utf-8")


def test_metadata_are_as_large_as_those_of_a_real_cache(small_cache_path):
    """Names and sizes are shorter here than in the page's caches, by less than a fifth of a commit."""
    schema = make_schema(levels=(3, 4, 5))
    commit, entry = commit_of(schema, 70)
    for path in (small_cache_path / COMMITS).iterdir():
        assert 0.8 * commit < path.stat().st_size <= commit
    assert entry - 20 < (small_cache_path / UNITS_FILE).stat().st_size / 4 < entry + 40
    files = [
        path
        for path in (small_cache_path / "targets.zarr").rglob("c/0/*")
        if not {"channel_mean", "channel_std", "post_norm"} & set(path.parts)
    ]
    assert len(files_of_unit(schema, 70)) == len(files) + 1
