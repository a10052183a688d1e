"""How much work is handed out at a time: batches begun together, rows in a chunk, chunks in a reader's hands. Pure.

Each chunk costs the daemon half a millisecond, as after a pause nothing of its code is in the processor's caches; each
round of planning costs as much. So cheap work goes out in large portions, and work that takes long in small ones, which
keeps readers level and a batch's readers busy to its end. The batch builder and the readers' handles use it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Batching:
    """The policy. `row_s` is what a row takes on average, in seconds; 0 while that is not known.

    Attributes:
        chunk_s: what a chunk should take at most.
        cheap_batch_s: a batch that takes less, in one chunk, is cheap.
        cheap_at_once: how many cheap batches are begun at once, for each reader.
        ring_parts: of the slots that come round, this part must have come back before batches are planned.
        in_hand: how many chunks a reader has at least: one at work, one to do next.
        most_in_hand: how many it has at most, where they are cheap or reads are slow.
        in_hand_s: what they should take together.
        reads_in_hand: how many reads' time they should take, where reads are slow: the estimate of the work is rough.
    """

    chunk_s: float = 0.04
    cheap_batch_s: float = 0.001
    cheap_at_once: int = 16
    ring_parts: int = 4
    in_hand: int = 2
    most_in_hand: int = 32
    in_hand_s: float = 0.004
    reads_in_hand: int = 5

    def is_cheap(self, n_rows: int, row_s: float) -> bool:
        """Return whether `n_rows` samples take next to no time."""
        return 0 < row_s * n_rows < self.cheap_batch_s

    def chunk_rows(self, n_rows: int, row_s: float, n_readers: int, most_rows: int) -> int:
        """Return how many rows a chunk has, `most_rows` at most: an even share for each reader.

        A chunk takes some milliseconds at most. A cheap batch is not cut.
        """
        most = min(n_rows, most_rows)
        if self.is_cheap(most, row_s):
            return most
        share = min(most, -(-n_rows // n_readers))
        return max(1, min(share, round(self.chunk_s / row_s))) if row_s else -(-share // 2)

    def worth_planning(self, n_coming_round: int) -> int:
        """Return how many slots must have come back of `n_coming_round` before planning pays."""
        return n_coming_round // self.ring_parts

    def can_take(self, n_in_hand: int, in_hand_s: float, read_s: float) -> bool:
        """Return whether a reader can take one more chunk: it has one to do next, and more of cheap or slow reads."""
        enough_s = max(self.in_hand_s, self.reads_in_hand * read_s)
        return n_in_hand < self.in_hand or (n_in_hand < self.most_in_hand and in_hand_s < enough_s)

    def wants_more(self, n_in_hand: int, in_hand_s: float, read_s: float) -> bool:
        """Return whether more batches should be begun for a reader: of cheap ones many at a time, as planning costs."""
        if read_s:
            return self.can_take(n_in_hand, in_hand_s, read_s)
        few = n_in_hand <= self.most_in_hand // 2 and in_hand_s < self.in_hand_s / 2
        return n_in_hand < self.in_hand or few


BATCHING = Batching()
