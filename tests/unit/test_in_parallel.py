"""A function over many items at once, where the process may have few threads."""

from __future__ import annotations

import threading

import pytest

from prefetchd.data.in_parallel import in_parallel


@pytest.mark.parametrize("most", [0, 1, 3, 1000])
def test_results_come_in_order_however_many_threads_there_may_be(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if len(started) >= most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert list(in_parallel(str, range(200))) == [str(number) for number in range(200)]
    for thread in started:
        thread.join(10)
    assert bool(started) == bool(most)
    assert not any(thread.is_alive() for thread in started)
