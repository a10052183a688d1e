"""What each loop must see: a pure function of the world's description."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from prefetchd.sampling.sharding import Shard
from tests.simulation import data
from tests.simulation.readers import FATAL, TOO_LARGE, is_bad
from tests.simulation.spec import DatasetSpec, LoopSpec


class Content:
    """The batches of one data set."""

    def __init__(self, spec: DatasetSpec) -> None:
        self._spec = spec
        self._kinds = dict(spec.bad)
        self.order = data.order_of(spec)

    def _is_bad(self, epoch: int, sample_id: int) -> bool:
        return is_bad(self._kinds.get(sample_id), epoch, sample_id)

    def samples(self, epoch: int, batch: int) -> list[int] | None:
        """Return the samples of a batch, in order; `None` if the policy or the budget has it fail."""
        ids = self.order.sample_ids(epoch, batch, 0, self.order.rows(epoch, batch)).tolist()
        if any(self._kinds.get(sample_id) in (*FATAL, *TOO_LARGE) for sample_id in ids):
            return None
        if self._spec.on_error == "raise":
            return None if any(self._is_bad(epoch, sample_id) for sample_id in ids) else ids
        if self._spec.on_error == "skip":
            return [sample_id for sample_id in ids if not self._is_bad(epoch, sample_id)]
        found: list[int] = []
        for sample_id in ids:
            candidates = itertools.chain([sample_id], self.order.following(sample_id))
            candidate = next((each for each in candidates if not self._is_bad(epoch, each)), None)
            if candidate is None:  # all of the bucket are bad
                return None
            if self._kinds.get(candidate) in (*FATAL, *TOO_LARGE):
                return None
            found.append(candidate)
        return found


def shard_of(content: Content, spec: LoopSpec, drop_last: bool, rotation: int = 0) -> Shard:
    """Return the share of a loop."""
    return Shard(content.order.batches_per_epoch, spec.rank, spec.world_size, drop_last, rotation)


def places(shard: Shard, epoch: int, n_epochs: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (epoch, batch, repeated) of an iteration that begins with `epoch`."""
    for each in range(epoch, epoch + n_epochs):
        for step in range(shard.steps()):
            yield (each, *shard.batch(step))
