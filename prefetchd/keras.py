"""Keras 3: a loader as a `keras.utils.PyDataset`, for `fit`, `evaluate` and `predict` with any backend.

    import prefetchd.keras

    train = prefetchd.keras.dataset("train.txt", batch_size=64, shuffle=True, dtype="float32", scale=1 / 255)
    model.fit(train, epochs=10)

A plain loader works too, as the endless generator that Keras' users know:

    loader = prefetchd.batches("train.txt", epochs=None, on_hold="copy")
    model.fit(iter(loader), steps_per_epoch=len(loader), epochs=10)

Keras keeps the first two batches of a generator for the whole `fit`; with `on_hold="copy"` they occupy no slots of the
ring. When a daemon dies, `fit` ends with `DaemonLost`, or waits with `reconnect=True`. `train.loader.peek()` and
`train.loader.batch_at(epoch, index)` give single batches, and leave `fit` undisturbed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

try:
    import keras
except ImportError as error:
    raise ImportError(
        f"cannot import prefetchd.keras: Keras cannot be imported ({error}); pip install 'prefetchd[keras]', and a "
        "backend such as 'prefetchd[torch]'"
    ) from error

from prefetchd.client.api import batches
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from typing import Unpack

    from prefetchd.batch_options import BatchOptions
    from prefetchd.client.batch import Batch
    from prefetchd.client.loader import Loader

__all__ = ["Dataset", "dataset"]


def dataset(
    source: str | bytes | os.PathLike[str] | Any | None = None,
    *,
    x: str | Sequence[str] | None = None,
    y: str | Sequence[str] | None = None,
    **options: Unpack[BatchOptions],
) -> Dataset:
    """Return a loader as a `keras.utils.PyDataset`. It takes every option of `prefetchd.batches`.

    The default of `on_hold` is `copy` here: batches that Keras keeps are copied.

    Args:
        source: as for `prefetchd.batches`.
        x: with `fields`, the field that the model gets, or several, which it gets as a dictionary by their names.
        y: with `fields`, the field or fields that it is trained on.
        options: every option of `prefetchd.batches`.

    Raises:
        ConfigError: with `fields`, if `x` and `y` do not name any of them.
        PrefetchdError: as `prefetchd.batches`.
    """
    if "on_hold" not in options:
        options["on_hold"] = "copy"
    options["epochs"] = 1
    loader = batches(source, **options)
    try:
        return Dataset(loader, x, y)
    except BaseException:
        loader.close()
        raise


class Dataset(keras.utils.PyDataset):
    """A loader in the form that Keras asks for: a length, and a batch for each number.

    Keras asks by number, and shuffles the numbers without `shuffle=False`. It always gets the loader's batches in the
    loader's order: the loader's own `shuffle` mixes samples, not only batches. Every pass of Keras is the
    next epoch of the loader. Keras also takes the first batch of a pass to build a model; that uses up the number of an
    epoch and nothing else.

    Attributes:
        loader: the source of the batches; close it, or this, or drop both.
    """

    def __init__(self, loader: Loader, x: str | Sequence[str] | None = None, y: str | Sequence[str] | None = None):
        """Wrap a loader; `x` and `y` are as for `dataset`."""
        # One worker without processes: the batches are made in parallel already.
        super().__init__(workers=1, use_multiprocessing=False)
        self.loader = loader
        self._pass: Generator[Batch, None, None] | None = None
        self._lock = threading.Lock()
        names = tuple(dict.fromkeys(each.name.partition(".")[0] for each in loader.layout.fields))
        self._x, self._y = (_chosen(what, given, names) for what, given in (("x", x), ("y", y)))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.loader)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return the next batch `x, y` of the pass; Keras' number for it does not matter."""
        del index
        with self._lock:
            batch = next(self._pass, None) if self._pass is not None else None
            if batch is None:
                self._pass = iter(self.loader)
                batch = next(self._pass)
        return _take(batch, self._x), _take(batch, self._y)

    def on_epoch_begin(self) -> None:
        """Begin the next epoch; Keras calls this before it asks for its first batch."""
        self._pass = None

    def on_epoch_end(self) -> None:
        """End the pass, finished or not; Keras calls this."""
        self._pass = None

    def close(self) -> None:
        """Close the loader."""
        self._pass = None
        self.loader.close()


def _chosen(what: str, given: str | Sequence[str] | None, names: tuple[str, ...]) -> str | tuple[str, ...]:
    """Return the field or fields that are `x` or `y` to Keras."""
    chosen = what if given is None else given if isinstance(given, str) else tuple(given)
    for name in [chosen] if isinstance(chosen, str) else chosen:
        if name not in names:
            raise ConfigError(
                f"cannot give Keras {name!r} as {what}: there are the fields {', '.join(names)}; name one, or several, "
                f"as {what}"
            )
    return chosen


def _take(batch: Batch, names: str | tuple[str, ...]) -> Any:
    return batch[names] if isinstance(names, str) else {name: batch[name] for name in names}
