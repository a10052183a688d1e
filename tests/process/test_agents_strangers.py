"""Strangers and late daemons: what one without the token may say or hold, and that nobody ends who is served."""

from __future__ import annotations

import contextlib
import re
import resource
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import prefetchd
from prefetchd.errors import ConfigError
from prefetchd.remote import wire
from prefetchd.remote.agent import AGENT_BYTES
from prefetchd.remote.greeting import greet_agent
from prefetchd.remote.link import LinkEnded, Peer
from tests.agents import TOKEN, AgentProcess, running_agent, token_file
from tests.conftest import end_thread, wait_until

QUICK: dict[str, Any] = {"num_workers": 1, "batch_size": 4, "image_size": 40}


def test_what_a_stranger_says_is_one_line_of_the_daemons_report(tmp_path: Path, nothing_left: None, photographs: Any):
    said = "\x1b[2Jno\nprefetchd: forged line " + "x" * 3000
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock, contextlib.suppress(LinkEnded):
                    peer = Peer(sock)
                    peer.receive(wire.decode_from_stranger, deadline_s=10)
                    peer.send(wire.Refused(said), deadline_s=10)

    thread = threading.Thread(target=refuse)
    thread.start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    try:
        with prefetchd.batches(photographs, agents=address, token_file=token_file(tmp_path), **QUICK) as loader:
            wait_until(lambda: loader.status()["agents_missing"], "it is refused", 60)
            reason = loader.status()["agents_missing"][address]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        end_thread(thread)
    assert reason.startswith("\\x1b[2Jno\\nprefetchd: forged line")
    assert reason.isprintable()
    assert len(reason) < 1100


def test_silent_connections_keep_nobody_from_an_agent(tmp_path: Path, nothing_left: None):
    """The oldest of them makes room for the next one."""
    with running_agent(tmp_path) as agent, contextlib.ExitStack() as held:
        silent = [held.enter_context(socket.create_connection(("127.0.0.1", agent.port), timeout=5)) for _ in range(70)]
        assert silent[0].recv(1) == b""
        silent[-1].settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            raise AssertionError(f"the newest one was closed: {silent[-1].recv(1)!r}")


def limit_descriptors(agent: AgentProcess, more: int) -> None:
    """Let an agent open so many descriptors beside those that it has."""
    pid = agent.process.pid
    most = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1 + more
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


def test_greeting_without_the_proof_starts_no_process(tmp_path: Path, nothing_left: None):
    hello = wire.frame_head(wire.Hello(wire.PROTOCOL, bytes(32)))
    with running_agent(tmp_path) as agent, contextlib.ExitStack() as held:
        for _ in range(30):
            sock = held.enter_context(socket.create_connection(("127.0.0.1", agent.port), timeout=5))
            sock.sendall(hello)
            challenge, _ = Peer(sock).receive(wire.decode_from_strange_agent, deadline_s=10)
            assert isinstance(challenge, wire.Challenge)
        assert len(agent.everything()) == 1


def test_agent_with_few_descriptors_serves_when_there_are_some(tmp_path: Path, nothing_left: None, photographs: Any):
    given: dict[str, Any] = {**QUICK, "token_file": token_file(tmp_path)}
    with running_agent(tmp_path) as agent, contextlib.ExitStack() as held:
        limit_descriptors(agent, 3)
        for _ in range(6):
            held.enter_context(socket.create_connection(("127.0.0.1", agent.port), timeout=5))
        wait_until(lambda: "cannot accept connections: Too many open files" in agent.log, "it is short of them", 20)
        agent_process = psutil.Process(agent.process.pid)
        before_s = sum(agent_process.cpu_times()[:2])
        time.sleep(2.5)
        assert sum(agent_process.cpu_times()[:2]) - before_s < 0.5, "it does not spin while one waits"
        assert agent.log.count("cannot accept connections") == 1
        held.close()
        limit_descriptors(agent, 1)
        with prefetchd.batches(photographs, agents=agent.address, **given) as loader:
            wait_until(lambda: "cannot serve 127.0.0.1 port" in agent.log, "it cannot start a session", 60)
            limit_descriptors(agent, 100)
            wait_until(lambda: loader.status()["agents"], "the daemon is served", 60)
        assert "Traceback" not in agent.log


def test_data_set_of_more_descriptors_than_there_may_be_is_refused_in_one_line(tmp_path: Path, nothing_left: None):
    many = wire.RemoteDataset({}, {}, [{}], {}, [0] * 200_000, 1, 0, {})
    with running_agent(tmp_path) as agent:
        with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as sock:
            peer = Peer(sock)
            greet_agent(peer, TOKEN.encode())
            marks, _ = peer.receive(wire.decode_from_agent, deadline_s=30)
            assert isinstance(marks, wire.Marks)
            limit = (64, resource.prlimit(agent.sessions()[0].pid, resource.RLIMIT_NOFILE)[1])
            resource.prlimit(agent.sessions()[0].pid, resource.RLIMIT_NOFILE, limit)
            peer.send(wire.Join([many], 60.0), deadline_s=30)
            refused, _ = peer.receive(wire.decode_from_agent, deadline_s=30)
        assert isinstance(refused, wire.Refused)
        assert re.fullmatch(r"cannot serve this daemon: Too many open files \(the limit is \d+\); .*", refused.text)
        wait_until(lambda: not agent.sessions(), "its session has ended")
        assert "Traceback" not in agent.log


def test_daemon_for_which_there_is_no_memory_ends_none_that_is_served(
    tmp_path: Path, nothing_left: None, photographs: Any
):
    given: dict[str, Any] = {**QUICK, "token_file": token_file(tmp_path)}
    with (
        running_agent(tmp_path, "--memory-budget", "80MiB") as agent,
        prefetchd.batches(photographs, agents=agent.address, **given) as small,
    ):
        wait_until(lambda: small.status()["agents_missing"], "it is refused", 60)
        reason = small.status()["agents_missing"][agent.address]
    match = re.search(r"it takes ([0-9.]+) MiB with one reader", reason)
    assert match, reason
    budget = f"{int(1.5 * float(match[1])) + (AGENT_BYTES >> 20)}MiB"
    with (
        running_agent(tmp_path, "--memory-budget", budget) as agent,
        prefetchd.batches(photographs, agents=agent.address, **given) as one,
    ):
        wait_until(lambda: one.status()["agents"], "the first one is served", 60)
        (session,) = agent.sessions()
        with prefetchd.batches(photographs, agents=agent.address, **given) as two:
            wait_until(lambda: two.status()["agents_missing"], "the second one is refused", 60)
            assert "its part of the agent's memory budget is 0" in two.status()["agents_missing"][agent.address]
        assert session in agent.sessions()
        assert one.status()["agents"]


@pytest.mark.parametrize("name", ["tls_ca", "tls_cert"])
def test_file_for_tls_that_is_not_there_is_an_error_at_the_start(
    tmp_path: Path, nothing_left: None, photographs: Any, name: str
):
    given: dict[str, Any] = {**QUICK, "agents": "127.0.0.1:1", "token_file": token_file(tmp_path)}
    with pytest.raises(ConfigError, match=f"cannot read {name}='.*none.pem': No such file"):
        next(iter(prefetchd.batches(photographs, **given, **{name: tmp_path / "none.pem"})))
