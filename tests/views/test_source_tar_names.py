"""Source tars named by path, brace pattern, glob, folder or list."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.views.source_tars import resolve_tars


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """Working and home folder with tars of 1, 2, 3 ... bytes and other files."""
    names = ["a.tar", "b.tar", "c.tar", "deep/a.tar", "deep/er/u-1.tar", "deep/er/u-2.tar"]
    names += [f"t-{number:03d}.tar" for number in (8, 9, 10)]
    names += ["data/a/x-1.tar", "data/a/x-2.tar", "data/b/x-3.tar"]
    names += ["x[1].tar", "x1.tar", "y{p,q}.tar", "yp.tar", "z[ab]{c,d}/1.tar", "z[ab]{c,d}/2.tar"]
    for size, name in enumerate(names, start=1):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "notes.txt").write_text("\ufeffc.tar\r\n# a remark\n\n  a.tar  \n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found(*specs):
    return [str(Path(tar.address)) for tar in resolve_tars(specs)]


def refusal(spec):
    with pytest.raises(ConfigError) as error:
        resolve_tars(spec)
    return str(error.value)


FORMS = {
    "a.tar": ["a.tar"],
    "{c,a}.tar": ["c.tar", "a.tar"],
    "{a..c}.tar": ["a.tar", "b.tar", "c.tar"],
    "?.tar": ["a.tar", "b.tar", "c.tar"],
    "[bc].tar": ["b.tar", "c.tar"],
    "notes.txt": ["c.tar", "a.tar"],
    "deep/*": ["deep/a.tar"],
    "d*/*/u-*.tar": ["deep/er/u-1.tar", "deep/er/u-2.tar"],
    "deep/**/u-*.tar": ["deep/er/u-1.tar", "deep/er/u-2.tar"],
    "**/u-{2,1}.tar": ["deep/er/u-2.tar", "deep/er/u-1.tar"],
    "deep/{er,.}": ["deep/er/u-1.tar", "deep/er/u-2.tar", "deep/a.tar"],
    "t-{008..010}.tar": ["t-008.tar", "t-009.tar", "t-010.tar"],
    "data/{a,b}/x-*.tar": ["data/a/x-1.tar", "data/a/x-2.tar", "data/b/x-3.tar"],
    "data/{b,a}/x-[13].tar": ["data/b/x-3.tar", "data/a/x-1.tar"],
    "x[1].tar": ["x[1].tar"],
    "y{p,q}.tar": ["y{p,q}.tar"],
    "z[ab]{c,d}": ["z[ab]{c,d}/1.tar", "z[ab]{c,d}/2.tar"],
    "z[ab]{c,d}/*.tar": ["z[ab]{c,d}/1.tar", "z[ab]{c,d}/2.tar"],
    "z[ab]{c,d}/{2,1}.tar": ["z[ab]{c,d}/2.tar", "z[ab]{c,d}/1.tar"],
}


@pytest.mark.usefixtures("tars")
def test_every_form_names_its_tars():
    assert {spec: found(spec) for spec in FORMS} == FORMS


def test_a_tilde_is_the_home_folder(tars):
    assert found("~/deep") == [str(tars / "deep/a.tar")]
    assert found("~/deep/er/u-{1..2}.tar") == [str(tars / f"deep/er/u-{number}.tar") for number in (1, 2)]
    (tars / "~").mkdir()
    (tars / "~" / "t.tar").write_bytes(b"x")
    assert found("~/t.tar") == ["~/t.tar"]


@pytest.mark.usefixtures("tars")
def test_several_specs_are_joined_and_a_tar_is_taken_once():
    assert found("b.tar", "deep/er", "?.tar") == [
        "b.tar",
        "deep/er/u-1.tar",
        "deep/er/u-2.tar",
        "a.tar",
        "c.tar",
    ]


def test_a_source_tar_knows_path_size_and_name(tars):
    (tar,) = resolve_tars(str(tars / "c.tar"))
    assert (tar.address, tar.size, tar.name) == (str(tars / "c.tar"), 3, "c.tar")


def test_a_list_takes_paths_from_its_own_folder_and_whole_ones(tars):
    (tars / "deep" / "list").write_text(f"a.tar\n{tars / 'b.tar'}\n")
    assert found("deep/list") == ["deep/a.tar", str(tars / "b.tar")]


REFUSED = {
    "{a..d}.tar": "shard 'd.tar' does not exist: give a brace pattern",
    "none.tar": "shard 'none.tar' does not exist: give a brace pattern",
    "q*.tar": "shards 'q*.tar' match no .tar file: give a brace pattern",
    "{deep,gone}/a*.tar": "shards 'gone/a*.tar' match no .tar file: give a brace pattern",
    "deep/{er,.}/v-*.tar": "shards 'deep/er/v-*.tar' match no .tar file: give a brace pattern",
    "none": "shard 'none' has no name that ends in .tar",
    "{a..c.tar": "shards '{a..c.tar' have a brace without its partner",
    "{0..99999999999}.tar": "are more than the 1,000,000 tars that are accepted",
    "~nobody-of-that-name/a.tar": "cannot be found (",
    "{,deep/}a.tar": "shards 'a.tar' and 'deep/a.tar' have the same file name, by which a cache ",
    "a.tar.gz": "is a tar, but its name does not end in .tar: rename it, unpack a compressed tar first",
    "{a.tar.gz,b.tar}": "unpack a compressed tar first",
    "packed": "is a tar, but its name does not end in .tar: rename it",
    "image.jpg": "is an image: pack it first, by pack-images",
    "weights.bin": "neither a .tar file nor a text list",
    "labels.csv": "lists no tars: pack it first, by pack-images labels.csv OUT, and give OUT",
    "rows.parquet": "is a table: pack it first, by pack-images rows.parquet OUT, and give OUT",
    "saved": "holds a data set, but no .tar file: pack it first, by pack-images saved OUT, and give OUT",
    "half": "is not packed to its end: run pack-images again first",
    "signed.txt": "but its line 'https://host/x.tar?' does not end in .tar",
    "none.txt": "match no .tar file, since the list is empty",
    "images": "holds image files, such as 'images/dog/1.JPEG', but no .tar file: pack it first, by ",
    "outer": "has tars in its subfolders only, such as 'outer/inner/k.tar': give 'outer/**/*.tar'",
    "empty": "shards 'empty' match no .tar file",
    "nothing.tar": "shard 'nothing.tar' is empty (0 bytes): make it again or leave it out",
    "caf\udce9.tar": "has a name that is not UTF-8: rename it",
    "line\nbreak.tar": "has a name that has a control character: rename it",
    "l" * 217 + ".tar": "has a name that has more than 220 bytes: rename it",
    ".hid.tar": "shard '.hid.tar' has a name that has a slash, or a dot at its start: rename it",
    "https://h/a%2Fb.tar": "has a name that has a slash, or a dot at its start: rename it",
    "https://h/a%0Ab.tar": "has a name that has a control character: rename it",
    "pipe": "shards 'pipe' are neither a file nor a folder: give a brace pattern",
    "pipes": "shard 'pipes/a.tar' is neither a file nor a folder: give a brace pattern",
    "homes": "shards '~nosuchuser/x.tar' cannot be found (",
}


@pytest.mark.usefixtures("tars")
def test_all_names_are_checked_before_any_tar_is_looked_for(monkeypatch):
    monkeypatch.setattr("pipeline.views.source_tars.tar_size", lambda address: pytest.fail(address))
    with pytest.raises(ConfigError, match=r"'\.b\.tar' has a name that has a slash, or a dot at its start"):
        resolve_tars(["a.tar", ".b.tar"])


def test_what_is_refused_says_what_it_is(tars):
    with tarfile.open(tars / "packed", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    for folder in ("pipes", "images/dog", "outer/inner", "empty", "saved", "half/.packing"):
        (tars / folder).mkdir(parents=True)
    for name in ("pipe", "pipes/a.tar"):
        os.mkfifo(tars / name)
    for name, data in {
        "a.tar.gz": gzip.compress((tars / "packed").read_bytes()),
        "image.jpg": b"\xff\xd8\xff\xe0",
        "weights.bin": b"\xff\xd8\xff\xe0",
        "labels.csv": b"dog,1\ncat,2\n",
        "signed.txt": b"https://user:SECRET@host/x.tar?X-Sig=abc\n",
        "none.txt": b"# nothing\n",
        ".hid.tar": b"x",
        "homes": b"a.tar\n~nosuchuser/x.tar\n",
        "images/dog/1.JPEG": b"x",
        "rows.parquet": b"PAR1",
        "saved/data-00000-of-00001.arrow": b"x",
        "half/half-000000.tar": b"x",
        "outer/inner/k.tar": b"x",
        "nothing.tar": b"",
        "caf\udce9.tar": b"x",
        "line\nbreak.tar": b"x",
        "l" * 217 + ".tar": b"x",
    }.items():
        Path(os.fsdecode(tars / name)).write_bytes(data)
    assert {spec: text for spec, text in REFUSED.items() if text not in refusal(spec)} == {}
