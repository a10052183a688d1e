"""Frames between daemon and agent: whole, bounded, checked; and the proofs that both have the token."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.errors import ConfigError
from prefetchd.ipc import trust
from prefetchd.ipc.reader_messages import Fault
from prefetchd.remote import wire
from prefetchd.remote.greeting import greet_agent, greet_daemon
from prefetchd.remote.link import Link, LinkEnded, Peer

ROWS = wire.Rows(7, [Fault(3, 40, "a.jpg", "it is empty", True, False)], 0.5, 0.0, 0, 0.25)


def view(data: bytes | bytearray) -> memoryview:
    return memoryview(data)


class Receiver:
    """One end of a connection, that keeps what came; the other end is `sock`."""

    def __init__(
        self,
        place: Callable[[Any, int], Any] | None = None,
        decode: Callable[[bytes], Any] = wire.decode_from_agent,
    ) -> None:
        ours, self.sock = socket.socketpair()
        self.messages: list[tuple[Any, bool]] = []
        self.link: Link[Any] = Link(ours, decode, place or (lambda message, n_bytes: None), self._take)

    def _take(self, message: Any, is_right: bool) -> None:
        self.messages.append((message, is_right))

    def read_all(self) -> None:
        """Read until nothing more can come; the end of the connection is seen when the loop comes back."""
        self.link.read()
        self.link.read()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        self.sock.close()


def frame(message: wire.Frame, body: bytes = b"") -> bytes:
    return wire.frame_head(message, [view(body)] if body else []) + body


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 2048, 2049, 300_000, 1_000_003])
def test_checksum_sees_a_changed_bit_anywhere(n_bytes: int):
    data = np.random.default_rng(n_bytes).integers(0, 256, n_bytes, np.uint8)
    right = wire.checksum([view(data)])
    assert right == wire.checksum([view(data.copy())])
    for place in {0, n_bytes // 3, n_bytes - 1} & set(range(n_bytes)):
        data[place] ^= 1
        assert wire.checksum([view(data)]) != right
        data[place] ^= 1
    assert wire.checksum([view(data), view(bytearray(1))]) != right


def test_checksum_tells_where_one_part_ends():
    assert wire.checksum([view(b"ab"), view(b"c")]) != wire.checksum([view(b"a"), view(b"bc")])


@pytest.mark.parametrize("piece", [1, 5, 1 << 16])
def test_body_goes_where_it_is_placed_however_it_arrives(piece: int):
    body = os.urandom(5000)
    first, second = bytearray(2000), bytearray(3000)
    with Receiver(lambda message, n_bytes: [view(first), view(second)] if n_bytes else ()) as receiver:
        parts = [view(body[:2000]), view(body[2000:])]
        data = wire.frame_head(ROWS, parts) + body + frame(wire.Readers(3))
        for at in range(0, len(data), piece):
            receiver.sock.sendall(data[at : at + piece])
            receiver.link.read()
        assert receiver.messages == [(ROWS, True), (wire.Readers(3), True)]
        assert bytes(first + second) == body


def test_body_that_changed_on_the_way_is_told_from_a_right_one():
    target = bytearray(4096)
    with Receiver(lambda message, n_bytes: [view(target)]) as receiver:
        data = bytearray(frame(ROWS, bytes(4096)))
        data[-1] ^= 4
        receiver.sock.sendall(data)
        receiver.link.read()
        assert receiver.messages == [(ROWS, False)]


def test_body_that_nobody_wants_falls():
    with Receiver() as receiver:
        receiver.sock.sendall(frame(ROWS, os.urandom(100_000)) + frame(wire.Readers(1)))
        receiver.link.read()
        assert receiver.messages == [(ROWS, True), (wire.Readers(1), True)]


def test_rest_of_a_body_falls_when_it_is_not_wanted_any_more():
    """What was recalled while its rows arrive writes nothing more: the slot may be another batch's next."""
    target = bytearray(3000)
    with Receiver(lambda message, n_bytes: [view(target)] if n_bytes else ()) as receiver:
        data = frame(ROWS, b"\1" * 3000)
        receiver.sock.sendall(data[:-1000])
        receiver.link.read()
        assert receiver.link.receiving == ROWS
        receiver.link.drop_body()
        receiver.sock.sendall(data[-1000:] + frame(wire.Readers(1)))
        receiver.link.read()
        assert bytes(target) == b"\1" * 2000 + bytes(1000)
        assert receiver.messages[-1] == (wire.Readers(1), True)


