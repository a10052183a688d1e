"""Peers that mean no good, or know no better: the daemon stays up, serves the others, and frees everything."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prefetchd
from prefetchd.daemon.consumers import attach
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.run_directory import daemon_paths
from tests.conftest import DaemonProcess, wait_until
from tests.faults.conftest import Content, ask_status, content_of, exact

Serve = Callable[..., DaemonProcess]

HELLO = messages.Attach(messages.PROTOCOL, "0.1.0", None, {}, 2)


def connect() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(os.fspath(daemon_paths("default").socket))
    sock.settimeout(10)
    return sock


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def next_descriptor(pid: int) -> int:
    """The number that the process's next descriptor will have."""
    taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    return next(number for number in itertools.count() if number not in taken)


# --- a fuzzer

counts = st.integers(0, 2**62)
small = st.integers(0, 9)
LAWFUL = st.one_of(
    st.builds(
        messages.Attach,
        st.sampled_from((messages.PROTOCOL, 0, 99)),
        st.text(max_size=20),
        st.sampled_from((None, "", "x")),
        st.dictionaries(st.text(max_size=9), st.integers(-9, 9) | st.text(max_size=9), max_size=3),
        st.integers(2, 16),
    ),
    st.builds(
        messages.OpenCursor,
        small,
        counts,
        st.integers(0, 2**53),
        st.integers(0, 2**53) | small,
        st.none() | small,
        small,
        st.integers(1, 2**31),
    ),
    st.builds(messages.CloseCursor, small, counts),
    st.just(messages.AddConnection()),
    st.builds(messages.Want, small, counts),
    st.builds(messages.Release, counts | small, counts),
    st.builds(messages.AskStatus, counts),
    st.builds(messages.Configure, st.just({"": {"source": "/etc/passwd"}})),
).map(messages.encode)
RAW = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.builds(lambda data, cut: data[: max(1, len(data) - cut)], LAWFUL, st.integers(1, 20)),  # cut short
    st.sampled_from(
        (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xffx", b"\xdf\xff\xff\xff\xff")
    ),
    st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=4)).map(
        lambda words: msgspec.msgpack.encode(words) if not _too_large(words) else b"\x90"
    ),
)


def _too_large(words: object) -> bool:
    if isinstance(words, list):
        return any(map(_too_large, words))
    return isinstance(words, int) and not -(2**63) <= words < 2**64


@pytest.mark.hypothesis  # it draws its examples inside
def test_fuzzed_conversations(serve: Serve, forty: Path, forty_content: Content) -> None:
    """Random bytes, frames cut short, giant lengths, valid messages in the wrong state, unasked for descriptors.

    They come from a child, with whose end come back the leases that it was granted and never returned.
    """
    daemon = serve(forty, *exact("--num-workers", 1))
    ask_status()
    before = descriptors_of(daemon.pid)

    @settings(max_examples=300, suppress_health_check=list(HealthCheck))
    @given(first=st.booleans(), words=st.lists(LAWFUL | RAW, max_size=8), n_fds=st.integers(0, 8))
    def talk(first: bool, words: list[bytes], n_fds: int) -> None:
        sock = connect()
        try:
            fds = [0] * n_fds
            with contextlib.suppress(sockets.ConnectionEnded):
                if first:
                    sockets.send(sock, messages.encode(HELLO))
                for data in words:
                    sockets.send(sock, data, fds)
        finally:
            sock.close()

    with prefetchd.batches(epochs=None) as loader:
        batches = iter(loader)
        seen = content_of([next(batches)])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                talk()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        seen += content_of([next(batches) for _ in range(len(forty_content) - 1)])
        assert seen == forty_content
        del batches
    wait_until(
        lambda: descriptors_of(daemon.pid) <= before + 2 * ask_status()["ring"]["slots"], "no descriptor is left"
    )
    wait_until(lambda: ask_status()["ring"]["leased"] == 0, "no lease is left")
    wait_until(lambda: not ask_status()["consumers"], "nobody is known any more")
    assert "Traceback" not in daemon.log


# --- many


def test_thousands_of_connections_one_after_the_other(serve: Serve, forty: Path, forty_content: Content) -> None:
    daemon = serve(forty, *exact("--num-workers", 1))
    ask_status()
    before = descriptors_of(daemon.pid)
    for number in range(3000):
        sock = connect()
        if number % 3 == 0:
            sockets.send(sock, messages.encode(HELLO))
        sock.close()
    with prefetchd.batches() as loader:
        assert content_of(loader) == forty_content
    wait_until(lambda: descriptors_of(daemon.pid) <= before + 1, "no descriptor is left")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
