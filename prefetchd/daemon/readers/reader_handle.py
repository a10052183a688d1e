"""The daemon's handle on one reader: its socket and pidfd, what it has in hand, and whether it makes progress.

Owned by the pool. A reader that is stopped, or hangs, is killed by its pidfd, never by its bare pid. Its chunks go to
others when its exit is observed, not before. One that the kernel does not let go, such as in a read from a file system
that does not answer, is given up as stuck: it keeps its slots until it is gone.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
from dataclasses import dataclass, field

from prefetchd.daemon.readers.batch_job import BATCHING, Chunk, ReaderEnd
from prefetchd.daemon.readers.stacks import aborted_reading, at_content, crashed_thread
from prefetchd.ipc import reader_messages, sockets, system
from prefetchd.ipc.process import process_state
from prefetchd.ipc.reader_messages import Message
from prefetchd.ring.slots import Slot

log = logging.getLogger("prefetchd")

_MAX_CONFIRMED = 256  # samples that one fresh reader confirms to be bad: starting another takes as long as 50 decodes
_STOPPED_S = 1.0
_STACK_S = 0.5
_MAX_STACK_BYTES = 256 << 10
_EXIT_S = 2.0
_STUCK_S = 5.0


@dataclass(slots=True, eq=False)
class ReaderHandle:
    """One reader, as the daemon sees it.

    Attributes:
        number: its name on the fork server's socket.
        sock: the daemon's end of its socket, owned.
        pid, pidfd: known once the fork server has forked it; the pidfd is owned.
        stack_fd: the file that it writes its stack into when it is asked; owned, known once it has booted.
        ready: whether it has booted.
        fresh: whether it has decoded no sample yet, though it may have refused some.
        n_confirmed: samples in doubt that it was given while it was fresh.
        retiring: whether it was asked to go, so that its end is no crash.
        chunks: what it was given and has not answered, in order, by task.
        in_hand_s: how long that will take, in seconds, as far as is known.
        read_s: how long one of its reads takes, where reads are slow; 0 otherwise.
        unsent: fills that it was given and that are still to be sent, together.
        slots: the slots that it has a map of.
        closed_slots: those that are gone, which its next message names.
        since: when it last made progress, by the monotonic clock, in seconds.
        asked_for_stack: when it was asked for its stack, being hung; 0 if it was not.
        killed_s: when it was killed; 0 if it was not.
        timeout_s: for how long it was allowed to make no progress, if it was killed for that; 0 otherwise.
        was_decoding: whether it was then at work on a sample's content.
        aborted_reading: whether it aborted while it read, and decoded nothing.
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
    stack_fd: int = -1
    ready: bool = False
    fresh: bool = True
    n_confirmed: int = 0
    retiring: bool = False
    chunks: dict[int, Chunk] = field(default_factory=dict)
    in_hand_s: float = 0.0
    read_s: float = 0.0
    unsent: list[reader_messages.Fill] = field(default_factory=list)
    slots: set[int] = field(default_factory=set)
    closed_slots: list[int] = field(default_factory=list)
    since: float = 0.0
    asked_for_stack: float = 0.0
    killed_s: float = 0.0
    timeout_s: float = 0.0
    was_decoding: bool = False
    aborted_reading: bool = False
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
        """Send a message; a reader that does not read its socket is killed."""
        self.flush()
        self._send(message, fds)

    def flush(self) -> None:
        """Send the fills that it was given."""
        if self.unsent:
            fills, self.unsent = self.unsent, []
            self._send(reader_messages.Fills(fills))

    def _send(self, message: Message, fds: list[int] | None = None) -> None:
        if self.killed_s:
            return
        try:
            sockets.send(self.sock, reader_messages.encode(message), fds or (), wait=False)
        except sockets.ConnectionEnded:
            pass  # the fork server reports its exit next
        except BlockingIOError:
            self.kill("it does not read its socket")

    @property
    def can_take(self) -> bool:
        """Whether it can take another chunk."""
        return self.ready and self.usable and BATCHING.can_take(len(self.chunks), self.in_hand_s, self.read_s)

    @property
    def wants_more(self) -> bool:
        """Whether more batches should be begun for it."""
        return self.ready and self.usable and BATCHING.wants_more(len(self.chunks), self.in_hand_s, self.read_s)

    def finished(self, done: reader_messages.Done) -> Chunk:
        """Take in its answer to a task; return what that was."""
        chunk = self.chunks.pop(done.task)
        self.read_s = done.read_s
        self.busy_s += done.took_s
        self.fresh = self.fresh and bool(done.faults)  # it has decoded a sample
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
        self.n_confirmed += chunk.leaves_fresh
        self.fresh = self.fresh and chunk.leaves_fresh and self.n_confirmed < _MAX_CONFIRMED
        job, first = chunk.job, chunk.rows[0]
        slot, dataset, layout = job.slot.number, job.dataset, job.slot.layout
        self._open_slot(job.slot)
        if chunk.compact:
            self.send(reader_messages.Compact(task, slot, dataset, job.n_rows, job.skipped_bits(), layout))
        elif chunk.sample_id is not None:
            self.send(reader_messages.FillOne(task, slot, dataset, job.epoch, first, chunk.sample_id, layout))
        else:
            self.unsent.append(
                reader_messages.Fill(
                    task, slot, dataset, job.epoch, job.batch, first, len(chunk.rows), layout, job.first_row
                )
            )

    def grant_memory(self, n_bytes: int, now_s: float) -> None:
        """Grant it the `n_bytes` of working memory that it waits for."""
        self.needs_bytes, self.has_bytes, self.since = 0, n_bytes, now_s
        self.send(reader_messages.MemoryGranted())

    def deny_memory(self, reason: str) -> None:
        """Refuse the working memory that it waits for: the budget can never hold it."""
        self.needs_bytes = 0
        self.send(reader_messages.MemoryDenied(reason))

    def _open_slot(self, slot: Slot) -> None:
        """Give it access to a slot that it is to write to.

        Not before, and slots that are gone are only named here. A socket holds some 200 messages, and a reader that
        starts, or is at work on one large sample, reads none of them while a ring of many slots grows or shrinks.
        """
        if self.closed_slots:
            gone, self.closed_slots = self.closed_slots, []
            self._send(reader_messages.UnmapSlots(gone))
        if slot.number not in self.slots:
            self.slots.add(slot.number)
            self._send(reader_messages.MapSlot(slot.number, slot.segment.n_bytes), [slot.segment.fd])

    def close_slot(self, slot: Slot) -> None:
        """Have it unmap a slot, which it no longer writes to; the slot's memory is free already."""
        if slot.number in self.slots:
            self.slots.remove(slot.number)
            self.closed_slots.append(slot.number)

    @property
    def usable(self) -> bool:
        """Whether it may be given work, now or when it has booted."""
        return not self.retiring and not self.stuck

    def describe(self, now_s: float) -> str:
        """Return what it does: `idle`, `at work for 3 s on epoch 0 batch 4`, `stuck in the kernel ...`."""
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
        """Record that it has sent a message, so it does not hang, even if it was asked for its stack."""
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
            stack = self._read_stack()
            self.timeout_s, self.was_decoding = hang_s, at_content(stack)
            self.kill(f"it has made no progress for {idle_s:.0f} s (state {state}); its stack:\n{stack or 'none came'}")
        elif idle_s > hang_s and not self.asked_for_stack:
            if self.stack_fd >= 0:  # both ends share the file's position
                os.ftruncate(self.stack_fd, 0)
                os.lseek(self.stack_fd, 0, os.SEEK_SET)
            self.asked_for_stack = now_s
            self._signal(signal.SIGUSR1)

    def _read_stack(self) -> str:
        return os.pread(self.stack_fd, _MAX_STACK_BYTES, 0).decode(errors="replace") if self.stack_fd >= 0 else ""

    def crash(self, exit_code: int) -> str:
        """Return the stack that it left as a signal ended it, or nothing; before `end` and `close`."""
        text = self._read_stack() if exit_code < 0 else ""
        self.aborted_reading = -exit_code == signal.SIGABRT and aborted_reading(text)
        return crashed_thread(text)

    def end(self, exit_code: int, *, suspect: bool) -> ReaderEnd:
        """Return how it ended, for a chunk that it had; `suspect` if it was at work on it."""
        return ReaderEnd(exit_code, suspect, self.timeout_s, self.was_decoding, self.aborted_reading)

    def kill(self, why: str = "") -> None:
        """Kill it, or see that it is killed as soon as it is born; `why` is logged unless it is empty."""
        self.killed_s = self.killed_s or system.monotonic()
        if why:
            log.warning("killing reader %d (pid %d): %s", self.number, self.pid, why)
        self._signal(signal.SIGKILL)

    def born(self, pid: int, pidfd: int) -> None:
        """Record that the fork server has forked it; owns `pidfd`."""
        self.pid, self.pidfd = pid, pidfd
        if self.killed_s:  # before it was born
            self.killed_s = 0.0
            self.kill()

    def retire(self) -> None:
        """Let it finish what it has, end, and be replaced by a fresh one."""
        if not self.retiring:
            self.retiring = True
            self.since = system.monotonic()
            # In its turn: what it has in hand may ask for memory yet, and needs the answer.
            self.send(reader_messages.Retire())

    def wait_for_exit(self) -> bool:
        """Wait, for a short while, until a killed reader is gone; return whether it is."""
        if self.pidfd < 0:
            return True  # it was never forked, or had nothing to write to yet
        return system.poller(self.pidfd).wait(_EXIT_S)

    def close(self) -> None:
        """Give its socket and descriptors back."""
        self.sock.close()
        for fd in (self.pidfd, self.stack_fd):
            if fd >= 0:
                os.close(fd)

    def _signal(self, number: signal.Signals) -> None:
        if self.pidfd >= 0:
            try:
                system.send_signal(self.pidfd, number)
            except ProcessLookupError:
                return
