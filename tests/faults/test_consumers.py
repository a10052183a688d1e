"""A consumer killed, stopped, forked or talking nonsense touches nobody else, and its slots come back."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import prefetchd
from prefetchd.client.state import MAX_EPOCH
from prefetchd.ipc import messages, reader_messages, sockets
from prefetchd.ipc.run_directory import daemon_paths
from tests.conftest import PROMPT_S, DaemonProcess, wait_until
from tests.faults.conftest import Content, Script, ask_status, content_of, exact

Serve = Callable[..., DaemonProcess]
Start = Callable[[str], Script]

HOLD_TWO = """
import sys, prefetchd
loader = prefetchd.batches()
batches = iter(loader)
held = [next(batches), next(batches)]
print("holding", flush=True)
sys.stdin.readline()
"""

HOLD_TWO_AND_FORK = """
import os, sys, prefetchd
loader = prefetchd.batches()
batches = iter(loader)
held = [next(batches), next(batches)]
child = os.fork()
if child == 0:
    os.close(0), os.close(1), os.close(2)
    import time
    time.sleep(600)
print(child, flush=True)
sys.stdin.readline()
"""


def consumer_of(status: dict, pid: int) -> dict | None:
    return next((consumer for consumer in status["consumers"] if consumer["pid"] == pid), None)


def wait_slots_back(pid: int) -> None:
    wait_until(
        lambda: consumer_of(ask_status(), pid) is None and ask_status()["ring"]["leased"] == 0,
        f"the slots of consumer {pid} are back",
        PROMPT_S,
    )


def test_killed_while_it_holds_slots(serve: Serve, script: Start, forty: Path, forty_content: Content) -> None:
    serve(forty, *exact("--num-workers", 1))
    consumer = script(HOLD_TWO)
    assert consumer.line() == "holding"
    report = consumer_of(ask_status(), consumer.pid)
    assert report is not None
    assert report["held_slots"] >= 2
    consumer.end(signal.SIGKILL)
    wait_slots_back(consumer.pid)
    with prefetchd.batches() as loader:
        assert content_of(loader) == forty_content


def test_killed_while_its_forked_child_lives_on(
    serve: Serve, script: Start, forty: Path, forty_content: Content
) -> None:
    """The child keeps the socket open, so only the pidfd tells that the consumer has ended."""
    daemon = serve(forty, *exact("--num-workers", 1))
    consumer = script(HOLD_TWO_AND_FORK)
    child = int(consumer.line())
    try:
        consumer.end(signal.SIGKILL)
        wait_slots_back(consumer.pid)
        os.kill(child, 0)
        with prefetchd.batches() as loader:
            assert content_of(loader) == forty_content
    finally:
        os.kill(child, signal.SIGKILL)
    assert daemon.process.poll() is None


def test_killed_in_the_middle_of_a_pass_of_another(
    serve: Serve, script: Start, forty: Path, forty_content: Content
) -> None:
    """The slots of the dead one are needed: the ring is as small as two loops allow."""
    serve(forty, *exact("--num-workers", 1))
    with prefetchd.batches(epochs=3) as loader:
        batches = iter(loader)
        seen = content_of([next(batches)])
        for _ in range(3):
            consumer = script(HOLD_TWO)
            consumer.line()
            seen += content_of([next(batches) for _ in range(2)])
            consumer.end(signal.SIGKILL)
        seen += content_of(batches)
    assert seen == [(epoch, *batch[1:]) for epoch in range(3) for batch in forty_content]
    wait_until(lambda: ask_status()["ring"]["leased"] == 0, "every slot is back", PROMPT_S)


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "os._exit(0)", "raise ValueError", "loader.close()"])
def test_exit_never_unlinks_the_ring(
    serve: Serve, script: Start, forty: Path, forty_content: Content, ending: str
) -> None:
    """Whatever way a consumer ends, what others hold stays, and the ring serves the next."""
    serve(forty, *exact("--num-workers", 1))
    with prefetchd.batches() as loader:
        batches = iter(loader)
        held = [next(batches) for _ in range(2)]
        consumer = script(f"import os, sys{HOLD_TWO}{ending}\n")
        consumer.line()
        consumer.tell()
        consumer.process.wait(20)
        assert consumer.process.stderr is not None
        errors = consumer.process.stderr.read()
        assert ("ValueError" in errors) if "raise" in ending else not errors
        wait_until(lambda: consumer_of(ask_status(), consumer.pid) is None, "the consumer is forgotten", PROMPT_S)
        seen = content_of(held)
        held.clear()
        assert seen + content_of(batches) == forty_content
    with prefetchd.batches() as loader:
        assert [batch[1:] for batch in content_of(loader)] == [batch[1:] for batch in forty_content]


def test_stopped_consumer_blocks_nobody(serve: Serve, script: Start, forty: Path, forty_content: Content) -> None:
    serve(forty, *exact("--num-workers", 1))
    consumer = script(HOLD_TWO)
    consumer.line()
    os.kill(consumer.pid, signal.SIGSTOP)
    with prefetchd.batches(epochs=3) as loader:
        assert len(content_of(loader)) == 3 * len(forty_content)
    report = consumer_of(ask_status(), consumer.pid)
    assert report is not None
    assert report["held_slots"] >= 2


def raw_connection() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(10)
    sock.connect(os.fspath(daemon_paths("default").socket))
    return sock


def ends(sock: socket.socket) -> bool:
    """Whether the daemon hangs up; what it says before that is read over."""
    try:
        while sock.recv(1 << 17):
            pass
    except ConnectionError:
        pass
    return True


HELLO = messages.encode(messages.Attach(messages.PROTOCOL, "0.1.0", None, {}, 2))
GARBAGE = {
    "one byte": [b"\0"],
    "text": [b"GET / HTTP/1.1\r\n\r\n"],
    "a pickle": [b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R."],
    "a huge datagram": [b"\x93" * 100_000],
    "a reader's line": [messages.encode(reader_messages.ReaderReady())],
    "negative lease": [HELLO, messages.encode(messages.Release([-1], 0))],
    "too large a number": [HELLO, messages.encode(messages.OpenCursor(1, 0, 2**63, 0, None, 0, 1))],
    "an epoch that no order has": [HELLO, messages.encode(messages.OpenCursor(1, 0, 2**61, 0, None, 0, 1))],
    "a batch beyond the epoch": [HELLO, messages.encode(messages.OpenCursor(1, 0, 0, 2**53, None, 0, 1))],
    "rank beyond the world": [HELLO, messages.encode(messages.OpenCursor(1, 0, 0, 0, None, 5, 2))],
    "a cursor before the hello": [messages.encode(messages.OpenCursor(1, 0, 0, 0, None, 0, 1))],
    "deep nesting": [b"\x91" * 3000 + b"\x01"],
}


def test_garbage_ends_that_connection_only(serve: Serve, forty: Path, forty_content: Content) -> None:
    daemon = serve(forty, *exact("--num-workers", 1))
    for what, words in GARBAGE.items():
        with prefetchd.batches() as loader:
            batches = iter(loader)
            seen = content_of([next(batches)])
            sock = raw_connection()
            for data in words:
                sock.send(data)
            assert ends(sock), what
            sock.close()
            seen += content_of(batches)
        assert seen == forty_content, what
    assert daemon.process.poll() is None


def test_odd_but_lawful_words_harm_nobody(serve: Serve, forty: Path, forty_content: Content) -> None:
    """Foreign and stale leases, cursors far away, questions from a consumer, and descriptors nobody asked for."""
    daemon = serve(forty, *exact("--num-workers", 1))
    with prefetchd.batches() as loader:
        batches = iter(loader)
        held = next(batches)
        seen = content_of([held])
        sock = raw_connection()
        sock.send(HELLO)
        sockets.close_all(sockets.receive(sock)[1])
        for lease in range(1, 20):
            sockets.send(sock, messages.encode(messages.Release([lease], 0)))  # one that it may not have taken
            assert ask_status()["pid"] == daemon.pid
            sockets.send(sock, messages.encode(messages.Release([lease], 2**62)))
        pipe = os.pipe()
        sockets.send(sock, messages.encode(messages.Want(7, 7)), [pipe[0]] * 4)
        sockets.close_all(pipe)
        for epoch, step, rank, size in ((MAX_EPOCH, 0, 0, 1), (0, 0, 2**31 - 1, 2**31), (5, 3, 1, 2)):
            sockets.send(sock, messages.encode(messages.OpenCursor(1, 0, epoch, step, None, rank, size)))
            sockets.send(sock, messages.encode(messages.Want(1, 0)))
        sockets.send(sock, messages.encode(messages.CloseCursor(1, 0)))
        sockets.send(sock, messages.encode(messages.AskStatus(messages.PROTOCOL)))
        answer = None
        while not isinstance(answer, messages.StatusReport):  # it was not sent away for any of these
            data, fds = sockets.receive(sock)
            sockets.close_all(fds)
            answer = messages.decode_to_consumer(data)
        sock.close()
        assert content_of([held]) == seen
        del held
        seen += content_of(batches)
    assert seen == forty_content
    assert daemon.process.poll() is None


def test_connection_that_reads_nothing_blocks_nobody(serve: Serve, forty: Path, forty_content: Content) -> None:
    """Its socket's buffer fills with answers to its own questions."""
    daemon = serve(forty, *exact("--num-workers", 1))
    sock = raw_connection()
    sock.setblocking(False)
    question = messages.encode(messages.AskStatus(messages.PROTOCOL))
    try:
        for _ in range(300):
            sock.send(question)
    except BlockingIOError:
        pass
    with prefetchd.batches() as loader:
        assert content_of(loader) == forty_content
    sock.close()
    assert daemon.process.poll() is None
