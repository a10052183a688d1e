"""Runs of rows of arrays in a store: each is asked for once, ahead of time."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from prefetchd.data.arrays import far_rows
from prefetchd.data.files import FileBuffer
from prefetchd.data.source import ReserveMemory

CONTENT = bytes(range(251)) * 100


def test_empty_rows_are_in_no_run_and_no_byte_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def read(
        url: str, identity: Any, start: int, n_bytes: int, buffer: FileBuffer, reserve: ReserveMemory
    ) -> memoryview:
        asked.append((start, n_bytes))
        if n_bytes > buffer.capacity_bytes:
            reserve(n_bytes)
        view = buffer.view(n_bytes)
        view[:] = CONTENT[start : start + n_bytes]
        return view

    monkeypatch.setattr(far_rows, "read", read)
    offsets = [0, 0, 5000, 10_000, 10_000, 15_000]
    spans = [(0, first, end - first) for first, end in itertools.pairwise(offsets)]

    def span_of_run(first: int, count: int) -> far_rows.Span:
        return 0, offsets[first], offsets[first + count] - offsets[first]

    files: Any = [SimpleNamespace(path="s3://b/k", identity=[len(CONTENT), "tag"])]
    rows = far_rows.FarRows(files, spans.__getitem__, span_of_run)
    for _ in range(2):
        asked.clear()
        rows.expect(range(5))
        found = [bytes(rows.row(row, lambda n_bytes: None)) for row in range(5)]
        assert found == [CONTENT[first : first + n_bytes] for _, first, n_bytes in spans]
        assert sorted(asked) == [(0, 10_000), (10_000, 5000)]
