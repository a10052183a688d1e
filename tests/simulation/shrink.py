"""Shrinks a world that fails: leaves out faults, loops, bad samples and features as long as it still fails."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from tests.simulation.spec import DatasetSpec, LoopSpec, WorldSpec
from tests.simulation.world import WorldFailed, run_world

_NUMBERS = re.compile(r"\d+")


def kind_of(failed: WorldFailed) -> str:
    """Return what a world fails with, without its numbers: a smaller world must fail with the same."""
    return _NUMBERS.sub("N", f"{type(failed.error).__name__}: {failed.error}")[:60]


def shrink(spec: WorldSpec, kind: str, *, most: int = 300, say: Callable[[str], None] = lambda text: None) -> WorldSpec:
    """Return a smaller world that fails with the same `kind`; at most `most` worlds are run."""
    n_run = 0
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(spec):
            if n_run >= most:
                return spec
            n_run += 1
            try:
                run_world(smaller)
            except WorldFailed as failed:
                if kind_of(failed) == kind:
                    spec, progress = smaller, True
                    say(f"{len(spec.loops)} loops, {len(spec.datasets)} data sets, {len(spec.faults)} faults")
                    break
    return spec


def _smaller(spec: WorldSpec) -> Iterator[WorldSpec]:
    """Yield worlds with one thing less, the largest steps first."""
    replace = dataclasses.replace
    if spec.features:
        yield replace(spec, features=())
    for part in ("faults", "loops"):
        items = getattr(spec, part)
        if len(items) > 2:
            half = len(items) // 2
            yield replace(spec, **{part: items[:half]})
            yield replace(spec, **{part: items[half:]})
        for place in range(len(items)):
            if part == "faults" or len(items) > 1:
                yield replace(spec, **{part: items[:place] + items[place + 1 :]})
    used = {loop.dataset for loop in spec.loops}
    if len(spec.datasets) > 1 and len(spec.datasets) - 1 not in used:
        yield replace(spec, datasets=spec.datasets[:-1])
    for number, dataset in enumerate(spec.datasets):
        for smaller in _smaller_dataset(dataset):
            yield replace(spec, datasets=(*spec.datasets[:number], smaller, *spec.datasets[number + 1 :]))
    for number, loop in enumerate(spec.loops):
        for field in dataclasses.fields(LoopSpec):
            if field.name not in ("process", "dataset", "step_s") and getattr(loop, field.name) != field.default:
                simpler = replace(loop, **{field.name: field.default})
                if simpler.rank < simpler.world_size:
                    yield replace(spec, loops=(*spec.loops[:number], simpler, *spec.loops[number + 1 :]))
    for field in dataclasses.fields(WorldSpec):
        plain = field.name not in ("seed", "features", "datasets", "loops", "faults", "slot_bytes", "n_slots")
        if plain and getattr(spec, field.name) != field.default:
            yield replace(spec, **{field.name: field.default})


def _smaller_dataset(dataset: DatasetSpec) -> Iterator[DatasetSpec]:
    bad = dataset.bad
    if len(bad) > 2:
        yield dataclasses.replace(dataset, bad=bad[: len(bad) // 2])
        yield dataclasses.replace(dataset, bad=bad[len(bad) // 2 :])
    for place in range(len(bad)):
        yield dataclasses.replace(dataset, bad=bad[:place] + bad[place + 1 :])
    for field in dataclasses.fields(DatasetSpec):
        if (
            field.name not in ("bad", "n_samples", "batch_size", "on_error")
            and getattr(dataset, field.name) != field.default
        ):
            yield dataclasses.replace(dataset, **{field.name: field.default})
