"""Where the next iteration of a loader begins: at the next epoch, or where the user has chosen. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from prefetchd.client.state import Position


@dataclass(slots=True)
class NextStart:
    """The start of the next iteration. Libraries call `iter()` only to see whether they can, so that uses nothing up.

    Attributes:
        chosen: where a state or `set_epoch` says; `None` to begin with `epoch`.
        epoch: the epoch after the last one that an iteration has begun.
    """

    chosen: Position | None = None
    epoch: int = 0

    @property
    def position(self) -> Position:
        """The start itself."""
        return self.chosen or Position(self.epoch, 0, self.epoch)

    def use_up(self, chosen: Position | None, epoch: int) -> None:
        """Note that an iteration was asked for its first batch, of `epoch`; its start was chosen, or not."""
        if self.chosen is chosen:
            self.chosen = None
        self.epoch = epoch + 1

    def reach(self, epoch: int) -> None:
        """Note that an iteration is in `epoch` now."""
        self.epoch = max(self.epoch, epoch + 1)
