"""The local tier: entries that are whole, a limit that holds, and processes that share both."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.storage.tier import LocalTier

SIZE = 1000  # bytes of an entry, with its checksum
DATA = b"x" * (SIZE - 4)


def entries(folder):
    """The files of entries, the least recently used first."""
    return sorted(folder.glob("??/*"), key=lambda path: path.stat().st_mtime_ns)


def fetcher(data, log):
    """A fetch that notes its calls."""

    def fetch():
        log.append(1)
        return data

    return fetch


def test_what_is_there_is_not_fetched_again(tmp_path):
    tier, log = LocalTier(tmp_path / "tier", 10 * SIZE), []
    assert [tier.get("a", fetcher(b"one", log)) for _ in range(3)] == [b"one"] * 3
    assert LocalTier(tmp_path / "tier", 10 * SIZE).get("a", fetcher(b"other", log)) == b"one"
    assert tier.get("b", fetcher(b"two", log)) == b"two"
    assert len(log) == 2


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"?" + data[1:], lambda _: b""])
def test_an_entry_that_is_not_whole_is_fetched_again(tmp_path, spoil):
    tier, log = LocalTier(tmp_path, 10 * SIZE), []
    tier.get("a", fetcher(DATA, log))
    (entry,) = entries(tmp_path)
    entry.write_bytes(spoil(entry.read_bytes()))
    assert tier.get("a", fetcher(DATA, log)) == DATA
    assert (len(log), len(entries(tmp_path))) == (2, 1)


def test_an_entry_is_never_taken_for_another(tmp_path):
    tier, log = LocalTier(tmp_path, 10 * SIZE), []
    tier.get("a", fetcher(b"of a", log))
    tier.get("b", fetcher(b"of b", log))
    first, second = entries(tmp_path)
    first.write_bytes(second.read_bytes())
    assert tier.get("a", fetcher(b"of a", log)) == b"of a"
    assert len(log) == 3


def test_the_least_recently_used_go_first(tmp_path):
    tier, log = LocalTier(tmp_path, 10 * SIZE), []
    for number in range(10):
        tier.get(str(number), fetcher(DATA, log))
    time.sleep(0.01)
    tier.get("0", fetcher(DATA, log))
    tier.get("10", fetcher(DATA, log))  # 9 entries are left, with this one
    assert len(entries(tmp_path)) == 9
    tier.get("0", fetcher(DATA, log))
    assert len(log) == 11
    tier.get("1", fetcher(DATA, log))
    assert len(log) == 12


def test_a_lower_limit_holds_from_the_start(tmp_path):
    for name in "abc":
        LocalTier(tmp_path, 1000).get(name, lambda: b"x" * 96)
    LocalTier(tmp_path, 200).prepare()
    assert (tmp_path / "size").read_text() == "200"
    assert len(list(tmp_path.glob("??/*"))) == 2


def test_files_that_are_no_entries_are_left_alone(tmp_path):
    for name in ("de/words.txt", "ab/0123", f"ab/{62 * 'g'}", f"{64 * '0'}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(500))
    tier = LocalTier(tmp_path, 150)
    tier.prepare()
    for name in "abc":
        tier.get(name, lambda: b"x" * 96)
    assert {path.stat().st_size for path in tmp_path.glob("??/*")} == {100, 500}
    assert len([path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == 500]) == 4


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path):
    tier, log = LocalTier(tmp_path, SIZE - 1), []
    assert [tier.get("a", fetcher(DATA, log)) for _ in range(2)] == [DATA] * 2
    assert (len(log), entries(tmp_path)) == (2, [])


def test_a_count_that_was_lost_is_made_again(tmp_path):
    tier, log = LocalTier(tmp_path, 3 * SIZE), []
    for number in range(3):
        tier.get(str(number), fetcher(DATA, log))
    (tmp_path / "size").write_text("")
    entries(tmp_path)[0].with_suffix(".unfinished").write_bytes(DATA)
    tier.get("3", fetcher(DATA, log))
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 3 * SIZE


def test_an_error_of_the_store_is_raised_and_leaves_no_entry(tmp_path):
    def fail():
        raise FileNotFoundError(2, "no such object", "s3://bucket/key")

    with pytest.raises(FileNotFoundError, match="no such object"):
        LocalTier(tmp_path, SIZE).get("a", fail)
    assert entries(tmp_path) == []


def test_a_tier_that_cannot_be_written_costs_speed_alone(tmp_path):
    (tmp_path / "file").touch()
    assert LocalTier(tmp_path / "file", SIZE).get("a", lambda: DATA) == DATA


def read_all(folder, log, most):
    """Read 40 entries in an order of this process; note each fetch."""
    tier = LocalTier(folder, most)
    for number in range(40):
        name = str((number * 7 + os.getpid()) % 40)

        def fetch(name=name):
            with log.open("a") as file:
                file.write(f"{name}\n")
            return name.encode() * 100

        assert tier.get(name, fetch) == name.encode() * 100


@pytest.mark.parametrize(("most", "fetches"), [(1 << 20, range(40, 41)), (3000, range(41, 1000))])
def test_processes_share_a_tier_and_its_limit(tmp_path, most, fetches):
    context, log = multiprocessing.get_context("spawn"), tmp_path / "log"
    processes = [context.Process(target=read_all, args=(tmp_path / "tier", log, most)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert len(log.read_text().splitlines()) in fetches
    assert sum(path.stat().st_size for path in entries(tmp_path / "tier")) <= most


def test_a_tier_that_cannot_be_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data\.local_tier '.*file' cannot be used \(.*\): give a folder"):
        LocalTier(tmp_path / "file", SIZE).prepare()
    with pytest.raises(ConfigError, match=r"data\.local_bytes 9,007,199,254,740,992 is more than the disk"):
        LocalTier(Path(tmp_path) / "tier", 1 << 53).prepare()
    LocalTier(tmp_path / "tier", SIZE).prepare()
