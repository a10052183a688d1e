"""The first words between daemon and agent, as the agent's loop hears them; and what TLS changes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from prefetchd.ipc import trust
from prefetchd.remote import wire
from prefetchd.remote.greeting import Greeting, Stranger, greet_agent
from prefetchd.remote.link import LinkEnded, Peer
from prefetchd.remote.worker import Worker
from prefetchd.ring.layout import BatchLayout, FieldLayout

TOKEN = b"x" * 32
NONCE = bytes(range(32))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The agent's end, which does not block, and the daemon's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def receive(sock: socket.socket) -> wire.FromStrangeAgent:
    return Peer(sock).receive(wire.decode_from_strange_agent, deadline_s=10)[0]


def proof_for(challenge: wire.FromStrangeAgent, token: bytes = TOKEN, *, within_tls: bool = False) -> bytes:
    assert isinstance(challenge, wire.Challenge)
    return wire.frame_head(wire.Proof(trust.prove(token, "daemon", NONCE, challenge.nonce, within_tls=within_tls)))


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_daemon_proves_in_pieces_and_what_follows_is_left(pair, piece):
    ours, theirs = pair
    stranger = Stranger(ours, "a daemon", Greeting(TOKEN))

    def send(data: bytes) -> list[bool]:
        seen = []
        for first in range(0, len(data), piece):
            theirs.sendall(data[first : first + piece])
            seen.append(stranger.read())
        return seen

    assert not any(send(wire.frame_head(wire.Hello(wire.PROTOCOL, NONCE))))
    challenge = receive(theirs)
    proof = proof_for(challenge)
    assert send(proof[:-1]) == [False] * -(-(len(proof) - 1) // piece)
    theirs.sendall(proof[-1:] + b"more")
    assert stranger.read()
    assert ours.recv(10) == b"more"
    assert isinstance(challenge, wire.Challenge)
    answer = receive(theirs)
    assert isinstance(answer, wire.Proof)
    assert trust.is_proof(answer.proof, TOKEN, "agent", NONCE, challenge.nonce)


@pytest.mark.parametrize(("token", "within_tls"), [(b"y" * 32, False), (TOKEN, True)])
def test_other_token_or_a_proof_for_another_stage_is_refused(pair, token, within_tls):
    """A proof for inside TLS is none before it: who stands between the two cannot use one as the other."""
    ours, theirs = pair
    stranger = Stranger(ours, "a daemon", Greeting(TOKEN))
    theirs.sendall(wire.frame_head(wire.Hello(wire.PROTOCOL, NONCE)))
    assert not stranger.read()
    theirs.sendall(proof_for(receive(theirs), token, within_tls=within_tls))
    with pytest.raises(LinkEnded, match="it has another token"):
        stranger.read()
    assert isinstance(receive(theirs), wire.Refused)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", "does not speak prefetchd's protocol"),
        (wire.HEADER.pack(wire.MAGIC, 0, 1 << 31, 0, 0), "it announced a frame"),
        (wire.HEADER.pack(wire.MAGIC, 0, 3, 1, 0), "it announced a frame"),
        (wire.HEADER.pack(wire.MAGIC, 0, 3, 0, 0) + b"abc", "changed on the way"),
        (wire.frame_head(wire.Tasks([])), "no message of ours"),
        (wire.frame_head(wire.Proof(bytes(32))), "out of turn"),
        (wire.frame_head(wire.Hello(wire.PROTOCOL, b"short")), "a nonce of another length"),
    ],
)
def test_what_no_daemon_sends_ends_the_connection(pair, data, why):
    ours, theirs = pair
    theirs.sendall(data)
    stranger = Stranger(ours, "a stranger", Greeting(TOKEN))
    with pytest.raises(LinkEnded, match=why):
        stranger.read()
    assert not stranger.is_silent


def test_one_that_only_looks_whether_the_port_is_open_is_silent(pair):
    ours, theirs = pair
    theirs.close()
    stranger = Stranger(ours, "a probe", Greeting(TOKEN))
    with pytest.raises(LinkEnded, match="it closed the connection"):
        stranger.read()
    assert stranger.is_silent


@pytest.mark.parametrize(
    ("theirs_has_tls", "why"), [(True, "it speaks TLS and this daemon does not"), (False, "it speaks no TLS")]
)
def test_daemon_sends_no_proof_where_only_one_of_both_speaks_tls(pair, theirs_has_tls, why):
    ours, theirs = pair
    ours.sendall(wire.frame_head(wire.Challenge(wire.PROTOCOL, NONCE, theirs_has_tls)))
    with pytest.raises(LinkEnded, match=why):
        greet_agent(Peer(theirs), TOKEN, with_tls=not theirs_has_tls)
    ours.setblocking(True)
    message, _ = Peer(ours).receive(wire.decode_from_stranger, deadline_s=10)
    assert isinstance(message, wire.Hello)
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.recv(1)


@pytest.mark.parametrize("first", [0, 1])
def test_task_that_is_given_twice_is_impossible(first):
    """In two messages, and in one."""
    layout = BatchLayout(4, (FieldLayout("x", (3,), "uint8"),))
    task = wire.Task(5, 0, 0, 0, 0, 4, 0)
    worker = Worker(None, [[layout]], None)  # type: ignore[arg-type]
    worker.add([task][first:])
    with pytest.raises(ValueError, match="task 5 was given twice"):
        worker.add([task] * (1 + first))
