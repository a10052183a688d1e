"""Agents for tests: real ones in processes of their own, and one in a thread that answers as the test wants."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefetchd.remote import wire
from prefetchd.remote.greeting import greet_daemon
from prefetchd.remote.link import LinkEnded, Peer
from prefetchd.remote.probe import marks
from prefetchd.remote.travel import part_bytes
from prefetchd.ring.layout import layout_from_wire
from tests.conftest import end_thread, wait_until

TOKEN = "0123456789abcdef" * 4


def token_file(folder: Path, token: str = TOKEN) -> Path:
    """Return a file with a token, as only its owner can read it."""
    path = folder / f"token-{token[:8]}"
    path.write_text(token + "\n")
    path.chmod(0o600)
    return path


def make_certificates(folder: Path, names: dict[str, str]) -> None:
    """Write `ca.pem`, and for each name a certificate with its key, `NAME.pem`, that is for the subject given."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    run(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=prefetchd tests", *usage)
    for name, subject in names.items():
        run(*new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "names").write_text(
            f"subjectAltName={subject}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
        (folder / f"{name}.pem").write_text((folder / f"{name}.key").read_text() + (folder / f"{name}.crt").read_text())


class AgentProcess:
    """A `prefetchd agent` in a process of its own, with one reader unless `arguments` say otherwise.

    `prefix` is the command that it is run by, such as one that gives it mounts of its own.
    """

    def __init__(
        self, folder: Path, *arguments: object, port: int = 0, token: Path | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self._folder, self._arguments, self._prefix = folder, arguments, prefix
        self._token = token or token_file(folder)
        self.log_path = folder / f"agent-{os.urandom(4).hex()}.log"
        self.port = port
        self.start()

    def start(self) -> None:
        """Start it, on the port that it had before if there was one."""
        if hasattr(self, "process"):
            self._close_output()
        command = [
            *self._prefix, sys.executable, "-m", "prefetchd", "agent", "--listen", f"127.0.0.1:{self.port}",
            "--token-file", self._token, "--num-workers", 1, *self._arguments,
        ]  # fmt: skip
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log
        self.port = int(line.split()[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve a daemon each."""
        return psutil.Process(self.process.pid).children()

    def everything(self) -> list[psutil.Process]:
        """The agent, its sessions, their fork servers and readers."""
        agent = psutil.Process(self.process.pid)
        return [agent, *agent.children(recursive=True)]

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of it, the agent first."""
        for process in self.everything():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _close_output(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> None:
        """End it, and wait until nothing of it is left."""
        everything = self.everything() if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.terminate()
            self.process.send_signal(signal.SIGCONT)
        self.process.wait(20)
        self._close_output()
        wait_until(lambda: not any(_is_there(process) for process in everything), "the agent's processes have ended")


def _is_there(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def running_agent(folder: Path, *arguments: object, **more: Any) -> Iterator[AgentProcess]:
    """An agent that is stopped at the end of the block."""
    agent = AgentProcess(folder, *arguments, **more)
    try:
        yield agent
    finally:
        agent.stop()


@functools.cache
def own_marks() -> tuple[dict[str, str], dict[str, str]]:
    """What decides bytes on this machine."""
    return marks()


class FakeAgent:
    """Joins a daemon as an agent with four readers, then answers each task as `answer` does.

    `answer` gets the peer, the task and the bytes of its rows. It sends what it wants, and may raise `LinkEnded`. It is
    called in a thread.
    """

    def __init__(
        self,
        answer: Callable[[Peer, wire.Task, list[memoryview]], None],
        *,
        versions: dict[str, str] | None = None,
        probe: dict[str, str] | None = None,
        digest: str | None = None,
        data_versions: dict[str, str] | None = None,
    ) -> None:
        own_versions, own_probe = own_marks()
        self._marks = wire.Marks({**own_versions, **(versions or {})}, {**own_probe, **(probe or {})}, True)
        self._digest, self._data_versions = digest, data_versions or {}
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.joins = 0
        self.tasks: list[wire.Task] = []
        self.digest = ""
        self._stopped = False
        self._peer: Peer | None = None
        self._thread = threading.Thread(target=self._run, name="fake agent")
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._peer = Peer(sock)
            with contextlib.suppress(LinkEnded, OSError):
                self._serve(self._peer)
            self._peer.close()

    def _serve(self, peer: Peer) -> None:
        greet_daemon(peer, TOKEN.encode())
        peer.send(self._marks, deadline_s=10)
        join, _ = peer.receive(wire.decode_from_daemon, deadline_s=30)
        assert isinstance(join, wire.Join)
        (dataset,) = join.datasets
        left = sum(dataset.fd_bytes)
        while left:
            _, body = peer.receive(wire.decode_from_daemon, deadline_s=30, most_body_bytes=wire.PIECE_BYTES)
            left -= len(body)
        digest = self._digest if self._digest is not None else self.digest
        peer.send(wire.Joined(4, [digest], [{**dataset.versions, **self._data_versions}]), deadline_s=10)
        self.joins += 1
        parts = part_bytes(layout_from_wire(dataset.layouts[0]))
        while True:
            message, _ = peer.receive(wire.decode_from_daemon, deadline_s=60)
            if isinstance(message, wire.Ping):
                peer.send(wire.Pong(message.number, 0, 0, 0), deadline_s=10)
            if isinstance(message, wire.Tasks):
                self.tasks += message.tasks
                for task in message.tasks:
                    self._answer(peer, task, [memoryview(bytes(n * task.n_rows)) for n in parts])

    def stop(self) -> None:
        self._stopped = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._peer is not None:
            with contextlib.suppress(OSError):
                self._peer.sock.shutdown(socket.SHUT_RDWR)
        end_thread(self._thread)
