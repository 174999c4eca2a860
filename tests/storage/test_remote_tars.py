"""Source tars behind URLs: named, listed, measured and streamed, also through faults."""

import os
from pathlib import Path

import obstore
import pytest
from tars import image, make_tars, write_tar

from pipeline.errors import ConfigError, SourceError, StorageError, printable
from pipeline.evaluation.images import open_images
from pipeline.storage import tar_streams
from pipeline.storage.tar_streams import open_tar
from pipeline.views.source import read_samples
from pipeline.views.source_tars import SourceTar, resolve_tars


@pytest.fixture
def store(bucket, _quick, monkeypatch):
    """The bucket as obstore has it; whatever asks for a tar has quick retries and small ranges."""
    monkeypatch.setattr(tar_streams, "RANGE_BYTES", 10_000)
    return obstore.store.from_url(f"s3://{bucket}", client_options={"allow_http": True})


@pytest.fixture
def names(store):
    """Some objects of 3 bytes."""
    keys = [
        "tars/b.tar",
        "tars/a.tar",
        "tars/c d.tar",
        "tars/.hidden.tar",
        "tars/notes.txt",
        "tars/deep/e.tar",
        "tars/empty.tar",
        "top.tar",
        "unpacked.tar/a.jpg",  # in a folder
    ]
    for key in keys:
        obstore.put(store, key, b"" if "empty" in key else b"xxx")


def found(spec):
    return [shard.address for shard in resolve_tars(spec)]


@pytest.mark.usefixtures("names")
def test_tars_are_named_by_pattern_folder_and_list(bucket, tmp_path):
    root = f"s3://{bucket}"
    assert found(f"{root}/tars/{{b,a}}.tar") == [f"{root}/tars/b.tar", f"{root}/tars/a.tar"]
    assert found(f"{root}/tars/[ab].tar") == [f"{root}/tars/a.tar", f"{root}/tars/b.tar"]
    assert found(f"{root}/tars/deep/") == found(f"{root}/tars/deep") == [f"{root}/tars/deep/e.tar"]
    assert found(root) == found(f"{root}/") == [f"{root}/top.tar"]
    local = write_tar(tmp_path / "tars" / "local.tar", {"a": b""})
    (tmp_path / "list").write_text(f"tars/local.tar\n# {root}/no.tar\n{root}/tars/c d.tar\n")
    shards = resolve_tars(str(tmp_path / "list"))
    assert [(shard.address, shard.size, shard.name) for shard in shards] == [
        (str(local), local.stat().st_size, "local.tar"),
        (f"{root}/tars/c d.tar", 3, "c d.tar"),
    ]


@pytest.mark.usefixtures("names")
def test_a_web_server_serves_tars_but_no_list(bucket, server):
    root = f"{server.endpoint}/plain/{bucket}"
    shards = resolve_tars(f"{root}/tars/{{a,c%20d}}.tar")
    assert [(shard.size, shard.name) for shard in shards] == [(3, "a.tar"), (3, "c d.tar")]
    with open_tar(shards[1].address) as file:
        assert file.read() == b"xxx"
    for spec in (f"{root}/tars/", f"{root}/tars/*.tar"):
        message = "a web server cannot list its files; give a brace pattern of URLs or a text list"
        with pytest.raises(ConfigError, match=message):
            resolve_tars(spec)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("s3://BUCKET/tars/gone.tar", "shard 's3://BUCKET/tars/gone.tar' does not exist: give"),
        ("s3://BUCKET/tars/", "shard 's3://BUCKET/tars/empty.tar' is empty (0 bytes)"),
        ("s3://BUCKET/nothing/", "shards 's3://BUCKET/nothing/' match no .tar file"),
        ("s3://BUCKET/tars/x*.tar", "shards 's3://BUCKET/tars/x*.tar' match no .tar file"),
        ("s3://BUCKET/{tars,old}/{a,a}.tar", "have the same file name, by which a cache knows them"),
        ("s3://no-such-bucket/tars/", "shards 's3://no-such-bucket/tars/' cannot be listed"),
        ("s3://BUCKET/tars/a.tar.gz", "match no .tar file"),
        ("ftp://host/a.tar", "address 'ftp://host/a.tar' is not of a known kind: give a path, or s3://..."),
        ("s3:///a.tar", "names no bucket"),
    ],
)
def test_what_is_no_tar_is_refused(spec, words, bucket, store):
    obstore.put(store, "old/a.tar", b"x")
    with pytest.raises(ConfigError) as error:
        resolve_tars(spec.replace("BUCKET", bucket))
    assert words.replace("BUCKET", bucket) in str(error.value)