def test_loop_is_woken_for_much_of_a_long_body_and_for_its_end():
    """Each wake-up costs as much as some rows."""
    target, handled = bytearray(1 << 20), []
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as agent:
        link: Link[wire.FromAgent] = Link(
            listener.accept()[0],
            wire.decode_from_agent,
            lambda *_: [view(target)],
            lambda *it: handled.append(it),
        )
        data = os.urandom(1 << 20)
        whole = frame(ROWS, data)
        agent.sendall(whole[:100_000])
        while link.received_bytes < 100_000:
            select.select([link], [], [], 5)
            link.read()
        agent.sendall(whole[100_000:110_000])
        assert select.select([link], [], [], 0.2)[0] == [], "little has come"
        n_wakes = 0
        for first in range(110_000, len(whole), 10_000):
            agent.sendall(whole[first : first + 10_000])
            while select.select([link], [], [], 0.01)[0] and not handled:
                n_wakes += 1
                link.read()
        while not handled:
            assert select.select([link], [], [], 5)[0], "the end of the body wakes the loop, however little is left"
            link.read()
        assert n_wakes <= 10
        assert handled == [(ROWS, True)]
        assert target == data
        agent.sendall(frame(wire.Readers(1)))
        assert select.select([link], [], [], 5)[0], "what is short is seen at once"
        link.close()


def test_frames_wait_until_the_peer_takes_them():
    ours, theirs = socket.socketpair()
    sent: list[int] = []
    with Receiver() as receiver:
        link: Link[wire.FromAgent] = Link(ours, wire.decode_from_agent, lambda *_: None, lambda *_: None)
        body = view(os.urandom(1 << 20))
        for number in range(3):
            link.send(ROWS, [body], lambda number=number: sent.append(number))
        link.flush()
        assert link.is_sending
        assert sent == []
        reader = Link(theirs, wire.decode_from_agent, lambda *_: None, receiver._take)
        while len(receiver.messages) < 3:
            reader.read()
            link.flush()
        assert sent == [0, 1, 2]
        assert not link.is_sending
        link.close()
        with pytest.raises(LinkEnded, match="closed the connection"):
            reader.read()
        reader.close()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n", "does not speak"),
        (wire.HEADER.pack(wire.MAGIC, 0, 1 << 30, 0, 0), "announced a frame of 1073741824"),
        (wire.HEADER.pack(wire.MAGIC, 0, 5, 1 << 50, 0), "announced a frame"),
        (wire.HEADER.pack(wire.MAGIC, 0, 0, 0, 0), "without a message"),
        (wire.HEADER.pack(wire.MAGIC, 1, 3, 0, 0) + b"abc", "changed on the way"),
        (frame(wire.Ping(1)), "no message of ours"),
    ],
)
def test_what_is_no_frame_ends_the_connection(data: bytes, why: str):
    with Receiver() as receiver:
        receiver.sock.sendall(data)
        with pytest.raises(LinkEnded, match=why):
            receiver.link.read()
    with Receiver() as receiver:
        receiver.sock.sendall(data)
        with pytest.raises(LinkEnded, match=why):
            Peer(receiver.link.sock).receive(wire.decode_from_agent, deadline_s=5)


