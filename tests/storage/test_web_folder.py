"""A finished cache behind a plain web server: opened, verified and trained from without any listing."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from caches import publish
from stream_parts import digests
from test_cache_on_objects import TINY, called, contents
from typer.testing import CliRunner

from pipeline.cache.commit import committed
from pipeline.cache.reader import Cache
from pipeline.cache.verify import verify_quickly
from pipeline.cache.verify_content import verify_unit
from pipeline.errors import CacheError, ConfigError, StorageError
from pipeline.storage.address import open_folder
from stages.evaluate_student import evaluate_student
from stages.extract_teacher import extract_teacher
from stages.inspect_cache import app as inspect_app
from stages.train_student import train_student

STATS = "targets.zarr/stats/c/1/0/0/0"


def inspected(*words):
    """The exit code and output of inspect-cache."""
    result = CliRunner().invoke(inspect_app, list(map(str, words)), catch_exceptions=False)
    return result.exit_code, result.output


@pytest.fixture
def served(server, bucket, in_bucket):
    """The URL of the cache on a server that knows each file by its name alone."""
    del in_bucket
    return f"{server.endpoint}/plain/{bucket}/a%20b/small.cache"


def test_a_cache_opens_from_the_web_without_a_listing(server, served, small_cache_path):
    cache, local = Cache(served), Cache(small_cache_path)
    assert (cache.digest, cache.units) == (local.digest, local.units)
    assert len(cache.finished(None, allow_partial=False)) == 4
    assert digests(served, 5, views=(0,)) == digests(small_cache_path, 5, views=(0,))
    assert {method for method, _ in server.log} == {"GET"}
    assert not any("?" in path or path.endswith("/") for _, path in server.log)


def test_an_unfinished_unit_is_known_by_its_missing_commit(in_bucket, served):
    in_bucket.remove("commits/train-0001.v00.json")
    cache = Cache(served)
    assert [commit.unit for commit in cache.commits()] == [0, 1, 3]
    assert [unit.unit for unit in committed(cache.folder, cache.units)] == [0, 1, 3]
    with pytest.raises(CacheError, match="is not finished: 3 of 4 units are committed"):
        cache.finished(None, allow_partial=False)


def test_what_is_no_cache_is_one_sentence(server, bucket, served):
    with pytest.raises(ConfigError, match=r"is not a cache \(no units\.json\)"):
        Cache(f"{server.endpoint}/plain/{bucket}/nothing")
    server.fail("403", method="GET")
    remedy = "if it needs a password, which no run records, give it again .--cache, --shards or "
    with pytest.raises(OSError, match=f"access is denied .*{remedy}"):
        Cache(served)


def test_damage_is_noticed_through_the_web_and_repaired_elsewhere(in_bucket, served):
    cache, data = Cache(served), in_bucket.read(STATS)
    in_bucket.replace(STATS, data[:50] + bytes([data[50] ^ 1]) + data[51:])
    assert list(verify_quickly(cache)) == []
    assert [verify_unit(cache, unit) == [] for unit in cache.units[:2]] == [True, False]
    in_bucket.replace(STATS, data[:-1])
    code, output = inspected("verify", served)
    size = len(data)
    assert f"unit 1 (train-0000.tar, view 1): {STATS} has {size - 1} bytes, not {size}\n" in output
    assert "has 1 problem: repair it where it is stored, or see whether the server" in output
    assert code == 1


def test_nothing_can_be_written_through_the_web(served, tmp_path):
    folder = open_folder(served)
    writes = (
        lambda: folder.replace("a", b""),
        lambda: folder.create("a", b""),
        lambda: folder.take(tmp_path, "a"),
        lambda: folder.take_tree(tmp_path, "a", "b"),
        lambda: folder.update("a", bytes),
        lambda: folder.remove("a"),
        lambda: folder.claimed("a"),
        lambda: folder.moving(),
        lambda: folder.scratch(),
    )
    for write in writes:
        with pytest.raises(ConfigError, match="serves a finished cache to readers; to write, give a path"):
            write()
    with pytest.raises(ConfigError):
        publish(served, Cache(served).schema, Cache(served).units[0])


def test_commands_read_from_the_web_and_refuse_to_write_there(server, served, small_cache_path, tmp_path):
    local = str(small_cache_path)
    assert inspected("info", served)[1] == inspected("info", local)[1].replace(local, served)
    found = f"cache '{served}', 4 of 4 units: names, sizes and metadata are what was committed\n"
    assert inspected("verify", served) == (0, found)
    code, output = inspected("verify", served, "--repair")
    assert (code, "give --repair where it is stored" in output) == (2, True)
    tar = small_cache_path.parent / "tars" / "train-0000.tar"
    code, output = called(extract_teacher, tar, "--cache", served, "--teacher", "timm:test_vit.random")
    assert (code, "cannot list a folder: it serves a finished cache to readers" in output) == (2, True)
    server.forget()
    settings = [word for key in TINY for word in ("--set", key)]
    run = ("--run", tmp_path / "run", "--device", "cpu")
    code, output = called(train_student, "--cache", served, *run, *settings)
    assert code == 0, output
    assert {method for method, _ in server.log} == {"GET"}


def test_a_password_of_a_cache_is_used_but_never_printed(served, tmp_path):
    secret = served.replace("://", "://user:pass-word@")
    texts = [
        str(error)
        for error in (CacheError(f"cache {secret!r} is gone"), ConfigError(f"{secret}?a=pass-word"))
    ]
    for words in (
        ("info", secret),
        ("verify", secret),
        ("card", secret, "--out", str(tmp_path / "card.md")),
        ("info", f"{secret}/nothing"),
        ("copy", secret, str(tmp_path / "copy"), "--levels", "99"),
    ):
        texts.append(inspected(*words)[1])
    texts.append((tmp_path / "card.md").read_text())
    assert [text for text in texts if "pass-word" in text or "127.0.0.1" not in text] == []


@pytest.mark.faults  # too slow for every run
def test_no_file_of_a_run_has_a_password_of_its_data(served, tmp_path):
    secret = served.replace("://", "://user:pass-word@")
    settings = [word for key in TINY for word in ("--set", key)]
    tar = f"{secret}/views/{Cache(served).units[0].stem}.tar"
    settings += ["--set", "evaluate.every_epochs=100", "--set", f"evaluate.shards={tar}"]
    run = ("--run", tmp_path / "run", "--device", "cpu")
    code, output = called(train_student, "--cache", secret, *run, *settings)
    assert (code, "pass-word" in output) == (0, False), output
    assert "No images" not in (tmp_path / "run/report.html").read_text()
    for data in (("--cache", secret), ("--shards", tar)):
        code, output = called(evaluate_student, "knn", *data, *run, "--set", "k=3", "--workers", 0)
        assert (code, "pass-word" in output, "127.0.0.1" in output) == (0, False, True), output
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"run.json", "scores.json", "index.json"} <= {path.name for path in files}
    assert [path for path in files if b"pass-word" in path.read_bytes()] == []


def test_a_server_without_ranges_is_named(small_cache_path, monkeypatch):
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(small_cache_path.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as plain:
        thread = threading.Thread(target=plain.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        cache = Cache(f"http://127.0.0.1:{plain.server_port}/small.cache")
        commit = next(cache.commits())
        with pytest.raises(StorageError, match="the server does not serve ranges"):
            cache.read_chunk(commit, 0, ["index"])
        plain.shutdown()
        thread.join()


def test_a_copy_through_a_failing_web_is_continued(server, bucket, served, small_cache_path, tmp_path):
    target = tmp_path / "b.cache"
    server.fail("403", method="GET", key="features/block_04/c/1")
    code, output = inspected("copy", served, target, "--workers", "1")
    assert (code, "access is denied" in output) == (1, True)
    assert [commit.unit for commit in Cache(target).commits()] == [0]
    server.heal()
    server.forget()
    assert inspected("copy", served, target)[0] == 0
    assert not any("/block_03/c/0" in path for _, path in server.log)  # what is there is not read again
    assert contents(target) == contents(small_cache_path)
    assert inspected("copy", served, f"s3://{bucket}/copy.cache", "--tars", "train-0001.tar")[0] == 0
    views = open_folder(f"s3://{bucket}/copy.cache/views")
    assert {name: views.read(name) for name in views.names()} == {
        path.name: path.read_bytes() for path in (small_cache_path / "views").glob("train-0001.*")
    }
