"""A loop that stops where another waits for it costs the daemon no processor time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import prefetchd
from tests.process.test_idle import check_idle

N_BATCHES = 4000


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(N_BATCHES * 4, dtype=np.int64).reshape(-1, 1))
    return tmp_path / "x.npy"


def test_daemon_rests_while_a_loop_waits_for_one_that_has_stopped(serve, rows):
    daemon = serve(rows, "--batch-size=4", "--num-workers=1", "--patience=inf", "--memory-budget=256MiB")
    with prefetchd.batches(timeout=60) as slow, prefetchd.batches(timeout=60) as fast:
        stopped, waiting = iter(slow), iter(fast)
        held = [next(stopped) for _ in range(3)]
        seen = []

        def run() -> None:
            seen.extend(batch.index for batch in waiting)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            check_idle(daemon)
            n_before = len(seen)
            assert n_before < N_BATCHES
        finally:
            del held
            rest = [batch.index for batch in stopped]
            thread.join()
    assert rest == list(range(3, N_BATCHES))
    assert seen == list(range(N_BATCHES))
