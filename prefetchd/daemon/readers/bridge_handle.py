"""The daemon's handle on the bridge: starts it, tells it what to serve, sends to it without waiting, sees its end.

Owned by `RemoteReaders`. The bridge ends by itself when its socket does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections import deque
from collections.abc import Sequence

from prefetchd.ipc import bridge_messages, reader_messages, sockets, system
from prefetchd.ipc.exit_status import describe_exit
from prefetchd.ipc.messages import Message
from prefetchd.ipc.process import child_command, child_environment, process_state
from prefetchd.ring.slots import Slot

log = logging.getLogger("prefetchd")

_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
_END_S = 2.0
_STALLED_S = 20.0
Briefing = Sequence[tuple[Message, list[int]]]


class BridgeHandle:
    """A bridge that runs; owns its socket and its process.

    Args:
        briefing: its first messages, and their descriptors, borrowed.
        now_s: the time, by the monotonic clock.
    """

    def __init__(self, briefing: Briefing, now_s: float) -> None:
        self._sock, theirs = sockets.socket_pair()
        try:
            self._process = system.start_process(
                child_command("prefetchd.remote.bridge", theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=child_environment(**_ENVIRONMENT),
            )
        finally:
            theirs.close()
        self.slots: set[int] = set()
        self._closed_slots: list[int] = []
        self._unsent: deque[tuple[bytes, list[int]]] = deque()  # with descriptors of its own
        self._sent_s = now_s
        self._was_stopped = False
        for message, fds in briefing:
            self.send(message, fds, now_s)

    @property
    def pid(self) -> int:
        """The pid of its process."""
        return self._process.pid

    def fileno(self) -> int:
        """The descriptor of its socket; negative once that is closed."""
        return self._sock.fileno()

    @property
    def is_sending(self) -> bool:
        """Whether something waits until it reads."""
        return bool(self._unsent)

    def send(self, message: Message, fds: Sequence[int] = (), now_s: float = 0.0) -> None:
        """Send a message, or keep it until the bridge reads; `fds` are borrowed."""
        self._unsent.append((reader_messages.encode(message), [os.dup(fd) for fd in fds]))
        self.flush(now_s)

    def flush(self, now_s: float) -> None:
        """Send what waits, as far as the bridge takes it."""
        try:
            while self._unsent:
                data, fds = self._unsent[0]
                sockets.send(self._sock, data, fds, wait=False)
                self._unsent.popleft()
                sockets.close_all(fds)
                self._sent_s = now_s
        except (BlockingIOError, sockets.ConnectionEnded):  # the loop sees its end
            return

    def open_slot(self, slot: Slot, now_s: float) -> None:
        """Give it access to a slot that it is to write to."""
        if self._closed_slots:
            gone, self._closed_slots = self._closed_slots, []
            self.send(reader_messages.UnmapSlots(gone), (), now_s)
        if slot.number not in self.slots:
            self.slots.add(slot.number)
            self.send(reader_messages.MapSlot(slot.number, slot.segment.n_bytes), [slot.segment.fd], now_s)

    def close_slot(self, slot: Slot) -> None:
        """Have it unmap a slot, which it no longer writes to; the slot's memory is free already."""
        if slot.number in self.slots:
            self.slots.remove(slot.number)
            self._closed_slots.append(slot.number)

    def receive(self, buffer: bytearray) -> bridge_messages.FromBridge | None:
        """Return its next message, or `None`.

        Raises:
            ConnectionEnded: if it is gone, or sent what is no message of ours.
        """
        try:
            data, fds = sockets.receive(self._sock, wait=False, buffer=buffer)
        except BlockingIOError:
            return None
        sockets.close_all(fds)
        try:
            message: bridge_messages.FromBridge = bridge_messages.decode_from_bridge(data)
        except reader_messages.DecodeError as error:
            log.error("the bridge sent what is no message of ours (%s)", error)
            raise sockets.ConnectionEnded from error
        return message

    def check(self, now_s: float) -> None:
        """Kill it if it is stopped, or does not read its socket; the loop sees its end."""
        stopped = process_state(self.pid) in ("T", "t")
        if stopped and self._was_stopped:  # for two looks: one that is continued at once is left alone
            log.warning("killing the bridge (pid %d): it is stopped", self.pid)
            self._process.kill()
        elif self._unsent and now_s - self._sent_s > _STALLED_S:
            log.warning("killing the bridge (pid %d): it does not read its socket", self.pid)
            self._process.kill()
        self._was_stopped = stopped

    def end(self) -> tuple[int, str]:
        """End it, and wait a moment; return a pidfd, the caller's, if it is still there, else -1; and how it ended."""
        self._sock.close()
        for _, fds in self._unsent:
            sockets.close_all(fds)
        self._unsent.clear()
        self._process.kill()
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                return os.pidfd_open(self.pid), "it was killed and does not end"
            status = self._process.wait()
        return -1, describe_exit(status)
