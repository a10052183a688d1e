"""The foreman: what readers report of their time decides how large the next tasks are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefetchd import messages
from prefetchd.foreman import Foreman
from prefetchd.slots import Ring, Slot


@pytest.fixture
def foreman() -> Foreman:
    """One of two readers and one data set, in batches of 64."""
    source = SimpleNamespace(n_samples=1000, where=str, max_task_rows=64)
    dataset = SimpleNamespace(config=SimpleNamespace(on_error="raise", batch_size=64), source=source)
    return Foreman(cast(Any, [dataset]), Ring(), cast(Any, SimpleNamespace(n_readers=2)))


def test_waiting_for_reads_makes_tasks_no_shorter(foreman: Foreman) -> None:
    """They would be few samples, and so would those that are read ahead."""
    slot = Slot(1, cast(Any, None), writers={1: 2})
    job = foreman.fillers[0].start(slot, (0, 0, 0), 64, 32)
    job.out, chunk = 2, job.queued.popleft()
    foreman.done(1, chunk, messages.Done(1, [], took_s=32 * 0.021, waited_s=32 * 0.020))
    assert foreman._chunk_rows(0, 64) == 32
    foreman.done(1, chunk, messages.Done(2, [], took_s=32 * 0.021))
    assert foreman._chunk_rows(0, 64) < 10
