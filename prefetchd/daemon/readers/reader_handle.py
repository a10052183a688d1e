"""The daemon's handle on one reader: its socket and pidfd, what it has in hand, and whether it makes progress.

Owned by the pool. A reader that is stopped, or hangs, is killed by its pidfd, never by its bare pid; what becomes of
its chunks is decided when its exit is observed, not before; but one that the kernel does not let go, such as in a read
from a file system that does not answer, is given up as stuck: it keeps its slots until it is gone.

Counts of durations by size, as a Prometheus histogram has them: cheap to add to, plain to report. Pure.
"""

from __future__ import annotations

import bisect
import logging
import math
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prefetchd.daemon.readers.batch_job import Chunk
from prefetchd.ipc import reader_messages, sockets
from prefetchd.ipc.process import process_state
from prefetchd.ipc.reader_messages import Message
from prefetchd.ring.slots import Slot

# A cheap row of an array to a huge image; a wait for a batch that is ready to one for slow storage.
BOUNDS_S = (1e-5, 1e-4, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """How many durations were at most as long as each of `bounds_s`, and their sum."""

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(self._bounds_s) + 1)  # the last is for those longer than every bound
        self._sum_s = 0.0

    def observe(self, duration_s: float, times: int = 1) -> None:
        """Count `times` durations of `duration_s` seconds each."""
        self._counts[bisect.bisect_left(self._bounds_s, duration_s)] += times
        self._sum_s += duration_s * times

    def report(self) -> dict[str, Any]:
        """Return `count`, `sum_s`, and `at_most`: pairs of a bound in seconds and how many were not longer."""
        at_most, so_far = [], 0
        for bound_s, count in zip(self._bounds_s, self._counts, strict=False):
            so_far += count
            at_most.append([bound_s, so_far])
        return {"count": so_far + self._counts[-1], "sum_s": self._sum_s, "at_most": at_most}


log = logging.getLogger("prefetchd")

CHUNKS_IN_HAND = 2
MAX_CHUNKS_IN_HAND = 32
_IN_HAND_S = 0.004
_READS_IN_HAND = 5  # times as long as a read takes, where reads are slow: the estimate of the work is rough
_STOPPED_S = 1.0
_STACK_S = 0.5
_EXIT_S = 2.0
_STUCK_S = 5.0


