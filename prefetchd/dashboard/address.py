"""Where the dashboard listens, and what it is called there."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from prefetchd.errors import ConfigError, PrefetchdError

LOOPBACK = "127.0.0.1"
_BACKLOG = 64


@dataclass(frozen=True, slots=True)
class Options:
    """How the dashboard is served.

    Attributes:
        daemon: the name of the daemon that is shown first; `None` for any.
        host: the address that it listens on, for its own link.
        token: what a browser must show; `None` where only this user may ask.
        allowed_hosts: names of this machine that browsers may use, besides its own.
        findings: files that verify --json wrote, by data set.
    """

    daemon: str | None = None
    host: str = LOOPBACK
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    findings: Mapping[str, str] = field(default_factory=dict)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there, which the caller owns; port 0 takes any that is free.

    Raises:
        ConfigError: if the port is none.
        PrefetchdError: if nothing can listen there.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"cannot use port {port}: it must be from 1 to 65535; 8790 is a good choice")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PrefetchdError(
            f"cannot listen on {host}: {error.strerror or error}; give an address of this machine"
        ) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise PrefetchdError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another port"
        ) from None
    return sock


def address_of(sock: socket.socket, options: Options) -> str:
    """Return the link to the dashboard that listens on `sock`."""
    port = sock.getsockname()[1]
    host = options.host
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}/"
