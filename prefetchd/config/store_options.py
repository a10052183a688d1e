"""`StoreOptions`: what the store of a URL is told besides it, such as an endpoint and keys, which are secrets. Pure.

The values go to the daemon and its readers, and nowhere else: what prints the options shows the keys alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from prefetchd.errors import ConfigError

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_WORDS = {True: "true", False: "false"}


class StoreOptions(tuple[str, ...]):
    """The options, each as KEY=VALUE, sorted by key."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{key!r}: ..." for key in self.values_by_key()) + "}"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def values_by_key(self) -> dict[str, str]:
        """Return the values by key."""
        return dict(text.split("=", 1) for text in self)


def canonical(value: object) -> StoreOptions:
    """Return options given as a mapping, or as texts KEY=VALUE.

    Raises:
        ConfigError: for a key that can be none; no value is shown.
    """
    if value is None:
        return StoreOptions()
    pairs: Iterable[tuple[object, object]]
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, Sequence):
        texts = [value] if isinstance(value, str) else value
        if not all(isinstance(text, str) and "=" in text for text in texts):
            raise ConfigError(
                "cannot use store_options: not each is written KEY=VALUE; write such as endpoint=http://host:9000"
            )
        pairs = [tuple(text.split("=", 1)) for text in texts]
    else:
        raise ConfigError(
            f"cannot use store_options: a {type(value).__name__} is no mapping; give such as "
            "{'endpoint': 'http://host:9000'}"
        )
    made: dict[str, str] = {}
    for key, text in pairs:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ConfigError("cannot use store_options: a key is letters, digits and _; write KEY=VALUE")
        if not isinstance(text, str | int | float):
            raise ConfigError(
                f"cannot use the store option {key}: its value is a {type(text).__name__}; give text, a number, or "
                "true or false"
            )
        name = key.lower().replace("-", "_")
        if name in made:
            raise ConfigError(f"cannot use the store option {key}: it was given twice; give it once")
        made[name] = _WORDS[text] if isinstance(text, bool) else str(text)
    return StoreOptions(f"{key}={made[key]}" for key in sorted(made))
