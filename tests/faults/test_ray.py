"""Agents that Ray places on a cluster of two nodes beside the head: the same batches, also when nodes go and come."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import prefetchd
from prefetchd.daemon.memory.plan import bridge_share
from tests.conftest import wait_until
from tests.faults.conftest import BATCH, SIZE, Content, content_of

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

JOIN_S = 150  # for a worker of Ray's, an agent in it, and its probe, beside other tests
OPTIONS: dict[str, Any] = {
    "num_workers": 1, "batch_size": BATCH, "image_size": SIZE, "color": "bgr", "shrink_on_load": False,
}  # fmt: skip


def ray_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if "/ray/core/src/ray/" in words or "ray::" in words or "ray/dashboard" in words:
            found.append(process)
    return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, nothing_left: None, tmp_path: Path) -> Iterator[Any]:
    """A head without cores, and two nodes with one each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_enable_metrics_collection", "0")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # a minute otherwise
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at Ray's 15 the agents starve beside other tests
    folder = Path("/tmp/ray")  # a cluster of several nodes has no other
    was_there = folder.exists()
    before = {process.pid for process in ray_processes()}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        started.add_node(num_cpus=1)
        started.add_node(num_cpus=1)
        yield started
    finally:
        started.shutdown()
        wait_until(
            lambda: not [process for process in ray_processes() if process.pid not in before], "Ray has ended", 60
        )
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)


class Run:
    """A loop over forty images, some of whose readers Ray has placed."""

    def __init__(self, cluster: Any, forty: Path, expected: Content, **options: Any) -> None:
        self.loader = prefetchd.batches(forty, epochs=None, ray=cluster.address, **OPTIONS, **options)
        self._expected, self._n_seen = expected, 0
        self._batches = iter(self.loader)

    def see(self, n_batches: int) -> None:
        """Take so many batches: each is the right one."""
        for batch in range(n_batches):
            epoch, index = divmod(self._n_seen, len(self._expected))
            assert content_of([next(self._batches)]) == [(epoch, *self._expected[index][1:])], batch
            self._n_seen += 1

    def agents(self) -> dict[str, int]:
        return {agent["name"]: agent["samples"] for agent in self.loader.status()["agents"]}

    def wait_for(self, n_agents: int) -> None:
        end_s = time.monotonic() + JOIN_S
        while len(self.agents()) != n_agents:
            assert time.monotonic() < end_s, f"not {n_agents} agents: {self.seen()}"
            time.sleep(0.05)

    def seen(self) -> str:
        """Return what there is to see where agents do not come."""
        status = self.loader.status()
        processes = [
            (process.pid, process.status(), process.cpu_times()[:2], " ".join(process.cmdline())[:100])
            for process in [*psutil.Process(status["pid"]).children(recursive=True), *ray_processes()]
        ]
        shown = "\n".join(map(str, processes))
        return f"{status['agents']}, missing {status['agents_missing']}, load {os.getloadavg()}\n{shown}"

    def bridge(self) -> psutil.Process:
        children = psutil.Process(self.loader.status()["pid"]).children()
        (found,) = [child for child in children if "prefetchd.remote.bridge" in child.cmdline()]
        return found

    def see_some_from_all(self) -> None:
        end_s = time.monotonic() + JOIN_S
        before = self.agents()
        while not all(samples > before.get(name, 0) for name, samples in self.agents().items()):
            assert time.monotonic() < end_s, f"not all agents make something: {self.agents()}"
            self.see(20)

    def close(self) -> None:
        del self._batches
        self.loader.close()


def node_agents() -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["cmdline"]) if "--with-parent" in (process.info["cmdline"] or ())
    ]


def test_same_batches_and_actors_that_are_killed_are_placed_again(
    cluster: Any, forty: Path, forty_content: Content
) -> None:
    run = Run(cluster, forty, forty_content, remote_workers=2)
    try:
        run.see(10)
        run.wait_for(2)
        run.see_some_from_all()
        memory = run.loader.status()["memory"]
        assert memory["footprint_bytes"] <= memory["budget_bytes"]
        assert memory["process_bytes"][str(run.bridge().pid)] < bridge_share(0, has_ray=True)
        (first, _) = node_agents()
        actor = psutil.Process(first.ppid())
        actor.kill()
        run.see(150)
        wait_until(lambda: not first.is_running(), "the agent ended with its actor")
        run.wait_for(2)
        run.see_some_from_all()
        state = run.loader.state_dict()
    finally:
        run.close()
    wait_until(lambda: not node_agents(), "the agents ended with the loader", 60)
    with prefetchd.batches(forty, epochs=None, **OPTIONS) as alone:  # and go on without Ray
        alone.load_state_dict(state)
        batch = next(iter(alone))
        assert [(batch.epoch, batch.index)] == [divmod(run._n_seen, len(forty_content))]


