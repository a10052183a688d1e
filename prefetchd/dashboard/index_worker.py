"""The dashboard's second process: it opens data sets as a daemon does, and says where samples come from.

    the dashboard --(length, MessagePack)--> stdin ... stdout --(length, MessagePack)--> the dashboard

A data set's index, a search through it, and a decoder that a bad sample may crash stay out of the process that answers
browsers. It decodes nothing but thumbnails, and never fills a batch. It ends with its parent.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from prefetchd.dashboard.frames import read_frame, write_frame
from prefetchd.dashboard.opened import Opened
from prefetchd.errors import ConfigError, PrefetchdError, one_line

_MOST_OPEN = 4
_MEMORY_BYTES = 8 << 30  # of private memory: a thumbnail, or a wrong header, must not take the machine's


class Worker:
    """Answers requests, one after another."""

    def __init__(self) -> None:
        self._opened: dict[str, Opened] = {}

    @property
    def is_full(self) -> bool:
        """Whether it has opened so many data sets that another worker is to take over, with none."""
        return len(self._opened) > _MOST_OPEN

    def answer(self, request: dict[str, Any]) -> Any:
        """Return the answer to a request: `what`, the data set's `key` and `open`, and the arguments of `what`."""
        what = request["what"]
        ask: Callable[..., Any] | None = getattr(self, f"_{what}", None) if what in _WHAT else None
        if ask is None:
            raise ConfigError(f"cannot answer {what!r}")
        return ask(self._find(request), **request["arguments"])

    def _find(self, request: dict[str, Any]) -> Opened:
        key = request["key"]
        if key not in self._opened:
            self._opened[key] = Opened.open(**request["open"])
        return self._opened[key]

    def _names(self, opened: Opened) -> Any:
        return {name: list(classes) for name, classes in opened.class_names.items()}

    def _where(self, opened: Opened, sample_ids: Sequence[int]) -> Any:
        return [opened.where(sample_id) for sample_id in sample_ids]

    def _search(self, opened: Opened, text: str, most: int, seconds: float) -> Any:
        return opened.search(text, most, time.monotonic() + seconds)

    def _places(self, opened: Opened, sample_id: int, epochs: Sequence[int], most: int, seconds: float) -> Any:
        return opened.places(sample_id, epochs, most, time.monotonic() + seconds)

    def _balance(self, opened: Opened, most: int) -> Any:
        return opened.balance(most)

    def _thumbnail(self, opened: Opened, sample_id: int, most_px: int) -> Any:
        return opened.thumbnail(sample_id, most_px)


_WHAT = frozenset({"names", "where", "search", "places", "balance", "thumbnail"})


def _end_with(parent_pid: int) -> None:
    """End this process when its parent has ended, also in the middle of its work."""
    try:
        select.select([os.pidfd_open(parent_pid)], [], [])
    except OSError:  # it has ended already
        pass
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    """Answer until the parent closes the pipe."""
    # Not by a signal of the kernel's: that comes with the end of the thread that has started this process.
    threading.Thread(target=_end_with, args=(int(arguments[0]),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    # Libraries may print, and what they print must not get into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker = Worker()
    while (data := read_frame(0)) is not None:
        try:
            answer: dict[str, Any] = {"answer": worker.answer(msgspec.msgpack.decode(data))}
        except PrefetchdError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": "cannot look into the data set: memory is short; close other programs"}
        except Exception as error:  # what a library makes of a file that nobody has foreseen: the next question goes on
            answer = {"error": f"cannot look into the data set: {type(error).__name__}: {one_line(str(error))[:400]}"}
        answer["ends"] = worker.is_full
        write_frame(answers, msgspec.msgpack.encode(answer))
    return 0
