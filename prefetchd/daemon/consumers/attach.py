"""Admission: who may attach, to which data set, and what it is told of it. A part of the front desk.

A consumer is refused, in words, for another protocol, an option that contradicts the configuration, a data set that is
not served, or a ring without slots for it. It stays connected: what it does with the refusal is up to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from prefetchd._version import __version__
from prefetchd.config.units import format_count
from prefetchd.config.validate import check_agrees
from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.memory.manager import Guard
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.daemon.schedule.scheduler import slots_promised
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.descriptors import write_classes
from prefetchd.ring.queues import Outbox, ReturnedLeases
from prefetchd.sampling.sharding import Shard


class Admission:
    """Answers `Attach`; borrows all that it works with."""

    def __init__(self, datasets: Sequence[Dataset], consumers: Mapping[int, Consumer], guard: Guard) -> None:
        self._datasets = datasets
        self._consumers = consumers
        self._guard = guard

    @property
    def attached(self) -> list[Consumer]:
        """Those who were let in and are there."""
        return [consumer for consumer in self._consumers.values() if consumer.attached and consumer.sock.fileno() >= 0]

    def slots_promised(self, consumers: Sequence[Consumer], n_slots: int) -> int:
        """Return how many slots a ring of `n_slots` must have for `consumers`, and for the readers to fill."""
        alone = slots_promised(n_slots, [self._cursor_of(one) for one in consumers if one.group is None])
        return alone + sum(one.guaranteed_slots for one in consumers if one.group is not None)

    @property
    def least_slots(self) -> int:
        """How many slots the smallest ring has that holds what those attached are promised in it.

        Loops that one window of a large ring reaches may be several in a smaller one.
        """
        attached = self.attached
        too_few, enough = 0, self.slots_promised(attached, 1)
        while enough - too_few > 1:
            n_slots = (too_few + enough) // 2
            if self.slots_promised(attached, n_slots) > n_slots:
                too_few = n_slots
            else:
                enough = n_slots
        return enough

    def attach(self, consumer: Consumer, attach: messages.Attach) -> None:
        """Answer a consumer that has introduced itself."""

        def refuse(error: str, text: str) -> None:
            consumer.send(messages.Fatal(error, text))

        if attach.protocol != messages.PROTOCOL:
            refuse_protocol(consumer, messages.Introduction("Attach", attach.protocol, attach.version))
            return
        try:
            dataset = self._choose(attach.dataset)
            check_agrees(dataset.config, attach.options)
        except PrefetchdError as error:
            refuse(type(error).__name__, str(error))
            return
        consumer.dataset = dataset
        consumer.guaranteed_slots = attach.guaranteed_slots
        consumer.group = attach.group
        consumer.start_together = attach.start_together
        consumer.start_timeout_s = attach.start_timeout_s
        n_slots = self._guard.budget.plan.n_slots
        attached = self.attached
        needed = self.slots_promised([*attached, consumer], n_slots)
        if needed > n_slots:
            refuse(
                "BudgetError",
                f"cannot attach: with {format_count(len(attached), 'other loop')} the ring needs {needed} slots and "
                f"has {n_slots}; give the daemon --memory-budget {self._guard.budget.budget_for_slots(needed)}MiB",
            )
            return
        classes = dataset.source.classes
        fds: list[int] = []
        try:
            consumer.outbox, mailbox = Outbox.create()
            fds.append(mailbox)
            consumer.returned, returns = ReturnedLeases.create()
            fds.append(returns)
            if classes is not None:
                fds.append(write_classes(classes))
        except OSError as error:
            sockets.close_all(fds)
            refuse("PrefetchdError", f"cannot attach: the daemon has no room for a mailbox ({error.strerror})")
            return
        consumer.attached = True
        consumer.send(
            messages.Attached(
                version=__version__,
                pid=os.getpid(),
                name=dataset.config.name,
                dataset=dataset.name,
                layout=dataset.layout.to_wire(),
                n_samples=dataset.source.n_samples,
                batches_per_epoch=dataset.order.batches_per_epoch,
                drop_last=dataset.config.drop_last,
                config=dataset.config.to_wire(),
                config_digest=dataset.config.digest(**dataset.source.versions),
                manifest_digest=dataset.source.digest,
                versions=dataset.source.versions,
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
        serves = known or "one data set that has no name; leave dataset out"
        raise ConfigError(f"cannot attach to the data set {name!r}: the daemon {daemon!r} serves {serves}")

    def _cursor_of(self, consumer: Consumer) -> Cursor:
        """Where an attached consumer is, or will start if it has not said."""
        assert consumer.dataset is not None
        if consumer.cursor is not None:
            return consumer.cursor
        dataset = consumer.dataset
        whole = Shard(dataset.order.batches_per_epoch)
        return Cursor(consumer.number, 0, dataset.number, whole, guaranteed_slots=consumer.guaranteed_slots)


def refuse_protocol(consumer: Consumer, introduction: messages.Introduction) -> None:
    """Tell a consumer that speaks another protocol so."""
    theirs = f"{introduction.version or 'of another version'} (protocol {introduction.protocol})"
    text = (
        f"cannot attach: this daemon is prefetchd {__version__} (protocol {messages.PROTOCOL}), the consumer "
        f"{theirs}; restart the daemon with the consumer's version"
    )
    consumer.send(messages.Fatal("DaemonNotFound", text))
