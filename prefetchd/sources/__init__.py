"""What samples come from. A source fills rows of a batch; `open_source` is the only place that knows which there are.

To add one: a module here with a class that fulfils `Source`, or for other ways to list encoded images `Records`; then
a line in `open_source` and `attach_source`. Modules are imported when they are needed.
"""

from __future__ import annotations

from typing import Any

from prefetchd.config import Config
from prefetchd.manifest import Manifest
from prefetchd.sources.base import Source
from prefetchd.sources.images import ImageSource

__all__ = ["Source", "attach_source", "open_source"]


def open_source(config: Config) -> Source:
    """Open and check what `config.source` names, in the daemon.

    Raises:
        ManifestError: if it cannot be served, with the reason.
    """
    return ImageSource.open(config, Manifest.open(config))


def attach_source(config: Config, handle: dict[str, Any], fds: list[int]) -> Source:
    """Return, in a reader, the source that the daemon opened; owns `fds`."""
    return ImageSource.attach(config, handle, Manifest.attach(handle["records"], fds))
