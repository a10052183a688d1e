"""A data set that travels: how the daemon's description of it becomes one that holds on another machine.

The index travels as bytes, one descriptor after the other. What is the daemon's own stays: its caches, and the options
of its processes. An agent has a cache of its own, or none; batches are the same with and without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import OPTIONS
from prefetchd.ipc.reader_messages import OpenDataset
from prefetchd.remote.wire import PIECE_BYTES
from prefetchd.ring.layout import BatchLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What says how the daemon runs, and not what it serves.
_STAYS = (
    "num_workers", "memory_budget", "patience", "consumers", "cache", "cache_size", "keep", "keep_size", "name",
    "python_path", "agents", "ray", "remote_workers", "token_file", "tls_cert", "tls_key", "tls_ca", "store_options",
)  # fmt: skip


def travelling(opened: OpenDataset, fds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """Return the options and the source's handle that travel, and those of `fds` whose bytes do; borrowed."""
    config = without_own(opened.config)
    at = len(fds) - bool(opened.order)
    source, own = _without_caches(opened.source, fds[:at])
    return config, source, [*own, *fds[at:]]


def without_own(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the defaults in place of those that are each machine's own.

    The daemon does not send its own, and an agent takes none from the wire: who has the token could else name a folder
    to write to, or a store that the agent shows its credentials to.
    """
    return {**options, **{name: OPTIONS[name].default for name in _STAYS if name in OPTIONS}}


def _without_caches(handle: Mapping[str, Any], fds: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
    if handle["kind"] == "mix":
        parts, kept, at = [], [], 0
        for part, n_fds in handle["parts"]:
            own, own_fds = _without_caches(part, fds[at : at + n_fds])
            parts.append([own, len(own_fds)])
            kept += own_fds
            at += n_fds
        return {**handle, "parts": parts}, [*kept, *fds[at:]]
    if "n_cache_fds" not in handle:
        return {**handle}, [*fds]
    return {**handle, "cache": None, "n_cache_fds": 0}, [*fds[: len(fds) - handle["n_cache_fds"]]]


def pieces(fd: int, n_bytes: int) -> Iterator[bytes]:
    """Yield the first `n_bytes` behind a descriptor, some at a time.

    Raises:
        OSError: if they cannot be read, or there are fewer.
    """
    at = 0
    while at < n_bytes:
        piece = os.pread(fd, min(PIECE_BYTES, n_bytes - at), at)
        if not piece:
            raise OSError(f"it has {at} bytes, and {n_bytes} were announced")
        yield piece
        at += len(piece)


def chunk_layout(layout: BatchLayout, chunk_rows: int) -> BatchLayout:
    """Return the layout of a chunk of a batch, as an agent's readers fill it."""
    return BatchLayout(min(layout.batch_size, chunk_rows), layout.fields, layout.sources)


def part_bytes(layout: BatchLayout) -> list[int]:
    """Return the bytes of a row in each part of a frame's body: the fields in turn, then the sample ids."""
    return [*(field.row_bytes for field in layout.fields), 8]


def bytes_of(array: NDArray[Any]) -> memoryview:
    """Return the bytes of a C-contiguous array, without a copy."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type, unused-ignore]  # before 3.12 there is no Buffer
