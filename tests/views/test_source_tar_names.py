"""Source tars named by brace pattern, glob, folder or list."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.views.source_tars import resolve_tars


@pytest.fixture
def tars(tmp_path):
    """Folder with a.tar, b.tar, c.tar of 1, 2 and 3 bytes and other files."""
    for size, name in enumerate(("a.tar", "b.tar", "c.tar"), start=1):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "notes.txt").write_text("c.tar\n# a remark\n\n  a.tar  \n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.tar").write_bytes(b"xx")
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("", ["a.tar", "b.tar", "c.tar"]),
        ("a.tar", ["a.tar"]),
        ("{c,a}.tar", ["c.tar", "a.tar"]),
        ("{a..c}.tar", ["a.tar", "b.tar", "c.tar"]),
        ("*.tar", ["a.tar", "b.tar", "c.tar"]),
        ("[bc].tar", ["b.tar", "c.tar"]),
        ("{?,b}.tar", None),
        ("notes.txt", ["c.tar", "a.tar"]),
    ],
)
def test_forms(tars, spec, names):
    if names is None:
        with pytest.raises(ConfigError, match="same file name"):
            resolve_tars(str(tars / spec))
    else:
        assert [shard.name for shard in resolve_tars(str(tars / spec))] == names


def test_a_shard_knows_path_and_size(tars):
    (shard,) = resolve_tars(str(tars / "c.tar"))
    assert (shard.address, shard.size, shard.name) == (str(tars / "c.tar"), 3, "c.tar")


def test_a_zero_padded_range_keeps_its_digits(tmp_path):
    for number in (8, 9, 10):
        (tmp_path / f"t-{number:03d}.tar").write_bytes(b"x")
    assert [shard.name for shard in resolve_tars(str(tmp_path / "t-{008..010}.tar"))] == [
        "t-008.tar",
        "t-009.tar",
        "t-010.tar",
    ]


def test_a_list_takes_paths_from_its_own_folder_and_whole_ones(tars):
    (tars / "deep" / "list").write_text(f"a.tar\n{tars / 'b.tar'}\n")
    assert [Path(shard.address) for shard in resolve_tars(str(tars / "deep" / "list"))] == [
        tars / "deep" / "a.tar",
        tars / "b.tar",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{a..d}.tar", r"shard '.*d\.tar' does not exist: give a brace pattern"),
        ("x*.tar", r"shards '.*x\*\.tar' match no \.tar file: give a brace pattern"),
        ("none", r"shard '.*none' has no name that ends in \.tar"),
        ("{a..c.tar", r"shards '.*\{a\.\.c\.tar' have a brace without its partner"),
        ("", None),
    ],
)
def test_what_is_refused(tars, spec, message):
    if message is None:
        (tars / "b.tar").write_bytes(b"")
        message = r"shard '.*b\.tar' is empty \(0 bytes\): make it again or leave it out"
    with pytest.raises(ConfigError, match=message):
        resolve_tars(str(tars / spec))


def test_an_empty_folder_and_an_empty_list_match_nothing(tmp_path):
    (tmp_path / "list").write_text("# nothing\n")
    (tmp_path / "folder").mkdir()
    for name in ("list", "folder"):
        with pytest.raises(ConfigError, match=r"match no \.tar file"):
            resolve_tars(str(tmp_path / name))


def test_equal_names_in_different_folders_are_refused_naming_both(tars):
    with pytest.raises(
        ConfigError, match=r"shards '.*a\.tar' and '.*deep.*a\.tar' have the same file name.*rename one"
    ):
        resolve_tars(str(tars / "{,deep/}a.tar"))


def test_a_compressed_tar_is_refused(tars):
    (tars / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(ConfigError, match="unpack a compressed tar first"):
        resolve_tars(str(tars / "{a.tar.gz,b.tar}"))


def test_a_binary_file_is_no_list(tars):
    (tars / "image.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match=r"neither a \.tar file nor a text list"):
        resolve_tars(str(tars / "image.jpg"))
