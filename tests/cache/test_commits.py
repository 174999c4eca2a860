"""Commits are made once, and refused when damaged or of another cache, unit or schema."""

import json

import pytest
from contents import resealed

from pipeline.cache.commit import Commit, FileRecord, create_commit, read_head
from pipeline.cache.digests import sealed
from pipeline.cache.layout import commit_key
from pipeline.cache.reader import Cache
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
def file(tmp_path):
    (tmp_path / "commits").mkdir()
    assert create_commit(open_folder(tmp_path), UNIT, COMMIT)
    return tmp_path / commit_key(UNIT)


def read(file, unit=UNIT, digest="right"):
    return read_head(open_folder(file.parents[1]), unit, digest, Commit)


def test_a_commit_is_read_back_with_its_digest(file):
    found = read(file)
    assert found.model_copy(update={"digest": ""}) == COMMIT
    assert len(found.digest) == 64
    with pytest.raises(FileNotFoundError):
        read(file, OTHER)


def test_a_commit_is_created_once(file):
    before = file.read_bytes()
    assert not create_commit(open_folder(file.parents[1]), UNIT, COMMIT.model_copy(update={"rows": 5}))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["a.v00.json"]


def test_a_commit_that_could_not_be_read_again_is_not_created(tmp_path):
    skipped = (SkippedImage.model_construct(key="\udcff", reason="x"),)
    message = r"^unit 0 \(a\.tar, view 0\) cannot be committed: its commit '.*' is"
    with pytest.raises(CacheError, match=message):
        create_commit(open_folder(tmp_path), UNIT, COMMIT.model_copy(update={"skipped": skipped}))
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_and_every_cut_is_noticed(file):
    data = file.read_bytes()
    versions = [data[:cut] for cut in range(0, len(data), 7)]
    versions += [
        data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :] for place in range(len(data))
    ]
    for version in versions:
        file.write_bytes(version)
        message = r"commit '.*a\.v00\.json' is damaged: inspect-cache verify --repair"
        with pytest.raises(CacheError, match=message):
            read(file)


def test_a_missing_key_is_refused_though_the_digest_is_right(file):
    file.write_bytes(sealed(COMMIT.model_dump(mode="json", exclude={"digest", "blocks"})))
    with pytest.raises(CacheError, match="is damaged"):
        read(file)


def test_the_commit_of_another_cache_or_unit_is_refused(file):
    with pytest.raises(CacheError, match="belongs to another cache or unit: inspect-cache verify --repair"):
        read(file, digest="wrong")
    file.rename(file.parents[1] / commit_key(OTHER))
    with pytest.raises(CacheError, match=r"commit '.*a\.v01\.json' belongs to another cache or unit"):
        read(file, OTHER)


@pytest.mark.parametrize(
    "change",
    [
        lambda commit: {"rows": commit["rows"] + 64},
        lambda commit: {"files": dict(list(commit["files"].items())[1:])},
        lambda commit: {"files": dict(list(commit["files"].items())[:-1])},
        lambda commit: {"files": commit["files"] | {"views/other.tar": {"size": 1, "sha256": ""}}},
        lambda commit: {"blocks": dict(list(commit["blocks"].items())[1:])},
        lambda commit: {"blocks": commit["blocks"] | {"index": commit["blocks"]["index"][:1]}},
    ],
)
def test_a_commit_that_does_not_fit_the_schema_is_refused(made, change):
    path, _ = made
    file = path / "commits/b.v00.json"
    resealed(file, **change(json.loads(file.read_bytes())))
    cache = Cache(path)
    message = r"^commit '.*/b\.v00\.json' names other files, sizes or chunks than the schema: ins"
    with pytest.raises(CacheError, match=message):
        cache.commit_of(cache.units[1])
