"""Filling a cache ahead: one epoch of a private daemon, whose batches nobody wants. Used by `commands.cache`.

What was cached before is found and checked and not decoded again, so an interrupted build goes on where it was. What
concerns only later steps (augmentation, users' functions, normalisation) is left out: it does not change what is kept.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

from prefetchd.client.loader import Loader
from prefetchd.client.session import Endpoint
from prefetchd.config.options import Config
from prefetchd.config.units import parse_bytes
from prefetchd.data.cache.keys import check_cache
from prefetchd.errors import ConfigError

_BATCH = 64
_LOOK_S = 1.0
_TELL_S = 0.2  # on a terminal
_TELL_SLOWLY_S = 10.0  # in a log
_BAR_CHARACTERS = 24


def build(name: str, config: Config) -> int:
    """Fill the cache that `config` names; return the exit status: 1 if not all samples could be kept.

    Raises:
        PrefetchdError: if the pipeline cannot be cached, or the source cannot be served.
    """
    if config.cache is None:
        which = f" for the data set {name!r}" if name else ""
        raise ConfigError(f"cannot build a cache{which}: none is named; give --cache DIR")
    check_cache(config)
    ahead = dataclasses.replace(
        config,
        batch_size=_BATCH,
        dtype="uint8",
        scale=None,
        mean=None,
        std=None,
        layout="nhwc",
        augment=(),
        transform=None,
        target_transform=None,
        shuffle=False,
        drop_last=False,
        on_error="skip",
    )
    endpoint = Endpoint(
        config=ahead,
        daemon="",
        dataset=None,
        expected={},
        timeout_s=60.0,
        guaranteed_slots=2,
        writable=False,
        hold_timeout_s=10.0,
    )
    loader = Loader(endpoint, rank=0, world_size=1, epochs=1, copy_when_held=False, reconnect=False)
    with loader:
        progress = Progress(name, loader.n_samples)
        looked_s = time.monotonic()
        good = 0
        for batch in loader:
            good += len(batch.x)
            progress.tell(min(loader.n_samples, (batch.index + 1) * _BATCH))
            if time.monotonic() - looked_s > _LOOK_S:
                looked_s = time.monotonic()
                if not _has_room(ahead):
                    break
        cache = loader.status()["datasets"][0]["cache"]
        bad = loader.n_samples - good
        left = f"; {bad} bad samples were left out" if bad and progress.is_done else ""
        is_done = progress.is_done and not cache["stopped"]
        done = "done" if is_done else f"not all are kept, {cache['stopped'] or 'there is no room for more'}"
        progress.end(f"{cache['rows_written']} rows written: {done}{left}")
        return 0 if is_done else 1


def _has_room(config: Config) -> bool:
    """Whether another row may be written, as far as can be told from outside."""
    from prefetchd.data.cache.size_limit import Room

    assert config.cache is not None
    cache = Path(config.cache).expanduser().absolute()
    height, width = config.cache_image_size or config.image_size
    row_bytes = height * width * config.channels
    limit_bytes = None if config.cache_size == "auto" else parse_bytes(config.cache_size)
    try:
        disk = os.statvfs(cache)
        return disk.f_bavail * disk.f_frsize > row_bytes and Room(cache, limit_bytes).take(row_bytes)
    except OSError:  # it was removed, or its disk is gone
        return False


class Progress:
    """A bar with rate and remaining time on a terminal's standard error; in a log, a line now and then."""

    def __init__(self, name: str, total: int) -> None:
        self._name = f"{name}: " if name else ""
        self._total = total
        self._begun_s = self._told_s = time.monotonic()
        self._done = 0
        self._on_terminal = sys.stderr.isatty()

    @property
    def is_done(self) -> bool:
        """Whether all are done."""
        return self._done == self._total

    def tell(self, done: int) -> None:
        """Show that `done` samples are done, if it is time to."""
        self._done = done
        now_s = time.monotonic()
        if now_s - self._told_s >= (_TELL_S if self._on_terminal else _TELL_SLOWLY_S):
            self._told_s = now_s
            self._show(f"{self._rate():.0f} samples/s, {_duration((self._total - done) / self._rate())} left")

    def end(self, what: str) -> None:
        """Show the last state and what it ended as."""
        took_s = time.monotonic() - self._begun_s
        self._show(f"{self._rate():.0f} samples/s, {_duration(took_s)}: {what}")
        if self._on_terminal:
            print(file=sys.stderr)

    def _rate(self) -> float:
        return max(self._done, 1) / max(time.monotonic() - self._begun_s, 1e-6)

    def _show(self, more: str) -> None:
        counts = f"{self._name}{self._done} of {self._total} samples, {more}"
        if not self._on_terminal:
            print(counts, file=sys.stderr)
            return
        full = _BAR_CHARACTERS * self._done // self._total
        print(f"\r\033[K[{'#' * full}{'.' * (_BAR_CHARACTERS - full)}] {counts}", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """`42 s`, `3:05` or `2:03:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes = f"{rest // 60:02d}" if hours else str(rest // 60)
    return f"{f'{hours}:' if hours else ''}{minutes}:{rest % 60:02d}"
