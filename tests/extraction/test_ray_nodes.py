"""A Ray cluster of three nodes, of which one is lost, leaves the bytes of a single process."""

import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray
from cache_files import changed, contents
from ray.cluster_utils import Cluster
from test_ray_engine import data, run  # noqa: F401

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 << 20}


@pytest.fixture
def cluster(monkeypatch):
    """Three nodes on this machine, each with its own processes and ports; short paths, for their sockets."""
    folder = tempfile.mkdtemp(prefix="ray-")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they starve on a busy machine
    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        for _ in range(2):
            found.add_node(**NODE)
        ray.init(address=found.address, log_to_driver=False)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.faults  # too slow for every run
def test_a_node_that_is_lost_is_done_without(cluster, data, tmp_path):  # noqa: F811
    cache, lost = tmp_path / "a.cache", []

    def lose():
        node = sorted(cluster.worker_nodes, key=lambda one: one.node_id)[0]
        while len(list((cache / "commits").glob("*.json"))) < 4:
            time.sleep(0.005)
        (raylet,) = node.all_processes["raylet"]
        pid = raylet.process.pid
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, workers)):  # all at once, as a machine is lost
            os.kill(process, signal.SIGKILL)
        cluster.remove_node(node, allow_graceful=False)
        lost.append(node)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    result = run(data / "tars", cache, "--min-workers", "3", "--max-workers", "3")
    thread.join(60)
    assert result.exit_code == 0, result.output
    assert len(lost) == 1
    assert result.output.startswith("on a Ray cluster of 3 nodes and 0 GPUs: 3 actors on cpu")
    assert "; 1 actor died, and what they had not committed was done again" in result.output
    assert changed(contents(data / "alone.cache"), contents(cache)) == []
