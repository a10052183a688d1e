"""The token by which daemon and agent know each other, and the proofs that both have it. Pure, but for reading files.

    daemon -- Hello(nonce) --> agent
    daemon <-- Challenge(nonce) -- agent
    daemon -- Proof(HMAC(token, "daemon" + both nonces)) --> agent        first: the agent answers nobody else
    daemon <-- Proof(HMAC(token, "agent" + both nonces)) -- agent

The token never crosses the wire. Each side adds a nonce of its own, so a proof is good for one connection, and each
proof names its side, so that one cannot be sent back as the other. With TLS all four go over the plain connection, so
that an agent starts nothing for strangers, and once more inside TLS, where proofs are others: who stands between the
two, and passed the first on, has none for the second. A token of 16 characters or more cannot be guessed
from a proof that somebody has seen.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from typing import Literal

from prefetchd.errors import ConfigError

NONCE_BYTES = 32
_LEAST_CHARACTERS = 16
_MOST_BYTES = 4096
_MOST_PEM_BYTES = 1 << 20
Side = Literal["daemon", "agent"]


def new_nonce() -> bytes:
    """Return random bytes that no other connection has."""
    return secrets.token_bytes(NONCE_BYTES)


def prove(token: bytes, side: Side, daemon_nonce: bytes, agent_nonce: bytes, *, within_tls: bool = False) -> bytes:
    """Return the proof, 32 bytes, that `side` has the token, for the connection with these nonces."""
    parts = (b"prefetchd-remote-2", b"tls" if within_tls else b"tcp", side.encode(), daemon_nonce, agent_nonce)
    return hmac.new(token, b"".join(len(part).to_bytes(4, "big") + part for part in parts), hashlib.sha256).digest()


def is_proof(
    proof: bytes, token: bytes, side: Side, daemon_nonce: bytes, agent_nonce: bytes, *, within_tls: bool = False
) -> bool:
    """Return whether `proof` is that of `side`; takes as long for a wrong one as for the right one."""
    return hmac.compare_digest(proof, prove(token, side, daemon_nonce, agent_nonce, within_tls=within_tls))


def check_files(files: Mapping[str, str | None]) -> None:
    """Raise `ConfigError` for a file, by the name of its option, that is not in PEM format; `None` is no file."""
    for name, path in files.items():
        if path is None:
            continue
        try:
            with open(path, "rb") as file:
                content = file.read(_MOST_PEM_BYTES)
        except OSError as error:
            raise ConfigError(
                f"cannot read {name}={path!r}: {error.strerror}; give a file in PEM format that can be read"
            ) from None
        if b"-----BEGIN " not in content:
            raise ConfigError(
                f"cannot use {name}={path!r}: it is not in PEM format; give one with a line -----BEGIN ...-----"
            )


def read_token(path: str) -> bytes:
    """Return the token in the file at `path`, without the white space around it.

    Raises:
        ConfigError: if it cannot be read, is too short, or can be read by every user of the machine.
    """
    try:
        fd = os.open(os.path.expanduser(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(
            f"cannot read token_file={path!r}: {error.strerror}; make one with: "
            "python3 -c 'import secrets; print(secrets.token_hex(32))'"
        ) from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"cannot use token_file={path!r}: it is no regular file; write the token to a file")
        if mode & stat.S_IROTH:
            raise ConfigError(
                f"cannot use token_file={path!r}: every user of this machine can read it (mode {mode & 0o777:o}); "
                f"chmod 600 {path}"
            )
        token = os.read(fd, _MOST_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(f"cannot read token_file={path!r}: {error.strerror}; check the disk") from None
    finally:
        os.close(fd)
    if not _LEAST_CHARACTERS <= len(token) <= _MOST_BYTES:
        raise ConfigError(
            f"cannot use token_file={path!r}: the token has {len(token)} characters, and {_LEAST_CHARACTERS} to "
            f"{_MOST_BYTES} make one; make it with: python3 -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return token
