"""Single batches of running daemons: read by a cursor of their own, one at a time, and a few kept in memory.

A batch is a pure function of its place, so what was read once holds as long as the daemon serves the same: the daemon's
digests are part of the key. The lock makes one dashboard take one slot of a daemon at most.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from prefetchd.client.single import Served, ask_served, read_single
from prefetchd.config.validate import make_config
from prefetchd.dashboard.samples import ClassNames, Samples
from prefetchd.errors import PrefetchdError, RingExhausted

_MOST_BYTES = 256 << 20
_MOST_BATCHES = 16
_WAIT_S = 60.0
_NAME = "dashboard"

Daemon = str | int


class Batches:
    """Reads batches, and keeps the latest ones, `most_bytes` of them or one."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._kept: OrderedDict[tuple[object, ...], Samples] = OrderedDict()
        self._most_bytes = most_bytes
        self._reading = threading.Lock()
        self._changing = threading.Lock()

    def served(self, daemon: Daemon, dataset: str) -> Served:
        """Return what a daemon says of a data set; raises as `read_single`."""
        return ask_served(daemon, dataset or None, name=_NAME)

    def get(
        self, daemon: Daemon, dataset: str, served: Served, epoch: int, index: int, names: ClassNames | None = None
    ) -> Samples:
        """Return a batch.

        Args:
            daemon: the daemon's name or pid.
            dataset: its data set; empty for one without a name.
            served: what the daemon said of it a moment ago.
            epoch: number of the epoch.
            index: number of the batch.
            names: with the option `fields`, the names of each label's classes.

        Raises:
            PrefetchdError: if it cannot be read, in words for people.
        """
        info = served.info
        place = (info.config_digest, info.manifest_digest, info.config["batch_size"], epoch, index)
        key: tuple[object, ...] = (daemon, dataset, *place)
        if (found := self._find(key)) is not None:
            return found
        if not self._reading.acquire(timeout=_WAIT_S):
            raise PrefetchdError(
                f"cannot show the batch: the dashboard has been reading another one for {_WAIT_S:g} s; the daemon is "
                "busy: try again"
            )
        try:
            if (found := self._find(key)) is None:
                found = self._read(daemon, dataset, epoch, index, names or {})
                self._keep(key, found)
            return found
        finally:
            self._reading.release()

    def _read(self, daemon: Daemon, dataset: str, epoch: int, index: int, names: ClassNames) -> Samples:
        try:
            batch, served = read_single(daemon, dataset or None, epoch, index, name=_NAME)
        except RingExhausted as error:
            raise PrefetchdError(
                f"cannot show the batch: running loops hold every slot of the ring, and the dashboard takes none from "
                f"them ({error}); give the daemon more memory, such as: prefetchd set memory-budget=2GiB"
            ) from None
        config = make_config(**served.info.config)
        return Samples(batch, config, served.classes, names, is_images="decoder" in served.info.versions)

    def held(self, number: int) -> Samples | None:
        """Return the batch of that number (`Samples.number`), if it is still in memory."""
        with self._changing:
            return next((each for each in self._kept.values() if each.number == number), None)

    def _find(self, key: tuple[object, ...]) -> Samples | None:
        with self._changing:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: tuple[object, ...], samples: Samples) -> None:
        with self._changing:
            self._kept[key] = samples
            while len(self._kept) > 1 and (
                len(self._kept) > _MOST_BATCHES
                or sum(each.batch.root.nbytes for each in self._kept.values()) > self._most_bytes
            ):
                self._kept.popitem(last=False)
