"""Odd, damaged and hostile tars: their samples, or one sentence; never a hang or much memory."""

import gzip
import io
import lzma
import tarfile
import tracemalloc

import pytest
from fuzzing import memory
from tars import add_member

from pipeline.errors import SourceError
from pipeline.views.sample import NO_LABEL, label_of
from pipeline.views.source import MAX_CARRIED_BYTES, read_samples
from pipeline.views.source_tars import SourceTar

NOT_PLAIN = "that is a link, device or file with holes: pack whole files (tar --dereference)"


def packed(*members, form=tarfile.PAX_FORMAT):
    """A tar of members that are (name, bytes) or (name, bytes, fields of the header)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data, *fields in members:
            info = tarfile.TarInfo(name)
            for field, value in (fields[0] if fields else {}).items():
                setattr(info, field, value)
            if not fields:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header(name, size):
    """The header of a member that claims a size."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def read(tmp_path, data):
    (tmp_path / "some.tar").write_bytes(data)
    return list(read_samples(SourceTar(tmp_path / "some.tar", len(data))))


def keys(samples):
    return [(sample.key, sample.image) for sample in samples]


def refused(tmp_path, data):
    message = r"^tar 'some\.tar' .*: make the tar again or leave it out$"
    with pytest.raises(SourceError, match=message) as caught:
        read(tmp_path, data)
    return (
        str(caught.value).removeprefix("tar 'some.tar' ").removesuffix(": make the tar again or leave it out")
    )


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(
    "stem",
    ["x" * 250, "f/" * 2000 + "a", "ü" * 200, "日本/語", "/absolute/a", "../../a", "a b", "./a", "a'\"\\"],
)
def test_names_of_any_length_and_kind_are_keys(tmp_path, form, stem):
    assert keys(read(tmp_path, packed((f"{stem}.jpg", b"1"), (f"{stem}.cls", b"2"), form=form))) == [
        (stem, b"1")
    ]


def test_of_several_images_jpeg_is_taken(tmp_path):
    assert keys(read(tmp_path, packed(("a.png", b"1"), ("a.jpg", b"2"), ("a.tif", b"3")))) == [("a", b"2")]


@pytest.mark.parametrize(
    "members", [[("a.jpg", b"1"), ("a.jpg", b"2")], [("a.JPG", b"1"), ("a.cls", b"0"), ("a.jpg", b"1")]]
)
def test_a_file_that_is_there_twice_is_refused(tmp_path, members):
    assert refused(tmp_path, packed(*members)) == "holds the file 'a.jpg' twice"


@pytest.mark.parametrize("name", ["a\n.jpg", "a\0b.jpg", "x.y\n/a.jpg", "\x1b[31m.jpg", "a.jpg\n"])
def test_a_control_character_in_a_name_is_refused(tmp_path, name):
    data = packed(("plain.jpg", b"1"), ("a.jpg", b"2", {"size": 1, "pax_headers": {"path": name}}))
    assert refused(tmp_path, data) == f"holds the name {name!r}, which has a control character"


@pytest.mark.parametrize(
    "name", [".jpg", "d/.jpg", "d/._b.jpg", "__meta__/a.jpg", "__meta__", "README", "folder.jpg/README"]
)
def test_what_has_no_key_belongs_to_no_sample(tmp_path, name):
    assert keys(read(tmp_path, packed(("d/a.jpg", b"1"), (name, b"2"), ("d/b.jpg", b"3"), (name, b"4")))) == [
        ("d/a", b"1"),
        ("d/b", b"3"),
    ]


def test_directories_belong_to_no_sample(tmp_path):
    directory = {"type": tarfile.DIRTYPE}
    assert read(tmp_path, packed(("d", b"", directory), ("d.jpg", b"", directory))) == []
    assert keys(read(tmp_path, packed(("d.jpg", b"", directory), ("d.jpg/a.jpg", b"1")))) == [
        ("d.jpg/a", b"1")
    ]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_an_image_or_label_that_is_not_a_file_is_a_fault(tmp_path, kind):
    special = {"type": kind, "linkname": "a.jpg"}
    members = [("a.jpg", b"", special), ("a.cls", b"2"), ("b.jpg", b"3"), ("b.cls", b"", special)]
    image, label = read(tmp_path, packed(*members))
    assert (image.image, image.fault, image.label_fault) == (None, f"has a jpg {NOT_PLAIN}", "")
    assert (label.image, label.members, label.label_fault) == (b"3", {}, f"has a cls {NOT_PLAIN}")


def test_a_link_that_is_neither_image_nor_label_is_not_missed(tmp_path):
    link = {"type": tarfile.SYMTYPE, "linkname": "x"}
    assert keys(read(tmp_path, packed(("a.jpg", b"1"), ("a.txt", b"", link), ("a.npy", b"", link)))) == [
        ("a", b"1")
    ]