def test_node_that_is_removed_in_mid_epoch_and_one_that_comes(
    cluster: Any, forty: Path, forty_content: Content
) -> None:
    run = Run(cluster, forty, forty_content, remote_workers=2)
    try:
        run.wait_for(2)
        run.see_some_from_all()
        node = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
        cluster.remove_node(node, allow_graceful=False)
        run.see(150)
        wait_until(lambda: len(run.agents()) == 1, "the agent is gone with its node", 60)
        cluster.add_node(num_cpus=1)
        run.wait_for(2)
        run.see_some_from_all()
    finally:
        run.close()


def test_loop_goes_on_without_the_head(
    cluster: Any, forty: Path, forty_content: Content, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray's library ends the bridge then, and each that follows: that is said once."""
    run = Run(cluster, forty, forty_content, remote_workers=2)
    try:
        run.wait_for(2)
        run.see_some_from_all()
        cluster.head_node.kill_gcs_server(check_alive=False)
        end_s = time.monotonic() + JOIN_S
        while run.loader.status()["bridge_deaths"] < 2:
            assert time.monotonic() < end_s, f"the bridge goes on without a head: {run.seen()}"
            run.see(20)
        assert list(run.loader.status()["agents_missing"]) == ["the bridge"]
        run.see(40)
    finally:
        run.close()
    assert capfd.readouterr().err.count("the bridge to other machines") == 1


def test_automatic_nodes_come_while_the_loop_waits_and_go_while_they_idle(
    cluster: Any, forty: Path, forty_content: Content, tmp_path: Path
) -> None:
    """Each sample takes 20 ms: one node and the reader here are too few for a loop that takes all it gets."""
    (tmp_path / "unhurried.py").write_text(
        "import time\n\n\ndef same(image, rng):\n    time.sleep(0.02)\n    return image\n"
    )
    run = Run(cluster, forty, forty_content, transform="unhurried:same", python_path=str(tmp_path))
    try:
        run.wait_for(1)
        end_s = time.monotonic() + JOIN_S
        while len(run.agents()) < 2:
            assert time.monotonic() < end_s, "no second node was asked for"
            run.see(20)
        run.see_some_from_all()
        end_s = time.monotonic() + JOIN_S
        while len(run.agents()) > 1:
            assert time.monotonic() < end_s, "no node was let go"
            run.see(1)
            time.sleep(0.3)
        run.see(20)
        assert len(node_agents()) == 1
        assert run.loader.status()["agents_missing"] == {}, "a node that was let go is not missing"
    finally:
        run.close()


TRAINING = """
import hashlib, json, sys, time
import numpy as np
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def loop(config):
    import prefetchd

    options = {**config["options"], "rank": 0, "world_size": 1}
    seen, end_s = [], time.monotonic() + config["join_s"]
    with prefetchd.batches(config["manifest"], ray="auto", remote_workers=1, epochs=None, **options) as loader:
        for batch in loader:
            digest = hashlib.sha256(np.ascontiguousarray(batch.x).tobytes() + batch.y.tobytes()).hexdigest()
            seen.append((batch.epoch, batch.index, batch.sample_ids.tolist(), digest))
            samples = sum(agent["samples"] for agent in loader.status()["agents"])
            if samples > 100 or time.monotonic() > end_s:
                break
        del batch
    with open(config["out"], "w") as file:
        json.dump([seen, samples], file)


address, folder, config = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
ray.init(address=address, logging_level="ERROR")
scaling = ScalingConfig(num_workers=1)
TorchTrainer(loop, train_loop_config=config, scaling_config=scaling, run_config=RunConfig(storage_path=folder)).fit()
"""


def test_loop_in_a_worker_of_ray_train(cluster: Any, forty: Path, forty_content: Content, tmp_path: Path) -> None:
    """The worker has the core of one node, and the agent that of the other."""
    for module in ("torch", "ray.train.torch"):
        pytest.importorskip(module, exc_type=ImportError)
    out = tmp_path / "out.json"
    config = {"manifest": str(forty), "options": OPTIONS, "join_s": JOIN_S, "out": str(out)}
    (tmp_path / "train.py").write_text(TRAINING)
    words = [sys.executable, str(tmp_path / "train.py"), cluster.address, str(tmp_path), json.dumps(config)]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-5000:]
    seen, samples = json.loads(out.read_text())
    assert samples > 0, "the agent made nothing"
    for number, (epoch, index, sample_ids, digest) in enumerate(seen):
        at, expected = number // len(forty_content), forty_content[number % len(forty_content)]
        assert (epoch, index, tuple(sample_ids), digest) == (at, *expected[1:])
