"""The consumers' manager and real connections in one process, under any sequence of events, over real shared pages.

Hypothesis chooses: loops that begin, take, hold and drop in any order, are closed or killed with returns unsent and
grants untaken, a ring that shrinks and grows, consumers that write nonsense into their own page. What a loop holds must
never change; each sees its batches once and in order; and whatever has happened, those who are left get on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prefetchd._version import __version__
from prefetchd.client.batch import Batch
from prefetchd.client.connection import Connection, connect
from prefetchd.config.validate import make_config
from prefetchd.daemon.consumers.manager import ConsumerManager
from prefetchd.daemon.memory.plan import MIN_SLOTS
from prefetchd.daemon.schedule.scheduler import next_fills, to_give_back
from prefetchd.ipc import messages
from prefetchd.ring.queues import RETURN_QUEUE_BYTES
from prefetchd.ring.slots import Ring, Slot
from prefetchd.sampling.sharding import Shard
from tests.consumers_by_hand import LAYOUT, Consumer, Page, Rounds, content_of

MAX_LOOPS = 4
DATASETS = ("train", "val")


class Machine(RuleBasedStateMachine):
    """A daemon without readers, and its consumers."""

    @initialize(n_slots=st.integers(MIN_SLOTS, 40), n_batches=st.integers(1, 20), patience=st.sampled_from([0.0, 5.0]))
    def begin(self, n_slots: int, n_batches: int, patience: float) -> None:
        self.n_batches, self.n_slots = n_batches, n_slots
        self.ring = Ring()
        for _ in range(n_slots):
            self.ring.add(Page())  # type: ignore[arg-type]
        self.loop = Rounds()
        self.memory = SimpleNamespace(
            budget=SimpleNamespace(
                plan=SimpleNamespace(n_slots=n_slots, slot_bytes=LAYOUT.slot_bytes),
                reserve_slots=lambda n: n <= self.memory.budget.plan.n_slots,
                too_few_slots=lambda n: f"it takes {n} slots",
            ),
            target=SimpleNamespace(n_slots=n_slots),
            making_room=False,
            starved=False,
            may_grow=lambda: False,
            help_stalled=lambda: False,
        )
        config = make_config(source="x", batch_size=4, patience=patience)
        facts = SimpleNamespace(classes=None, n_samples=4 * n_batches, versions={}, digest="0")
        source = SimpleNamespace(facts=facts)
        order = SimpleNamespace(batches_per_epoch=n_batches, n_samples=4 * n_batches)
        served = {
            "config": config,
            "source": source,
            "order": order,
            "layout": LAYOUT,
            "wire_layouts": [],
            "versions": {},
        }
        datasets: Any = [SimpleNamespace(number=number, name=name, **served) for number, name in enumerate(DATASETS)]
        self.manager = ConsumerManager(
            datasets,
            self.ring,
            SimpleNamespace(failed={}, try_again=lambda: None),  # type: ignore[arg-type]
            self.memory,  # type: ignore[arg-type]
            self.loop,  # type: ignore[arg-type]
            SimpleNamespace(status=dict, change_options=str, stop=lambda: None),  # type: ignore[arg-type]
        )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind("")  # a name of the kernel's choice
        listener.listen()
        listener.setblocking(False)
        self.address = listener.getsockname()
        self.manager.listen(listener)
        self.consumers: list[Consumer] = []
        self.filling: list[Slot] = []
        for _ in range(2):
            self.attach()
            self.begin_loop(self.consumers[-1], 0, 0, 3)

    # --- the daemon

    @rule(rounds=st.integers(1, 4), limit=st.integers(1, 8))
    def daemon_works(self, rounds: int, limit: int) -> None:
        for _ in range(rounds):
            self.come_round()
            self.fills_begin(limit)
            self.fills_end()
        self.come_round()

    @rule()
    def come_round(self) -> None:
        self.loop.turn()
        self.manager.read_queues()
        while (slot := to_give_back(self.ring, self.manager.cursors, self.memory.target.n_slots)) is not None:
            self.manager.slot_removed(slot)
            self.ring.remove(slot)
        self.manager.serve_all()

    @rule(limit=st.integers(1, 8))
    def fills_begin(self, limit: int) -> None:
        for plan in next_fills(self.ring, self.manager.cursors, limit=limit):
            self.ring.start_fill(plan.slot, plan.key)
            page: Any = plan.slot.segment
            page.write((9, 9, 9))  # half done
            self.filling.append(plan.slot)

    @rule()
    def fills_end(self) -> None:
        for slot in self.filling:
            page: Any = slot.segment
            assert slot.key is not None
            page.write(slot.key)
            self.ring.finish_fill(slot, 4)
        self.filling.clear()

    @rule(seconds=st.sampled_from([0.001, 0.01, 1.0, 20.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.loop.now_s += seconds

    @rule(data=st.data())
    def budget_is_set(self, data: st.DataObject) -> None:
        n_slots = data.draw(st.integers(max(MIN_SLOTS, self.manager.promised_slots), max(60, self.n_slots)))
        self.memory.target.n_slots = self.memory.budget.plan.n_slots = n_slots
        while len(self.ring.slots) < n_slots:
            self.ring.add(Page())  # type: ignore[arg-type]

    # --- consumers

    @property
    def here(self) -> list[Consumer]:
        return [consumer for consumer in self.consumers if not consumer.closed]

    @precondition(lambda self: len(self.here) < MAX_LOOPS)
    @rule(dataset=st.integers(0, 1), epoch=st.integers(0, 2), rests=st.booleans())
    def attaches(self, dataset: int, epoch: int, rests: bool) -> None:
        """Its loop begins at once, or it has had one and rests: its next batches are kept ready all the same."""
        if self.attach(dataset=dataset):
            self.begin_loop(self.consumers[-1], epoch, 0, 2)
            if rests:
                self.end_loop(self.consumers[-1])

    def attach(self, group: str | None = None, dataset: int = 0) -> bool:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(self.address)
        hello = messages.Attach(messages.PROTOCOL, __version__, DATASETS[dataset], {}, 2, group, 0, 1.0)
        refused: list[BaseException] = []
        connected: list[Connection] = []

        def attach() -> None:
            try:
                connected.append(connect(sock, os.getpid(), hello, 10, writable=False, hold_timeout_s=1))
            except Exception as error:
                refused.append(error)

        thread = threading.Thread(target=attach)
        thread.start()
        while thread.is_alive():
            self.loop.turn()
        thread.join()
        if refused:
            self.loop.turn()
            return False
        self.consumers.append(Consumer(connected[0], max(self.manager.consumers), dataset))
        return True

    @precondition(lambda self: self.here)
    @rule(data=st.data(), epoch=st.integers(0, 2), batch=st.integers(0, 19), epochs=st.integers(1, 3))
    def loop_begins(self, data: st.DataObject, epoch: int, batch: int, epochs: int) -> None:
        self.begin_loop(data.draw(st.sampled_from(self.here)), epoch, batch % self.n_batches, epochs)

    def begin_loop(self, consumer: Consumer, epoch: int, batch: int, epochs: int, *, join: bool = False) -> None:
        self.end_loop(consumer)
        consumer.serial += 1
        consumer.connection.open_cursor(consumer.serial, Shard(self.n_batches), epoch, batch, epoch + epochs, join=join)
        consumer.asked, consumer.joins_for = False, 0
        keys = [
            (consumer.dataset, one, index) for one in range(epoch, epoch + epochs) for index in range(self.n_batches)
        ]
        consumer.expected = iter(keys[batch:])

    @precondition(lambda self: self.here)
    @rule(data=st.data(), epoch=st.integers(0, 1), epochs=st.integers(1, 2))
    def loop_joins(self, data: st.DataObject, epoch: int, epochs: int) -> None:
        """It begins where others are; its first batch tells where that is."""
        consumer = data.draw(st.sampled_from(self.here))
        self.begin_loop(consumer, epoch, 0, epochs, join=True)
        consumer.joins_for = epochs

    def end_loop(self, consumer: Consumer) -> None:
        if consumer.expected is not None:
            consumer.connection.close_cursor(consumer.serial)
            consumer.expected = None

    @precondition(lambda self: any(consumer.expected for consumer in self.here))
    @rule(data=st.data(), keep=st.integers(1, 3), rounds=st.integers(1, 10))
    def runs(self, data: st.DataObject, keep: int, rounds: int) -> None:
        """The loop goes on for a while, and the daemon with it."""
        consumer = data.draw(st.sampled_from([consumer for consumer in self.here if consumer.expected]))
        for _ in range(rounds):
            if consumer.expected is not None and self.take(consumer):
                del consumer.held[:-keep]
            self.daemon_works(1, 4)

    @precondition(lambda self: any(consumer.expected for consumer in self.here))
    @rule(data=st.data(), keep=st.integers(1, 3), most=st.integers(1, 12))
    def takes(self, data: st.DataObject, keep: int, most: int) -> None:
        """As many as lie ready, as a loop that holds `keep` batches; then it asks."""
        consumer = data.draw(st.sampled_from([consumer for consumer in self.here if consumer.expected]))
        for _ in range(most):
            if not self.take(consumer):
                break
            del consumer.held[:-keep]

    def take(self, consumer: Consumer) -> bool:
        connection = consumer.connection
        assert consumer.expected is not None
        if connection._grants.has_next:
            batch = connection.next_batch(consumer.serial, False)
            consumer.asked = False
            if consumer.joins_for:
                first, consumer.joins_for = consumer.joins_for, 0
                whole = [(batch.index + step) % self.n_batches for step in range(self.n_batches)]
                epochs = range(batch.epoch, batch.epoch + first)
                consumer.expected = iter([(consumer.dataset, epoch, index) for epoch in epochs for index in whole])
            key = (consumer.dataset, batch.epoch, batch.index)
            if not consumer.hostile:
                assert key == next(consumer.expected)
            consumer.held.append((batch, key))
            return True
        at_end = not consumer.hostile and next(consumer.expected, None)
        if at_end:
            consumer.expected = itertools.chain([at_end], consumer.expected)
            if not consumer.asked:
                consumer.asked = True
                connection._leases.send_unsent()
                connection._channel.send(messages.Want(consumer.serial, connection._leases.taken))
            elif self.was_refused(consumer):
                self.end_loop(consumer)
        else:
            self.end_loop(consumer)
        return False

    def was_refused(self, consumer: Consumer) -> bool:
        """Whether its loop cannot be where it wants to begin, as the ring is too small for so many places."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message = consumer.connection._receive(wait=False)
                if isinstance(message, messages.Failed) and message.serial == consumer.serial:
                    assert "far apart" in message.text
                    return True
        return False

    @precondition(lambda self: any(consumer.held for consumer in self.consumers))
    @rule(data=st.data())
    def drops(self, data: st.DataObject) -> None:
        """Any of what it holds, also after its loader was closed."""
        consumer = data.draw(st.sampled_from([consumer for consumer in self.consumers if consumer.held]))
        del consumer.held[data.draw(st.integers(0, len(consumer.held) - 1))]

    @precondition(lambda self: any(consumer.held for consumer in self.consumers))
    @rule(data=st.data())
    def drops_all_but_a_view(self, data: st.DataObject) -> None:
        consumer = data.draw(st.sampled_from([consumer for consumer in self.consumers if consumer.held]))
        at = data.draw(st.integers(0, len(consumer.held) - 1))
        batch, key = consumer.held[at]
        consumer.held[at] = (batch.x if isinstance(batch, Batch) else batch)[1:], key

    @precondition(lambda self: any(consumer.held for consumer in self.consumers))
    @rule(data=st.data())
    def drops_all_in_another_thread(self, data: st.DataObject) -> None:
        consumer = data.draw(st.sampled_from([consumer for consumer in self.consumers if consumer.held]))
        thread = threading.Thread(target=consumer.held.clear)
        thread.start()
        thread.join()

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def loop_is_left(self, data: st.DataObject) -> None:
        self.end_loop(data.draw(st.sampled_from(self.here)))

    @precondition(lambda self: self.here)
    @rule(data=st.data(), properly=st.booleans())
    def is_closed(self, data: st.DataObject, properly: bool) -> None:
        """With grants untaken and notes untold; or without a word of what it took, which is its own until it dies."""
        consumer = data.draw(st.sampled_from(self.here))
        consumer.cut_off = not properly
        if properly:
            self.end_loop(consumer)
        consumer.expected, consumer.closed = None, True
        consumer.connection.close(at_once=False)

    @precondition(lambda self: self.consumers)
    @rule(data=st.data())
    def is_killed(self, data: st.DataObject) -> None:
        self.kill(data.draw(st.sampled_from(self.consumers)))

    def kill(self, consumer: Consumer) -> None:
        """Its process ends in this moment, whatever it has not said, and its memory with it."""
        number = consumer.number
        if number in self.manager.consumers:
            self.loop.watched[self.manager.consumers[number].pidfd]()
        consumer.connection.close(at_once=True)
        consumer.held.clear()
        self.consumers.remove(consumer)

    @precondition(lambda self: self.here)
    @rule(
        data=st.data(), rubbish=st.binary(min_size=1, max_size=400), forged=st.lists(st.integers(0, 300), max_size=16)
    )
    def writes_nonsense_into_its_page(self, data: st.DataObject, rubbish: bytes, forged: list[int]) -> None:
        consumer = data.draw(st.sampled_from(self.here))
        consumer.hostile = True
        consumer.held.clear()
        memory = consumer.connection._returns._memory
        at = data.draw(st.integers(0, RETURN_QUEUE_BYTES - len(rubbish)))
        memory[at : at + len(rubbish)] = rubbish
        for lease in forged:  # its own, others', or to come
            consumer.connection._returns.write(lease, data.draw(st.sampled_from([0, lease, 2**64 - 1])))
        if forged:
            consumer.connection._returns.write_taken(forged[0])

    # --- what always holds

    @invariant()
    def what_is_held_does_not_change(self) -> None:
        for consumer in self.consumers:
            if consumer.hostile:
                continue
            for held, key in consumer.held:
                pixels = held.x if isinstance(held, Batch) else held
                assert pixels.tobytes() == content_of(key)[: pixels.nbytes]

    def teardown(self) -> None:
        """Whatever has happened, those who are left get on to their end, and then nothing is held."""
        if not hasattr(self, "ring"):
            return
        try:
            for consumer in [one for one in self.consumers if one.hostile or one.cut_off]:
                self.kill(consumer)
            for consumer in self.consumers:
                consumer.held.clear()
            for _ in range(4 * (3 * self.n_batches + 10) * (MAX_LOOPS + 1)):
                if not any(consumer.expected for consumer in self.here):
                    break
                for consumer in self.here:
                    if consumer.expected is not None and self.take(consumer):
                        del consumer.held[:-1]
                    if consumer.expected is None:  # nobody holds for ever what others wait for
                        consumer.held.clear()
                self.daemon_works(1, 3)
                self.loop.run_to_the_next_timer()
            assert not any(consumer.expected for consumer in self.here)
            for consumer in self.consumers:
                if not consumer.closed:
                    consumer.connection.close(at_once=False)
                consumer.held.clear()
            for _ in range(3):
                self.come_round()
            held = {number: self.ring.held_by(number) for number in self.manager.consumers}
            assert not any(held.values()), held
            assert not self.manager.consumers
            assert self.ring.leased_slots == 0
        finally:
            for consumer in self.consumers:
                consumer.held.clear()
                consumer.connection.close(at_once=True)
            self.manager.close()
            self.ring.close()


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestMachine = Machine.TestCase