@pytest.mark.parametrize(
    ("data", "decode", "kinds"),
    [
        (frame(ROWS, bytes(500)) + frame(wire.Joined(1, ["a"], [{}])), wire.decode_from_agent, wire.FromAgent),
        (
            frame(wire.Tasks([wire.Task(1, 0, 0, 0, 0, 4, 0)])) + frame(wire.Ping(1)) + frame(wire.Drop([1])),
            wire.decode_from_daemon,
            wire.FromDaemon,
        ),
    ],
    ids=["to the daemon", "to the agent"],
)
@given(st.binary(max_size=300), st.integers(0, 2**32), st.booleans())
def test_no_bytes_do_more_than_end_the_connection(
    data: bytes, decode: Any, kinds: Any, noise: bytes, seed: int, is_changed: bool
):
    """Whole frames with some bytes changed, and noise: each is a message, or the end."""
    data = bytearray(data)
    if is_changed:
        rng = np.random.default_rng(seed)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
    data[seed % len(data) :] = noise if seed % 3 == 0 else data[seed % len(data) :]
    with Receiver(decode=decode) as receiver:
        receiver.sock.sendall(data)
        receiver.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(LinkEnded):
            receiver.read_all()
        assert all(isinstance(message, kinds) for message, _ in receiver.messages)


# --- the token


def greet(daemon_token: bytes, agent_token: bytes) -> tuple[str, str]:
    """Let both sides greet; return why each ended, or nothing."""
    ours, theirs = socket.socketpair()
    ends = {"daemon": "", "agent": ""}

    def one(name: str, say: Callable[[Peer, bytes], None], sock: socket.socket, token: bytes) -> None:
        try:
            say(Peer(sock), token)
        except LinkEnded as error:
            ends[name] = str(error)
            sock.close()

    with ours, theirs:
        thread = threading.Thread(target=one, args=("agent", greet_daemon, theirs, agent_token))
        thread.start()
        one("daemon", greet_agent, ours, daemon_token)
        thread.join(20)
        assert not thread.is_alive()
    return ends["daemon"], ends["agent"]


def test_both_sides_prove_that_they_have_the_token():
    assert greet(b"x" * 32, b"x" * 32) == ("", "")
    daemon, agent = greet(b"x" * 32, b"y" * 32)
    assert "another token" in daemon
    assert "another token" in agent


def test_agent_without_the_token_is_not_believed():
    """It cannot answer the daemon's nonce, nor send the daemon's own proof back as its own."""
    ours, theirs = socket.socketpair()

    def pretend() -> None:
        peer = Peer(theirs)
        hello, _ = peer.receive(wire.decode_from_stranger, deadline_s=10)
        assert isinstance(hello, wire.Hello)
        peer.send(wire.Challenge(wire.PROTOCOL, hello.nonce, False), deadline_s=10)
        proof, _ = peer.receive(wire.decode_from_stranger, deadline_s=10)
        assert isinstance(proof, wire.Proof)
        peer.send(proof, deadline_s=10)

    with ours, theirs:
        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(LinkEnded, match="another token"):
            greet_agent(Peer(ours), b"x" * 32)
        thread.join(20)


def test_token_does_not_cross_the_wire():
    ours, theirs = socket.socketpair()
    token, seen = os.urandom(16).hex().encode(), bytearray()

    def listen() -> None:
        peer = Peer(theirs)
        hello, _ = peer.receive(wire.decode_from_stranger, deadline_s=10)
        peer.send(wire.Challenge(wire.PROTOCOL, trust.new_nonce(), False), deadline_s=10)
        seen.extend(wire.encode(hello) + theirs.recv(4096))
        theirs.close()

    with ours:
        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(LinkEnded):
            greet_agent(Peer(ours), token)
        thread.join(20)
    assert len(seen) > 64
    assert token not in seen


def test_stranger_may_announce_little_before_it_has_proved_anything():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(wire.HEADER.pack(wire.MAGIC, 0, wire.MAX_HELLO_BYTES + 1, 0, 0))
        with pytest.raises(LinkEnded, match="announced a frame"):
            greet_daemon(Peer(ours), b"x" * 32)


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [("short", 0o600, "has 5 characters"), ("x" * 32, 0o644, "every user of this machine"), (None, 0, "No such file")],
)
def test_token_that_is_none_is_refused(tmp_path: Path, content: str | None, mode: int, why: str):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=why):
        trust.read_token(str(path))


def test_white_space_around_a_token_is_no_part_of_it(tmp_path: Path):
    (tmp_path / "token").write_text("  0123456789abcdef\n")
    (tmp_path / "token").chmod(0o600)
    assert trust.read_token(str(tmp_path / "token")) == b"0123456789abcdef"
