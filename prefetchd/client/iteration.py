"""`iter(loader)`: a generator of batches that says why it ended, where a bare one would be silent or cryptic.

A loader has one iteration at a time. A newer one, or `load_state_dict`, ends the one before; that one raises when it is
asked again, since a loop that ends early without a word looks like a whole epoch. Two threads that ask one iteration at
the same moment get an error of ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from types import GeneratorType, TracebackType
from typing import Any, NoReturn, TypeVar

from prefetchd.errors import PrefetchdError

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

    __slots__ = ("__weakref__", "_batches", "_superseded")

    def __init__(self, batches: Generator[T, None, None]) -> None:
        self._batches = batches
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
            return next(self._batches)
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
