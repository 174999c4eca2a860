"""Commits are made once, and refused when damaged or of another cache or unit."""

import pytest

from pipeline.cache.commit import Commit, FileRecord, create_commit, read_head
from pipeline.cache.digests import sealed
from pipeline.cache.layout import commit_key
from pipeline.cache.units import extended_units
from pipeline.errors import CacheError
from pipeline.storage.address import open_folder
from pipeline.views.sample import SkippedImage

UNIT, OTHER = extended_units((), [("a.tar", 10)], 2)
COMMIT = Commit(
    unit=0,
    source="a.tar",
    view=0,
    rows=100,
    skipped=(SkippedImage(key="größe", reason="has no image among its members"),),
    files={"views/a.v00.tar": FileRecord(size=3, sha256="00")},
    blocks={"index": (1, 2**32 - 1)},
    schema_digest="right",
)


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "commits").mkdir()
    assert create_commit(open_folder(tmp_path), UNIT, COMMIT)
    return tmp_path


def test_a_commit_is_read_back_with_its_digest(cache):
    found = read_head(open_folder(cache), UNIT, "right", Commit)
    assert found.model_copy(update={"digest": ""}) == COMMIT
    assert len(found.digest) == 64


def test_a_commit_is_created_once(cache):
    before = (cache / commit_key(UNIT)).read_bytes()
    assert not create_commit(open_folder(cache), UNIT, COMMIT.model_copy(update={"rows": 5}))
    assert (cache / commit_key(UNIT)).read_bytes() == before
    assert [path.name for path in (cache / "commits").iterdir()] == ["a.v00.json"]


def test_no_commit(cache):
    with pytest.raises(FileNotFoundError):
        read_head(open_folder(cache), OTHER, "right", Commit)


def test_every_flipped_bit_and_every_cut_is_noticed(cache):
    path = cache / commit_key(UNIT)
    data = path.read_bytes()
    versions = [data[:cut] for cut in range(0, len(data), 7)]
    versions += [
        data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :] for place in range(len(data))
    ]
    for version in versions:
        path.write_bytes(version)
        with pytest.raises(
            CacheError,
            match=r"commit '.*a\.v00\.json' is damaged: inspect-cache verify --repair drops it, and the same",
        ):
            read_head(open_folder(cache), UNIT, "right", Commit)


@pytest.mark.parametrize("text", ["[]", "null", "1", '"a"', "{}", '{"digest": 1}'])
def test_what_is_no_commit_is_refused(cache, text):
    (cache / commit_key(UNIT)).write_text(text)
    with pytest.raises(CacheError, match="is damaged"):
        read_head(open_folder(cache), UNIT, "right", Commit)


def test_a_key_of_a_newer_minor_version_is_ignored(cache):
    values = COMMIT.model_dump(mode="json", exclude={"digest"}) | {"more": 1}
    (cache / commit_key(UNIT)).write_bytes(sealed(values))
    assert read_head(open_folder(cache), UNIT, "right", Commit).rows == 100


def test_a_missing_key_is_refused_though_the_digest_is_right(cache):
    (cache / commit_key(UNIT)).write_bytes(
        sealed(COMMIT.model_dump(mode="json", exclude={"digest", "blocks"}))
    )
    with pytest.raises(CacheError, match="is damaged"):
        read_head(open_folder(cache), UNIT, "right", Commit)


def test_the_commit_of_another_cache_is_refused(cache):
    with pytest.raises(
        CacheError, match="belongs to another cache or unit: inspect-cache verify --repair drops it"
    ):
        read_head(open_folder(cache), UNIT, "wrong", Commit)


def test_the_commit_of_another_unit_is_refused(cache):
    (cache / commit_key(UNIT)).rename(cache / commit_key(OTHER))
    with pytest.raises(CacheError, match=r"commit '.*a\.v01\.json' belongs to another cache or unit"):
        read_head(open_folder(cache), OTHER, "right", Commit)
