"""The one place that imports pyarrow, and how it is set up: one thread, and memory that goes back when it is freed."""

from __future__ import annotations

import os
from typing import Any

from prefetchd.errors import ConfigError, ManifestError

# Measured with pyarrow 26 in a reader that has numpy and OpenCV: its private memory when it has read a row group.
PYARROW_BYTES = 16 << 20


def load_pyarrow(what: str = "Parquet") -> tuple[Any, Any]:
    """Return the modules `pyarrow` and `pyarrow.parquet`, which are needed for files of the kind `what`.

    Raises:
        ConfigError: if pyarrow is not installed.
    """
    # pyarrow's own allocator never gives back what a row group took; the C library's does. It must be set before
    # pyarrow is loaded: Parquet's decoder takes the process's default and not Python's.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"cannot read {what} files: pyarrow cannot be imported ({error}); pip install 'prefetchd[parquet]'"
        ) from None
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    return pyarrow, pyarrow.parquet


def refusal(
    name: str, what: str, remedy: str = "mend the files, or name columns with x_column and y_column"
) -> ManifestError:
    """Return the error for a Parquet data set that does not fit."""
    return ManifestError(f"cannot use {name}: {what}; {remedy}")
