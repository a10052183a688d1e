"""The share of one rank in an epoch: from step to batch. Pure; consumers and the daemon both count with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """What rank `rank` of `world_size` sees of an epoch of `n_batches`: batches rank, rank + W, rank + 2W, ...

    Batches are never divided for another world size. Every rank takes the same number of steps. Without `drop_last`
    batches past the end wrap round to the front and are flagged as repeated; with it the steps that not every rank can
    take are left out.

    An interrupted epoch is finished from batch `start` on: start + rank, start + rank + W, ... So any number of ranks
    can go on where any other number of ranks stopped.

    `rotation` is for one rank alone: its epochs begin at that batch and wrap round, so they are whole too.
    """

    n_batches: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    rotation: int = 0

    def steps(self, start: int = 0) -> int:
        """Return how many batches of an epoch this rank sees, from the batch `start` on."""
        left = max(0, self.n_batches - start)
        return left // self.world_size if self.drop_last else -(-left // self.world_size)

    def batch(self, step: int, start: int = 0) -> tuple[int, bool]:
        """Return the number of the batch at `step`, counted from `start` on, and whether it is a repeated one."""
        index = start + step * self.world_size + self.rank
        return (index + self.rotation) % self.n_batches, index >= self.n_batches

    def after(self, epoch: int, step: int, start: int = 0) -> tuple[int, int]:
        """Return (epoch, batch): where all ranks together go on once each has taken `step` steps from `start` on.

        It is the start of the next epoch where none is left of this one.
        """
        return (epoch + 1, 0) if step >= self.steps(start) else (epoch, start + step * self.world_size)
