"""prefetchd: a shared-memory prefetching loader daemon for training data that does not fit in RAM.

    for x, y in prefetchd.batches():                              # from the daemon that `prefetchd serve` started
    for x, y in prefetchd.batches("train.txt", batch_size=64):    # from a private one

Importing this module loads neither numpy nor OpenCV; the first `batches` does what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prefetchd._version import __version__
from prefetchd.errors import (
    BudgetError,
    ConfigError,
    DaemonLost,
    DaemonNotFound,
    ManifestError,
    PrefetchdError,
    RingExhausted,
    SampleError,
)
from prefetchd.ipc.loading import LoadingModules

if TYPE_CHECKING:
    from prefetchd.client.admin import set_options
    from prefetchd.client.api import batches
    from prefetchd.client.batch import Batch
    from prefetchd.client.loader import Loader
    from prefetchd.client.meter import LoaderStats
    from prefetchd.config.fields import Field

__all__ = [
    "__version__",
    "Batch",
    "BudgetError",
    "ConfigError",
    "DaemonLost",
    "DaemonNotFound",
    "Field",
    "Loader",
    "LoaderStats",
    "ManifestError",
    "PrefetchdError",
    "RingExhausted",
    "SampleError",
    "batches",
    "set_options",
]


_HOMES = {
    "Batch": "client.batch",
    "Field": "config.fields",
    "Loader": "client.loader",
    "LoaderStats": "client.meter",
    "batches": "client.api",
    "set_options": "client.admin",
}


def __getattr__(name: str) -> Any:
    if name in ("keras", "tensorflow", "torch"):  # `import prefetchd` alone is enough, and loads none of them
        return importlib.import_module(f"prefetchd.{name}")
    home = _HOMES.get(name)
    if home is not None:
        with LoadingModules():
            return getattr(importlib.import_module(f"prefetchd.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names alone: completion shows neither submodules nor what this module imports."""
    return __all__
