"""The pool: starts readers through the zygote, gives them chunks, watches them, replaces them.

    start -> BOOTING -> READY <-> at work (up to CHUNKS_IN_FLIGHT chunks) -> gone (crash, hang, recycled) -> start

Owned by the daemon's loop, which calls `on_readable` for the sockets that `watch` names and `tick` now and then. Every
reader has a socket of its own; nothing is shared between readers, so a killed one blocks nobody. A reader that ends
unasked, also with status 0, has crashed: its chunks go back to the filler and another reader takes its place.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from prefetchd import control, messages
from prefetchd.errors import PrefetchdError, error_from_name
from prefetchd.filling import Chunk, describe_exit
from prefetchd.liveness import process_state
from prefetchd.messages import Boot, Done, Message
from prefetchd.slots import Slot
from prefetchd.zygote import ENVIRONMENT

CHUNKS_IN_FLIGHT = 2
MAX_BOOT_FAILURES = 3
_STOPPED_S = 1.0
_STACK_S = 0.5

log = logging.getLogger("prefetchd")


@dataclass(slots=True, eq=False)
class ReaderState:
    """What the daemon knows of one reader.

    Attributes:
        number: its name on the zygote's socket.
        sock: the daemon's end of its socket, owned.
        pid, pidfd: known once the zygote has forked it; the pidfd is owned.
        ready: whether it has booted.
        fresh: whether it has been given no work yet.
        retiring: whether it was told to go, so that its end is no crash.
        chunks: what it was given and has not answered, in order, by task.
        since: when it last made progress, by the monotonic clock, in seconds.
        needs_bytes: the working memory that it waits for.
        has_bytes: the working memory that it was granted.
    """

    number: int
    sock: socket.socket
    pid: int = 0
    pidfd: int = -1
    ready: bool = False
    fresh: bool = True
    retiring: bool = False
    chunks: dict[int, Chunk] = field(default_factory=dict)
    since: float = 0.0
    asked_for_stack: float = 0.0
    needs_bytes: int = 0
    has_bytes: int = 0
    samples: int = 0


@dataclass(frozen=True, slots=True)
class PoolEvents:
    """What the pool tells the daemon.

    Attributes:
        done: a chunk was finished by a reader: (reader, chunk, its report).
        lost: the reader of a chunk is gone; (reader, chunk, suspect, exit code).
        gone: a reader has exited and writes nowhere any more.
        memory: a reader's wish for working memory changed.
    """

    done: Callable[[int, Chunk, Done], None]
    lost: Callable[[int, Chunk, bool, int], None]
    gone: Callable[[int], None]
    memory: Callable[[], None]


class Pool:
    """All readers of one daemon."""

    def __init__(
        self,
        n_readers: int,
        hang_s: float,
        events: PoolEvents,
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        clock: Callable[[], float],
        files_to_remove: tuple[str, ...] = (),
    ) -> None:
        self.n_readers = n_readers
        self.crashes = 0
        self._hang_s = hang_s
        self._events = events
        self._watch = watch
        self._unwatch = unwatch
        self._clock = clock
        self._files_to_remove = files_to_remove
        self.readers: dict[int, ReaderState] = {}
        self._next_reader = 1
        self._next_task = 1
        self._boot: tuple[Boot, list[int]] | None = None
        self._slots: dict[int, Slot] = {}
        self._boot_failures = 0
        self._stopping = False
        self._zygote_sock: socket.socket
        self.zygote: subprocess.Popen[bytes]
        self._start_zygote()

    # --- starting

    def _start_zygote(self) -> None:
        self._zygote_sock, theirs = control.socket_pair()
        command = [
            sys.executable,
            "-P",
            "-m",
            "prefetchd.zygote",
            str(theirs.fileno()),
            *self._files_to_remove,
        ]
        self.zygote = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # Ctrl-C in the terminal is the daemon's to hear
        )
        theirs.close()
        self._watch(self._zygote_sock.fileno(), self._on_zygote)
        for _ in range(self.n_readers):
            self._spawn()

    def _spawn(self) -> None:
        ours, theirs = control.socket_pair()
        reader = ReaderState(self._next_reader, ours, since=self._clock())
        self._next_reader += 1
        self.readers[reader.number] = reader
        self._watch(ours.fileno(), lambda: self._on_reader(reader))
        try:
            control.send(self._zygote_sock, messages.encode(messages.Spawn(reader.number)), [theirs.fileno()])
        except control.ConnectionEnded:
            pass  # the loop is about to hear of it and starts another zygote
        theirs.close()
        if self._boot is not None:
            self._brief(reader)

    def resize(self, n_readers: int) -> None:
        """Have `n_readers` readers; those beyond finish what they have and go."""
        self.n_readers = n_readers
        staying = [reader for reader in self.readers.values() if not reader.retiring]
        for reader in staying[n_readers:]:
            self.retire(reader)
        for _ in range(n_readers - len(staying)):
            self._spawn()

    def boot(self, boot: Boot, fds: list[int]) -> None:
        """Tell every reader, those to come included, what to serve; `fds` are borrowed."""
        self._boot = boot, fds
        for reader in self.readers.values():
            self._brief(reader)

    def _brief(self, reader: ReaderState) -> None:
        assert self._boot is not None
        self._send(reader, self._boot[0], self._boot[1])
        for slot in self._slots.values():
            self._send_slot(reader, slot)

    def add_slot(self, slot: Slot) -> None:
        """Give every reader access to a slot."""
        self._slots[slot.number] = slot
        for reader in self.readers.values():
            self._send_slot(reader, slot)

    def remove_slot(self, slot: Slot) -> None:
        """Take a slot away from every reader."""
        del self._slots[slot.number]
        for reader in self.readers.values():
            self._send(reader, messages.UnmapSlot(slot.number))

    def _send_slot(self, reader: ReaderState, slot: Slot) -> None:
        self._send(reader, messages.MapSlot(slot.number, slot.segment.n_bytes), [slot.segment.fd])

    def _send(self, reader: ReaderState, message: Message, fds: list[int] | None = None) -> None:
        try:
            control.send(reader.sock, messages.encode(message), fds or (), wait=False)
        except control.ConnectionEnded:
            pass  # its exit is about to be reported
        except BlockingIOError:
            self._kill(reader, "it does not read its socket")

    # --- work

    def take_idle(self, chunk: Chunk | None = None) -> ReaderState | None:
        """Return the least busy reader that can take `chunk` (any chunk by default), or `None`."""
        fresh_only = chunk is not None and chunk.fresh
        able = [
            reader
            for reader in self.readers.values()
            if reader.ready
            and not reader.retiring
            and len(reader.chunks) < CHUNKS_IN_FLIGHT
            and (reader.fresh or not fresh_only)
        ]
        if able:
            return min(able, key=lambda reader: len(reader.chunks))
        if fresh_only and not any(reader.retiring or not reader.ready for reader in self.readers.values()):
            self.retire(min(self.readers.values(), key=lambda reader: len(reader.chunks)))
        return None

    def give(self, reader: ReaderState, chunk: Chunk) -> None:
        """Send a chunk to a reader that `take_idle` returned."""
        task = self._next_task
        self._next_task += 1
        if not reader.chunks:
            reader.since = self._clock()
        reader.chunks[task] = chunk
        reader.fresh = False
        job = chunk.job
        message: Message
        if chunk.compact:
            message = messages.Compact(task, job.slot.number, list(chunk.rows))
        elif chunk.sample_id is not None:
            message = messages.FillOne(task, job.slot.number, job.epoch, chunk.rows[0], chunk.sample_id)
        else:
            first = chunk.rows[0]
            message = messages.Fill(task, job.slot.number, job.epoch, job.batch, first, len(chunk.rows))
        self._send(reader, message)

    @property
    def any_ready(self) -> bool:
        """Whether some reader has booted."""
        return any(reader.ready for reader in self.readers.values())

    @property
    def busy(self) -> bool:
        """Whether any reader has work or is still to boot."""
        return any(reader.chunks or not reader.ready for reader in self.readers.values())

    def grant_memory(self, reader: ReaderState, n_bytes: int) -> None:
        """Let a waiting reader go on with `n_bytes` of working memory."""
        reader.needs_bytes, reader.has_bytes = 0, n_bytes
        reader.since = self._clock()
        self._send(reader, messages.MemoryGranted())

    def deny_memory(self, reader: ReaderState, reason: str) -> None:
        """Tell a waiting reader that it can never have what it needs."""
        reader.needs_bytes = 0
        self._send(reader, messages.MemoryDenied(reason))

    # --- what readers say

    def _on_reader(self, reader: ReaderState) -> None:
        for _ in range(64):
            try:
                data, fds = control.receive(reader.sock, wait=False)
            except BlockingIOError:
                return
            except control.ConnectionEnded:
                self._unwatch(reader.sock.fileno())  # the zygote reports the exit itself
                return
            control.close_all(fds)
            reader.since = self._clock()
            match messages.decode_from_reader(data):
                case messages.Done() as done:
                    chunk = reader.chunks.pop(done.task)
                    reader.samples += len(chunk.rows)
                    self._events.done(reader.number, chunk, done)
                case messages.NeedMemory() as need:
                    # A second wish of the same decode replaces the first, so that two readers cannot wait in a ring.
                    reader.needs_bytes, reader.has_bytes = need.n_bytes, 0
                    self._events.memory()
                case messages.ReaderReady():
                    reader.ready = True
                    self._boot_failures = 0
                case messages.BootFailed() as failed:
                    raise error_from_name(failed.error, failed.text)

    def _on_zygote(self) -> None:
        try:
            data, fds = control.receive(self._zygote_sock, wait=False)
        except BlockingIOError:
            return
        except control.ConnectionEnded:
            self._zygote_died()
            return
        match messages.decode_from_zygote(data):
            case messages.Spawned() as spawned:
                reader = self.readers[spawned.reader]
                reader.pid, reader.pidfd = spawned.pid, fds[0]
            case messages.Exited() as exited:
                self._exited(self.readers[exited.reader], exited.exit_code)

    def _exited(self, reader: ReaderState, exit_code: int) -> None:
        # What it acknowledged before it died is in its socket still.
        if reader.sock.fileno() >= 0:
            self._on_reader(reader)
        self._close(reader)
        self._events.gone(reader.number)
        expected = reader.retiring and not reader.chunks
        if not expected and not self._stopping:
            self.crashes += 1
            log.warning(
                "reader %d (pid %d) ended by itself (%s) with %d tasks in hand; they are done again by another",
                reader.number, reader.pid, describe_exit(exit_code), len(reader.chunks),
            )  # fmt: skip
            if not reader.ready:
                self._boot_failures += 1
        for position, chunk in enumerate(reader.chunks.values()):
            self._events.lost(reader.number, chunk, position == 0, exit_code)
        if self._stopping:
            return
        if self._boot_failures >= MAX_BOOT_FAILURES:
            raise PrefetchdError(
                f"cannot start readers: {self._boot_failures} in a row ended before they were ready "
                f"({describe_exit(exit_code)}); see the lines above, or the kernel's log if they were killed"
            )
        if len(self.readers) < self.n_readers:
            self._spawn()

    def _close(self, reader: ReaderState) -> None:
        del self.readers[reader.number]
        self._unwatch(reader.sock.fileno())
        reader.sock.close()
        if reader.pidfd >= 0:
            os.close(reader.pidfd)

    def _zygote_died(self) -> None:
        self._unwatch(self._zygote_sock.fileno())
        self._zygote_sock.close()
        status = self.zygote.wait()
        if self._stopping:
            return
        log.warning("the zygote ended by itself (%s); starting another with new readers", describe_exit(status))
        self._boot_failures += 1
        if self._boot_failures >= MAX_BOOT_FAILURES:
            raise PrefetchdError(
                f"cannot start readers: the zygote ended {self._boot_failures} times in a row "
                f"({describe_exit(status)}); see the lines above"
            )
        orphans = list(self.readers.values())
        for reader in orphans:
            self._kill(reader, "its zygote is gone", quiet=True)
            _wait_for_exit(reader)
            self._close(reader)
            self._events.gone(reader.number)
        self._start_zygote()
        for reader in orphans:
            for chunk in reader.chunks.values():
                self._events.lost(reader.number, chunk, False, -signal.SIGKILL)

    # --- hangs

    def tick(self) -> None:
        """Look for readers that make no progress; call about once a second while `busy`."""
        now = self._clock()
        for reader in list(self.readers.values()):
            idle_s = now - reader.since
            if not reader.chunks or reader.needs_bytes or idle_s < _STOPPED_S:
                continue
            if process_state(reader.pid) in ("T", "t"):
                self._kill(reader, f"it is stopped, for {idle_s:.1f} s at least")
            elif idle_s > self._hang_s and not reader.asked_for_stack:
                log.warning(
                    "reader %d (pid %d) has made no progress for %.0f s (state %s); its stack follows",
                    reader.number, reader.pid, idle_s, process_state(reader.pid),
                )  # fmt: skip
                reader.asked_for_stack = now
                signal.pidfd_send_signal(reader.pidfd, signal.SIGUSR1)
            elif reader.asked_for_stack and now - reader.asked_for_stack > _STACK_S:
                self._kill(reader, f"it made no progress for {idle_s:.0f} s")

    def _kill(self, reader: ReaderState, why: str, *, quiet: bool = False) -> None:
        if not quiet:
            log.warning("killing reader %d (pid %d): %s", reader.number, reader.pid, why)
        if reader.pidfd >= 0:
            try:
                signal.pidfd_send_signal(reader.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def retire(self, reader: ReaderState) -> None:
        """Let a reader finish what it has, end, and be replaced by a fresh one."""
        reader.retiring = True
        reader.sock.shutdown(socket.SHUT_WR)

    # --- the end

    @property
    def pids(self) -> list[int]:
        """The zygote and all readers."""
        return [self.zygote.pid, *(reader.pid for reader in self.readers.values() if reader.pid)]

    def stop(self) -> None:
        """End all readers and the zygote; waits until they are gone."""
        self._stopping = True
        if self._zygote_sock.fileno() >= 0:
            self._unwatch(self._zygote_sock.fileno())
            self._zygote_sock.close()  # the zygote kills its children and exits
        for reader in list(self.readers.values()):
            self._kill(reader, "the daemon ends", quiet=True)
            self._close(reader)
        try:
            self.zygote.wait(2)
        except subprocess.TimeoutExpired:
            self.zygote.kill()
            self.zygote.wait()


def _wait_for_exit(reader: ReaderState) -> None:
    if reader.pidfd >= 0:
        poll = select.poll()
        poll.register(reader.pidfd, select.POLLIN)
        poll.poll(2000)