from prefetchd.cli.main import main
sys.exit(main())
"""


class LimitedDaemon(DaemonProcess):
    """A daemon that may have `limit` descriptors and no more."""

    def __init__(self, folder: Path, arguments: list[str], limit: int) -> None:
        self.name = "default"
        self.log_path = folder / "limited.log"
        with self.log_path.open("wb") as log:
            code = LIMITED.format(limit=limit)
            command = [sys.executable, "-c", code, "serve", *arguments]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)


@pytest.fixture
def limited(tmp_path: Path, nothing_left: None, forty: Path) -> Iterator[Callable[[int], LimitedDaemon]]:
    started = []

    def start(limit: int) -> LimitedDaemon:
        arguments = [str(forty), *map(str, exact("--num-workers", 1))]
        started.append(LimitedDaemon(tmp_path, arguments, limit))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for daemon in started:
        daemon.stop()


def test_newcomers_beyond_the_limit_are_told_and_the_others_go_on(
    limited: Callable[[int], LimitedDaemon], forty_content: Content
) -> None:
    daemon = limited(4 * attach.DESCRIPTORS_EACH * 20)
    with prefetchd.batches() as loader:
        batches = iter(loader)
        seen = content_of([next(batches)])
        crowd = [connect() for _ in range(30)]
        with pytest.raises(prefetchd.DaemonNotFound, match="20 are connected already"):
            prefetchd.batches()
        seen += content_of(batches)
        assert seen == forty_content
        before = descriptors_of(daemon.pid)
        for sock in crowd:
            sock.close()
        wait_until(lambda: descriptors_of(daemon.pid) <= before - 2 * 19, "the crowd is forgotten")
    with prefetchd.batches() as loader:
        assert len(content_of(loader)) == len(forty_content)
    assert daemon.process.poll() is None


@pytest.mark.parametrize(("descriptors", "consumers"), [(64, 4), (320, 20), (1024, 128), (65536, 1024)])
def test_of_few_descriptors_a_quarter_is_for_consumers(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, consumers: int
) -> None:
    monkeypatch.setattr(attach, "raise_descriptor_limit", lambda: descriptors)
    assert attach.most_consumers() == consumers


def test_no_descriptor_left_to_accept_with_costs_no_processor_time(
    limited: Callable[[int], LimitedDaemon], forty_content: Content
) -> None:
    """A listener stays readable while nobody can be let in: the loop must not turn on it."""
    daemon = limited(1024)
    process = psutil.Process(daemon.pid)
    with prefetchd.batches(epochs=2) as loader:
        batches = iter(loader)
        seen = content_of([next(batches)])
        _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (next_descriptor(daemon.pid), hard))
        knocking = [connect() for _ in range(5)]
        wait_until(lambda: "cannot accept a connection: Too many open files" in daemon.log, "it says so")
        used_s = sum(process.cpu_times()[:2])
        time.sleep(0.5)  # what is measured is time that passes
        assert sum(process.cpu_times()[:2]) - used_s < 0.25
        process.rlimit(psutil.RLIMIT_NOFILE, (1024, hard))
        seen += content_of([next(batches) for _ in range(len(forty_content) - 1)])
        for sock in knocking:
            sock.close()
        assert ask_status()["pid"] == daemon.pid
        assert seen == forty_content


# --- slow ones


def test_questions_without_end_and_slow_senders_hold_nobody_up(
    serve: Serve, forty: Path, forty_content: Content
) -> None:
    daemon = serve(forty, *exact("--num-workers", 1))
    slow = [connect() for _ in range(20)]  # say nothing at all
    asking = connect()
    asking.setblocking(False)
    question = messages.encode(messages.AskStatus(messages.PROTOCOL))
    rng = random.Random(1)
    with prefetchd.batches() as loader:
        seen = []
        for batch in loader:
            with contextlib.suppress(BlockingIOError):
                for _ in range(300):
                    asking.send(question)
            rng.choice(slow).send(messages.encode(HELLO))
            seen += content_of([batch])
            del batch
    assert seen == forty_content
    for sock in (*slow, asking):
        sock.close()
    assert daemon.process.poll() is None


def test_consumer_that_stops_reading_is_named_and_served_when_it_reads_again(
    serve: Serve, forty: Path, forty_content: Content
) -> None:
    """Its socket is full when its batch is ready; nothing but its reading tells that it can be granted."""
    serve(forty, *exact("--num-workers", 1))
    with connect() as sock:
        sockets.send(sock, messages.encode(HELLO))
        sockets.close_all(sockets.receive(sock)[1])
        sock.setblocking(False)
        question = messages.encode(messages.AskStatus(messages.PROTOCOL))
        full = time.monotonic() + 20
        (report,) = ask_status()["consumers"]
        while report["reads"]:
            assert time.monotonic() < full
            with contextlib.suppress(BlockingIOError):
                sock.send(question)
            (report,) = ask_status()["consumers"]
        assert report["pid"] == os.getpid()
        sock.setblocking(True)
        sock.settimeout(10)
        sockets.send(sock, messages.encode(messages.OpenCursor(1, 0, 0, 0, 1, 0, 1)))
        sockets.send(sock, messages.encode(messages.Want(1, 0)))
        kinds = []
        while "GrantReady" not in kinds:
            data, fds = sockets.receive(sock)
            sockets.close_all(fds)
            kinds.append(type(messages.decode_to_consumer(data)).__name__)
        assert "StatusReport" in kinds
    with prefetchd.batches() as loader:
        assert content_of(loader) == forty_content


def test_descriptor_that_is_no_socket_of_ours_ends_the_connection_that_sent_it(
    serve: Serve, forty: Path, forty_content: Content
) -> None:
    daemon = serve(forty, *exact("--num-workers", 1))
    ask_status()
    before = descriptors_of(daemon.pid)
    with socket.socket(socket.AF_INET) as inet, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        fds = [*os.pipe(), os.memfd_create("fake"), inet.fileno(), datagrams.fileno()]
        for sent in (*[[fd] for fd in fds], []):
            sock = connect()
            sockets.send(sock, messages.encode(HELLO))
            sockets.close_all(sockets.receive(sock)[1])
            sockets.send(sock, messages.encode(messages.AddConnection()), sent)
            sock.settimeout(30)
            with pytest.raises(sockets.ConnectionEnded):
                sockets.receive(sock)
            sock.close()
        sockets.close_all(fds[:3])
    wait_until(lambda: descriptors_of(daemon.pid) <= before, "the daemon keeps no descriptor")
    with prefetchd.batches() as loader:
        assert content_of(loader) == forty_content


# --- others' processes

STRANGER = """
import os, socket, sys
path, shown = sys.argv[1:]
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.setgid(65534), os.setuid(65534)
try:
    sock.connect(path)
    print(sock.recv(4096))
