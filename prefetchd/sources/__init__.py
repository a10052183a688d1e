"""What samples come from. A source fills rows of a batch; `KINDS` is the only place that knows which there are.

To add one: a module here with a class that fulfils `Source` and `SourceKind`, and a line in `KINDS`.
"""

from __future__ import annotations

from typing import Any, Protocol

from prefetchd.config import Config
from prefetchd.sources.arrays import ArraySource
from prefetchd.sources.base import Source
from prefetchd.sources.images import ImageSource
from prefetchd.sources.sequences import SequenceSource

__all__ = ["KINDS", "Source", "SourceKind", "attach_source", "open_source"]


class SourceKind(Protocol):
    """What the class of a source offers beside its instances."""

    def recognises(self, config: Config) -> bool:
        """Whether it is what `config.source` names, by name, or by a look at a directory."""

    def open(self, config: Config) -> Source:
        """Open and check it, in the daemon."""

    def attach(self, config: Config, handle: dict[str, Any], fds: list[int]) -> Source:
        """Return, in a reader, what the daemon opened; owns `fds`."""


# The first that recognises the source opens it. `handle()` of a source gives its key here as "kind".
KINDS: dict[str, SourceKind] = {
    "sequences": SequenceSource,
    "arrays": ArraySource,
    "images": ImageSource,
}


def open_source(config: Config) -> Source:
    """Open and check what `config.source` names, in the daemon.

    Raises:
        ConfigError: if an option means nothing for it.
        ManifestError: if it cannot be served, with the reason.
    """
    kind = next(kind for kind in KINDS.values() if kind.recognises(config))
    return kind.open(config)


def attach_source(config: Config, handle: dict[str, Any], fds: list[int]) -> Source:
    """Return, in a reader, the source that the daemon opened; owns `fds`."""
    return KINDS[handle["kind"]].attach(config, handle, fds)
