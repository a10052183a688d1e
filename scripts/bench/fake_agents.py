"""Agents that answer at once with rows of zeros, for scripts/bench/remote.py, which measures the way of the rows.

    python -c 'import fake_agents; fake_agents.main()' TOKEN_FILE DIGEST COUNT [HOST]

It prints their addresses, one a line. One process and a thread for each connection. It ends with its standard input.
"""

from __future__ import annotations

import socket
import sys
import threading

from prefetchd.ipc.trust import read_token
from prefetchd.remote import wire
from prefetchd.remote.greeting import greet_daemon
from prefetchd.remote.link import LinkEnded, Peer, tune
from prefetchd.remote.probe import marks
from prefetchd.remote.travel import part_bytes
from prefetchd.ring.layout import layout_from_wire

N_READERS = 4


class Rows:
    """Frames of zeros, made once for each number of rows: the parts of the body, and their checksum."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[memoryview, int]] = {}

    def send(self, sock: socket.socket, task: wire.Task, parts: list[int]) -> None:
        lengths = tuple(n_bytes * task.n_rows for n_bytes in parts)
        if lengths not in self._known:
            views = [memoryview(bytes(n_bytes)) for n_bytes in lengths]
            self._known[lengths] = memoryview(bytes(sum(lengths))), wire.checksum(views)
        body, body_sum = self._known[lengths]
        head = bytearray(wire.frame_head(wire.Rows(task.task, [], 1e-6 * task.n_rows, 0.0, 0, 0.0)))
        magic, head_sum, head_bytes, _, _ = wire.HEADER.unpack(head[: wire.HEADER.size])
        head[: wire.HEADER.size] = wire.HEADER.pack(magic, head_sum, head_bytes, len(body), body_sum)
        sock.sendall(head)
        sock.sendall(body)


def serve(sock: socket.socket, token: bytes, digest: str, own: wire.Marks, rows: Rows) -> None:
    peer = Peer(sock)
    tune(sock)
    greet_daemon(peer, token)
    peer.send(own, deadline_s=30)
    join, _ = peer.receive(wire.decode_from_daemon, deadline_s=60)
    assert isinstance(join, wire.Join)
    (dataset,) = join.datasets
    left = sum(dataset.fd_bytes)
    while left:
        left -= len(peer.receive(wire.decode_from_daemon, deadline_s=60, most_body_bytes=wire.PIECE_BYTES)[1])
    peer.send(wire.Joined(N_READERS, [digest], [dataset.versions]), deadline_s=30)
    parts = part_bytes(layout_from_wire(dataset.layouts[0]))
    while True:
        message, _ = peer.receive(wire.decode_from_daemon, deadline_s=3600)
        if isinstance(message, wire.Ping):
            peer.send(wire.Pong(message.number, 0, 0, 0), deadline_s=30)
        elif isinstance(message, wire.Tasks):
            sock.settimeout(60)
            for task in message.tasks:
                rows.send(sock, task, parts)


def accept(listener: socket.socket, token: bytes, digest: str, own: wire.Marks, rows: Rows) -> None:
    while True:
        sock, _ = listener.accept()
        try:
            serve(sock, token, digest, own, rows)
        except (LinkEnded, OSError):
            sock.close()


def main() -> None:
    token, digest, count = read_token(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    host = sys.argv[4] if len(sys.argv) > 4 else "127.0.0.1"
    own, rows = wire.Marks(*marks(), True), Rows()
    for _ in range(count):
        listener = socket.create_server((host, 0))
        threading.Thread(target=accept, args=(listener, token, digest, own, rows), daemon=True).start()
        print("{}:{}".format(*listener.getsockname()), flush=True)
    sys.stdin.read()
