"""`iter(loader)`: a generator of batches that says why it ended, where a bare one would be silent or cryptic.

`BaseLoader` is what the loaders of arrays and of tensors have alike. A loader has one iteration at a time. A newer one,
or `load_state_dict`, ends the one before; that one raises when it is asked again, since a loop that ends early without
a word looks like a whole epoch. Two threads that ask one iteration at the same moment get an error of ours.
"""

from __future__ import annotations

import contextlib
import weakref
from abc import abstractmethod
from collections.abc import Generator
from types import GeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar

from prefetchd.errors import PrefetchdError

if TYPE_CHECKING:
    from prefetchd.client.connection import Connection
    from prefetchd.ring.layout import BatchLayout

T = TypeVar("T")


class PassEnded(PrefetchdError):
    """The pass that a group shares is over; the loader ends its loop."""


def superseded() -> PrefetchdError:
    """Return the error of a loop that another one has ended."""
    return PrefetchdError(
        "cannot go on with this loop: a newer iter() of the same loader, or load_state_dict(), has ended it; make a "
        "loader for each loop or thread; loader.peek() and loader.batch_at() give a batch and leave the loop alone"
    )


class Iteration(Generator[T, None, None]):
    """One iteration of a loader, over the generator that makes its batches."""

    __slots__ = ("__weakref__", "_advance", "_batches", "_superseded")

    def __init__(self, batches: Generator[T, None, None]) -> None:
        self._batches = batches
        self._advance = batches.__next__  # bound once: after a pause nothing that `next` looks up is in a cache
        self._superseded = False

    # Keras takes an endless stream of batches only from what is an instance of Python's own generator class, which
    # cannot be derived from.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return GeneratorType

    def __next__(self) -> T:
        """Return the next batch.

        Raises:
            PrefetchdError: if a newer iteration has ended this one, if another thread is asking it at this moment, or
                as the loader's daemon has it.
        """
        try:
            return self._advance()
        except StopIteration:
            if self._superseded:
                raise superseded() from None
            raise
        except ValueError:
            self._refuse_second_thread()
            raise

    def send(self, value: None) -> T:
        """Return the next batch, as `next` does; a value goes nowhere."""
        del value
        return self.__next__()

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> NoReturn:
        """Raise an exception where the iteration is, which ends it."""
        self._batches.throw(*((typ,) if val is None and tb is None else (typ, val, tb)))
        raise RuntimeError("the iteration ignored an exception")

    def close(self) -> None:
        """End the iteration; what was granted ahead goes back to the ring."""
        try:
            self._batches.close()
        except ValueError:
            self._refuse_second_thread()
            raise

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._batches.gi_frame is None  # type: ignore[attr-defined]

    def supersede(self) -> None:
        """End the iteration, which raises if it is asked again. One that waits in another thread ends by itself."""
        if not self.ended:
            self._superseded = True
            with contextlib.suppress(ValueError):  # it is running in another thread
                self._batches.close()

    def _refuse_second_thread(self) -> None:
        if self._batches.gi_running:  # type: ignore[attr-defined]
            raise PrefetchdError(
                "cannot take a batch: another thread is taking one from the same iterator at this moment; give each "
                "thread a loader of its own, or hold a lock around next()"
            ) from None


class BaseLoader(Generic[T]):
    """The facts of the data that a loader serves, and the one iteration of it that runs."""

    _current: weakref.ref[Iteration[T]] | None = None

    @property
    @abstractmethod
    def _connection(self) -> Connection:
        """The connection to the daemon that serves the loader now."""

    @property
    def n_samples(self) -> int:
        """Samples in the data set."""
        return self._connection.info.n_samples

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by number, where the manifest's labels were text; else `None`."""
        return self._connection.classes

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources by their number in `batch.source`, with the option `mix`; empty without it."""
        return tuple(name for name, _ in self._connection.layout.sources)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the daemon that serves this loader, by option name."""
        return dict(self._connection.info.config)

    @property
    def layout(self) -> BatchLayout:
        """The layout of a batch: `batch_size`, and `fields`, each with `name`, `shape` (of one sample) and `dtype`.

        With buckets it is the one that takes the most bytes; see `layouts`.
        """
        return self._connection.layout

    @property
    def layouts(self) -> tuple[BatchLayout, ...]:
        """The layout of the batches of each bucket, in the order in which the option names them; one without them."""
        return self._connection.layouts

    @property
    def _running(self) -> Iteration[T] | None:
        iteration = self._current() if self._current is not None else None
        return iteration if iteration is not None and not iteration.ended else None

    def _begin(self, batches: Generator[T, None, None]) -> Iteration[T]:
        iteration = Iteration(batches)
        self._current = weakref.ref(iteration)
        return iteration

    def close(self) -> None:
        """End the loader, and with it a private daemon. What was delivered stays valid.

        Another thread that waits for a batch of it gets a `PrefetchdError` that says so.
        """
        running = self._running
        if running is not None:
            with contextlib.suppress(PrefetchdError):  # another thread waits in it, which the daemon's end wakes
                running.close()
        self._end_session()

    @abstractmethod
    def _end_session(self) -> None:
        """End the connection, and with it a private daemon."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
