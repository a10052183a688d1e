"""The daemon's side of joining: reach an agent, prove, compare what decides bytes, ship the indexes. In the bridge.

Each step waits, so it runs in a thread of its own for each agent. An agent that would make other bytes is refused by
name of what differs, and asked again now and then: it may have been mended.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from prefetchd.ipc.bridge_messages import Setup, Travels
from prefetchd.ipc.reader_messages import OpenDataset
from prefetchd.remote import wire
from prefetchd.remote.greeting import greet_agent
from prefetchd.remote.link import LinkEnded, Peer, tune, why
from prefetchd.remote.probe import differences
from prefetchd.remote.travel import pieces, travelling

_CONNECT_S = 10.0
_SHIP_S = 60.0  # for one piece
_PREPARE_S = 120.0  # to attach to the data and to start readers


class Unlike(LinkEnded):
    """The agent would make other bytes, or may not run what this daemon needs."""


@dataclass(frozen=True, slots=True)
class Travelling:
    """A data set for agents: what goes over the wire, the descriptors whose bytes do (borrowed), and its digest.

    `files` are paths of some of its files.
    """

    remote: wire.RemoteDataset
    fds: Sequence[int]
    digest: str
    files: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Own:
    """What decides the bytes of this machine's readers: versions, and checksums of the probe, by name."""

    versions: dict[str, str]
    probe: dict[str, str]


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[ip6]:port`, which the options have checked."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join(
    address: str, setup: Setup, context: Any, own: Own, datasets: Sequence[Travelling]
) -> tuple[socket.socket, wire.Joined]:
    """Return the socket of an agent that has joined, which the caller owns, and what it said.

    Args:
        address: its host and port.
        setup: the daemon's.
        context: what makes TLS; `None` without.
        own: what the agent's versions and checksums must be.
        datasets: what it is to serve.

    Raises:
        LinkEnded: if it cannot be reached, or does not join.
        Unlike: if it would make other bytes.
    """
    host, port = split_address(address)
    try:
        sock = socket.create_connection((host, port), timeout=_CONNECT_S)
    except OSError as error:
        raise LinkEnded(f"it cannot be reached ({error.strerror or 'no answer in time'})") from None
    except UnicodeError:  # a label that is empty or too long
        raise LinkEnded(f"it cannot be reached ({host!r} is no name of a machine)") from None
    try:
        tune(sock)
        peer = Peer(sock)
        greet_agent(peer, setup.token, with_tls=context is not None)
        if context is not None:
            sock.settimeout(_CONNECT_S)
            sock = _with_tls(sock, context, host)
            peer = Peer(sock)
            greet_agent(peer, setup.token, within_tls=True)
        marks = _receive(peer, _PREPARE_S)
        if not isinstance(marks, wire.Marks):
            raise LinkEnded("it answered out of turn")
        _check_marks(marks, own, datasets)
        _ship(peer, setup, datasets)
        joined = _receive(peer, _PREPARE_S + setup.reader_timeout)
        if not isinstance(joined, wire.Joined):
            raise LinkEnded("it answered out of turn")
        _check_joined(joined, datasets)
        return sock, joined
    except BaseException:
        sock.close()
        raise


def _with_tls(sock: socket.socket, context: Any, host: str) -> socket.socket:
    try:
        wrapped: socket.socket = context.wrap_socket(sock, server_hostname=host)
        return wrapped
    except OSError as error:
        raise LinkEnded(why(error)) from None
    except ValueError:  # no certificate can be for such a name
        raise LinkEnded(f"TLS failed ({host!r} is no name that a certificate can be for)") from None


def _receive(peer: Peer, deadline_s: float) -> wire.FromAgent:
    message, _ = peer.receive(wire.decode_from_agent, deadline_s=deadline_s)
    if isinstance(message, wire.Refused):
        raise Unlike(message.text)
    return message


def _check_marks(marks: wire.Marks, own: Own, datasets: Sequence[Travelling]) -> None:
    for name in differences(own.versions, marks.versions):
        raise Unlike(
            f"{name} is {marks.versions.get(name, 'missing')} there and {own.versions.get(name, 'missing')} here; "
            "install the same on both machines"
        )
    different = differences(own.probe, marks.probe)
    if different:
        shown = ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        raise Unlike(
            f"its processor or libraries make other pixels (of the probe: {shown}); use a machine of the same kind"
        )
    functions = {
        config[name]
        for config in (each.remote.config for each in datasets)
        for name in ("transform", "target_transform")
        if config.get(name) is not None
    }
    if functions and not marks.allows_code:
        raise Unlike(
            f"it may not import functions ({', '.join(sorted(functions))}); start it with: prefetchd agent --allow-code"
        )


def _ship(peer: Peer, setup: Setup, datasets: Sequence[Travelling]) -> None:
    remotes = [msgspec.structs.replace(each.remote, files=file_states(each.files)) for each in datasets]
    peer.send(wire.Join(remotes, setup.reader_timeout), deadline_s=_SHIP_S)
    for each in datasets:
        for fd, n_bytes in zip(each.fds, each.remote.fd_bytes, strict=True):
            try:
                for piece in pieces(fd, n_bytes):
                    peer.send(wire.Piece(), [memoryview(piece)], deadline_s=_SHIP_S)
            except OSError as error:
                raise LinkEnded(f"the index cannot be read here ({error})") from None


def file_states(paths: Sequence[bytes]) -> list[wire.FileState]:
    """Return the state of each file now, as an image may change while it is served; of those that are there."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            state = os.stat(path)
            found.append(wire.FileState(path, state.st_size, int(state.st_mtime)))
    return found


def _check_joined(joined: wire.Joined, datasets: Sequence[Travelling]) -> None:
    if len(joined.digests) != len(datasets) or len(joined.versions) != len(datasets):
        raise LinkEnded("it answered for other data sets")
    for each, digest, versions in zip(datasets, joined.digests, joined.versions, strict=True):
        if digest != each.digest:
            raise Unlike(f"the data's digest is {digest} there and {each.digest} here; see to what it reads there")
        for name in differences(each.remote.versions, versions):
            what = f"the code of {name.removesuffix('_code')}" if name.endswith("_code") else name
            raise Unlike(f"{what} is not the same there and here; install the same on both machines")


def remote_dataset(opened: OpenDataset, fds: list[int], travels: Travels) -> Travelling:
    """Return what agents are told of a data set, of what the daemon tells its own readers."""
    config, source, own = travelling(opened, fds)
    remote = wire.RemoteDataset(
        config, source, opened.layouts or [opened.layout], opened.order, [os.fstat(fd).st_size for fd in own],
        travels.chunk_rows, travels.reader_bytes, travels.versions,
    )  # fmt: skip
    return Travelling(remote, own, travels.digest, travels.files)
