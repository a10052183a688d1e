"""Consumers of a manager in one process: slots that show what is in them, an event loop turned by hand, loops."""

from __future__ import annotations

import itertools
import os
import select
import struct
from collections.abc import Callable, Iterator

import numpy as np

from prefetchd.client.batch import Batch
from prefetchd.client.connection import Connection
from prefetchd.ipc.descriptors import memfd_of_length
from prefetchd.ring import segment
from prefetchd.ring.layout import BatchLayout, xy_fields
from prefetchd.ring.slots import Key

LAYOUT = BatchLayout(4, xy_fields(((8,), "uint8")))


class Page:
    """A segment of one page."""

    n_bytes = LAYOUT.slot_bytes

    def __init__(self) -> None:
        self.fd = memfd_of_length("test-slot", self.n_bytes)

    def read_only_fd(self) -> int:
        return segment.read_only(self.fd)

    def write(self, key: Key) -> None:
        os.pwrite(self.fd, content_of(key), 0)

    def discard(self) -> None:
        os.pwrite(self.fd, b"\xee" * self.n_bytes, 0)  # what is held by anybody would show it
        self.close()

    def close(self) -> None:
        os.close(self.fd)


def content_of(key: Key) -> bytes:
    whole = struct.pack("<2HI", *key)
    return whole * (LAYOUT.slot_bytes // len(whole))


class Rounds:
    """An event loop that the test turns by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.watched: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def clock(self) -> float:
        return self.now_s

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._timers.append((self.now_s + delay_s, next(self._number), callback))

    def turn(self) -> None:
        for fd in select.select(list(self.watched), [], [], 0)[0]:
            if fd in self.watched:
                self.watched[fd]()
        due = sorted(timer for timer in self._timers if timer[0] <= self.now_s)
        self._timers = [timer for timer in self._timers if timer not in due]
        for _, _, callback in due:
            callback()

    def run_to_the_next_timer(self) -> None:
        self.now_s = max(self.now_s, min((timer[0] for timer in self._timers), default=self.now_s))


class Consumer:
    """A loader's loop: what it must see, what it holds, and whether it still plays by the rules."""

    def __init__(self, connection: Connection, number: int, dataset: int) -> None:
        self.connection = connection
        self.dataset = dataset
        self.number = number  # the daemon's name for it
        self.serial = 0
        self.expected: Iterator[Key] | None = None  # of the loop that runs
        self.held: list[tuple[Batch | np.ndarray, Key]] = []
        self.joins_for = 0  # epochs, until it has its first batch
        self.asked = self.closed = self.hostile = self.cut_off = False
