"""Connecting and attaching: which connections a daemon accepts, who may attach to which data set, and the answers.

    connect -> accepted -> of this user, and not too many? -> added -> Attach -> refused in words, or attached
                                            the last one ends -> none for a while -> stop

The acceptor owns the listener. A refused connection gets the reason and blocks nobody. A process that dies while it
connects leaves nothing. A connection that has not attached for a while makes room when another needs it.

`Attaching` refuses another protocol, an option that contradicts the configuration, a data set that the daemon does not
serve, a ring without slots for one more loop. A consumer that was refused stays connected, and may try again.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prefetchd._version import __version__
from prefetchd.config.units import format_count
from prefetchd.config.validate import check_agrees
from prefetchd.daemon.consumers.consumer import Attachment, Consumer, ConsumerSocket, Control, State
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.daemon.schedule.scheduler import slots_promised
from prefetchd.errors import BudgetError, ConfigError, PrefetchdError
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.descriptors import raise_descriptor_limit, write_classes
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring.queues import GrantWriter, ReturnReader
from prefetchd.sampling.sharding import Shard


class Attaching:
    """Answers `Attach`; borrows all its parts."""

    def __init__(self, datasets: Sequence[Dataset], consumers: Mapping[int, Consumer], memory: MemoryManager) -> None:
        self._datasets = datasets
        self._consumers = consumers
        self._memory = memory

    @property
    def least_slots(self) -> int:
        """How many slots the smallest ring has that holds what the attached consumers are promised in it.

        Loops that one window of a large ring reaches may be several windows in a smaller one.
        """
        too_few, enough = 0, self._slots_promised(1)
        while enough - too_few > 1:
            n_slots = (too_few + enough) // 2
            if self._slots_promised(n_slots) > n_slots:
                too_few = n_slots
            else:
                enough = n_slots
        return enough

    def _slots_promised(self, n_slots: int, newcomer: tuple[Dataset, messages.Attach] | None = None) -> int:
        """Return how many slots a ring of `n_slots` must have for those attached, a newcomer, and the readers."""
        attached = [
            (consumer.cursor, consumer.attachment.dataset, consumer.attachment.request)
            for consumer in self._consumers.values()
            if consumer.is_attached and consumer.attachment is not None
        ]
        if newcomer is not None:
            attached.append((None, *newcomer))
        cursors = [
            # A consumer that has begun no loop yet will begin at the front. One that reads a single batch has one
            # guaranteed slot, returns it at once: it needs no slot beside those of the others.
            cursor or _first_cursor(dataset, request.guaranteed_slots)
            for cursor, dataset, request in attached
            if request.group is None and request.guaranteed_slots > 1
        ]
        in_groups = sum(request.guaranteed_slots for _, _, request in attached if request.group is not None)
        return slots_promised(n_slots, cursors) + in_groups

    def attach(self, consumer: Consumer, request: messages.Attach) -> None:
        """Answer a consumer that wants to attach."""
        if request.protocol != messages.PROTOCOL:
            refuse_protocol(consumer, messages.Introduction("Attach", request.protocol, request.version))
            return
        fds: list[int] = []
        try:
            dataset = self._choose(request.dataset)
            check_agrees(dataset.config, request.options)
            self._check_slots(dataset, request)
            consumer.attachment = _open_queues(dataset, request, fds)
        except PrefetchdError as error:
            consumer.socket.send(messages.Fatal.of(error))
            return
        finally:
            if consumer.attachment is None:
                sockets.close_all(fds)
        consumer.become(State.IDLE)
        consumer.socket.send(
            messages.Attached(
                version=__version__,
                pid=os.getpid(),
                name=dataset.config.name,
                dataset=dataset.name,
                layout=dataset.layout.to_wire(),
                n_samples=dataset.order.n_samples,
                batches_per_epoch=dataset.order.batches_per_epoch,
                drop_last=dataset.config.drop_last,
                config={**dataset.config.to_wire(), "store_options": []},  # secrets stay here
                config_digest=dataset.config.digest(**dataset.versions),
                manifest_digest=dataset.source.facts.digest,
                versions=dataset.versions,
                layouts=dataset.wire_layouts,
            ),
            fds,
        )
        sockets.close_all(fds)

    def _choose(self, name: str | None) -> Dataset:
        """Return the data set that a consumer asks for.

        Raises:
            ConfigError: if there is none of that name, or several to choose from.
        """
        known = ", ".join(repr(dataset.name) for dataset in self._datasets if dataset.name)
        for dataset in self._datasets:
            if dataset.name == name or (name is None and len(self._datasets) == 1):
                return dataset
        daemon = self._datasets[0].config.name
        if name is None:
            raise ConfigError(f"cannot attach: the daemon {daemon!r} serves {known}; say which with dataset=...")
        serves = f"{known}; give dataset= one of these" if known else "one data set that has no name; leave dataset out"
        raise ConfigError(f"cannot attach to the data set {name!r}: the daemon {daemon!r} serves {serves}")

    def _check_slots(self, dataset: Dataset, request: messages.Attach) -> None:
        """Raise `BudgetError` if the ring has no slots for one more loop, and cannot grow."""
        needed = self._slots_promised(self._memory.budget.plan.n_slots, (dataset, request))
        if not self._memory.budget.reserve_slots(needed):
            n_others = sum(consumer.is_attached for consumer in self._consumers.values())
            raise BudgetError(
                f"cannot attach beside {format_count(n_others, 'other loop')}: "
                f"{self._memory.budget.too_few_slots(needed)}"
            )


def _first_cursor(dataset: Dataset, guaranteed_slots: int) -> Cursor:
    whole = Shard(dataset.order.batches_per_epoch)
    return Cursor(0, 0, dataset.number, whole, guaranteed_slots=guaranteed_slots)


def _open_queues(dataset: Dataset, request: messages.Attach, fds: list[int]) -> Attachment:
    """Make a consumer's queues, and append its descriptors to `fds`, of which the caller owns each.

    Raises:
        PrefetchdError: if the daemon has no memory or descriptor left for them.
    """
    grants = returns = None
    try:
        grants, fd = GrantWriter.create()
        fds.append(fd)
        returns, fd = ReturnReader.create()
        fds.append(fd)
        if (classes := dataset.source.facts.classes) is not None:
            fds.append(write_classes(classes))
        return Attachment(request, dataset, grants, returns)
    except OSError as error:
        for queue in (grants, returns):
            if queue is not None:
                queue.close()
        raise PrefetchdError(
            f"cannot attach: the daemon cannot make the queues of one more loader ({error.strerror}); close some, or "
            "raise the daemon's limits of memory and open files"
        ) from None


def refuse_protocol(consumer: Consumer, introduction: messages.Introduction) -> None:
    """Refuse a consumer that uses another protocol."""
    theirs = f"{introduction.version or 'of another version'} (protocol {introduction.protocol})"
    text = (
        f"cannot attach: this daemon is prefetchd {__version__} (protocol {messages.PROTOCOL}), the consumer "
        f"{theirs}; restart the daemon with the consumer's version"
    )
    consumer.socket.send(messages.Fatal("DaemonNotFound", text))


log = logging.getLogger("prefetchd")

MAX_CONSUMERS = 1024
DESCRIPTORS_EACH = 4  # a consumer's socket and pidfd, and the maps of its two queues
DESCRIPTORS_KEPT = 512  # for slots, readers and samples; with a low limit, three quarters of it
_ATTACH_S = 10.0
_RETRY_S = 0.1


def most_consumers() -> int:
    """Raise this process's limit of descriptors as far as it can be, and return how many consumers it allows."""
    limit = raise_descriptor_limit()
    kept = min(DESCRIPTORS_KEPT, limit * 3 // 4)
    return min(MAX_CONSUMERS, max(1, (limit - kept) // DESCRIPTORS_EACH))


@dataclass(eq=False)
class Acceptor:
    """Accepts connections.

    Args:
        consumers: those that are connected, borrowed.
        max_consumers: how many may be.
        loop: watches the listener.
        control: ends the daemon.
        add: takes a consumer that was accepted.
        remove: ends a consumer that has to make room.
        linger_s: ends the daemon after so many seconds without a consumer; `None` for never.
    """

    _consumers: Mapping[int, Consumer]
    _max_consumers: int
    _loop: EventLoop
    _control: Control
    _add: Callable[[Consumer], None]
    _remove: Callable[[Consumer], None]
    _linger_s: float | None = None
    _next_consumer: int = field(default=1, init=False)
    _listener: socket.socket | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._empty_since_s = self._loop.clock()

    def listen(self, listener: socket.socket) -> None:
        """Accept connections to `listener`, which the acceptor then owns."""
        self._listener = listener
        self._loop.watch(listener.fileno(), self._accept)
        self.emptied()

    def close(self) -> None:
        """Accept no more connections."""
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No descriptor is left, so the connection stays in the queue: do not look at it all the time.
            log.warning("cannot accept a connection: %s; trying again", error.strerror)
            self._loop.unwatch(self._listener.fileno())
            self._loop.call_later(_RETRY_S, self._listen_again)
            return
        self.admit(sock)

    def _listen_again(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), self._accept)

    def admit(self, sock: socket.socket) -> Consumer | None:
        """Add a connection, if it is this user's and not one too many; return its consumer."""
        try:
            pid, uid, pidfd = sockets.peer(sock)
        except OSError:
            sock.close()
            return None
        consumer = Consumer(self._next_consumer, ConsumerSocket(sock), pid, pidfd, self._loop.clock)
        if uid != os.getuid() or not self._has_room():
            why = "another user's process" if uid != os.getuid() else f"{self._max_consumers} are connected already"
            consumer.socket.send(messages.Fatal("DaemonNotFound", f"cannot attach: {why}; run a daemon of your own"))
            sock.close()
            os.close(pidfd)
            return None
        self._next_consumer += 1
        self._add(consumer)
        return consumer

    def _has_room(self) -> bool:
        """Return whether one more may connect; if not yet, remove one that has not attached for a while."""
        if len(self._consumers) < self._max_consumers:
            return True
        for consumer in self._consumers.values():
            if consumer.attachment is None and self._loop.clock() - consumer.connected_s > _ATTACH_S:
                self._remove(consumer)
                return True
        return False

    def emptied(self) -> None:
        """End the daemon if no consumer connects within its linger time."""
        self._empty_since_s = self._loop.clock()
        if self._linger_s is not None:
            self._loop.call_later(self._linger_s, self._stop_if_empty)

    def _stop_if_empty(self) -> None:
        assert self._linger_s is not None
        if not self._consumers and self._loop.clock() - self._empty_since_s >= self._linger_s:
            log.info("the daemon had no loader for %g s and ends", self._linger_s)
            self._control.stop()
