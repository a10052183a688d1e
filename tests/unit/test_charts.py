"""Charts in text, and progress: widths hold, nothing that is there disappears."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.cli.views.charts import Progress, bar, histogram, short_duration, sparkline, stacked_bar


@given(st.floats(-1, 2), st.integers(1, 60))
def test_bar_has_its_width_whatever_the_share(share, width):
    assert len(bar(share, width)) == width


def test_bar_is_filled_in_eighths():
    assert bar(0.5, 4) == "██  "
    assert bar(0.25 + 1 / 32, 4) == "█▏  "


@given(st.lists(st.integers(0, 10**6), min_size=4, max_size=4), st.integers(4, 80))
def test_stacked_bar_shows_every_part_that_is_not_empty(counts, width):
    drawn = stacked_bar(list(zip("abcd", counts, strict=True)), width)
    assert len(drawn) == width
    assert set(drawn.strip()) == {letter for letter, count in zip("abcd", counts, strict=True) if count}


def test_histogram_shows_a_sliver_of_one_in_a_million():
    lines = histogram([("a", 1), ("b", 0), ("long name", 1_000_000)])
    assert lines[0].endswith("1  ▏")
    assert lines[1].endswith(" 0")
    assert lines[2] == "long name  1,000,000  " + "█" * 30


def test_sparkline_shows_the_latest_against_the_top():
    assert sparkline([9, 0, 5, 10], top=10, width=3) == "▁▅█"


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.24, "4.2 s"), (59.7, "60 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds, said):
    assert short_duration(seconds) == said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_line_with_the_time_left_that_goes_away():
    now = [0.0]
    stream = Terminal()
    with Progress("verifying", stream, clock=lambda: now[0]) as progress:
        progress.update(0, 100)
        assert stream.getvalue() == ""  # too early
        now[0] = 2.0
        progress.update(25, 100, "1 bad")
    assert "25 of 100 (25%), 12/s, 6.0 s left, 1 bad" in stream.getvalue()
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_progress_elsewhere_is_a_plain_line_now_and_then():
    now = [0.0]
    stream = io.StringIO()
    with Progress("verifying", stream, clock=lambda: now[0]) as progress:
        for second in range(25):
            now[0] = float(second)
            progress.update(second, 24)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0] == "prefetchd: verifying: 10 of 24 (42%), 14 s left"
