"""The messages between an agent and its sessions, each a process that serves one daemon.

agent:    Settings -> Share ...
session:  Proven -> Needs
"""

from __future__ import annotations

import msgspec

from prefetchd.ipc.messages import Count, Message


class Settings(Message, frozen=True):
    """What the agent was started with, and what decides the bytes that its machine makes."""

    token: bytes
    tls_cert: str | None
    tls_key: str | None
    tls_ca: str | None
    cache: str | None
    cache_size: str
    allow_code: bool
    python_path: list[str]
    versions: dict[str, str]
    probe: dict[str, str]


class Share(Message, frozen=True):
    """How many readers a session may have from now on, and how many bytes it may take with them."""

    n_readers: Count
    n_bytes: Count


class Proven(Message, frozen=True):
    """The daemon has proved that it has the token, with TLS inside that too."""


class Needs(Message, frozen=True):
    """The daemon is served, which takes so many bytes with one reader."""

    n_bytes: Count


decode_to_session = msgspec.msgpack.Decoder(Settings | Share).decode
decode_from_session = msgspec.msgpack.Decoder(Proven | Needs).decode
