"""A cache as the daemon has it: opened for one data set, reported on, and looked after while there is work.

The daemon reads and writes no rows. It makes the run's state and the table of what is there, and gives both to the
readers. It logs once why filling stopped, and has the kernel drop the cache's pages where memory is short. All that it
holds is unnamed or read-only, so nothing is left when it dies.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

from prefetchd.config.options import Config
from prefetchd.config.units import format_bytes
from prefetchd.data.cache import keys
from prefetchd.data.cache.directory import FULL, describe, open_folder, open_regular, segment_names
from prefetchd.data.cache.keys import check_cache, limit_of
from prefetchd.data.cache.run_state import (
    LIMIT_REACHED,
    MAX_SEGMENTS,
    RunState,
    StateShape,
    build_table,
    is_memory,
    make_state,
)

log = logging.getLogger("prefetchd")


class CacheInDaemon:
    """One data set's cache. Owns its descriptors.

    Args:
        config: names the folder, the limit, and what is cached.
        decoder: the decoder's name and version.
        n_samples, label_shape, label_dtype: of the records.

    Raises:
        ConfigError: if the pipeline cannot be cached.
        CacheError: if the folder cannot be used, or belongs to another user.
    """

    def __init__(
        self, config: Config, decoder: str, n_samples: int, label_shape: tuple[int, ...], label_dtype: str
    ) -> None:
        assert config.cache is not None
        check_cache(config)
        self._cache = Path(config.cache).expanduser().absolute()
        self._limit_bytes = limit_of(config)
        pipeline = keys.pipeline_of(config, decoder)
        self._folder, self._folder_fd = open_folder(self._cache, keys.pipeline_digest(pipeline), pipeline)
        has_shapes = config.cache_image_size is not None or bool(config.bucket_sizes)
        self._shape = StateShape(n_samples, has_shapes, label_shape, label_dtype)
        names = segment_names(self._folder)[:MAX_SEGMENTS]
        self._table_fd, self._n_slots = build_table(self._folder, names, n_samples)
        self._state_fd = make_state(self._folder, self._shape)
        self._state = RunState(os.dup(self._state_fd), self._shape)
        if self._folder_fd is None:
            self._state.stop_filling(errno.ENOSPC)
        self._run = os.urandom(8).hex()
        self._warned = False

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values, and descriptors that stay this object's, from which a reader attaches."""
        facts = {
            "cache": os.fsencode(self._cache),
            "folder": os.fsencode(self._folder),
            "limit_bytes": self._limit_bytes,
            "run": self._run,
            "n_slots": self._n_slots,
            "n_samples": self._shape.n_samples,
            "has_shapes": self._shape.has_shapes,
            "label_shape": list(self._shape.label_shape),
            "label_dtype": self._shape.label_dtype,
        }
        return facts, [self._state_fd, self._table_fd]

    @property
    def shared_bytes(self) -> int:
        """What it holds in memory: nothing, unless the disk had no space for it."""
        fds = (self._state_fd, self._table_fd)
        return sum(os.fstat(fd).st_blocks * 512 for fd in fds if is_memory(fd))

    def report(self) -> dict[str, Any]:
        """Return what `status` shows: this run's counts, and what the folder holds."""
        counts = self._state.counts()
        kept = describe(self._folder)
        return {
            "folder": os.fsencode(self._folder).decode("utf-8", "backslashreplace"),
            "hits": counts.hits,
            "misses": counts.misses,
            "rows_written": counts.rows,
            "bytes_written": counts.n_bytes,
            "rows": kept.rows if kept else 0,
            "bytes": kept.n_bytes if kept else 0,
            "limit_bytes": self._limit_bytes,
            "stopped": self._why_stopped(),
        }

    def tick(self) -> None:
        """Log once that the cache is not filled any more, and why."""
        why = self._why_stopped()
        if why is not None and not self._warned:
            self._warned = True
            log.warning("the cache %s is not filled any further: %s; what is in it is used", self._cache, why)

    def drop_pages(self) -> None:
        """Have the kernel forget the pages of the rows; those that are still to be written to disk stay."""
        for name in segment_names(self._folder):
            try:
                fd = open_regular(self._folder / f"{name}.rows")
            except OSError:
                continue
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Give the descriptors back."""
        self._state.close()
        for fd in (self._state_fd, self._table_fd, self._folder_fd):
            if fd is not None:
                os.close(fd)

    def _why_stopped(self) -> str | None:
        number = self._state.stopped
        if number == LIMIT_REACHED:
            if self._limit_bytes is None:
                return "a twentieth of its disk is kept free; free some space, or give a cache_size"
            return f"its size limit of {format_bytes(self._limit_bytes)} is reached; raise cache_size for more"
        if number in FULL:
            return f"its disk is full ({os.strerror(number)}); free some space, or give a smaller cache_size"
        return f"it cannot be written to ({os.strerror(number)})" if number else None
