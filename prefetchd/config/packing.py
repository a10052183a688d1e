"""The options that `pack` needs, and those that mean nothing with it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefetchd.config.options import OPTIONS
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.config.options import Config

_WITHOUT = "a row has parts of several documents; leave it out"
_OF_DOCUMENTS = "rows are not documents: make offsets of the wanted documents alone, or leave it out"
_NOT_WITH_PACK = {
    "labels": _WITHOUT,
    "lengths": f"{_WITHOUT}, positions begin again at 0 with each",
    "padding": "rows are filled from the left and padded at the end; leave it out",
    "truncating": "no token is cut off; leave it out",
    "mix": "give it one source, or leave pack out",
    **dict.fromkeys(("subset", "where", "split", "order", "limit", "weights"), _OF_DOCUMENTS),
}


def check_pack(config: Config) -> None:
    """Raise `ConfigError` unless the options of packed sequences go together; `pack` is given."""
    for name, why in _NOT_WITH_PACK.items():
        if getattr(config, name) != OPTIONS[name].default:
            raise ConfigError(f"cannot use {name} together with pack: {why}")
    if config.offsets is None:
        raise ConfigError(
            f"cannot use pack={config.pack!r} without offsets, which say where each document begins; "
            "give offsets='offsets.npy'"
        )
    if config.max_length is None:
        raise ConfigError(
            f"cannot use pack={config.pack!r} without max_length, the tokens of a row; give it, such as max_length=2048"
        )
