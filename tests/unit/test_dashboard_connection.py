"""Which connections to the dashboard are closed: silent ones, and not those whose answer is still on its way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

pytest.importorskip("uvicorn")

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from prefetchd.dashboard import connection

QUESTION = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SIZE = 16 << 20  # more than the kernel keeps for a connection


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE_S", 0.5)
    monkeypatch.setattr(connection, "_LOOK_S", 0.05)


def ask(work_s: float, size: int, then: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Ask for an answer of `size` bytes that takes `work_s` to be made, and do `then` with the connection."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(work_s)
        await Response(bytes(size))(scope, receive, send)

    async def main() -> None:
        config = uvicorn.Config(app, log_config=None, timeout_keep_alive=20)
        config.load()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: connection.Connection(config, ServerState(), {}), "127.0.0.1", 0)
        async with server:
            with socket.create_connection(server.sockets[0].getsockname()) as sock:
                sock.setblocking(False)
                await loop.sock_sendall(sock, QUESTION)
                await then(sock)

    asyncio.run(asyncio.wait_for(main(), 60))


async def answer(sock: socket.socket, size: int) -> int:
    """Return how many bytes of a body arrive."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data.partition(b"\r\n\r\n")[2]) < size and (piece := await loop.sock_recv(sock, 1 << 20)):
        data += piece
    return len(data.partition(b"\r\n\r\n")[2])


def test_answer_that_a_slow_browser_takes_is_whole():
    async def take(sock: socket.socket) -> None:
        await asyncio.sleep(1.5)
        assert await answer(sock, SIZE) == SIZE

    ask(0, SIZE, take)


def test_patience_begins_when_the_answer_is_made():
    async def take(sock: socket.socket) -> None:
        assert await answer(sock, 10) == 10
        await asyncio.sleep(0.25)
        await asyncio.get_running_loop().sock_sendall(sock, QUESTION)
        assert await answer(sock, 10) == 10

    ask(1.0, 10, take)


def test_connection_that_asks_nothing_more_is_closed():
    async def take(sock: socket.socket) -> None:
        assert await answer(sock, 10) == 10
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 10) == b""

    ask(0, 10, take)


def test_answer_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "_ANSWER_S", 0.5)

    async def take(sock: socket.socket) -> None:
        await asyncio.sleep(1.5)
        assert await answer(sock, SIZE) < SIZE

    ask(0, SIZE, take)
