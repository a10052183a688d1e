"""What simulated trainers do: loops over real loaders, that check each batch and say what they may end with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import prefetchd
from prefetchd.errors import PrefetchdError
from tests.simulation.kernel import SimulationError
from tests.simulation.model import places, shard_of
from tests.simulation.readers import SIGNATURE_BYTES, signature
from tests.simulation.spec import LoopSpec

if TYPE_CHECKING:
    from prefetchd.client.loader import Loader
    from tests.simulation.world import World

Place = tuple[int, int, bool]


class Trainer:
    """One loader and its loop.

    Attributes:
        waits_since_s: since when it is inside of `next`; `None` if it is not.
        error: what it ended with, if it did not run to its end.
        taken: how many batches it has got.
    """

    def __init__(self, world: World, number: int, spec: LoopSpec) -> None:
        self.world = world
        self.number = number
        self.spec = spec
        self.name = f"loop {number}"
        self.waits_since_s: float | None = None
        self.error: PrefetchdError | None = None
        self.done = False
        self.taken = 0
        self.whole_passes: set[int] = set()  # epochs of its group, to whose end it stayed
        self._content = world.contents[spec.dataset]
        self._held: list[tuple[Any, Place]] = []
        self._next_epoch = 0
        self._remaining: Iterator[Place] | None = None
        self._loader: Loader | None = None
        self._batches: Any = None
        self._other_runs = False  # another thread has a loop of the same loader
        self._last_epoch: int | None = None

    def run(self) -> None:
        """Attach, run all iterations, and close the loader."""
        try:
            self._run()
        except PrefetchdError as error:
            error.__context__ = error.__cause__ = None
            self.error = error.with_traceback(None)  # whose frames hold batches
            self.world.kernel.note("ends", self.name, type(error).__name__, self.world.told(error))
            self.world.check_error(self, error)
        finally:
            self._held.clear()
            self._batches = None
            while self._other_runs and self.world.kernel.current.process.alive:
                self.world.kernel.sleep(0.1)
            if self._loader is not None:
                self._loader.close()
                self._loader = None
            self.done = self.waits_since_s is None or self.error is not None
            self.waits_since_s = None

    def _run(self) -> None:
        spec, world = self.spec, self.world
        name = f"data{spec.dataset}" if len(world.spec.datasets) > 1 else None
        self._loader = prefetchd.batches(
            daemon="default",
            dataset=name,
            name=self.name,
            rank=spec.rank,
            world_size=spec.world_size,
            epochs=spec.epochs,
            reconnect=spec.reconnect,
            timeout=spec.timeout_s,
            on_hold="copy" if spec.copies else "wait",
            hold_timeout=spec.hold_timeout_s,
            writable=spec.writable,
            group=spec.group,
            join="now" if spec.join else "start",
            start_together=max(1, spec.start_together),
        )
        if spec.second_at:
            process = world.kernel.current.process
            self._other_runs = True
            world.kernel.spawn(process, f"{self.name} again", self._second, spec.second_at)
        if spec.shared_at:
            world.kernel.spawn(world.kernel.current.process, f"{self.name} shared", self._ask_as_well, spec.shared_at)
        for _ in range(spec.iterations):
            self._iterate()
            if spec.rest_s:
                world.kernel.sleep(spec.rest_s)
        world.kernel.note("ends", self.name)

    def _second(self) -> None:
        """Loop in another thread of the same loader: one of the two ends with an error."""
        for _ in range(100):
            if self.waits_since_s is not None:
                break
            self.world.kernel.sleep(self.spec.step_s / 3 + 0.001)
        loader = self._loader
        if loader is None:
            return
        try:
            expected: Iterator[Place] | None = None
            for batch in loader:
                if expected is None:
                    shard = shard_of(self._content, self.spec, self.world.spec.datasets[self.spec.dataset].drop_last)
                    all_places = places(shard, batch.epoch, self.spec.epochs)
                    begin = batch.epoch, batch.index  # not 0 where the first loop has loaded a state
                    expected = itertools.dropwhile(lambda place, begin=begin: place[:2] != begin, all_places)
                got = batch.epoch, batch.index, batch.repeated
                is_known = not (self.spec.resume or self.spec.join)  # else it goes on where the first loop was
                self._check(batch, next(expected) if is_known else got)
                del batch
                self.world.kernel.sleep(self.spec.step_s)
        except PrefetchdError as error:
            self.world.kernel.note("ends", f"{self.name} again", type(error).__name__, self.world.told(error))
            self.world.check_error(self, error)
        finally:
            self._other_runs = False

    def _ask_as_well(self) -> None:
        """Ask the iterator in which the loop waits, now and then: that is an error, and takes no batch."""
        kernel = self.world.kernel
        for _ in range(200):
            batches = self._batches
            if self.waits_since_s is not None and self.waits_in_daemon and batches is not None:
                try:
                    next(batches)
                except PrefetchdError as error:
                    if "another thread is taking one" not in str(error):
                        raise
                else:
                    raise SimulationError(f"{self.name} shares its iterator, and another thread got a batch of it")
            if self._loader is None:
                return
            kernel.sleep(self.spec.step_s + 0.001)

    @property
    def waits_in_daemon(self) -> bool:
        """Whether its generator runs: it is inside of `next`."""
        return bool(self._batches is not None and self._batches._batches.gi_running)

    def _iterate(self) -> None:
        spec, kernel, loader = self.spec, self.world.kernel, self._loader
        assert loader is not None
        expected = None if spec.second_at else self._remaining  # the other loop may go on at the loaded state instead
        self._remaining = None
        batches = self._batches = iter(loader)
        for count in itertools.count(1):
            self.waits_since_s = kernel.now_s
            try:
                batch = next(batches, None)
            finally:
                self.waits_since_s = None
            if batch is None:
                if spec.group is not None and self._last_epoch is not None:
                    self.whole_passes.add(self._last_epoch)
                break
            self.taken += 1
            if expected is None:
                expected = self._expected(batch.epoch, batch.index)
            place = next(expected, None)
            got = batch.epoch, batch.index, batch.repeated
            if spec.group is not None:
                place = got
            if place != got:
                raise SimulationError(f"{self.name} got batch {got} in place of {place}")
            self._check(batch, got)
            self._next_epoch = batch.epoch + 1
            self._last_epoch = batch.epoch
            self._use(batch, got)
            if spec.group is not None:  # one that dies before has not done it, and another must get it
                self.world.group_got(self, got)
            del batch
            if spec.peek_every and count % spec.peek_every == 0:
                self._peek(loader)
            if spec.status_every and count % spec.status_every == 0:
                loader.status()
            if count == spec.break_at:
                if spec.resume:
                    left = list(expected)
                    if left:
                        loader.load_state_dict(loader.state_dict())
                        self._remaining = iter(left)
                batches.close()
                return
        if expected is not None and spec.group is None and (missed := next(expected, None)) is not None:
            raise SimulationError(f"{self.name} ended without a word before batch {missed}")
        if expected is None and spec.group is None and self._steps() and not self._is_lost():
            raise SimulationError(f"{self.name} ended without a batch")

    def _is_lost(self) -> bool:
        return not self.world.kernel.current.process.alive

    def _steps(self) -> int:
        return shard_of(self._content, self.spec, self.world.spec.datasets[self.spec.dataset].drop_last).steps()

    def _expected(self, first_epoch: int, first_index: int) -> Iterator[Place]:
        drop_last = self.world.spec.datasets[self.spec.dataset].drop_last
        epoch, rotation = self._next_epoch, 0
        if self.spec.join or self.spec.second_at or self.spec.group:
            epoch = first_epoch
            goes_on = self.spec.group or (self.spec.second_at and self.spec.resume)  # at a pass, or a loaded state
            if epoch < self._next_epoch and not goes_on:
                raise SimulationError(f"{self.name} got epoch {epoch} again")
            rotation = first_index if self.spec.join else 0
        shard = shard_of(self._content, self.spec, drop_last, rotation)
        expected = places(shard, epoch, self.spec.epochs)
        if self.spec.second_at and self.spec.resume:
            begin = first_epoch, first_index
            expected = itertools.dropwhile(lambda place: place[:2] != begin, expected)
        yield from expected

    def _use(self, batch: Any, place: Place) -> None:
        """Work on a batch, and keep it for a while."""
        spec = self.spec
        if spec.hold:
            self._held.append((batch, place))
            if len(self._held) > spec.hold:
                self._check(*self._held.pop(0))
        self.world.kernel.sleep(spec.step_s * (0.5 + self.world.kernel.random.random()))
        if self.taken == spec.pause_at:
            self.world.kernel.note("pauses", self.name, spec.pause_s)
            self.world.kernel.sleep(spec.pause_s)
        self._check(batch, place)

    def _peek(self, loader: Loader) -> None:
        try:
            batch = loader.peek()
        except PrefetchdError as error:
            self.world.check_error(self, error, is_peek=True)
            return
        self._check(batch, (batch.epoch, batch.index, batch.repeated))

    def _check(self, batch: Any, place: Place) -> None:
        """Check the content of a batch that is held."""
        epoch, number, _ = place
        wanted = self._content.samples(epoch, number)
        found = batch.sample_ids.tolist()
        if wanted != found:
            raise SimulationError(f"{self.name} got samples {found} in batch {place} in place of {wanted}")
        rows = np.ascontiguousarray(batch.x.reshape(len(found), -1)[:, :SIGNATURE_BYTES]) if found else []
        for row, sample_id in zip(rows, found, strict=True):
            if not np.array_equal(row, signature(self.spec.dataset, epoch, sample_id)):
                raise SimulationError(
                    f"{self.name} got the row of {row.view(np.int64)} for sample {sample_id} of {place}"
                )
        if batch.y.tolist() != found and self.world.spec.datasets[self.spec.dataset].kind == "images":
            raise SimulationError(f"{self.name} got labels {batch.y.tolist()} for samples {found}")
