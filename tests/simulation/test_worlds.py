"""The real daemon and loaders in simulated worlds: all rules hold, a world replays exactly, a failure is made small."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefetchd.client.channel import Channel
from tests.simulation import invariants
from tests.simulation.coverage import Coverage
from tests.simulation.shrink import kind_of, shrink
from tests.simulation.spec import DatasetSpec, LoopSpec, WorldSpec, draw, from_plain, to_plain
from tests.simulation.world import WorldFailed, run_world

N_WORLDS = 300
_AT_ONCE = 25
_ALWAYS = 50  # the others run once in CI
# 5065: readers that hang keep all slots. 5101: the refusal of a loop is received by the thread of the one before it.
# 7187: memory stays free for a large decode that has ended, while loops wait for slots. 7128: a loop starts alone, as
# the ring has no place for the other. 5091, 5109, 5149: what earlier worlds left closed descriptors of theirs.
# 7261: the rest of a wait is so short that rounding loses it. 7410: a slot came back and is being filled, and the
# time-out of the loop that waits for it runs on. 7516: a loop that is held back claims the only slot.
# 200220: loops that have stopped keep slots that they were granted ahead, since others had them then. 200371: a loop in
# another thread goes on at the state that the first loop has loaded. 200422: a group waits for a slower loop. 200518: a
# reader hangs in the kernel when the daemon stops, and its fork server is gone. 202251: more batches fail than the
# daemon remembers, and it tries them again without end. 10004: two large samples in the hands of one reader make way
# for each other without end, while another reader waits for memory. 300706: a slot came back and stays free for a
# slower loop, and the time-out of the loop that waits runs on. 500003: loops end leases on slots that others hold, and
# the time-out of one that waits for a slot begins anew each time.
_FOUND = (
    5065, 5091, 5101, 5109, 5149, 7128, 7187, 7261, 7383, 7410,
    7516, 10004, 200220, 200371, 200422, 200518, 202251, 300706, 500003,
)  # fmt: skip


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=() if first < _ALWAYS else pytest.mark.simulated)
        for first in range(0, N_WORLDS, _AT_ONCE)
    ],
)
def test_every_world_keeps_the_rules(first: int) -> None:
    for seed in range(first, first + _AT_ONCE):
        run_world(draw(seed))


@pytest.mark.parametrize("seed", range(400_000, 400_012))
def test_worlds_of_buckets_keep_the_rules(seed: int) -> None:
    """Every batch has the layout of its bucket, whichever process dies."""
    spec = draw(seed)
    datasets = [
        dataclasses.replace(
            each, kind="sequences", bad=tuple((i, what) for i, what in each.bad if what not in ("large", "too large"))
        )
        for each in spec.datasets
    ]
    run_world(dataclasses.replace(spec, datasets=tuple(datasets)))


@pytest.mark.parametrize("seed", _FOUND)
def test_world_that_once_failed_keeps_the_rules(seed: int) -> None:
    run_world(draw(seed))


def test_what_spins_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def poll(channel: Channel, timeout_s: float) -> bool:
        while not channel._readable.wait(0):
            pass
        return True

    monkeypatch.setattr(Channel, "wait", poll)
    with pytest.raises(WorldFailed, match=r"client 0 spins: \d+ calls at 1000\.\d+ s, in loop 0"):
        run_world(WorldSpec(1))


@pytest.mark.parametrize("seed", [3, 17, 29])
def test_world_replays_exactly(seed: int) -> None:
    """In this process and in another, in which text hashes differently."""
    program = (
        "import sys; from tests.simulation import spec, world; print(world.run_world(spec.draw(int(sys.argv[1]))))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1234", "PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.run([sys.executable, "-c", program, str(seed)], capture_output=True, text=True, env=environment)
    assert other.returncode == 0, other.stderr
    outcome = run_world(draw(seed))
    assert outcome == run_world(draw(seed))
    assert f"hash={outcome.hash}, " in other.stdout


def hour_of_training() -> WorldSpec:
    """Four loops over one data set, with a step in five seconds, for an hour."""
    loops = tuple(LoopSpec(process=number, step_s=5.0, epochs=12) for number in range(4))
    datasets = (DatasetSpec(n_samples=240, row_s=0.05),)
    return WorldSpec(1, datasets=datasets, loops=loops, n_slots=12, step_limit=10**6)


def test_hour_of_training_by_four_loops() -> None:
    outcome = run_world(hour_of_training())
    assert outcome.virtual_s > 3600
    assert outcome.batches == 4 * 60 * 12
    assert not outcome.ended


def test_failure_names_its_seed_and_events_and_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound of no time at all, any loop that waits breaks it."""
    monkeypatch.setattr(invariants, "work_bound_s", lambda spec: 0.0)
    spec = dataclasses.replace(draw(2), seed=2)
    with pytest.raises(WorldFailed, match=r"(?s)seed 2: .* has waited .*the last events:\n  1000\.") as raised:
        run_world(spec)
    with pytest.raises(WorldFailed) as again:
        run_world(spec)
    assert again.value.events == raised.value.events
    assert 0 < len(raised.value.events) <= 100
    small = shrink(spec, kind_of(raised.value), most=60)
    assert len(small.loops) == len(small.datasets) == 1
    assert not small.faults
    with pytest.raises(WorldFailed, match="has waited"):
        run_world(small)


@pytest.mark.parametrize("seed", range(20))
def test_world_can_be_written_down(seed: int) -> None:
    assert from_plain(to_plain(draw(seed))) == draw(seed)


def test_world_leaves_the_log_as_it_was() -> None:
    """A logger keeps its answers for a level: later tests of the same process would find no log lines."""
    logger = logging.getLogger("prefetchd")
    logger.setLevel(logging.NOTSET)  # it has answered nothing yet
    run_world(draw(0))
    assert logger.level == logging.NOTSET
    assert logger.isEnabledFor(logging.WARNING)


def test_coverage_counts_what_was_met() -> None:
    coverage = Coverage()
    with coverage.watching():
        coverage.add((), run_world(WorldSpec(1)))
    assert coverage.met["message Attach"] == coverage.met["consumer connected -> idle"] == 1
    assert coverage.met["slot leased"] == 10
    assert "message Ended" in coverage.never_met
    assert "1 worlds" in coverage.report()
