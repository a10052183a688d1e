"""The pool: starts readers through the fork server, gives them chunks, watches them, replaces them.

    start -> BOOTING -> READY <-> at work (some chunks in hand) -> gone (crash, hang, replaced) -> start

Owned by the daemon's loop, which calls back for the sockets that are watched, and `tick` now and then. Every reader has
a socket of its own (`reader_handle`). Nothing is shared between readers, so a killed one blocks nobody. Which of them
gets a chunk, `reader_choice` says. A reader that ends unasked, also with status 0, has crashed: its chunks go back to
the batch builder, and another reader takes its place. The readers of a fork server (`fork_server_handle`) die with it;
another one starts others.
"""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Callable

from prefetchd.daemon.readers.batch_job import BATCHING, Chunk
from prefetchd.daemon.readers.fork_server_handle import ForkServerHandle
from prefetchd.daemon.readers.fork_server_start import StartedForkServer
from prefetchd.daemon.readers.pool_events import PoolEvents
from prefetchd.daemon.readers.quarantine import Quarantine
from prefetchd.daemon.readers.reader_choice import ReaderChoice
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.daemon.readers.remote_node import RemoteNode
from prefetchd.daemon.readers.remote_readers import RemoteReaders
from prefetchd.errors import PrefetchdError, error_from_name
from prefetchd.ipc import reader_messages, sockets
from prefetchd.ipc.exit_status import describe_exit
from prefetchd.ipc.reader_messages import Message
from prefetchd.ring.slots import Slot

MAX_BOOT_FAILURES = 3

log = logging.getLogger("prefetchd")


