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
import sys
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
    from prefetchd.client.meter import LoaderStats

__all__ = ["Dataset", "dataset"]

_N_LOOKED_AT = 2  # by the TensorFlow backend, which takes the shapes of batches from them


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
    next epoch of the loader. Keras also takes the first batches of a pass to build a model; the next pass gives them
    again.

    A pass has as many batches as an epoch, always. One that goes on within an epoch, from a state, takes what is left
    of it and then the front of the next one, and the passes after it go on from there: nothing is lost or given twice.

    Attributes:
        loader: the source of the batches; close it, or this, or drop both.
    """

    def __init__(self, loader: Loader, x: str | Sequence[str] | None = None, y: str | Sequence[str] | None = None):
        """Wrap a loader; `x` and `y` are as for `dataset`."""
        # One worker without processes: the batches are made in parallel already.
        super().__init__(workers=1, use_multiprocessing=False)
        self.loader = loader
        self._pass: Generator[Batch, None, None] | None = None
        self._start = loader.next.position  # of the pass
        self._n_taken = 0  # batches of it
        self._has_begun = False  # by `on_epoch_begin`; else Keras only looks, at one batch or more
        self._lock = threading.Lock()
        names = tuple(dict.fromkeys(each.name.partition(".")[0] for each in loader.layout.fields))
        self._x, self._y = (_chosen(what, given, names) for what, given in (("x", x), ("y", y)))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.loader)

    def __repr__(self) -> str:
        return f"<prefetchd.keras.Dataset of {self.loader!r}>"

    def _repr_html_(self) -> str:
        """Return the loader's facts as a table, and pictures of the next batch; `fit` stays undisturbed."""
        return self.loader._repr_html_()

    def stats(self) -> LoaderStats:
        """Return what Keras was given so far, and how long the thread that it reads with waited for it."""
        return self.loader.stats()

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return the next batch `x, y` of the pass; Keras' number for it does not matter."""
        del index
        with self._lock:
            if self._pass is None:
                self._start, self._n_taken = self.loader.next.position, 0
                self._pass = iter(self.loader)
            batch = next(self._pass, None)
            if batch is None:  # the epoch that it went on in is over
                self._pass = iter(self.loader)
                batch = next(self._pass)
            self._n_taken += 1
        return _take(batch, self._x), _take(batch, self._y)

    def on_epoch_begin(self) -> None:
        """Begin the next pass; Keras calls this before it asks for its first batch."""
        self._end_pass(begins=True)
        self._has_begun = True

    def on_epoch_end(self) -> None:
        """End the pass, finished or not; Keras calls this, also where there is none."""
        self._end_pass(begins=_resets())
        self._has_begun = False

    def _end_pass(self, *, begins: bool) -> None:
        with self._lock:
            running, self._pass = self._pass, None
            if running is None or self.loader.next.chosen is not None:
                return
            if self._is_look(begins):
                self.loader.start_at(self._start)
            elif self._start.batch or self._start.row:
                self.loader.start_at(self.loader.position)

    def _is_look(self, begins: bool) -> bool:
        """Return whether Keras took what it took only to build a model; `begins` if it is about to begin."""
        if self._has_begun:  # an epoch may be of one batch, and so may `steps_per_epoch` be
            return begins and self._n_taken == 1
        if self._n_taken < len(self):
            return True
        return begins and keras.backend.backend() == "tensorflow" and self._n_taken == len(self) <= _N_LOOKED_AT

    def close(self) -> None:
        """Close the loader."""
        self._pass = None
        self.loader.close()


def _resets() -> bool:
    """Return whether Keras calls `on_epoch_end` to begin with the data afresh, after a look, and not after an epoch."""
    # Nothing that it passes or sets tells the two apart. Without such a frame the call is taken for an epoch's end.
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name == "on_epoch_end":
        frame = frame.f_back
    return frame.f_code.co_name == "reset" and frame.f_globals["__name__"].startswith("keras.")


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
