"""Whose process is at the other end of a TCP connection within this machine, as the kernel lists its sockets."""

from __future__ import annotations

import ipaddress
import struct


def peer_user(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """Return the user id of the owner of the socket at `client`, which is connected to `server`; `None` if unknown.

    Both are (address, port). Only sockets of this network namespace are listed, so one of another machine is unknown.
    """
    try:
        ends = f"{_listed(*client)} {_listed(*server)}".split()
        table = "tcp6" if ipaddress.ip_address(client[0]).version == 6 else "tcp"
        with open(f"/proc/net/{table}", encoding="ascii") as lines:
            for line in lines:
                words = line.split()
                if words[1:3] == ends:
                    return int(words[7])
    except (OSError, ValueError, IndexError):  # no /proc, or an address that is none
        pass
    return None


def _listed(address: str, port: int) -> str:
    """Return an end of a connection as the kernel lists it: words of 32 bits in the machine's order, in hexadecimal."""
    packed = ipaddress.ip_address(address).packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
