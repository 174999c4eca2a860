"""What a cache may rely on of every kind of folder: the same tests for a disk and an object store."""

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from pipeline.storage.address import open_folder


def at_once(count, work):
    """Call work(0) ... work(count - 1), all starting together, and return the results."""
    barrier = threading.Barrier(count)

    def begin(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


def put(folder, key, data):
    """Put bytes at any depth, as finished files come."""
    with folder.scratch() as scratch:
        source = Path(scratch) / "finished"
        source.write_bytes(data)
        folder.take(source, key)
        assert not source.exists()


def tree(root, marker=b"marker"):
    """Make a folder of files on the disk."""
    for name, data in {"zarr.json": marker, "a/zarr.json": b"{}", "a/c/0": b"0123", "b/empty": b""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def appended(data, item):
    """Append to a JSON list."""
    return json.dumps([*json.loads(data), item]).encode()


def test_nothing_is_there_at_first(folder):
    assert folder.names() == set()
    assert folder.names("commits") == set()
    assert folder.sizes() == {}
    assert folder.sizes("views") == {}
    assert not folder.exists("units.json")
    folder.remove("units.json")
    with pytest.raises(FileNotFoundError) as error:
        folder.read("units.json")
    assert error.value.filename == f"{folder.address}/units.json"
    for limits in ((3, None), (0, 4), (4, 4)):
        with pytest.raises(FileNotFoundError):
            folder.read("a.tar", *limits)


def test_a_file_is_read_whole_and_by_ranges(folder):
    put(folder, "views/a.tar", b"0123456789")
    assert folder.exists("views/a.tar")
    ranges = [(0, None), (3, None), (0, 4), (3, 5), (8, 99), (10, 12), (20, 30), (12, None), (4, 4), (5, 3)]
    assert [folder.read("views/a.tar", *limits) for limits in ranges] == [
        b"0123456789"[slice(*limits)] for limits in ranges
    ]


def test_a_range_is_read_into_memory_that_is_there(folder):
    put(folder, "views/a.tar", b"0123456789")
    for start, size, expected in [
        (0, 4, b"0123"),
        (3, 7, b"3456789"),
        (8, 5, b"89..."),
        (12, 2, b".."),
        (2, 0, b""),
    ]:
        memory = bytearray(b"." * size)
        assert folder.read_into("views/a.tar", start, memoryview(memory)) == len(expected.rstrip(b"."))
        assert memory == expected
    with pytest.raises(FileNotFoundError):
        folder.read_into("b.tar", 0, memoryview(bytearray(2)))


def test_an_empty_file_is_a_file(folder):
    folder.replace("empty", b"not yet")
    folder.replace("empty", b"")
    assert folder.read("empty") == b""
    assert folder.read("empty", 0, 4) == b""
    assert folder.exists("empty")
    assert folder.sizes() == {"empty": 0}


def test_names_are_of_one_level_and_sizes_of_all(folder):
    for key, size in {"units.json": 1, "a/b/c": 2, "a/b/d": 3, "a/x": 4, "ab/y": 5}.items():
        put(folder, key, bytes(size))
    assert folder.names() - {"logs"} == {"units.json", "a", "ab"}
    assert (folder.names("a"), folder.names("a/b")) == ({"b", "x"}, {"c", "d"})
    assert folder.sizes("a") == {"a/b/c": 2, "a/b/d": 3, "a/x": 4}
    assert folder.sizes("a/b") == {"a/b/c": 2, "a/b/d": 3}
    assert {key: size for key, size in folder.sizes().items() if not key.startswith("logs/")}["ab/y"] == 5


@pytest.mark.parametrize("name", ["a b.tar", "a+b%20c.tar", "ä€.tar", "a#b?c=d&e.tar", "~(1)'!.tar"])
def test_names_with_signs_come_back_as_they_went(folder, name):
    put(folder, f"views/{name}", b"x")
    assert folder.names("views") == {name}
    assert folder.sizes("views") == {f"views/{name}": 1}
    assert folder.read(f"views/{name}") == b"x"
    folder.remove(f"views/{name}")
    assert folder.names("views") == set()


def test_only_the_first_creates(folder):
    put(folder, "commits/other", b"")
    assert folder.create("commits/a.json", b"first")
    assert not folder.create("commits/a.json", b"second")
    assert not folder.create("commits/a.json", b"first")
    assert folder.read("commits/a.json") == b"first"


@pytest.mark.parametrize("same", [False, True], ids=["different bytes", "the same bytes"])
def test_of_many_that_create_at_once_one_does(folder, same):
    made = at_once(12, lambda number: folder.create("a.json", b"x" if same else str(number).encode()))
    assert made.count(True) == 1
    assert folder.read("a.json") == (b"x" if same else str(made.index(True)).encode())


def test_no_update_is_lost(folder):
    folder.replace("count", b"[]")

    def add(number):
        for turn in range(3):
            folder.update("count", partial(appended, item=[number, turn]))

    at_once(6, add)
    assert sorted(json.loads(folder.read("count"))) == [
        [number, turn] for number in range(6) for turn in range(3)
    ]


def test_an_update_may_change_nothing_or_fail(folder):
    folder.replace("a", b"before")
    folder.update("a", lambda data: data)
    with pytest.raises(ZeroDivisionError):
        folder.update("a", lambda data: bytes(1 // (len(data) - 6)))
    with pytest.raises(FileNotFoundError):
        folder.update("b", lambda data: data)
    assert folder.read("a") == b"before"
    folder.update("a", lambda data: data + b" and after")
    assert folder.read("a") == b"before and after"


def test_a_taken_folder_appears_with_all_its_files(folder):
    with folder.scratch() as scratch:
        assert folder.take_tree(tree(scratch / "draft"), "targets.zarr", "zarr.json")
    sizes = {
        "targets.zarr/zarr.json": 6,
        "targets.zarr/a/zarr.json": 2,
        "targets.zarr/a/c/0": 4,
        "targets.zarr/b/empty": 0,
    }
    assert folder.sizes("targets.zarr") == sizes


def test_of_many_folders_taken_at_once_one_is_and_it_is_whole_for_all(folder):
    def take(_):
        with folder.scratch() as scratch:
            return folder.take_tree(tree(scratch / "draft"), "targets.zarr", "zarr.json"), len(
                folder.sizes("targets.zarr")
            )

    results = at_once(4, take)
    assert [made for made, _ in results].count(True) == 1
    assert {count for _, count in results} == {4}


def test_a_claim_is_had_by_one_and_then_by_the_next(folder):
    with (
        folder.claimed("train-0000.tar") as mine,
        folder.claimed("train-0000.tar") as theirs,
        folder.claimed("b.tar") as other,
    ):
        assert (mine, theirs, other) == (True, False, True)
    with folder.claimed("train-0000.tar") as again:
        assert again


def test_of_many_that_claim_at_once_one_does(folder):
    done = threading.Barrier(6)

    def claim(_):
        with folder.claimed("a.tar") as mine:
            done.wait()
            return mine

    assert at_once(6, claim).count(True) == 1


def test_a_claim_ends_with_an_error(folder):
    with pytest.raises(ZeroDivisionError), folder.claimed("a.tar"):
        raise ZeroDivisionError
    with folder.claimed("a.tar") as mine:
        assert mine


def test_scratch_is_private_and_goes(folder):
    with folder.scratch() as one, folder.scratch() as other:
        assert one != other
        (one / "unit").mkdir()
        (one / "unit" / "file").write_bytes(b"x")
    assert not one.exists()
    with folder.moving():
        pass


def test_an_address_or_a_pickle_makes_the_folder_again(folder):
    folder.replace("a", b"x")
    for copy in (open_folder(folder.address), pickle.loads(pickle.dumps(folder))):
        assert copy.address == folder.address
        assert copy.read("a") == b"x"
        assert copy.parallel_reads == folder.parallel_reads
