"""The cursor: where one loop is in the sequence of batches. Pure. The daemon moves it on with each grant."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat

from prefetchd.ring.slots import Key
from prefetchd.sampling.sharding import Shard


@dataclass(slots=True, eq=False)
class Cursor:
    """Where one consumer or one group is: the next batch that it has not been granted yet.

    Attributes:
        consumer: the consumer's number.
        serial: the consumer's name for this cursor; a later `iter()` has another.
        dataset: the data set that it reads.
        shard: which batches of an epoch it sees.
        epoch: the epoch of the next batch.
        start: the batch from which its shard is counted in this epoch: 0 unless the epoch was resumed.
        step: the step, from `start` on, of the next batch.
        guaranteed_slots: how many slots it may hold, however many the others hold.
        stop_epoch: the epoch before which it ends; `None` for never.
        waiting: whether the loop waits for the next batch.
        open: whether the loop goes on; a closed cursor shows where the next epoch would start.
        patience_s: how long others wait for it in each of its epochs, in all.
        patience_left_s: what is left of that in this epoch; at 0 the others go on without it.
        again: batches to be granted again first: those of a group's member that died.
    """

    consumer: int
    serial: int
    dataset: int
    shard: Shard
    epoch: int = 0
    start: int = 0
    step: int = 0
    guaranteed_slots: int = 2
    stop_epoch: int | None = None
    waiting: bool = False
    open: bool = True
    patience_s: float = 0.0
    patience_left_s: float = field(default=-1.0)
    again: deque[Key] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.patience_left_s < 0:
            self.patience_left_s = self.patience_s

    @property
    def at_end(self) -> bool:
        """Whether every batch of the last epoch has been granted."""
        return not self.again and self.stop_epoch is not None and self.epoch >= self.stop_epoch

    @property
    def is_waited_for(self) -> bool:
        """Whether loops ahead of it wait, so that it finds their batches in the ring."""
        return self.open and self.patience_left_s > 0 and not self.at_end

    @property
    def next_key(self) -> Key | None:
        """The next batch; `None` where an epoch has none."""
        if self.again:
            return self.again[0]
        if self.step < self.shard.steps(self.start):  # nearly always; as in `upcoming`
            return self.dataset, self.epoch, self._position % self.shard.n_batches
        return next(self.upcoming(1), None)

    @property
    def place(self) -> tuple[int, int, int, int]:
        """The sort key of cursors: those that see the same batches are together, the slowest first."""
        return self.dataset, self.shard.world_size, self.epoch, self._position

    @property
    def standing(self) -> tuple[object, ...]:
        """Return the fields that decide what is filled next, to be compared with an earlier result."""
        return (
            self.consumer, self.serial, self.epoch, self.start, self.step, self.shard.rotation, self.guaranteed_slots,
            self.stop_epoch, self.waiting, self.open, self.is_waited_for, len(self.again),
        )  # fmt: skip

    @property
    def lane(self) -> tuple[int, int]:
        """Which batches of an epoch it sees: the stride and the offset."""
        return self.shard.world_size, (self.start + self.shard.rank) % self.shard.world_size

    def advance(self) -> tuple[int, int, bool]:
        """Go on to the next batch, over the end of an epoch too; return the (epoch, batch, repeated) passed."""
        if self.again:
            _, epoch, batch = self.again.popleft()
            return epoch, batch, False
        passed = (self.epoch, *self.shard.batch(self.step, self.start))
        self.step += 1
        if self.step >= self.shard.steps(self.start):
            self.begin_epoch(self.epoch + 1)
        return passed

    def before(self, n_grants: int) -> tuple[int, int]:
        """Return the epoch and step before the last `n_grants` grants."""
        epoch, step = self.epoch, self.step - n_grants
        while step < 0 and epoch > 0 and self.shard.steps():
            epoch, step = epoch - 1, step + self.shard.steps()
        return epoch, max(0, step)

    def begin_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`."""
        self.epoch, self.start, self.step = epoch, 0, 0
        self.patience_left_s = self.patience_s

    def upcoming(self, horizon: int) -> Iterator[Key]:
        """Yield the next `horizon` batches in the order of need, over the end of the epoch too."""
        if self.again:
            again = list(self.again)[:horizon]
            yield from again
            horizon -= len(again)
        dataset, epoch, n_batches, stride = self.dataset, self.epoch, self.shard.n_batches, self.shard.world_size
        left = self.shard.steps(self.start) - self.step  # of this epoch
        index = self._position
        steps = self.shard.steps()
        if not steps:
            return
        # No more than a tuple a batch: the scheduler asks as far as the ring reaches, for every few batches.
        while horizon > 0:
            if left <= 0:
                epoch, left, index = epoch + 1, steps, self.shard.rank + self.shard.rotation
            n_here = min(horizon, left)
            places: Iterable[int] = range(index, index + n_here * stride, stride)
            if index + n_here * stride > n_batches:
                places = (place % n_batches for place in places)  # as `Shard.batch`
            yield from zip(repeat(dataset), repeat(epoch), places, strict=False)
            horizon, left = horizon - n_here, 0

    @property
    def _position(self) -> int:
        return self.start + self.step * self.shard.world_size + self.shard.rank + self.shard.rotation
