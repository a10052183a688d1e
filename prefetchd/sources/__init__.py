"""What samples come from. A source fills rows of a batch; this is the only place that knows which kinds there are.

To add one: a kind for it in `patterns.kind_of`; then for another way to list encoded images a class that fulfils
`Records` and a line in `_records`, and for anything else a class that fulfils `Source` and a line in `open_source` and
`attach_source`. Modules of all but manifests are imported when they are needed.
"""

from __future__ import annotations

from typing import Any

from prefetchd.config import Config
from prefetchd.manifest import Manifest
from prefetchd.sources.base import Source
from prefetchd.sources.images import ImageSource
from prefetchd.sources.patterns import Kind, kind_of
from prefetchd.sources.records import Records

__all__ = ["Source", "attach_source", "open_source"]


def open_source(config: Config) -> Source:
    """Open and check what `config.source` names, in the daemon.

    Raises:
        ManifestError: if it cannot be served, with the reason.
        ConfigError: if it takes a library that is not installed.
    """
    kind = kind_of(config.source)
    return ImageSource.open(config, kind, _records(kind).open(config))


def attach_source(config: Config, handle: dict[str, Any], fds: list[int]) -> Source:
    """Return, in a reader, the source that the daemon opened; owns `fds`."""
    records: Records = _records(handle["kind"]).attach(handle["records"], fds)
    return ImageSource.attach(config, handle, records)


def _records(kind: Kind) -> Any:
    """Return the class of a kind's records: it has `open(config)` and `attach(handle, fds)`."""
    if kind == "tar":
        from prefetchd.sources.tar_shards import TarShards

        return TarShards
    if kind == "parquet":
        from prefetchd.sources.parquet import ParquetRecords

        return ParquetRecords
    return Manifest
