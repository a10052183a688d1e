"""The first words on a connection: each side proves that it has the token, and tells nothing before that.

The daemon speaks first and proves first. An agent that is asked without the token says that it refuses, and no more.
The agent greets in its own loop (`Stranger`), so a connection costs it a socket until there is a proof. With TLS the
handshake follows, and both greet once more inside it; see `prefetchd.ipc.trust`.
"""

from __future__ import annotations

import socket

from prefetchd.ipc import trust
from prefetchd.remote import wire
from prefetchd.remote.link import LinkEnded, Peer, why

GREETING_S = 10.0


def greet_agent(peer: Peer, token: bytes, *, with_tls: bool = False, within_tls: bool = False) -> None:
    """Prove to an agent that this daemon has the token, and have it prove the same.

    Args:
        peer: the connection, borrowed.
        token: the daemon's.
        with_tls: whether TLS is to follow.
        within_tls: whether the connection is TLS already.

    Raises:
        LinkEnded: if it has another token, is no agent of ours, or only one of both is to speak TLS.
    """
    nonce = trust.new_nonce()
    peer.send(wire.Hello(wire.PROTOCOL, nonce), deadline_s=GREETING_S)
    challenge = _receive(peer)
    if not isinstance(challenge, wire.Challenge):
        raise LinkEnded("it answered out of turn")
    if challenge.protocol != wire.PROTOCOL:
        raise LinkEnded(
            f"it speaks protocol {challenge.protocol} and this prefetchd {wire.PROTOCOL}; install the same version on "
            "both machines"
        )
    _check_nonce(challenge.nonce)
    if challenge.tls and not with_tls:
        raise LinkEnded("it speaks TLS and this daemon does not; give tls_ca, the authority of its certificate")
    if with_tls and not challenge.tls:
        raise LinkEnded("it speaks no TLS; start it with: prefetchd agent --tls-cert FILE")
    nonces = nonce, challenge.nonce
    peer.send(wire.Proof(trust.prove(token, "daemon", *nonces, within_tls=within_tls)), deadline_s=GREETING_S)
    proof = _receive(peer)
    if not isinstance(proof, wire.Proof) or not trust.is_proof(
        proof.proof, token, "agent", *nonces, within_tls=within_tls
    ):
        raise LinkEnded("it has another token; give both the same token_file")


def _receive(peer: Peer) -> wire.FromStrangeAgent:
    answer, _ = peer.receive(
        wire.decode_from_strange_agent, deadline_s=GREETING_S, most_head_bytes=wire.MAX_HELLO_BYTES
    )
    if isinstance(answer, wire.Refused):
        raise LinkEnded(answer.text)
    return answer


class Greeting:
    """The agent's side: its answers to the daemon's two messages. Pure.

    Args:
        token: the agent's.
        with_tls: whether TLS is to follow.
        within_tls: whether the connection is TLS already.
    """

    def __init__(self, token: bytes, *, with_tls: bool = False, within_tls: bool = False) -> None:
        self.is_proven = False  # whether the daemon has proved that it has the token
        self._token, self._with_tls, self._within_tls = token, with_tls, within_tls
        self._nonces: tuple[bytes, bytes] | None = None  # the daemon's, ours

    def answer(self, message: wire.FromStranger) -> wire.FromStrangeAgent:
        """Return the answer to the daemon's next message; after `Refused` the connection is to be closed.

        Raises:
            LinkEnded: if that is no message of a daemon of ours.
        """
        if self._nonces is None:
            if not isinstance(message, wire.Hello):
                raise LinkEnded("it answered out of turn")
            _check_nonce(message.nonce)
            self._nonces = message.nonce, trust.new_nonce()
            return wire.Challenge(wire.PROTOCOL, self._nonces[1], self._with_tls)
        if not isinstance(message, wire.Proof) or not trust.is_proof(
            message.proof, self._token, "daemon", *self._nonces, within_tls=self._within_tls
        ):
            return wire.Refused("it has another token; give both the same token_file")
        self.is_proven = True
        return wire.Proof(trust.prove(self._token, "agent", *self._nonces, within_tls=self._within_tls))


def greet_daemon(peer: Peer, token: bytes, *, within_tls: bool = False) -> None:
    """Have a daemon prove that it has the token, then prove the same to it.

    Raises:
        LinkEnded: if it has another token, or is no daemon of ours; it was told that it is refused.
    """
    greeting = Greeting(token, within_tls=within_tls)
    while not greeting.is_proven:
        message, _ = peer.receive(
            wire.decode_from_stranger, deadline_s=GREETING_S, most_head_bytes=wire.MAX_HELLO_BYTES
        )
        answer = greeting.answer(message)
        peer.send(answer, deadline_s=GREETING_S)
        if isinstance(answer, wire.Refused):
            raise LinkEnded("it has another token")


class Stranger:
    """A connection to an agent that has proved nothing yet; never waits.

    Args:
        sock: the connection, which the caller owns and has made not to block.
        name: where it comes from, for the log.
        greeting: what is answered.
    """

    def __init__(self, sock: socket.socket, name: str, greeting: Greeting) -> None:
        self.sock, self.name = sock, name
        self._greeting = greeting
        self.is_silent = True  # it has sent nothing, as what only looks whether the port is open
        self._frame, self._wanted = bytearray(), wire.HEADER.size

    def read(self) -> bool:
        """Take in what has come, and answer it; return whether the token is proved. Nothing after that is read.

        Raises:
            LinkEnded: if it is gone, or has another token, or sent what no daemon sends.
        """
        try:
            while not self._greeting.is_proven:
                part = self.sock.recv(self._wanted - len(self._frame))
                if not part:
                    raise LinkEnded("it closed the connection")
                self.is_silent = False
                self._frame += part
                if len(self._frame) == self._wanted:
                    self._take()
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkEnded(why(error)) from None
        except wire.BadFrame as error:
            raise LinkEnded(str(error)) from None
        except wire.DecodeError as error:
            raise LinkEnded(f"it sent what is no message of ours ({error})") from None
        return True

    def _take(self) -> None:
        """Take in a header, or a whole frame."""
        header, head = self._frame[: wire.HEADER.size], self._frame[wire.HEADER.size :]
        head_sum, head_bytes, _, _ = wire.read_header(header, wire.MAX_HELLO_BYTES, 0)
        if not head:
            self._wanted += head_bytes
            return
        wire.check_head(head, head_sum)
        self._frame, self._wanted = bytearray(), wire.HEADER.size
        answer = self._greeting.answer(wire.decode_from_stranger(bytes(head)))
        frame = wire.frame_head(answer)
        if self.sock.send(frame) < len(frame):
            raise LinkEnded("it takes nothing")
        if isinstance(answer, wire.Refused):
            raise LinkEnded("it has another token")


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != trust.NONCE_BYTES:
        raise LinkEnded("it sent what is no message of ours (a nonce of another length)")
