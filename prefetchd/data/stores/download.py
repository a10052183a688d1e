"""A whole object, such as a list, into memory. In the daemon, at open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prefetchd.data.faults import EnvironmentFault, SampleFault
from prefetchd.data.files import write_all
from prefetchd.data.stores.client import get, with_retries
from prefetchd.data.stores.faults import refusal
from prefetchd.data.stores.urls import shown
from prefetchd.ipc.descriptors import memfd, seal

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES = 4 << 20


def download(url: str) -> int:
    """Return the descriptor, the caller's, of a sealed memfd with the content of the object at `url`.

    Raises:
        ManifestError: if it cannot be read.
    """
    fd = memfd("prefetchd-object")

    def attempt() -> None:
        found = get(url)
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        pieces: Iterator[memoryview] = map(memoryview, found.stream(min_chunk_size=_PIECE_BYTES))
        for piece in pieces:
            write_all(fd, piece)
        n_bytes = os.fstat(fd).st_size
        if n_bytes != found.meta["size"]:
            raise EnvironmentFault(f"the store gave {n_bytes} of {found.meta['size']} bytes")

    try:
        with_retries(url, attempt)
        os.lseek(fd, 0, os.SEEK_SET)
        seal(fd)
    except SampleFault as fault:
        os.close(fd)
        raise refusal("open", shown(url), fault) from None
    except BaseException:
        os.close(fd)
        raise
    return fd