class Pool:
    """All readers of one daemon. They start at once, and work from `boot` on.

    Args:
        n_readers: how many.
        hang_s: for how long one may make no progress, in seconds.
        watch, unwatch, clock: the loop's.
        files_to_remove: what the fork server removes should this process be killed.
        fork_server: one that was started already, owned; `None` to start one.
    """

    def __init__(
        self,
        n_readers: int,
        hang_s: float,
        *,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        clock: Callable[[], float],
        files_to_remove: tuple[str, ...] = (),
        fork_server: StartedForkServer | None = None,
    ) -> None:
        self.n_readers, self.crashes, self._hang_s = n_readers, 0, hang_s
        self._events: PoolEvents
        self._watch, self._unwatch, self._clock = watch, unwatch, clock
        self._files_to_remove = files_to_remove
        self.readers: dict[int, ReaderHandle] = {}
        self._choice = ReaderChoice(self.readers, clock)
        self.reader_numbers, self.task_numbers = itertools.count(1), itertools.count(1)
        self._first_messages: list[tuple[Message, list[int]]] = []
        self._boot_failures, self._stopping = 0, False
        self.remote: RemoteReaders | None = None
        # Readers that hang in the kernel, and whose fork server is gone: nobody else reports their end.
        self._quarantine = Quarantine(watch, unwatch, lambda reader: self._events.gone(reader))
        self._buffer = bytearray(sockets.MAX_MESSAGE_BYTES)
        self._fork_server: ForkServerHandle
        self._begin_with(fork_server or StartedForkServer(files_to_remove))

    def _begin_with(self, started: StartedForkServer) -> None:
        self._fork_server = ForkServerHandle(started)
        self._watch(self._fork_server.fileno(), self._on_fork_server)
        for _ in range(self.n_readers):
            self._spawn()

    def _spawn(self) -> None:
        ours, theirs = sockets.socket_pair()
        reader = ReaderHandle(next(self.reader_numbers), ours, since=self._clock())
        self.readers[reader.number] = reader
        self._watch(ours.fileno(), lambda: self._on_reader(reader))
        self._fork_server.spawn(reader.number, theirs.fileno())
        theirs.close()
        self._send_first(reader)

    def resize(self, n_readers: int) -> None:
        """Have `n_readers` readers; those beyond finish what they have and go, and only then others come."""
        self.n_readers = n_readers
        staying = [reader for reader in self.readers.values() if not reader.retiring]
        for reader in staying[n_readers:]:
            reader.retire()
        for _ in range(n_readers - len(self.readers)):
            self._spawn()

    def boot(self, first_messages: list[tuple[Message, list[int]]], events: PoolEvents) -> None:
        """Send every reader, those to come included, what to serve: messages and their descriptors, borrowed."""
        self._first_messages = first_messages
        self._events = events
        for reader in self.readers.values():
            self._send_first(reader)

    def _send_first(self, reader: ReaderHandle) -> None:
        reader.since = self._clock()  # before, it had nothing to start with: a manifest may take minutes
        for message, fds in self._first_messages:
            reader.send(message, fds)

    def remove_slot(self, slot: Slot) -> None:
        """Take a slot away from every reader."""
        for reader in self.readers.values():
            reader.close_slot(slot)
        if self.remote is not None:
            self.remote.close_slot(slot)

    # --- work

    def pick_reader(self, chunk: Chunk) -> ReaderHandle | RemoteNode | None:
        """Return the least busy reader, or agent, that can take `chunk`."""
        reader = self._choice.pick(chunk)
        if self.remote is None or (reader is not None and not reader.chunks):
            return reader
        node = self.remote.pick(chunk)
        return reader if node is None or (reader is not None and len(reader.chunks) <= node.load) else node

    @property
    def wants_more(self) -> bool:
        """Whether some reader is about to run out of work."""
        return self._choice.wants_more or (self.remote is not None and self.remote.wants_more)

    def sharing(self, n_slots: int, *, is_awaited: bool) -> int:
        """Return among how many readers a batch is divided: all of this machine's for one that a loop waits for.

        Any other is cut no more than needed, as each part costs the daemon: in a ring that is large beside the readers
        they fill other slots meanwhile. So do those of agents in any ring.
        """
        n_all = self.n_readers + (0 if self.remote is None else self.remote.n_readers)
        fewest = -(-BATCHING.in_hand * n_all // max(1, n_slots))
        has_room = n_slots >= BATCHING.roomy_slots * self.n_readers
        return fewest if has_room and not is_awaited else max(self.n_readers, fewest)

    def give(self, reader: ReaderHandle | RemoteNode, chunk: Chunk) -> None:
        """Give a chunk to a reader that `pick_reader` returned; it may go out with the next `flush` only."""
        reader.assign(next(self.task_numbers), chunk, self._clock())

    def flush(self) -> None:
        """Send the chunks that readers were given."""
        for reader in self.readers.values():
            reader.flush()
        if self.remote is not None:
            self.remote.flush()

    @property
    def any_ready(self) -> bool:
        """Whether some reader has booted."""
        return any(reader.ready for reader in self.readers.values())

    @property
    def busy(self) -> bool:
        """Whether any reader has work, is still to boot, or is to end."""
        return (self.remote is not None and self.remote.busy) or any(
            not reader.stuck and (reader.chunks or not reader.ready or reader.retiring or reader.killed_s)
            for reader in self.readers.values()
        )

    # --- messages of readers and of the fork server

    def _on_reader(self, reader: ReaderHandle) -> None:
        for _ in range(64):
            try:
                data, fds = sockets.receive(reader.sock, wait=False, buffer=self._buffer)
            except BlockingIOError:
                return
            except sockets.ConnectionEnded:
                self._unwatch(reader.sock.fileno())  # the fork server reports the exit itself
                return
            quiet_s = self._clock() - reader.since
            reader.progressed(self._clock())
            try:
                message = reader_messages.decode_from_reader(data)
            except reader_messages.DecodeError:
                sockets.close_all(fds)
                reader.kill("it sent no message of ours")
                return
            if isinstance(message, reader_messages.ReaderReady) and len(fds) == 1 and not reader.ready:
                reader.stack_fd, fds = fds[0], []
            sockets.close_all(fds)
            match message:
                case reader_messages.AllDone():
                    if not all(done.task in reader.chunks for done in message.done):
                        reader.kill("it answered what it was not given")
                        return
                    for done in message.done:
                        self._events.done(reader.number, reader.finished(done), done)
                case reader_messages.NeedMemory() as need:
                    # A second request of the same decode replaces the first: two readers cannot wait for each other.
                    reader.needs_bytes, reader.has_bytes = need.n_bytes, 0
                    self._events.memory()
                case reader_messages.Outgrown(n_bytes=n_bytes):
                    self._events.outgrown(reader, n_bytes)
                case reader_messages.ReaderReady():
                    reader.ready = True
                    self._choice.start_s, self._boot_failures = quiet_s, 0
                case reader_messages.BootFailed() as failed:
                    raise error_from_name(failed.error, failed.text)

    def _on_fork_server(self) -> None:
        try:
            received = self._fork_server.receive()
        except sockets.ConnectionEnded:
            self._fork_server_died()
            return
        match received:
            case reader_messages.Spawned() as spawned, fds:
                self.readers[spawned.reader].born(spawned.pid, fds[0])
            case reader_messages.Exited() as exited, _:
                self._exited(self.readers[exited.reader], exited.exit_code)

    def _exited(self, reader: ReaderHandle, exit_code: int) -> None:
        # What it acknowledged before it died is in its socket still.
        if reader.sock.fileno() >= 0:
            self._on_reader(reader)
        stack = reader.crash(exit_code)
        self._close(reader)
        self._events.gone(reader.number)
        expected = reader.retiring and not reader.chunks
        if reader.stuck:
            log.warning("reader %d (pid %d), which hung in the kernel, has ended at last", reader.number, reader.pid)
        elif not expected and not self._stopping:
            self.crashes += 1
            log.warning(
                "reader %d (pid %d) ended by itself (%s) with %d tasks in hand; they are done again by another%s",
                reader.number, reader.pid, describe_exit(exit_code), len(reader.chunks),
                stack and f"; its stack:\n{stack}",
            )  # fmt: skip
            self._boot_failures += not reader.ready
        # The last first, as each goes to the front of the queue: what was to be done first still is.
        for position, chunk in reversed(list(enumerate(reader.chunks.values()))):
            self._events.lost(reader.number, chunk, reader.end(exit_code, suspect=position == 0 and not expected))
        if self._stopping:
            return
        if self._boot_failures >= MAX_BOOT_FAILURES:
            raise PrefetchdError(
                f"cannot start readers: {self._boot_failures} in a row ended before they were ready "
                f"({describe_exit(exit_code)}); see the lines above, or the kernel's log if they were killed"
            )
        while len(self.readers) < self.n_readers:
            self._spawn()

    def _close(self, reader: ReaderHandle) -> None:
        del self.readers[reader.number]
        self._unwatch(reader.sock.fileno())
        reader.close()

    def _fork_server_died(self) -> None:
        self._unwatch(self._fork_server.fileno())
        self._fork_server.hang_up()
        status = self._fork_server.wait()
        if self._stopping:
            return
        log.warning("the fork server ended by itself (%s); starting another with new readers", describe_exit(status))
        self._boot_failures += 1
        if self._boot_failures >= MAX_BOOT_FAILURES:
            times = f"{self._boot_failures} times in a row ({describe_exit(status)})"
            raise PrefetchdError(f"cannot start readers: the fork server ended {times}; see the lines above")
        orphans = list(self.readers.values())
        for reader in orphans:
            reader.kill()
        still_there = {reader.number for reader in orphans if not reader.wait_for_exit()}
        for reader in orphans:
            if reader.number in still_there:  # it may still write
                self._quarantine.add(reader.pidfd, [reader.number])
                reader.pidfd = -1
            else:
                self._events.gone(reader.number)
            self._close(reader)
        self._begin_with(StartedForkServer(self._files_to_remove))
        for reader in orphans:
            for position, chunk in reversed(list(enumerate(reader.chunks.values()))):
                if reader.number in still_there:  # it may write into that slot yet: no other can make the batch there
                    self._events.stuck(reader.pid, reader.number, chunk)
                else:  # suspect too: a sample may take so much memory that the kernel kills, again and again
                    self._events.lost(reader.number, chunk, reader.end(-signal.SIGKILL, suspect=position == 0))

    def tick(self) -> None:
        """Check that readers and the fork server make progress; call about once a second while `busy`.

        Raises:
            PrefetchdError: if no reader is left that could work.
        """
        unborn = [reader for reader in self.readers.values() if not reader.pid]
        waited_s = max((self._clock() - reader.since for reader in unborn), default=0.0)
        self._fork_server.check(waited_s, self._hang_s)
        for reader in list(self.readers.values()):
            was_stuck = reader.stuck
            reader.check_progress(self._clock(), self._hang_s)
            if reader.stuck and not was_stuck:
                chunks, reader.chunks = reader.chunks, {}
                for chunk in chunks.values():
                    self._events.stuck(reader.pid, reader.number, chunk)
        if self.readers and all(reader.stuck for reader in self.readers.values()):
            pids = ", ".join(str(reader.pid) for reader in self.readers.values())
            raise PrefetchdError(
                f"cannot go on: every reader (pid {pids}) hangs in the kernel and cannot be ended; see to the file "
                "system that the samples are on, then start again"
            )

    @property
    def pids(self) -> list[int]:
        """The fork server, all readers, and the bridge."""
        bridge = [] if self.remote is None else self.remote.pids
        return [self._fork_server.pid, *bridge, *(reader.pid for reader in self.readers.values() if reader.pid)]

    def stop(self) -> None:
        """End all readers and the fork server; waits until they are gone."""
        self._stopping = True
        if self.remote is not None:
            self.remote.stop()
        if self._fork_server.fileno() >= 0:
            self._unwatch(self._fork_server.fileno())
            if not self._first_messages:
                # The source was refused. No reader has anything to serve, and all die with the fork server, which
                # would load its libraries first: waiting for that takes most of the time that a refusal takes.
                self._fork_server.kill()
            self._fork_server.hang_up()
        for reader in list(self.readers.values()):
            reader.kill()
            self._close(reader)
        self._quarantine.close()
        self._fork_server.wait()
