"""The description of a world: plain values, drawn from a seed. A world can be printed, replayed, and shrunk.

Each world switches a random subset of `FEATURES` on ("swarm testing", Groce et al., ISSTA 2012): worlds with few
features go deep where a world with all of them at once would not get past the first.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tests.simulation.readers import CONTENT

FEATURES = (
    "two data sets", "three data sets", "arrays", "shuffle", "tiny ring", "large ring", "automatic budget",
    "automatic readers", "many readers", "ranks", "groups", "join", "together", "threads", "iterations", "breaks",
    "holds", "copies", "pauses", "rests", "peeks", "resume", "writable", "no patience", "endless patience",
    "bad samples", "raise", "substitute", "crashes", "hangs", "kernel", "io", "late", "large", "too large", "leaks",
    "slow storage", "uneven", "reader deaths", "reader stops", "fork server", "client deaths", "client stops",
    "daemon stops", "daemon deaths", "reconnect", "set", "shortage", "small sockets", "slow wakes", "preempt", "status",
    "superseded", "one iterator",
)  # fmt: skip
# Some end loops before their time, so that worlds with them see less of all the others; some need others to matter.
_HOW_OFTEN = {
    "pauses": 1.8,
    "no patience": 0.5,
    "endless patience": 0.5,
    "shuffle": 1.5,
    "bad samples": 1.5,
    "too large": 0.25,
    "raise": 0.4,
    "daemon deaths": 0.5,
    "together": 0.6,
}
KINDS = {
    "bad samples": ("refused", "missing", "random"),
    "crashes": ("crash",),
    "hangs": ("hang",),
    "kernel": ("kernel",),
    "io": ("io", "io", "io", "io always"),
    "late": ("late",),
    "large": ("large",),
    "too large": ("too large",),
}


@dataclass(frozen=True)
class DatasetSpec:
    """One data set. `bad` gives the kind of each sample that is not ordinary; `row_s` is what a row takes."""

    kind: str = "images"
    n_samples: int = 40
    batch_size: int = 4
    shuffle: bool = False
    drop_last: bool = False
    on_error: str = "raise"
    bad: tuple[tuple[int, str], ...] = ()
    row_s: float = 0.002
    uneven: float = 0.0
    read_s: float = 0.0
    leak_bytes: int = 0


@dataclass(frozen=True)
class LoopSpec:
    """One loader, and what its thread does with it.

    Attributes:
        process: loaders of the same number share a process.
        start_s: when it attaches.
        epochs, iterations: of a `for` loop, and how many of those one after another.
        step_s: what the loop does with each batch.
        hold: how many batches it keeps besides the present one.
        pause_at, pause_s: it pauses at that batch of all, for so long; 0 for never.
        break_at: it leaves each iteration after so many batches; 0 for never.
        resume: after each iteration that it left, it goes on from its state.
        second_at: another thread begins an iteration of the same loader, when the loop waits after that; 0 for never.
        shared_at: another thread asks the same iterator, from that time on; 0 for never.
    """

    process: int = 0
    dataset: int = 0
    start_s: float = 0.0
    rank: int = 0
    world_size: int = 1
    epochs: int = 1
    iterations: int = 1
    step_s: float = 0.01
    hold: int = 0
    pause_at: int = 0
    pause_s: float = 0.0
    rest_s: float = 0.0
    break_at: int = 0
    peek_every: int = 0
    resume: bool = False
    group: str | None = None
    join: bool = False
    start_together: int = 0
    copies: bool = False
    hold_timeout_s: float = 60.0
    timeout_s: float = 60.0
    reconnect: bool = False
    writable: bool = False
    status_every: int = 0
    second_at: float = 0.0
    shared_at: float = 0.0


@dataclass(frozen=True)
class FaultSpec:
    """Something that happens from outside at `at_s`, for `for_s` seconds: see `faults.py`. `target` counts."""

    at_s: float
    what: str
    target: int = 0
    for_s: float = 0.0
    value: str = ""


@dataclass(frozen=True)
class WorldSpec:
    """A world. `seed` also decides everything that is random while it runs."""

    seed: int
    features: tuple[str, ...] = ()
    datasets: tuple[DatasetSpec, ...] = (DatasetSpec(),)
    loops: tuple[LoopSpec, ...] = (LoopSpec(),)
    faults: tuple[FaultSpec, ...] = ()
    n_slots: int = 8
    slot_bytes: int = 300 << 10
    auto_budget: bool = False
    num_workers: int = 2
    n_cores: int = 4
    patience_s: float = 10.0
    reader_timeout_s: float = 60.0
    large_bytes: int = 1 << 20
    kernel_hang_s: float = 30.0
    capacity: int = 200
    wake_s: float = 0.0002
    round_s: float = 0.00003
    preempt: float = 0.0
    step_limit: int = 200_000


def _log(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def draw(seed: int, also: Collection[str] = ()) -> WorldSpec:
    """Return the world of a seed, in which the features `also` are on in any case."""
    # Streams of their own, so that a feature that is added later leaves the others of a world alone.
    rng = random.Random(f"world {seed}")
    share = rng.choice((0.08, 0.2, 0.35, 0.5))
    on = {
        feature
        for feature in FEATURES
        if random.Random(f"{feature} {seed}").random() < share * _HOW_OFTEN.get(feature, 1.0) or feature in also
    }
    if not on & {"daemon deaths"}:
        on.discard("reconnect")
    many = rng.choice((1, 2, 2, 3, 3, 4, 6, 8))
    n_datasets = 3 if "three data sets" in on else 2 if "two data sets" in on else 1
    is_large = "large ring" in on and "tiny ring" not in on
    datasets = tuple(_draw_dataset(random.Random(f"data {number} {seed}"), on) for number in range(n_datasets))
    loops = _draw_loops(random.Random(f"loops {seed}"), on, many, n_datasets)
    n_least = 3 + ((3 if "copies" in on else 2) * len(loops) if rng.random() < 0.9 else 0)
    n_slots = 3 if "tiny ring" in on else rng.randint(16, 90) if is_large else rng.randint(n_least, n_least + 4)
    busy_s = sum(loop.step_s * 20 for loop in loops) + 1
    faults = _draw_faults(random.Random(f"faults {seed}"), on, busy_s)
    patience_s = 0.0 if "no patience" in on else math.inf if "endless patience" in on else _log(rng, 0.2, 30)
    return WorldSpec(
        seed=seed,
        features=tuple(sorted(on)),
        datasets=datasets,
        loops=loops,
        faults=faults,
        n_slots=n_slots,
        slot_bytes=64 << 10 if is_large else 300 << 10,
        auto_budget="automatic budget" in on,
        num_workers=0
        if "automatic readers" in on
        else rng.randint(3, 8)
        if "many readers" in on
        else rng.randint(1, 2),
        n_cores=rng.randint(1, 6),
        patience_s=round(patience_s, 3),
        reader_timeout_s=rng.choice((2.0, 10.0)),
        kernel_hang_s=rng.choice((1.0, 20.0)),
        capacity=rng.randint(3, 12) if "small sockets" in on else 200,
        wake_s=_log(rng, 0.001, 0.05) if "slow wakes" in on else 0.0002,
        preempt=rng.choice((0.05, 0.3)) if "preempt" in on else 0.0,
    )


def _draw_dataset(rng: random.Random, on: set[str]) -> DatasetSpec:
    batch_size = rng.choice((1, 2, 4, 4, 8))
    n_samples = batch_size * rng.choice((rng.randint(2, 8), rng.randint(8, 30))) - (
        rng.randrange(batch_size) if rng.random() < 0.5 else 0
    )
    policy = "raise" if "raise" in on else "substitute" if "substitute" in on else "skip"
    bad: dict[int, str] = {}
    for feature, kinds in KINDS.items():
        if feature in on:
            for _ in range(rng.randint(1, max(1, n_samples // 8))):
                bad[rng.randrange(n_samples)] = rng.choice(kinds)
    row_s = _log(rng, 1e-4, 0.3) if "slow storage" not in on else _log(rng, 0.001, 0.05)
    kind = "arrays" if "arrays" in on and rng.random() < 0.7 else "images"
    if sum(kind in CONTENT for kind in bad.values()) >= n_samples // 2:  # an epoch needs a good sample
        bad = {}
    if kind == "arrays":  # rows of arrays take no working memory
        bad = {sample_id: what for sample_id, what in bad.items() if what not in ("large", "too large")}
    return DatasetSpec(
        kind=kind,
        n_samples=n_samples,
        batch_size=batch_size,
        shuffle="shuffle" in on,
        drop_last=rng.random() < 0.2 and n_samples >= 3 * batch_size,
        on_error=policy,
        bad=tuple(sorted(bad.items())),
        row_s=1e-5 if kind == "arrays" else row_s,
        uneven=rng.choice((0.5, 3.0)) if "uneven" in on else 0.0,
        read_s=_log(rng, 0.001, 0.2) if "slow storage" in on else 0.0,
        leak_bytes=(1 << 20) if "leaks" in on else 0,
    )


def _draw_loops(rng: random.Random, on: set[str], many: int, n_datasets: int) -> tuple[LoopSpec, ...]:
    loops: list[LoopSpec] = []
    step_s = _log(rng, 0.0005, 0.5)
    world_size = rng.randint(2, 3) if "ranks" in on else 1
    for number in range(many):
        dataset = rng.randrange(n_datasets)
        ranked = world_size > 1 and rng.random() < 0.7
        grouped = "groups" in on and not ranked and rng.random() < 0.6
        alone = not ranked and not grouped
        loops.append(
            LoopSpec(
                process=rng.randrange(number + 1) if "threads" in on else number,
                dataset=dataset,
                start_s=rng.choice((0.0, 0.0, rng.uniform(0, 3))),
                rank=rng.randrange(world_size) if ranked else 0,
                world_size=world_size if ranked else 1,
                epochs=rng.choice((1, 1, 2, 3, 6)),
                iterations=rng.randint(2, 4) if "iterations" in on else 1,
                step_s=step_s * rng.choice((1, 1, 1, 0.1, 4)),
                hold=rng.choice((0, 1, 2)) if "holds" in on else 0,
                pause_at=rng.randint(1, 12) if "pauses" in on and rng.random() < 0.5 else 0,
                pause_s=rng.choice((5.0, 60.0, 400.0)),
                rest_s=rng.choice((0.1, 30.0)) if "rests" in on else 0.0,
                break_at=rng.randint(1, 6) if "breaks" in on and rng.random() < 0.6 else 0,
                peek_every=rng.randint(1, 6) if "peeks" in on and not grouped and rng.random() < 0.5 else 0,
                resume="resume" in on and not grouped,
                group="team" if grouped else None,
                join="join" in on and alone and rng.random() < 0.7,
                start_together=min(many, 2) if "together" in on and alone else 0,
                copies="copies" in on and rng.random() < 0.7,
                hold_timeout_s=rng.choice((2.0, 60.0)),
                timeout_s=rng.choice((5.0, 60.0)),
                reconnect="reconnect" in on and alone,
                writable="writable" in on and rng.random() < 0.5,
                status_every=rng.randint(2, 9) if "status" in on and rng.random() < 0.5 else 0,
                shared_at=rng.uniform(0.05, 0.5) if "one iterator" in on and rng.random() < 0.7 else 0.0,
                second_at=rng.uniform(0.05, 1.0) if "superseded" in on and alone and rng.random() < 0.7 else 0.0,
            )
        )
    return tuple(loop if not loop.join else dataclasses.replace(loop, reconnect=False) for loop in loops)


def _draw_faults(rng: random.Random, on: set[str], busy_s: float) -> tuple[FaultSpec, ...]:
    faults: list[FaultSpec] = []

    def add(
        feature: str, *whats: str, most: int = 3, for_s: tuple[float, ...] = (0.0,), values: tuple[str, ...] = ("",)
    ) -> None:
        if feature in on:
            for _ in range(rng.randint(1, most)):
                at_s = rng.choice((rng.uniform(0, 1.0), rng.uniform(0, busy_s)))
                faults.append(
                    FaultSpec(
                        round(at_s, 4), rng.choice(whats), rng.randrange(8), rng.choice(for_s), rng.choice(values)
                    )
                )

    add("reader deaths", "kill reader", "crash reader")
    add("reader stops", "stop reader", for_s=(0.3, 5.0))
    add("fork server", "kill fork server", "stop fork server", for_s=(0.5, 5.0), most=1)
    add("client deaths", "kill client", most=2)
    add("client stops", "stop client", for_s=(0.1, 4.0, 60.0))
    add("daemon stops", "stop daemon", for_s=(0.1, 3.0, 30.0))
    add("daemon deaths", "kill daemon", most=2)
    sizes = ("num_workers=1", "num_workers=3", "memory_budget=less", "memory_budget=more", "num_workers=auto")
    add("set", "set", values=sizes)
    add("shortage", "shortage", for_s=(1.0, 20.0), most=2)
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def to_plain(spec: WorldSpec) -> dict[str, Any]:
    """Return a world as plain JSON values."""
    plain = dataclasses.asdict(spec)
    plain["patience_s"] = str(spec.patience_s)  # it may be infinite
    return plain


def from_plain(plain: dict[str, Any]) -> WorldSpec:
    """Return the world that `to_plain` made plain; what it does not name is as usual."""
    values = dict(plain)
    values["features"] = tuple(values.get("features", ()))
    datasets = [
        {**each, "bad": tuple((number, kind) for number, kind in each.get("bad", ()))} for each in plain["datasets"]
    ]
    values["datasets"] = tuple(DatasetSpec(**each) for each in datasets)
    values["loops"] = tuple(LoopSpec(**each) for each in plain["loops"])
    values["faults"] = tuple(FaultSpec(**each) for each in plain.get("faults", ()))
    values["patience_s"] = float(values.get("patience_s", 10.0))
    return WorldSpec(**values)
