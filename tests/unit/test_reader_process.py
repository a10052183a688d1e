"""How many rows of a task a reader fills before it looks at its memory and its socket again."""

from __future__ import annotations

import faulthandler
import signal
import socket
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefetchd.ipc.reader_messages import Fault, Fill
from prefetchd.reader import process
from prefetchd.ring.layout import BatchLayout, xy_fields
from prefetchd.sampling.order import Order

N_ROWS = 64
LAYOUT = BatchLayout(N_ROWS, xy_fields(((4,), "uint8"), ((), "int64")))


class CountedSource:
    """A source whose rows take `row_s` each by its own clock; remembers how many it was given at a time."""

    waited_s = 0.0

    def __init__(self, row_s: float = 0.0, read_s: float = 0.0) -> None:
        self.row_s = row_s
        self.read_s = read_s
        self.parts: list[int] = []
        self.now_s = 1.0

    def fill(self, epoch: int, sample_ids: Any, rows: Sequence[int], arrays: Any, reserve: Any) -> list[Fault]:
        self.parts.append(len(sample_ids))
        self.now_s += self.row_s * len(sample_ids)
        arrays[1][rows[0] : rows[0] + len(rows)] = sample_ids
        return [Fault(row, row, "", "bad", True, False, detail="where") for row in rows]

    def expect(self, sample_ids: Any) -> None:
        """Do nothing."""


@pytest.fixture
def reader() -> Iterator[process.Reader]:
    daemon_end, reader_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with daemon_end, reader_end:
        made = process.Reader(reader_end)
        made._memory = SimpleNamespace(outgrown=False)  # type: ignore[assignment]
        made._slots[0] = None, np.zeros(LAYOUT.slot_bytes, np.uint8)  # type: ignore[assignment]
        yield made
    faulthandler.unregister(signal.SIGUSR1)


def parts(reader: process.Reader, source: Any, monkeypatch: pytest.MonkeyPatch, *, watched: bool = False) -> list[int]:
    """Return the parts in which a task is filled, and make sure that all of it is."""
    monkeypatch.setattr(process, "time", SimpleNamespace(perf_counter=lambda: source.now_s))
    order = Order(N_ROWS, N_ROWS, False, True, 0)
    reader._datasets[0] = process._Dataset(source, order, (LAYOUT,), watched, False, None)
    source.parts.clear()
    done = reader._fill(Fill(0, 0, 0, 0, 0, 0, N_ROWS), np.arange(N_ROWS), range(N_ROWS))
    assert [fault.row for fault in done.faults] == list(range(N_ROWS))
    assert not any(fault.detail for fault in done.faults), "of many rows they would not fit in a message"
    (_, y), _ = reader._views_of(Fill(0, 0, 0, 0, 0, 0, N_ROWS))
    assert y.tolist() == list(range(N_ROWS))
    return list(source.parts)


def test_quick_rows_are_filled_in_growing_parts(reader: process.Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts(reader, CountedSource(), monkeypatch) == [1, 4, 16, 43]
    assert parts(reader, CountedSource(), monkeypatch) == [8, 32, 24]


@pytest.mark.parametrize("source", [CountedSource(row_s=0.0005), CountedSource(read_s=0.01)], ids=["decoded", "far"])
def test_slow_rows_are_filled_few_at_a_time(
    reader: process.Reader, source: CountedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts(reader, CountedSource(), monkeypatch)
    assert parts(reader, source, monkeypatch) == [8] * 8


def test_users_functions_are_given_one_row_at_a_time(reader: process.Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts(reader, CountedSource(), monkeypatch, watched=True) == [1] * N_ROWS