except PermissionError:
    print("forbidden")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user for a while")
def test_another_users_process_is_refused_by_directory_and_by_credentials(
    serve: Serve, forty: Path, forty_content: Content, tmp_path: Path
) -> None:
    serve(forty, *exact("--num-workers", 1))
    path = daemon_paths("default").socket

    def stranger() -> str:
        command = [sys.executable, "-c", STRANGER, os.fspath(path), "x"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    assert stranger() == "forbidden\n"
    opened = [path, *(folder for folder in path.parents if folder.stat().st_mode & 0o005 != 0o005)]
    modes = [(one, one.stat().st_mode & 0o777) for one in opened]
    try:
        for one, _ in modes:
            one.chmod(0o777)
        assert "another user's process" in stranger()
    finally:
        for one, mode in modes:
            one.chmod(mode)
    with prefetchd.batches() as loader:
        assert content_of(loader) == forty_content


def test_permissions(serve: Serve, forty: Path) -> None:
    """Directory, socket and lock are the user's alone; a slot's descriptor cannot be made one to write through."""
    serve(forty, *exact("--num-workers", 1))
    paths = daemon_paths("default")
    assert paths.socket.parent.stat().st_mode & 0o777 == 0o700
    assert paths.lock.stat().st_mode & 0o077 == 0
    sock = connect()
    for message in (HELLO, messages.OpenCursor(1, 0, 0, 0, 1, 0, 1), messages.Want(1, 0)):
        sockets.send(sock, messages.encode(message))
    slot = -1
    while slot < 0:
        data, fds = sockets.receive(sock)
        if isinstance(messages.decode_to_consumer(data), messages.SlotOpened):
            slot = fds.pop()
        sockets.close_all(fds)
    try:
        assert os.fstat(slot).st_mode & 0o177 == 0
        with pytest.raises(OSError):
            os.write(slot, b"x")
        with pytest.raises(OSError):
            os.ftruncate(slot, 0)
    finally:
        os.close(slot)
        sock.close()


def test_what_a_loader_says_last_is_heard_though_it_left_grants_unread(
    serve: Serve, forty: Path, forty_content: Content
) -> None:
    """The kernel tells of the reset first: releases behind it were lost, and the slots held until the process ended."""
    serve(forty, *exact("--num-workers", 1))
    daemon = psutil.Process(ask_status()["pid"])
    with prefetchd.batches(epochs=None) as loader:
        batches = iter(loader)
        held = [next(batches) for _ in range(4)]
        wait_until(lambda: ask_status()["consumers"][0]["ahead_slots"], "more is granted ahead")
        daemon.suspend()
        held.clear()
        batches.close()
    daemon.resume()
    wait_until(lambda: not ask_status()["consumers"], "the loader is forgotten")
    wait_until(lambda: ask_status()["ring"]["leased"] == 0, "every slot is back")