def test_sparse_files_are_not_filled_in(tmp_path):
    sparse = {"size": 1, "pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40)}}
    samples = read(tmp_path, packed(("a.jpg", b"1", sparse), ("b.jpg", b"2")))
    assert (keys(samples), samples[0].fault) == ([("a", None), ("b", b"2")], f"has a jpg {NOT_PLAIN}")


def test_a_label_of_many_bytes_costs_no_image(tmp_path):
    (sample,) = read(tmp_path, packed(("a.jpg", b"1"), ("a.cls", b"1" * (MAX_CARRIED_BYTES + 1))))
    size = f"has a cls of {MAX_CARRIED_BYTES + 1} bytes, more than the {MAX_CARRIED_BYTES} that are accepted"
    assert (sample.image, sample.members, sample.label_fault) == (b"1", {}, size)


def test_an_image_with_a_dot_inside_its_name_is_reported(tmp_path):
    """The key of frame.0001.jpg is frame, as webdataset reads it, and its extension is 0001.jpg."""
    (sample,) = read(tmp_path, packed(("d.x/frame.0001.jpg", b"1"), ("d.x/frame.0002.jpg", b"2")))
    remedy = "a key ends at the first dot of a name, so rename 'd.x/frame.0001.jpg'"
    assert (sample.key, sample.image) == ("d.x/frame", None)
    assert sample.fault == f"has no image among its members: {remedy}"
    assert keys(read(tmp_path, packed(("a.jpg", b"1"), ("a.small.jpg", b"2")))) == [("a", b"1")]


def test_deeply_nested_notes_are_not_a_label(tmp_path):
    (sample,) = read(tmp_path, packed(("a.jpg", b"1"), ("a.json", b"[" * 60_000)))
    assert label_of(sample) == (NO_LABEL, "")


def peak(tmp_path, data):
    """The most memory, in bytes, that reading a tar took, and its samples or its fault."""
    tracemalloc.start()
    try:
        try:
            found = read(tmp_path, data)
        except SourceError as error:
            found = str(error)
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [10 * 2**30, 2**62, 8**11 - 1, 2**80])
@pytest.mark.parametrize("extension", ["jpg", "npy"])
def test_a_member_that_claims_more_than_there_is_is_refused_at_once(tmp_path, extension, size):
    used, fault = peak(
        tmp_path, packed(("a.jpg", b"1"))[:1024] + header(f"b.{extension}", size) + bytes(100_000)
    )
    assert fault.startswith("tar 'some.tar' has no end marker: it is cut")
    assert used < 2**20


def test_a_giant_image_skips_its_sample_unread(tmp_path, monkeypatch):
    accepted = 2**26
    monkeypatch.setattr("pipeline.views.source.MAX_IMAGE_BYTES", accepted)
    path, size = tmp_path / "giant.tar", accepted + 512
    with path.open("wb") as file:
        file.write(header("a.jpg", size))
        file.seek(size, io.SEEK_CUR)
        file.write(packed(("b.jpg", b"2")))
    with memory(accepted // 2):
        samples = list(read_samples(SourceTar(path, path.stat().st_size)))
    assert keys(samples) == [("a", None), ("b", b"2")]
    assert samples[0].fault == f"has a jpg of {size} bytes, more than the {accepted} that are accepted"


def test_other_members_are_passed_over_unread(tmp_path):
    data = packed(("a.jpg", b"1"), ("a.npy", bytes(8_000_000)), ("a.seg.png", bytes(8_000_000)))
    used, samples = peak(tmp_path, data)
    assert keys(samples) == [("a", b"1")]
    assert used < 4 * 2**20


def test_a_header_without_end_is_refused(tmp_path):
    used, fault = peak(
        tmp_path, packed(("a.jpg", b"1", {"size": 1, "pax_headers": {"comment": "x" * 10_000_000}}))
    )
    assert fault.startswith("tar 'some.tar' has a header of more than 65536 bytes")
    assert used < 2**20


def blocks(data):
    return -(-len(data) // 512) * 512


@pytest.mark.parametrize(
    "last", [bytes(1024), bytes(5000), b""], ids=["the end marker's zeros", "zeros", "nothing"]
)
def test_a_cut_behind_a_member_of_zeros_is_a_cut(tmp_path, last):
    whole = packed(("a.jpg", b"1"), ("b.jpg", last))
    end = 1024 + 512 + blocks(last)
    for cut in (end, end + 1, end + 512, end + 1023):
        assert refused(tmp_path, whole[:cut]) == "has no end marker: it is cut"
    for cut in (end + 1024, len(whole)):
        assert keys(read(tmp_path, whole[:cut])) == [("a", b"1"), ("b", last)]


def test_padding_may_be_long_but_must_be_zeros(tmp_path):
    whole = packed(("a.jpg", b"1"))
    assert keys(read(tmp_path, whole + bytes(3_000_000))) == [("a", b"1")]
    for place in (1024 + 100, 1024 + 700, 1024 + 1024, len(whole) - 1, len(whole) + 2_000_000):
        data = bytearray(whole + bytes(2_500_000))
        data[place] = 7
        assert (
            refused(tmp_path, bytes(data))
            == "continues after byte 1024, where its reader ends: it is damaged or several tars in one"
        )


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    data = bytearray(packed(("a.jpg", b"1"), ("b.jpg", b"")))
    data[1024 + 150] ^= 1
    assert (
        refused(tmp_path, bytes(data))
        == "continues after byte 1024, where its reader ends: it is damaged or several tars in one"
    )


def test_a_compressed_tar_is_refused_by_that_name(tmp_path):
    for compress in (gzip.compress, lzma.compress):
        data = compress(packed(("a.jpg", b"1" * 5000)))
        assert refused(tmp_path, data) == "is compressed, where only plain tars are read"


def test_nested_long_names_do_not_exhaust_the_stack(tmp_path):
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 0
    assert "cannot be read" in refused(tmp_path, long_name.tobuf(tarfile.GNU_FORMAT) * 100 + bytes(1024))


def test_thousands_of_members_of_one_prefix(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add_member(tar, "a.jpg", b"1")
        for number in range(5_000):
            add_member(tar, f"a.{number}", b"")
    used, samples = peak(tmp_path, buffer.getvalue())
    assert keys(samples) == [("a", b"1")]
    assert used < 8 * 2**20
