"""Measure one private daemon: images a second, time to the first batch, footprint, and how busy its readers are.

`tune` and `bench` call it. The loop takes each batch and drops it, so it measures the loader without a trainer. The
daemon ends with the measurement, also when that fails.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from prefetchd.cli.measure.rates import rates
from prefetchd.client.loader import Loader
from prefetchd.client.session import Endpoint
from prefetchd.config.options import Config

_WARM_UP_S = 0.3
_PART_S = 0.4
_STEADY = 0.04  # relative difference of two parts that ends a measurement early


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement.

    Attributes:
        n_readers: reader processes.
        n_slots: batch buffers.
        budget_bytes: the budget in force.
        images_per_s: samples delivered a second.
        footprint_bytes: the most memory that was in use.
        first_batch_s: from asking for the loader to its first batch.
        readers_busy: the share of the time that the readers were at work.
        on_cpu: of that time, the share on a processor; for the rest they waited for files or for a processor.
        loader_bound: the share of the time that the loop waited for a batch.
        bad_samples: how many bad samples were met.
    """

    n_readers: int
    n_slots: int
    budget_bytes: int
    images_per_s: float
    footprint_bytes: int
    first_batch_s: float
    readers_busy: float
    on_cpu: float
    loader_bound: float
    bad_samples: int


def open_loader(config: Config) -> Loader:
    """Return an endless loader over a private daemon that serves `config`, skipping bad samples."""
    if config.on_error == "raise":
        config = dataclasses.replace(config, on_error="skip")
    return Loader(Endpoint(config), epochs=None)


def measure(
    config: Config, seconds: float, on_progress: Callable[[], None] = lambda: None, step_s: float = 0.0
) -> Measured:
    """Run a private daemon with `config` for up to `seconds`, and return the figures.

    It ends early once the rate is steady. The loop sleeps `step_s` at each batch, if it is not 0.

    Raises:
        PrefetchdError: if it cannot be served, or a batch cannot be made.
    """
    started_s = time.perf_counter()
    with open_loader(config) as loader:
        batches = iter(loader)
        next(batches)
        first_batch_s = time.perf_counter() - started_s
        warm_s = time.perf_counter() + _WARM_UP_S
        while time.perf_counter() < warm_s:
            next(batches)
        before, cpu_before_s = loader.status(), _cpu_s(loader)
        begun_s = part_s = time.perf_counter()
        n_samples = n_part = 0
        part_rates: list[float] = []
        while True:
            n_rows = len(next(batches)[1])
            n_samples, n_part = n_samples + n_rows, n_part + n_rows
            if step_s:
                time.sleep(step_s)
            now_s = time.perf_counter()
            if now_s - part_s >= _PART_S:
                part_rates.append(n_part / (now_s - part_s))
                part_s, n_part = now_s, 0
                on_progress()
                if now_s - begun_s >= seconds or _is_steady(part_rates):
                    break
        after, cpu_after_s = loader.status(), _cpu_s(loader)
        batches.close()
    found = rates(before, after)
    elapsed_s = now_s - begun_s
    worked_s = sum(reader["busy_s"] for reader in after["readers"]) - sum(
        reader["busy_s"] for reader in before["readers"]
    )
    return Measured(
        n_readers=len(after["readers"]),
        n_slots=after["ring"]["slots"],
        budget_bytes=after["memory"]["budget_bytes"],
        images_per_s=n_samples / elapsed_s,
        footprint_bytes=after["memory"]["max_footprint_bytes"],
        first_batch_s=first_batch_s,
        readers_busy=found.readers_busy or 0.0,
        on_cpu=min(1.0, (cpu_after_s - cpu_before_s) / worked_s) if worked_s > 0 else 1.0,
        loader_bound=found.loader_bound or 0.0,
        bad_samples=after["bad_samples"],
    )


def _is_steady(part_rates: list[float]) -> bool:
    """Return whether the last three parts have about the same rate."""
    last = part_rates[-3:]
    return len(last) == 3 and max(last) - min(last) <= _STEADY * max(last)


def _cpu_s(loader: Loader) -> float:
    """Return the processor time in seconds that the daemon's readers have used."""
    total_s = 0.0
    for reader in loader.status()["readers"]:
        try:
            times: Any = psutil.Process(reader["pid"]).cpu_times()
            total_s += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total_s
