"""The parameters of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from starlette.requests import Request

_MOST_DIGITS = 16
_MOST_CHARACTERS = 4096


def number(request: Request, name: str, default: int | None = None) -> int:
    """Return a whole number from 0 on; raise `ConfigError` if it is none."""
    given = request.query_params.get(name)
    if given is None and default is not None:
        return default
    if given is None or not given.isascii() or not given.isdigit() or len(given) > _MOST_DIGITS:
        raise ConfigError(f"cannot use {name}={given!r}: it must be a whole number from 0")
    return int(given)


def text(request: Request, name: str, default: str | None = None) -> str:
    """Return a text; raise `ConfigError` if it is missing or very long."""
    given = request.query_params.get(name, default)
    if given is None or len(given) > _MOST_CHARACTERS:
        raise ConfigError(f"cannot use {name}: it is {'missing' if given is None else 'too long'}")
    return given
