"""Metrics reach the trackers' own stores, without a network; a resumed run is the same run there."""

import json
import sqlite3
import sys
from contextlib import closing

import pytest
from training_runs import killed_after, metrics, train, trained

SHOWN = ("loss", "loss/level 5", "gradient_norm", "learning_rate", "images", "seconds", "peak_memory_bytes")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Keep the trackers on this machine; returns the folder of MLflow's store."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return tmp_path / "mlruns"


def tracked_and_resumed(cache, folder, tracker):
    """Train with a tracker, continue as after a kill at step 3, and return the run that was continued."""
    to = f'log.to="{tracker}"'
    run = killed_after(trained(cache, folder / "first", to, "log.project=masks"), 3, folder / "run")
    messages = []
    trained(cache, run, resume=True, say=messages.append)
    assert not any("warning" in message for message in messages)
    return run


def wandb_records(path):
    """Read a file of W&B, a log of LevelDB's form: blocks of 32 KiB with records of checksum, size, kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.faults  # too slow for every run
@pytest.mark.usefixtures("offline")
def test_wandb_gets_values_and_the_same_run(small_cache_path, tmp_path):
    run = tracked_and_resumed(small_cache_path, tmp_path, "wandb")
    found, started = {}, []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                started.append((record.run.run_id, record.run.project, record.run.display_name))
                config = {one.key: one.value_json for one in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                values = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                found[json.loads(values["step"])] = {key: json.loads(value) for key, value in values.items()}
    identity = json.loads((run / "trackers.json").read_text())["wandb"]
    assert started == [(identity, "masks", "first"), (identity, "masks", "run")]
    assert config["optim.steps"] == "6"
    assert_same_values(run, found)


@pytest.mark.faults  # too slow for every run
@pytest.mark.usefixtures("offline")
def test_mlflow_gets_values_and_the_same_run(small_cache_path, tmp_path):
    from mlflow.tracking import MlflowClient

    run = tracked_and_resumed(small_cache_path, tmp_path, "mlflow")
    client = MlflowClient()
    (stored,) = client.search_runs([client.get_experiment_by_name("masks").experiment_id])
    assert stored.info.run_id == json.loads((run / "trackers.json").read_text())["mlflow"]
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "first")
    assert stored.data.params["optim.steps"] == "6"
    found: dict[int, dict[str, float]] = {}
    for name in SHOWN:
        for metric in client.get_metric_history(stored.info.run_id, name.replace("/", ".")):
            found.setdefault(metric.step, {})[name] = metric.value
    assert_same_values(run, found)


def test_trackio_gets_values_and_the_same_run(small_cache_path, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tracked_and_resumed(small_cache_path, tmp_path, "trackio")
    with closing(sqlite3.connect(tmp_path / "trackio/masks.db")) as base:
        rows = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert {name for name, _, _ in rows} == {json.loads((run / "trackers.json").read_text())["trackio"]}
    assert_same_values(run, {step: json.loads(values) for _, step, values in rows})


def assert_same_values(run, found):
    lines = metrics(run)
    assert sorted(found) == [1, 2, 3, 4, 5, 6] == [line["step"] for line in lines]
    for line in lines:
        line["loss/level 5"] = line["loss_terms"]["level 5"]
        assert [found[line["step"]][name] for name in SHOWN] == pytest.approx([line[name] for name in SHOWN])


def test_what_does_not_work_costs_a_warning(small_cache_path, tmp_path, offline, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    offline.write_text("not a folder")
    messages, run = [], tmp_path / "run"
    trained(small_cache_path, run, 'log.to=["trackio", "mlflow"]', "optim.steps=3", say=messages.append)
    missing, broken = [message for message in messages if message.startswith("warning")]
    assert "log.to 'trackio' does not work and is left out (it is not installed: pip install" in missing
    assert "log.to 'mlflow' does not work and is left out (" in broken
    assert len(metrics(run)) == 3
    assert not (run / "tensorboard").exists()


def test_no_tracker_is_used_if_none_is_named(small_cache_path, tmp_path):
    run = trained(small_cache_path, tmp_path / "run", "log.to=[]", "optim.steps=3")
    assert not (run / "tensorboard").exists()
    assert not (run / "trackers.json").exists()


def test_an_unknown_tracker_is_refused(small_cache_path, tmp_path):
    result = train(small_cache_path, tmp_path / "run", "log.to=wandbb", code=2)
    assert "log.to" in result.stderr
    assert "'tensorboard', 'wandb', 'trackio' or 'mlflow'" in result.stderr


def test_the_gradient_norm_is_that_before_clipping(small_cache_path, tmp_path):
    plain = metrics(trained(small_cache_path, tmp_path / "plain", "optim.steps=3"))
    clipped = metrics(
        trained(small_cache_path, tmp_path / "clipped", "optim.steps=3", "optim.clip_grad=1e-3")
    )
    assert clipped[0]["gradient_norm"] == plain[0]["gradient_norm"] > 1e-3
