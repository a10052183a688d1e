"""Durations are counted as Prometheus wants them: cumulatively, a bound included."""

from __future__ import annotations

from prefetchd.daemon.readers.batch_builder import Histogram


def test_each_bound_counts_all_that_were_not_longer():
    histogram = Histogram((0.1, 1.0))
    for duration_s, times in ((0.05, 3), (0.1, 1), (0.5, 2), (7.0, 1)):
        histogram.observe(duration_s, times)
    report = histogram.report()
    assert report["at_most"] == [[0.1, 4], [1.0, 6]]
    assert report["count"] == 7
    assert abs(report["sum_s"] - (0.15 + 0.1 + 1.0 + 7.0)) < 1e-9


def test_nothing_yet_is_all_zeros():
    assert Histogram((1.0,)).report() == {"count": 0, "sum_s": 0.0, "at_most": [[1.0, 0]]}
