"""Keras 3: a loader as a `keras.utils.PyDataset`, for `fit`, `evaluate` and `predict` with any backend.

    import prefetchd.keras

    train = prefetchd.keras.dataset("train.txt", batch_size=64, shuffle=True, dtype="float32", scale=1 / 255)
    model.fit(train, epochs=10)

A plain loader works too, as the endless generator that Keras' users know:

    loader = prefetchd.batches("train.txt", epochs=None, on_hold="copy")
    model.fit(iter(loader), steps_per_epoch=len(loader), epochs=10)

Keras keeps the first two batches of a generator for the whole `fit`; `on_hold="copy"` sees to it that these do not
occupy two slots of the ring. When a daemon dies, `fit` ends with `DaemonLost`, or waits with `reconnect=True`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

try:
    import keras
except ImportError as error:
    raise ImportError(
        f"cannot import prefetchd.keras: Keras cannot be imported ({error}); pip install 'prefetchd[keras]', and a "
        "backend such as 'prefetchd[torch]'"
    ) from error

from prefetchd.client.api import batches

if TYPE_CHECKING:
    from typing import Unpack

    from prefetchd.batch_options import BatchOptions
    from prefetchd.client.batch import Batch
    from prefetchd.client.loader import Loader

__all__ = ["Dataset", "dataset"]


def dataset(source: str | bytes | os.PathLike[str] | None = None, **options: Unpack[BatchOptions]) -> Dataset:
    """Return a loader as a `keras.utils.PyDataset`. It takes every option of `prefetchd.batches`.

    Without `on_hold`, batches that Keras keeps are copied rather than waited for (`on_hold="copy"`).

    Raises:
        PrefetchdError: as `prefetchd.batches`.
    """
    if "on_hold" not in options:
        options["on_hold"] = "copy"
    options["epochs"] = 1
    return Dataset(batches(source, **options))


class Dataset(keras.utils.PyDataset):
    """A loader as Keras wants it: a length, and a batch whenever it asks for one.

    Keras asks by number, and shuffles the numbers unless told `shuffle=False`. What it gets are the loader's batches in
    the loader's order, whose own `shuffle` mixes samples and not just batches; that Keras shuffles changes nothing.
    Every pass of Keras is the next epoch of the loader. The look that it takes at a model's first batch to build it is
    such a pass, and uses up an epoch's number and nothing else.

    Attributes:
        loader: what the batches come from; close it, or this, or drop both.
    """

    def __init__(self, loader: Loader) -> None:
        # One worker without processes: the batches are made in parallel already.
        super().__init__(workers=1, use_multiprocessing=False)
        self.loader = loader
        self._pass: Generator[Batch, None, None] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.loader)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return the next batch `x, y` of the pass, whatever its number in Keras' count."""
        del index
        with self._lock:
            batch = next(self._pass, None) if self._pass is not None else None
            if batch is None:
                self._pass = iter(self.loader)
                batch = next(self._pass)
        return batch.x, batch.y

    def on_epoch_begin(self) -> None:
        """Called by Keras: what it asks for from here on is the next epoch, from its start."""
        self._pass = None

    def on_epoch_end(self) -> None:
        """Called by Keras: the pass is over, however far it went."""
        self._pass = None

    def close(self) -> None:
        """Close the loader."""
        self._pass = None
        self.loader.close()
