"""View tars: the same bytes for the same samples, each sample alone in its range."""

import io
import tarfile
import time

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.views.view_tars import ViewTarWriter, parse_samples, read_sample, tar_sample

SAMPLES = [
    ("000001", b"image one", {"cls": b"3"}),
    ("folder.x/000002", b"p" * 2000, {"cls": b"1", "json": b"{}", "txt": b"a caption"}),
    ("größe", b"", {}),
    ("long/" + "x" * 180, b"p" * 512, {"cls": b"0"}),
]


def write(path, samples=SAMPLES, view_format="jpeg"):
    tar = ViewTarWriter(path)
    for key, crop, members in samples:
        tar.append(tar_sample(key, crop, members, view_format))
    tar.close()
    return tar.ranges


def contents(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def expected(key, crop, members, extension="jpg"):
    return {f"{key}.{extension}": crop} | {f"{key}.{name}": data for name, data in members.items()}


def test_bytes_depend_on_the_samples_alone(tmp_path, monkeypatch):
    write(tmp_path / "one.tar")
    monkeypatch.setattr(time, "time", lambda: 1.0e9)
    write(tmp_path / "two.tar")
    write(tmp_path / "three.tar", SAMPLES[:-1])
    one, two, three = ((tmp_path / f"{name}.tar").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_a_stock_reader_finds_all(tmp_path):
    write(tmp_path / "a.tar")
    found = contents((tmp_path / "a.tar").read_bytes())
    assert found == {name: data for sample in SAMPLES for name, data in expected(*sample).items()}
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(member.mtime, member.uname, member.mode) for member in tar} == {(0, "root", 0o444)}


def test_ranges_follow_one_another_and_hold_one_sample_each(tmp_path):
    ranges = write(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    assert [start for start, _, _ in ranges] == [0, *(start + length for start, length, _ in ranges[:-1])]
    for sample, (start, length, crc) in zip(SAMPLES, ranges, strict=True):
        assert google_crc32c.value(data[start : start + length]) == crc
        assert contents(data[start : start + length] + bytes(1024)) == expected(*sample)
    assert not data[ranges[-1][0] + ranges[-1][1] :].strip(b"\0")


@pytest.mark.parametrize(("first", "last"), [(0, 4), (0, 1), (1, 3), (3, 4)])
def test_a_range_of_samples_is_parsed(tmp_path, first, last):
    ranges = write(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()[ranges[first][0] : ranges[last - 1][0] + ranges[last - 1][1]]
    parsed = [
        {name: value for name, value in sample.items() if name != "__url__"} for sample in parse_samples(data)
    ]
    assert parsed == [{"__key__": key, "jpg": crop, **members} for key, crop, members in SAMPLES[first:last]]


KEYS = st.lists(st.text("aB0_-/ .~é", min_size=1, max_size=70), min_size=1, max_size=3).map("x".join)
MEMBERS = st.dictionaries(st.sampled_from(["cls", "txt", "json", "CAPTION"]), st.binary(max_size=600))


@given(key=KEYS, crop=st.binary(max_size=1200), members=MEMBERS)
def test_one_sample_is_read_as_webdataset_reads_it(tmp_path_factory, key, crop, members):
    path = tmp_path_factory.mktemp("tars") / "a.tar"
    ((start, length, _),) = write(path, [(key, crop, members)])
    data = path.read_bytes()[start : start + length]
    samples = list(parse_samples(data))
    if len(samples) == 1 and "jpg" in samples[0]:
        assert read_sample(data, "jpg") == (samples[0]["__key__"], samples[0]["jpg"])
    else:
        with pytest.raises(ValueError, match=r"\d samples, or none with a member 'jpg', in the place of one"):
            read_sample(data, "jpg")


def test_what_is_not_one_whole_sample_is_refused(tmp_path):
    ranges = write(tmp_path / "a.tar", [("a", b"p" * 3000, {"cls": b"1"}), ("b", b"q", {})])
    data = (tmp_path / "a.tar").read_bytes()
    for start, end in [
        (0, sum(ranges[1][:2])),
        (512, ranges[1][0]),
        (0, ranges[1][0] - 512),
        (0, 700),
        (0, 0),
        (7, ranges[1][0]),
    ]:
        with pytest.raises(ValueError, match=r".+"):
            read_sample(data[start:end], "jpg")


def test_a_discarded_tar_can_be_discarded_twice(tmp_path):
    tar = ViewTarWriter(tmp_path / "a.tar")
    tar.append(tar_sample(*SAMPLES[0], "jpeg"))
    tar.discard()
    tar.discard()
