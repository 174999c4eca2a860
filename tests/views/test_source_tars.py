"""Samples of source tars: what is read, what travels, and what is refused."""

import pytest
from tars import write_tar
from test_hostile_tars import packed, read

from pipeline.errors import SourceError
from pipeline.views.sample import NO_LABEL, SourceSample, label_of
from pipeline.views.source import MAX_CARRIED_BYTES, read_samples
from pipeline.views.source_tars import SourceTar


def read_members(tmp_path, *members):
    return read(tmp_path, packed(*members))


def test_samples_come_in_order_with_their_small_members(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        {"b": b"one", "a": b"two"},
        labels={"b": 7},
        members={"a.json": b"{}", "a.npy": b"0"},
    )
    samples = list(read_samples(SourceTar(path, 1)))
    assert [(sample.key, sample.image, sample.members) for sample in samples] == [
        ("b", b"one", {"cls": b"7"}),
        ("a", b"two", {"json": b"{}"}),
    ]


def test_only_small_members_that_stay_true_of_a_crop_travel(tmp_path):
    members = [
        ("a.jpg", b"image"),
        ("a.txt", b"x" * MAX_CARRIED_BYTES),
        ("a.caption", b"x" * (MAX_CARRIED_BYTES + 1)),
        ("a.seg.png", b"map"),
    ]
    (sample,) = read_members(tmp_path, *members)
    assert (sample.image, list(sample.members)) == (b"image", ["txt"])


@pytest.mark.parametrize(
    ("name", "key", "has_image"),
    [
        ("d1.x/d2.y/z.jpg", "d1.x/d2.y/z", True),
        ("./q.png", "./q", True),
        ("z.JPEG", "z", True),
        ("image.v1.jpg", "image", False),
        ("a.cls", "a", False),
        ("größe 1.webp", "größe 1", True),
    ],
)
def test_the_key_ends_at_the_file_name_s_first_dot(tmp_path, name, key, has_image):
    (sample,) = read_members(tmp_path, (name, b"data"))
    assert (sample.key, sample.image is not None) == (key, has_image)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 3000])
def test_a_tar_that_is_cut_is_refused_wherever_that_is(tmp_path, size):
    members = [(f"{number}.jpg", b"\xff" * size) for number in range(10)]
    whole = packed(*members)
    end = sum(512 + -(-size // 512) * 512 for _ in members)
    for cut in {*range(0, end + 513, 512), *range(1, end, 997)}:
        message = r"tar 'some\.tar' .*(cannot be read|is cut).*make the tar again or leave it out"
        with pytest.raises(SourceError, match=message):
            read(tmp_path, whole[:cut])
    assert len(read(tmp_path, whole)) == len(read(tmp_path, whole[: end + 1024])) == 10


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"3")], "holds the key 'a' twice, not side by side"),
        ([("caf\udce9.jpg", b"1")], r"holds the name 'caf\\udce9.jpg', which is not UTF-8"),
    ],
)
def test_wrong_keys_are_refused(tmp_path, members, message):
    with pytest.raises(SourceError, match=f"tar 'some.tar' {message}"):
        read_members(tmp_path, *members)


def test_what_is_no_tar_is_refused(tmp_path):
    assert read_members(tmp_path) == []  # of a tar without members
    with pytest.raises(SourceError, match=r"tar 'some\.tar' cannot be read"):
        read(tmp_path, b"neither a tar nor anything else" * 100)


def labelled(members):
    return label_of(SourceSample("a", b"", members))


def test_a_label_is_a_whole_number_of_at_most_18_digits():
    for text, label in ((b"0", 0), (b" 17\n", 17), (b"007", 7), (b"9" * 18, 10**18 - 1)):
        assert labelled({"cls": text}) == (label, "")
    assert labelled({"txt": b"1"}) == (NO_LABEL, "")
    assert NO_LABEL == 2**64 - 1


def test_any_other_label_is_none_with_a_reason():
    for text in (b"", b"-1", b"1.0", b"cat", b"1 2", "٣".encode(), b"9" * 19, b"9" * 5000):
        label, fault = labelled({"cls": text})
        assert label == NO_LABEL
        assert (
            fault == f"has the label {text[:40].decode()!r}, which is not a whole number of at most 18 digits"
        )
