"""The dashboard's token: a secret in a file that only its owner may read."""

from __future__ import annotations

import os
import secrets
import stat

from prefetchd.errors import ConfigError

_LEAST_CHARACTERS = 16
_MOST_BYTES = 4096


def read_token(path: str) -> str:
    """Return the token in the file; make both if there is none.

    Raises:
        ConfigError: if the file cannot be used, or others may read it.
    """
    path = os.path.expanduser(path)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise ConfigError(f"cannot make the token file {path}: {error.strerror}; name another file") from None
    token = secrets.token_urlsafe(24)
    with os.fdopen(fd, "w") as file:
        file.write(token + "\n")
    return token


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            content = file.read(_MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the token file {path}: {error.strerror}; name another file") from None
    if not stat.S_ISREG(state.st_mode) or state.st_uid not in (os.getuid(), 0) or state.st_mode & 0o077:
        raise ConfigError(
            f"cannot use the token file {path}: it must be a file of yours that nobody else may read; do: chmod 600 "
            f"{path}"
        )
    token = content.decode("ascii", "replace").strip()
    if len(token) < _LEAST_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"cannot use the token file {path}: a token is one word of at least {_LEAST_CHARACTERS} letters and "
            "digits; remove the file, and a token is made"
        )
    return token
