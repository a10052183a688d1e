"""When each sample is needed next: what `keep` goes by where its folder is full. In readers.

The order of the next epoch is known, so the place of a sample in it is too. Places become times by how fast this
reader's data set went through the order so far. So times of several daemons that share a folder can be compared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from prefetchd.sampling.order import Order

UNKNOWN_S = 3600.0  # the time until the next use, where nothing is known of it
_LEAST_OVERDUE_S, _MOST_OVERDUE_S = 60.0, 86_400.0
_LEAST_S = 1.0  # of going through the order, before its speed is known
_MOST_KNOWN = 1 << 14

Result = TypeVar("Result")


class NextUses:
    """The times of one data set. For one thread.

    Args:
        order: of its samples.
        clock: returns seconds since 1970.
    """

    def __init__(self, order: Order, clock: Callable[[], float] = time.time) -> None:
        self._order = order
        self._clock = clock
        self._began: tuple[float, float] | None = None  # epochs, and when

    def times(self, epoch: int, batch: int, sample_ids: Sequence[int]) -> dict[int, float]:
        """Return when samples of a batch are needed again, in seconds since 1970, by their numbers."""
        now, at = self._clock(), epoch + batch / self._order.batches_per_epoch
        if self._began is None or at < self._began[0]:
            self._began = at, now
        went, took_s = at - self._began[0], now - self._began[1]
        epoch_s = took_s / went if went > 0 and took_s > _LEAST_S else UNKNOWN_S
        _epochs_s[id(self)] = epoch_s
        places = self._order.positions(epoch + 1, np.array(sample_ids, np.int64))
        if places is None:  # each is needed as soon as any other
            return dict.fromkeys(sample_ids, now + epoch_s)
        ahead = epoch + 1 + places / self._order.n_samples - at
        return dict(zip(sample_ids, (now + ahead * epoch_s).tolist(), strict=True))


_epochs_s: dict[int, float] = {}  # how long an epoch of each data set takes


def overdue_s() -> float:
    """Return how long what was not read in its time is waited for: a little more than an epoch, a day at most."""
    longest_s = max(_epochs_s.values(), default=UNKNOWN_S)
    return min(_MOST_OVERDUE_S, max(_LEAST_OVERDUE_S, 1.25 * longest_s))


_known: dict[int, float] = {}  # of samples that are read now or soon
_of_thread = threading.local()


def expect(times: dict[int, float]) -> None:
    """Say when the samples that are read now or soon are needed again, by their numbers."""
    if len(_known) > _MOST_KNOWN:
        _known.clear()
    _known.update(times)


def reading(sample_id: int, read: Callable[..., Result]) -> Callable[..., Result]:
    """Return `read` for any thread, during which `needed_s` tells when this sample is needed again."""
    needed_s = _known.get(sample_id)

    def run(*arguments: object) -> Result:
        _of_thread.needed_s = needed_s
        try:
            return read(*arguments)
        finally:
            _of_thread.needed_s = None

    return run


def needed_s() -> float | None:
    """Return when what this thread reads now is needed again, in seconds since 1970; `None` if that is not known."""
    found: float | None = getattr(_of_thread, "needed_s", None)
    return found
