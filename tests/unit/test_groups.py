"""Groups: each batch to one member, those of a member that dies to another, the end when all are done."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.consumers.groups import Group
from prefetchd.daemon.schedule.scheduler import Reserve, next_fills
from prefetchd.ipc import messages
from prefetchd.ring.slots import Ring, Slot
from prefetchd.sampling.sharding import Shard
from tests.unit.test_slots import ring_of


@dataclass(slots=True, eq=False)
class Heard(Consumer):
    """A consumer whose socket is a list."""

    said: list[object] = field(default_factory=list)

    def send(self, message: messages.Message, fds: list[int] | None = None) -> bool:
        self.said.append(message)
        return True

    def open_slot(self, slot: Slot) -> bool:
        return True


@dataclass(frozen=True)
class Given:
    lease: int
    epoch: int
    batch: int


class Hands:
    """What the granter does, without a mailbox."""

    def explain_wait(self, *_: object) -> bool:
        return False

    def hand_over(self, member: Heard, serial: int, slot: Slot, lease: int, place: tuple[int, int, bool], **_: object):
        member.said.append(Given(lease, place[0], place[1]))
        member.untaken.append(lease)


class Party:
    """A group on a ring, with readers that need no time."""

    def __init__(self, n_batches: int, n_slots: int) -> None:
        self.ring: Ring = ring_of(n_slots)
        self.group = Group(1, 0, Shard(n_batches))
        self.delivered: Counter[int] = Counter()
        self.held: dict[Heard, list[Given]] = {}
        self.ended: set[Heard] = set()
        self.asking: set[Heard] = set()
        self._next = 1

    def begin(self, epoch: int = 0) -> Heard:
        member = Heard(self._next, None, 1, -1, group="g")  # type: ignore[arg-type]
        self._next += 1
        self.group.begin(member, messages.OpenCursor(1, 0, epoch, 0, epoch + 1, 0, 1))
        self.held[member] = []
        return member

    def ask(self, member: Heard) -> None:
        self.asking.add(member)
        member.untaken.clear()
        self.group.asks(member, messages.Want(1, 0))

    def release(self, member: Heard) -> None:
        if self.held[member]:
            lease = self.held[member].pop(0).lease
            assert self.ring.release(lease, member.number)
            self.group.released(member, lease)

    def die(self, member: Heard) -> list[int]:
        self.group.died(member)
        self.ring.release_all(member.number)
        self.asking.discard(member)
        return [grant.batch for grant in self.held.pop(member)]

    def serve(self) -> None:
        while True:
            cursors = [self.group.prepare()] if self.group.members else []
            for plan in next_fills(self.ring, cursors, limit=100):
                self.ring.start_fill(plan.slot, plan.key)
                self.ring.finish_fill(plan.slot, 1)
            self.group.serve(self.ring, Reserve(self.ring, cursors), Hands())  # type: ignore[arg-type]
            said = [(member, member.said.pop(0)) for member in list(self.held) if member.said]
            if not said:
                return
            for member, message in said:
                self.asking.discard(member)  # the end is told to all, also to who has not asked
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
    party = Party(n_batches, 2 * (n_members + 1) + 1)
    members = [party.begin() for _ in range(n_members)]
    lost: Counter[int] = Counter()
    for _ in range(2000):
        alive = [member for member in party.held if member not in party.ended]
        if not alive:
            break
        member = rng.choice(alive)
        action = rng.random()
        if action < 0.5:
            while len(party.held[member]) > 1:
                party.release(member)
            if member not in party.asking:
                party.ask(member)
        elif action < 0.8:
            party.release(member)
        elif action < 0.85 and deaths and len(alive) > 1:
            deaths -= 1
            lost.update(party.die(member))
        party.serve()
    assert party.ended == set(party.held)  # who is alive has heard of the end
    assert all(party.ended or member in members for member in party.held)
    assert party.delivered == Counter(range(n_batches)) + lost


def test_the_end_waits_for_a_batch_that_is_not_done():
    party = Party(2, 9)
    one, two = party.begin(), party.begin()
    for member in (one, two, one):
        party.ask(member)
        party.serve()
    assert not party.ended  # the other is at work on its batch
    party.ask(two)
    party.serve()
    assert party.ended == {one, two}
    again = party.begin()
    party.ask(again)
    party.serve()
    assert [grant.epoch for grant in party.held[again]] == [1]


def test_what_a_member_had_not_taken_when_its_loop_ended_goes_to_others():
    party = Party(2, 9)
    one, two = party.begin(), party.begin()
    party.ask(one)
    party.serve()
    (grant,) = party.held[one]
    party.group.end(one, taken=grant.lease - 1)
    party.ring.release(grant.lease, one.number)
    del party.held[one]
    party.ask(two)
    party.serve()
    assert party.held[two][0].batch == grant.batch