@dataclass(slots=True, eq=False)
class ReaderHandle:
    """One reader, as the daemon sees it.

    Attributes:
        number: its name on the fork server's socket.
        sock: the daemon's end of its socket, owned.
        pid, pidfd: known once the fork server has forked it; the pidfd is owned.
        ready: whether it has booted.
        fresh: whether it has been given no work yet.
        retiring: whether it was told to go, so that its end is no crash.
        chunks: what it was given and has not answered, in order, by task.
        in_hand_s: how long that will take, in seconds, as far as is known.
        read_s: how long one of its reads takes, where reads are slow; 0 otherwise.
        outbox: fills that it was given and that are still to be sent, together.
        slots: the slots that it has a map of.
        closed_slots: those that are gone, and it is still to be told.
        since: when it last made progress, by the monotonic clock, in seconds.
        asked_for_stack: when it was asked for its stack, being hung; 0 if it was not.
        killed_s: when it was killed; 0 if it was not.
        stuck: whether it was killed and does not end.
        needs_bytes: the working memory that it waits for.
        has_bytes: the working memory that it was granted.
        samples: samples that it has finished.
        busy_s: seconds that it took for them.
    """

    number: int
    sock: socket.socket
    pid: int = 0
    pidfd: int = -1
    ready: bool = False
    fresh: bool = True
    retiring: bool = False
    chunks: dict[int, Chunk] = field(default_factory=dict)
    in_hand_s: float = 0.0
    read_s: float = 0.0
    outbox: list[reader_messages.Fill] = field(default_factory=list)
    slots: set[int] = field(default_factory=set)
    closed_slots: list[int] = field(default_factory=list)
    since: float = 0.0
    asked_for_stack: float = 0.0
    killed_s: float = 0.0
    stuck: bool = False
    needs_bytes: int = 0
    has_bytes: int = 0
    samples: int = 0
    busy_s: float = 0.0

    @property
    def state(self) -> str:
        """What it is doing, in a word or two."""
        if not self.ready:
            return "starting"
        if self.needs_bytes:
            return "wants memory"
        if self.retiring:
            return "leaving"
        return "working" if self.chunks else "idle"

    def send(self, message: Message, fds: list[int] | None = None) -> None:
        """Send a message; a reader that does not read its socket is killed, one that is gone is not told."""
        self.flush()
        self._send(message, fds)

    def flush(self) -> None:
        """Send the fills that it was given."""
        if self.outbox:
            fills, self.outbox = self.outbox, []
            self._send(reader_messages.Fills(fills))

    def _send(self, message: Message, fds: list[int] | None = None) -> None:
        if self.killed_s:
            return
        try:
            sockets.send(self.sock, reader_messages.encode(message), fds or (), wait=False)
        except sockets.ConnectionEnded:
            pass  # its exit is about to be reported
        except BlockingIOError:
            self.kill("it does not read its socket")

    @property
    def has_room(self) -> bool:
        """Whether it can take another chunk: it has one to do next, and more where they are cheap, or reads slow."""
        in_hand, enough_s = len(self.chunks), max(_IN_HAND_S, _READS_IN_HAND * self.read_s)
        return in_hand < CHUNKS_IN_HAND or (in_hand < MAX_CHUNKS_IN_HAND and self.in_hand_s < enough_s)

    @property
    def wants_more(self) -> bool:
        """Whether more batches should be begun for it: of cheap ones many at a time, as planning costs too."""
        if self.read_s:
            return self.has_room
        in_hand = len(self.chunks)
        return in_hand < CHUNKS_IN_HAND or (in_hand <= MAX_CHUNKS_IN_HAND // 2 and self.in_hand_s < _IN_HAND_S / 2)

    def finished(self, task: int) -> Chunk:
        """It has answered `task`: return what that was."""
        chunk = self.chunks.pop(task)
        self.samples += len(chunk.rows)
        left_s = self.in_hand_s - chunk.expected_s
        if not self.chunks or not math.isfinite(left_s):  # what it had in hand was not all known: inf - inf is nan
            left_s = sum(other.expected_s for other in self.chunks.values())
        self.in_hand_s = left_s
        return chunk

    def assign(self, task: int, chunk: Chunk, now_s: float) -> None:
        """Give it a chunk under the task number `task`; a fill goes out with the next `flush`."""
        if not self.chunks:
            self.since = now_s
        self.chunks[task] = chunk
        self.in_hand_s += chunk.expected_s
        self.fresh = False
        job, first = chunk.job, chunk.rows[0]
        self._open_slot(job.slot)
        if chunk.compact:
            self.send(reader_messages.Compact(task, job.slot.number, job.dataset, job.n_rows, job.skipped_bits()))
        elif chunk.sample_id is not None:
            self.send(reader_messages.FillOne(task, job.slot.number, job.dataset, job.epoch, first, chunk.sample_id))
        else:
            n_rows = len(chunk.rows)
            self.outbox.append(
                reader_messages.Fill(task, job.slot.number, job.dataset, job.epoch, job.batch, first, n_rows)
            )

    def _open_slot(self, slot: Slot) -> None:
        """Give it access to a slot that it is to write to.

        Not before, and slots that are gone are told of here too: a socket holds some 200 messages, and a reader that
        starts, or is at work on one large sample, reads none of them while a ring of many slots grows or shrinks.
        """
        if self.closed_slots:
            gone, self.closed_slots = self.closed_slots, []
            self._send(reader_messages.UnmapSlots(gone))
        if slot.number not in self.slots:
            self.slots.add(slot.number)
            self._send(reader_messages.MapSlot(slot.number, slot.segment.n_bytes), [slot.segment.fd])

    def close_slot(self, slot: Slot) -> None:
        """The slot, which it does not write to any more, is given up; its memory is free, whoever maps it still."""
        if slot.number in self.slots:
            self.slots.remove(slot.number)
            self.closed_slots.append(slot.number)

    @property
    def usable(self) -> bool:
        """Whether it may be given work, now or when it has booted."""
        return not self.retiring and not self.stuck

    def describe(self, now_s: float) -> str:
        """Say what it is at: `idle`, `at work for 3 s on epoch 0 batch 4`, `stuck ...`."""
        chunk = next(iter(self.chunks.values()), None)
        if self.stuck:
            return f"stuck in the kernel, killed {now_s - self.killed_s:.0f} s ago"
        if not self.ready:
            return "starting"
        if chunk is None:
            return "idle"
        what = "waiting for memory" if self.needs_bytes else "at work"
        return f"{what} for {now_s - self.since:.0f} s on epoch {chunk.job.epoch} batch {chunk.job.batch}"

    def progressed(self, now_s: float) -> None:
        """It has said something: whatever it was asked because it seemed hung, it is not."""
        self.since, self.asked_for_stack = now_s, 0.0

    def check_progress(self, now_s: float, hang_s: float) -> None:
        """Kill it if it is stopped, or made no progress for `hang_s` seconds; ask a hung one for its stack first.

        One that was killed and is still there some seconds later is `stuck`.
        """
        if self.killed_s:
            if self.pidfd >= 0 and now_s - self.killed_s > _STUCK_S and not self.stuck:
                self.stuck = True
                log.error(
                    "reader %d (pid %d) was killed and does not end (state %s): the kernel does not let it go, such as "
                    "where a file system does not answer; what it had in hand fails, and its slots stay its own",
                    self.number,
                    self.pid,
                    process_state(self.pid),
                )
            return
        idle_s = now_s - self.since
        waits = self.needs_bytes or (self.ready and not self.chunks and not self.retiring)
        if waits or not self.pid or idle_s < _STOPPED_S:
            return
        state = process_state(self.pid)
        if state in ("T", "t"):
            self.kill(f"it is stopped, for {idle_s:.1f} s at least")
        elif self.asked_for_stack and now_s - self.asked_for_stack > _STACK_S:
            self.kill(f"it made no progress for {idle_s:.0f} s")
        elif idle_s > hang_s and not self.asked_for_stack:
            log.warning(
                "reader %d (pid %d) has made no progress for %.0f s (state %s); its stack follows",
                self.number,
                self.pid,
                idle_s,
                state,
            )
            self.asked_for_stack = now_s
            self._signal(signal.SIGUSR1)

    def kill(self, why: str = "") -> None:
        """Kill it, or see that it is killed as soon as it is born; `why` is logged unless it is empty."""
        self.killed_s = self.killed_s or time.monotonic()
        if why:
            log.warning("killing reader %d (pid %d): %s", self.number, self.pid, why)
        self._signal(signal.SIGKILL)

    def born(self, pid: int, pidfd: int) -> None:
        """The fork server has forked it; owns `pidfd`."""
        self.pid, self.pidfd = pid, pidfd
        if self.killed_s:  # before it was born
            self.killed_s = 0.0
            self.kill()

    def retire(self) -> None:
        """Let it finish what it has, end, and be replaced by a fresh one."""
        if not self.retiring:
            self.retiring = True
            self.since = time.monotonic()
            # In its turn: what it has in hand may ask for memory yet, and must have the answer.
            self.send(reader_messages.Retire())

    def wait_for_exit(self) -> bool:
        """Wait, for a short while, until a killed reader is gone; return whether it is."""
        if self.pidfd < 0:
            return True  # it was never forked, or not heard of: it had nothing to write to
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(_EXIT_S * 1000))

    def close(self) -> None:
        """Give its socket and pidfd back."""
        self.sock.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)

    def _signal(self, number: signal.Signals) -> None:
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return
