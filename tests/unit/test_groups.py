"""Groups: each batch to one member, those of a member that dies to another, the end when all are done."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.daemon.consumers.consumer import Attachment, Consumer, ConsumerSocket, State
from prefetchd.daemon.consumers.groups import Group
from prefetchd.daemon.schedule.scheduler import Reserve, next_fills
from prefetchd.ipc import messages
from prefetchd.ring.slots import Ring, Slot
from prefetchd.sampling.sharding import Shard
from tests.unit.test_slots import ring_of


class FakeSocket(ConsumerSocket):
    """A socket that is a list."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.said: list[object] = []

    def send(self, message: messages.Message, fds: Sequence[int] = ()) -> bool:
        self.said.append(message)
        return True

    def open_slot(self, slot: Slot) -> bool:
        return True


@dataclass(frozen=True)
class Given:
    lease: int
    epoch: int
    batch: int


class FakeGranter:
    """What the granter does, without a grant queue."""

    def explain_wait(self, *_: object) -> None:
        pass

    def hand_over(self, consumer: Consumer, slot: Slot, lease: int, place: tuple[int, int, bool]) -> None:
        said(consumer).append(Given(lease, place[0], place[1]))
        consumer.untaken.append(lease)
        consumer.become(State.RUNNING)


def said(consumer: Consumer) -> list[object]:
    return consumer.socket.said  # type: ignore[attr-defined]


class Rig:
    """A group on a ring, with readers that need no time."""

    def __init__(self, n_batches: int, n_slots: int) -> None:
        self.ring: Ring = ring_of(n_slots)
        self.group = Group(1, 0, Shard(n_batches))
        self.delivered: Counter[int] = Counter()
        self.held: dict[Consumer, list[Given]] = {}
        self.ended: set[Consumer] = set()
        self.asking: set[Consumer] = set()
        self._next = 1

    def begin(self, epoch: int = 0) -> Consumer:
        member = Consumer(self._next, FakeSocket(), 1, -1, time.monotonic)
        self._next += 1
        member.attachment = Attachment(messages.Attach(0, "", None, {}, 2, group="g"), None, None, None)  # type: ignore[arg-type]
        member.become(State.IDLE)
        member.cursor = self.group.begin(member, messages.OpenCursor(1, 0, epoch, 0, epoch + 1, 0, 1), 2)
        member.become(State.RUNNING)
        self.held[member] = []
        return member

    def ask(self, member: Consumer) -> None:
        self.asking.add(member)
        member.untaken.clear()
        if member.state is State.RUNNING:
            member.become(State.WAITING)

    def release(self, member: Consumer) -> None:
        if self.held[member]:
            lease = self.held[member].pop(0).lease
            assert self.ring.release(lease, member.number)
            self.group.released(member, lease)

    def die(self, member: Consumer) -> list[int]:
        self.group.leave(member)
        self.ring.release_all(member.number)
        self.asking.discard(member)
        return [grant.batch for grant in self.held.pop(member)]

    def serve(self) -> None:
        while True:
            cursors = [self.group.prepare()] if self.group.members else []
            for plan in next_fills(self.ring, cursors, limit=100):
                self.ring.start_fill(plan.slot, plan.key)
                self.ring.finish_fill(plan.slot, 1)
            self.group.serve(self.ring, Reserve(self.ring, cursors), FakeGranter())  # type: ignore[arg-type]
            new = [(member, said(member).pop(0)) for member in list(self.held) if said(member)]
            if not new:
                return
            for member, message in new:
                self.asking.discard(member)  # all members get `Ended`, also those that have not asked
                if isinstance(message, messages.Ended):
                    self.ended.add(member)
                    continue
                assert isinstance(message, Given)
                self.held[member].append(message)
                self.delivered[message.batch] += 1


@given(n_batches=st.integers(1, 12), n_members=st.integers(1, 4), deaths=st.integers(0, 3), seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_every_batch_is_given_and_twice_only_those_of_the_dead(n_batches, n_members, deaths, seed):
    rng = random.Random(seed)
    rig = Rig(n_batches, 2 * (n_members + 1) + 1)
    members = [rig.begin() for _ in range(n_members)]
    lost: Counter[int] = Counter()
    for _ in range(2000):
        alive = [member for member in rig.held if member not in rig.ended]
        if not alive:
            break
        member = rng.choice(alive)
        action = rng.random()
        if action < 0.5:
            while len(rig.held[member]) > 1:
                rig.release(member)
            if member not in rig.asking:
                rig.ask(member)
        elif action < 0.8:
            rig.release(member)
        elif action < 0.85 and deaths and len(alive) > 1:
            deaths -= 1
            lost.update(rig.die(member))
        rig.serve()
    assert rig.ended == set(rig.held)  # all that are alive got `Ended`
    assert all(rig.ended or member in members for member in rig.held)
    assert rig.delivered == Counter(range(n_batches)) + lost


def test_the_end_waits_for_a_batch_that_is_not_done():
    rig = Rig(2, 9)
    one, two = rig.begin(), rig.begin()
    for member in (one, two, one):
        rig.ask(member)
        rig.serve()
    assert not rig.ended  # the other is at work on its batch
    rig.ask(two)
    rig.serve()
    assert rig.ended == {one, two}
    again = rig.begin()
    rig.ask(again)
    rig.serve()
    assert [grant.epoch for grant in rig.held[again]] == [1]


def test_what_a_member_had_not_taken_when_its_loop_ended_goes_to_others():
    rig = Rig(2, 9)
    one, two = rig.begin(), rig.begin()
    rig.ask(one)
    rig.serve()
    (grant,) = rig.held[one]
    rig.group.leave(one, taken=grant.lease - 1)
    rig.ring.release(grant.lease, one.number)
    del rig.held[one]
    rig.ask(two)
    rig.serve()
    assert rig.held[two][0].batch == grant.batch