@pytest.mark.usefixtures("names")
def test_a_password_in_an_address_is_used_but_never_printed(bucket, server):
    root = f"{server.endpoint}/plain/{bucket}".replace("://", "://user:pass-word@")
    (tar,) = resolve_tars(f"{root}/tars/a.tar")
    with open_tar(tar.address) as file:
        assert file.read() == b"xxx"
    server.fail("503")
    texts = []
    for spec in (f"{root}/tars/*.tar", f"{root}/gone.tar.gz", f"{root}/tars/{{a.tar", f"{root}/tars/b.tar"):
        with pytest.raises((ConfigError, OSError)) as error:
            resolve_tars(spec)
        texts.append(f"{error.value} {getattr(error.value, 'filename', '')}")
    with pytest.raises(StorageError) as error:
        list(read_samples(tar))
    texts += [str(error.value), printable(f"error of url ({root}/a.tar?X-Amz-Signature=pass-word)")]
    assert [text for text in texts if "pass-word" in text or server.endpoint not in text] == []


def test_sizes_are_asked_for_side_by_side(store, bucket, server):
    for number in range(20):
        obstore.put(store, f"t/{number:02d}.tar", b"x")
    server.forget()
    server.fail("slow", method="HEAD")
    assert len(resolve_tars(f"s3://{bucket}/t/")) == 20
    assert server.counts() == {"GET": 1, "HEAD": 20}
    assert server.most_at_once > 8


@pytest.mark.parametrize(
    ("kind", "scheme"), [("cut", "s3"), ("closed", "s3"), ("503", "s3"), ("cut", "http")]
)
def test_a_tar_is_streamed_through_faults(store, bucket, server, kind, scheme):
    data = os.urandom(123_456)
    obstore.put(store, "a.tar", data)
    server.fail(kind, every=3, method="GET")
    address = f"s3://{bucket}/a.tar" if scheme == "s3" else f"{server.endpoint}/plain/{bucket}/a.tar"
    with open_tar(address) as file:
        parts = [file.read(50_000), file.read(1), file.read()]
    assert (b"".join(parts), [len(part) for part in parts]) == (data, [50_000, 1, 73_455])
    assert server.faults[0].done


def test_whoever_reads_the_beginning_asks_for_little_more(store, bucket, server):
    obstore.put(store, "a.tar", bytes(200_000))
    server.forget()
    with open_tar(f"s3://{bucket}/a.tar") as file:
        file.read(100)
    assert server.counts() == {"HEAD": 1, "GET": 1}


def test_a_tar_that_changes_while_it_is_read_is_refused(store, bucket):
    obstore.put(store, "a.tar", bytes(200_000))
    with open_tar(f"s3://{bucket}/a.tar") as file:
        file.read(100)
        obstore.put(store, "a.tar", bytes(200_001))
        with pytest.raises(OSError, match="the object has changed meanwhile"):
            file.read()


def test_samples_are_those_of_the_local_tar(store, bucket, tmp_path):
    shard = make_tars(tmp_path, tars=1, images_per_tar=10)[0]
    obstore.put(store, "train-0000.tar", Path(shard.address))
    assert list(read_samples(SourceTar(f"s3://{bucket}/train-0000.tar", shard.size))) == list(
        read_samples(shard)
    )


def test_a_tar_that_cannot_be_read_fails_alone_but_a_silent_server_ends_all(store, bucket, server, tmp_path):
    tar = write_tar(tmp_path / "a.tar", {f"{number}": image(number) for number in range(10)})
    obstore.put(store, "a.tar", tar)
    shard = SourceTar(f"s3://{bucket}/a.tar", 1)
    message = r"tar 'gone.tar' cannot be opened \(no such object\): restore it or leave it out"
    with pytest.raises(SourceError, match=message):
        list(read_samples(SourceTar(f"s3://{bucket}/gone.tar", 1)))
    server.fail("403", method="GET")
    message = r"tar 'a.tar' cannot be read \(access is denied \(403 Forbidden\): check the address"
    with pytest.raises(SourceError, match=message):
        list(read_samples(shard))
    for method in ("GET", "HEAD"):
        server.heal()
        server.fail("503", method=method)
        message = r"tar 's3://.*/a.tar' cannot be read: the server answered 503 Service Unavailable"
        with pytest.raises(StorageError, match=message):
            list(read_samples(shard))


def test_evaluation_reads_images_of_a_copy_in_its_scratch_folder(store, bucket, tmp_path):
    local = write_tar(tmp_path / "a.tar", {f"{n}": image(n) for n in range(3)})
    obstore.put(store, "tars/a.tar", local.read_bytes())
    (tmp_path / "scratch").mkdir()
    remote = open_images([f"s3://{bucket}/tars/a.tar"], tmp_path / "scratch")
    assert [one.image.read() for one in remote.images] == [image(n) for n in range(3)]
    assert [one.image.path for one in remote.images] == [str(tmp_path / "scratch" / "a.tar")] * 3
    assert remote.digest == open_images([str(local)], tmp_path).digest
