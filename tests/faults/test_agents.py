"""Agents and the bridge to them fail in the middle of a loop, at rest and while they join: every batch is right.

A party, a fault, a moment: each test lets one of them happen to real processes, and a loop goes on over it. What it
sees is compared with what OpenCV makes of the files. Then what was lost comes back, and works again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

import prefetchd
from prefetchd.ipc.process import private_bytes
from tests.agents import AgentProcess, running_agent, token_file
from tests.conftest import end_thread, wait_until
from tests.faults.conftest import BATCH, SIZE, Content, content_of

OPTIONS: dict[str, Any] = {
    "num_workers": 1, "batch_size": BATCH, "image_size": SIZE, "color": "bgr", "shrink_on_load": False,
}  # fmt: skip
AFTER = 150  # batches: more than the ring holds


class Wire:
    """The network between a daemon and an agent, in threads: passes bytes on, or does what `mode` says.

    `pass`; `out`: the cable is out; `cut`: connections are closed; `noise`: one byte of rows changes; `slow` and
    `crawl`: as many bytes a second as `RATES` says, to the daemon.
    """

    RATES: ClassVar[dict[str, int]] = {"slow": 300_000, "crawl": 5_000}  # a chunk of five rows has 15,000 bytes

    def __init__(self, port: int) -> None:
        self._port = port
        self.mode = "pass"
        self.n_changed = 0
        self._stopped = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, name="wire")]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._stopped:
            if not select.select([self._listener], [], [], 0.1)[0]:
                continue
            ours, _ = self._listener.accept()
            if self.mode == "cut":
                ours.close()
                continue
            try:
                theirs = socket.create_connection(("127.0.0.1", self._port), timeout=5)
            except OSError:
                ours.close()
                continue
            thread = threading.Thread(target=self._pass_on, args=(ours, theirs), name="wire")
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, daemon: socket.socket, agent: socket.socket) -> None:
        with daemon, agent, contextlib.suppress(OSError):
            while not self._stopped and self.mode != "cut":
                if self.mode == "out":
                    time.sleep(0.02)
                    continue
                for sock in select.select([daemon, agent], [], [], 0.05)[0]:
                    data = bytearray(sock.recv(1 << 12 if self.mode in self.RATES else 1 << 16))
                    if not data:
                        return
                    if self.mode == "noise" and sock is agent and len(data) > 4096:
                        data[len(data) // 2] ^= 16
                        self.n_changed += 1
                    if self.mode in self.RATES and sock is agent:
                        time.sleep(len(data) / self.RATES[self.mode])
                    (agent if sock is daemon else daemon).sendall(data)

    def close(self) -> None:
        self._stopped = True
        for thread in self._threads:
            end_thread(thread)
        self._listener.close()


class Party:
    """A loop over forty images, an agent, the network between them, and a place for each fault."""

    def __init__(self, folder: Path, forty: Path, forty_content: Content, agent: AgentProcess, wire: Wire) -> None:
        self.agent, self.wire = agent, wire
        self._expected = forty_content
        self.loader = prefetchd.batches(
            forty, epochs=None, agents=wire.address, token_file=token_file(folder), reader_timeout=20, **OPTIONS
        )
        self._batches = iter(self.loader)
        self._n_seen = 0

    def see(self, n_batches: int) -> float:
        """Take so many batches: each is the right one; return for how long the longest was waited, in seconds."""
        wanted, found, longest_s = [], [], 0.0
        for _ in range(n_batches):
            epoch, index = divmod(self._n_seen, len(self._expected))
            wanted.append((epoch, *self._expected[index][1:]))
            began_s = time.monotonic()
            batch = next(self._batches)
            longest_s = max(longest_s, time.monotonic() - began_s)
            found += content_of([batch])
            self._n_seen += 1
        assert found == wanted
        return longest_s

    def status(self) -> dict[str, Any]:
        return self.loader.status()

    def samples_elsewhere(self) -> int:
        return sum(agent["samples"] for agent in self.status()["agents"])

    def wait_joined(self) -> None:
        wait_until(lambda: self.status()["agents"], "the agent has joined", 60)

    def see_some_from_elsewhere(self) -> None:
        """Go on until the agent has made rows."""
        self.wait_joined()
        before = self.samples_elsewhere()
        end_s = time.monotonic() + 60
        while self.samples_elsewhere() <= before:
            assert time.monotonic() < end_s, "the agent makes nothing"
            self.see(20)

    def bridge(self) -> psutil.Process:
        (found,) = [
            child
            for child in psutil.Process(self.status()["pid"]).children()
            if "prefetchd.remote.bridge" in " ".join(child.cmdline())
        ]
        return found

    def close(self) -> None:
        del self._batches
        self.loader.close()


@pytest.fixture
def party(tmp_path: Path, nothing_left: None, forty: Path, forty_content: Content) -> Iterator[Party]:
    with running_agent(tmp_path) as agent:
        wire = Wire(agent.port)
        try:
            started = Party(tmp_path, forty, forty_content, agent, wire)
            try:
                yield started
            finally:
                started.close()
        finally:
            wire.close()


def kill_agent(party: Party) -> Callable[[], None]:
    for process in party.agent.everything():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    party.agent.process.wait()
    return party.agent.start


def kill_agent_alone(party: Party) -> Callable[[], None]:
    party.agent.process.kill()
    party.agent.process.wait()
    return party.agent.start


def end_sessions(number: signal.Signals) -> Callable[[Party], Callable[[], None]]:
    def do(party: Party) -> Callable[[], None]:
        for session in party.agent.sessions():
            session.send_signal(number)
        return lambda: None

    return do


def kill_readers(party: Party) -> Callable[[], None]:
    for session in party.agent.sessions():
        for fork_server in session.children():
            for reader in fork_server.children():
                reader.kill()
    return lambda: None


def stop_agent(party: Party) -> Callable[[], None]:
    party.agent.signal_all(signal.SIGSTOP)
    return lambda: party.agent.signal_all(signal.SIGCONT)


def end_bridge(number: signal.Signals) -> Callable[[Party], Callable[[], None]]:
    def do(party: Party) -> Callable[[], None]:
        bridge = party.bridge()
        bridge.send_signal(number)
        return lambda: wait_until(lambda: party.status()["bridge_deaths"], "the bridge's end was seen", 60)

    return do


def network(mode: str) -> Callable[[Party], Callable[[], None]]:
    def do(party: Party) -> Callable[[], None]:
        party.wire.mode = mode

        def heal() -> None:
            if mode == "noise":
                assert party.wire.n_changed
            party.wire.mode = "pass"

        return heal

    return do


FAULTS: dict[str, Callable[[Party], Callable[[], None]]] = {
    "agent killed": kill_agent,
    "agent's first process killed": kill_agent_alone,
    "session killed": end_sessions(signal.SIGKILL),
    "readers of the agent killed": kill_readers,
    "agent stopped": stop_agent,
    "bridge killed": end_bridge(signal.SIGKILL),
    "bridge stopped": end_bridge(signal.SIGSTOP),
    "cable out": network("out"),
    "connection cut": network("cut"),
    "bytes changed": network("noise"),
    "network slow": network("slow"),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", FAULTS)
def test_loop_goes_on_over_a_fault_and_what_was_lost_comes_back(party: Party, fault: str) -> None:
    party.see(10)
    party.see_some_from_elsewhere()
    heal = FAULTS[fault](party)  # at work: the ring is being filled
    party.see(AFTER)
    heal()
    party.see_some_from_elsewhere()
    assert party.status()["bad_samples"] == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["agent killed", "bridge killed", "connection cut"])
def test_fault_at_rest_and_while_joining(party: Party, fault: str) -> None:
    heal = FAULTS[fault](party)  # it joins, or is about to
    party.see(20)
    heal()
    party.wait_joined()
    wait_until(lambda: all(agent["state"] == "idle" for agent in party.status()["agents"]), "the ring is full")
    heal = FAULTS[fault](party)
    heal()
    party.see_some_from_elsewhere()


@pytest.mark.timeout(300)
def test_all_agents_gone_and_back_several_times(party: Party) -> None:
    for _ in range(3):
        party.see_some_from_elsewhere()
        kill_agent(party)
        party.see(50)
        party.agent.start()
    party.see_some_from_elsewhere()


TRAINER = """
import sys, prefetchd
with prefetchd.batches(sys.argv[1], epochs=None, agents=sys.argv[2], token_file=sys.argv[3], num_workers=1) as loader:
    for batch in loader:
        print(len(loader.status()["agents"]), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_agent_frees_everything_when_the_trainer_is_gone(
    tmp_path: Path, nothing_left: None, forty: Path, number: signal.Signals
) -> None:
    with running_agent(tmp_path) as agent:
        words = [sys.executable, "-c", TRAINER, forty, agent.address, token_file(tmp_path)]
        trainer = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True)
        try:
            assert trainer.stdout is not None
            for line in trainer.stdout:
                if line == "1\n":
                    break
            assert agent.sessions()
            os.kill(trainer.pid, number)
            trainer.wait(20)
            wait_until(lambda: len(agent.everything()) == 1, "only the agent itself is left")
        finally:
            trainer.kill()
            trainer.communicate()


def test_silent_agent_holds_no_loop_for_longer_than_its_deadline(party: Party) -> None:
    """It was given chunks and is stopped: within seconds others make them, and it gets no more until it answers."""
    party.see_some_from_elsewhere()
    party.agent.signal_all(signal.SIGSTOP)
    try:
        assert party.see(200) < 3, "a loop waits for no more than one chunk, and for that not long"
        made = party.samples_elsewhere()
        wait_until(lambda: "silent" in party.status()["agents"][0]["state"], "its silence is seen")
        party.see(50)
        assert party.samples_elsewhere() == made
    finally:
        party.agent.signal_all(signal.SIGCONT)
    party.see_some_from_elsewhere()


def test_slow_agent_holds_no_loop_for_longer_than_a_chunk(party: Party) -> None:
    """Each chunk comes three seconds after it was asked for: a reader here has repeated it long before."""
    party.see_some_from_elsewhere()
    party.wire.mode = "crawl"
    assert party.see(200) < 2
    assert party.status()["agents"][0]["recalled"] > 0
    party.wire.mode = "pass"
    party.see_some_from_elsewhere()


def footprint_bytes(processes: list[psutil.Process]) -> int:
    """Return private memory of processes, and the blocks of all their unnamed segments, each once."""
    segments: dict[tuple[int, int], int] = {}
    total = 0
    for process in processes:
        total += private_bytes(process.pid)
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{process.pid}/fd"):
                path = f"/proc/{process.pid}/fd/{name}"
                if "prefetchd" in os.readlink(path):
                    found = os.stat(path)
                    segments[found.st_dev, found.st_ino] = found.st_blocks * 512
    return total + sum(segments.values())


def test_agent_stays_within_its_budget_seen_from_outside(tmp_path: Path, nothing_left: None, forty: Path) -> None:
    budget = 224 << 20
    with running_agent(tmp_path, "--num-workers", 3, "--memory-budget", f"{budget >> 20}MiB") as agent:
        options = {**OPTIONS, "batch_size": 64, "image_size": 224, "agents": agent.address, "epochs": 40}
        with prefetchd.batches(forty, token_file=token_file(tmp_path), **options) as loader:
            wait_until(lambda: loader.status()["agents"], "the agent has joined", 60)
            assert loader.status()["agents"][0]["budget_bytes"] < budget
            most = 0
            for number, _ in enumerate(loader):
                if number % 3 == 0:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        most = max(most, footprint_bytes(agent.everything()))
            assert loader.status()["agents"][0]["samples"] > 0
            assert 0 < most < budget
            memory = loader.status()["memory"]
            assert memory["max_footprint_bytes"] <= memory["budget_bytes"]
