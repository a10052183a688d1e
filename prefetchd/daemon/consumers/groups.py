"""Groups: loops that share one pass over the data, so that each batch goes to exactly one of them, whoever asks.

    Want --> asking --grant--> at work on it --Want, CloseCursor--> ... --Ended--> the pass is over

Used by the front desk, which tells what members say. Nothing is granted ahead: a batch that a slow member had not
asked for would wait for it. A batch counts as done when its lease ends, or its loop does. When a member's process dies,
the batches that it held go to others before any new one: at least once for those, exactly once for all the rest. So the
pass is over only when every batch was given, and whoever holds one still asks for another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.consumers.grants import Granter
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import Reserve, may_grant, ready_for
from prefetchd.ipc import messages
from prefetchd.ring.slots import Key, Ring, Slot
from prefetchd.sampling.sharding import Shard

_MAX_GROUPS = 1024  # then those that nobody is in are forgotten, and which epoch they were at


@dataclass(slots=True, eq=False)
class Member:
    """A consumer in a group.

    Attributes:
        consumer: borrowed.
        cursor: its standing with the ring: its number, its guarantee, whether it asks. It goes nowhere.
        out: the batches that it was given and that are not done, by lease.
    """

    consumer: Consumer
    cursor: Cursor
    out: dict[int, Key] = field(default_factory=dict)


class Group:
    """One group: its members, and the cursor of the pass that they share."""

    def __init__(self, number: int, dataset: int, shard: Shard) -> None:
        self.cursor = Cursor(-number, 0, dataset, shard, open=False)
        self.members: dict[int, Member] = {}

    def begin(self, consumer: Consumer, message: messages.OpenCursor) -> None:
        """A loop of the member begins: it joins the pass that is going on, or begins the next one."""
        self.end(consumer, message.taken)
        standing = Cursor(
            consumer.number,
            message.serial,
            self.cursor.dataset,
            self.cursor.shard,
            guaranteed_slots=consumer.guaranteed_slots,
        )
        self.members[consumer.number] = Member(consumer, standing)
        if not self.cursor.open:
            n_epochs = None if message.stop_epoch is None else message.stop_epoch - message.epoch
            self.cursor.begin_epoch(max(self.cursor.epoch, message.epoch))
            self.cursor.stop_epoch = None if n_epochs is None else self.cursor.epoch + n_epochs
            self.cursor.open = True

    def end(self, consumer: Consumer, taken: int) -> None:
        """The member's loop has ended; what it had not taken goes to others."""
        member = self.members.pop(consumer.number, None)
        if member is not None:
            self.cursor.again.extend(key for lease, key in member.out.items() if lease > taken)
            self._end_if_left()

    def is_at(self, consumer: Consumer, serial: int) -> bool:
        """Whether that is the member's loop, and not one that it has left since."""
        member = self.members.get(consumer.number)
        return member is not None and member.cursor.serial == serial

    def hung_up(self, consumer: Consumer) -> None:
        """The member's socket has ended; what it holds is its own until its process has ended, too."""
        if (member := self.members.get(consumer.number)) is not None:
            member.cursor.waiting = False
            member.consumer.set_waiting(False)

    def died(self, consumer: Consumer) -> None:
        """The member's process is gone; what it held goes to others."""
        member = self.members.pop(consumer.number, None)
        if member is not None:
            self.cursor.again.extend(member.out.values())
            self._end_if_left()

    def _end_if_left(self) -> None:
        """A pass that nobody is in any more is over; the next one is the next epoch."""
        if not self.members and self.cursor.open:
            self._close()

    def _close(self) -> None:
        cursor = self.cursor
        cursor.again.clear()
        cursor.open = False
        cursor.begin_epoch(cursor.epoch if cursor.stop_epoch == cursor.epoch else cursor.epoch + 1)
        cursor.stop_epoch = None

    def asks(self, consumer: Consumer, message: messages.Want) -> None:
        """The member wants its next batch."""
        if self.is_at(consumer, message.serial):
            member = self.members[consumer.number]
            member.cursor.waiting = not consumer.untaken
            consumer.set_waiting(member.cursor.waiting)

    def released(self, consumer: Consumer, lease: int) -> None:
        """The member is done with a batch."""
        member = self.members.get(consumer.number)
        if member is not None:
            member.out.pop(lease, None)

    def prepare(self) -> Cursor:
        """Return the pass's cursor, with what its members may still claim."""
        members = self.members.values()
        self.cursor.waiting = any(member.cursor.waiting for member in members)
        self.cursor.guaranteed_slots = sum(
            max(0, member.cursor.guaranteed_slots - len(member.out)) for member in members
        )
        return self.cursor

    def serve(self, ring: Ring, reserve: Reserve, granter: Granter) -> None:
        """Give those who ask what is ready; tell them when the pass is over."""
        asking = [member for member in self.members.values() if _can_be_given(member)]
        asking.sort(key=lambda member: member.consumer.wanted_s)
        for member in asking:
            slot = ready_for(ring, self.cursor)
            if slot is None or not may_grant(ring, member.cursor, reserve, slot) or not member.consumer.open_slot(slot):
                key = None if self.cursor.at_end else self.cursor.next_key
                if granter.explain_wait(member.consumer, member.cursor, key, slot, reserve):
                    member.cursor.waiting = False
                    member.consumer.set_waiting(False)
                continue
            self._give(member, slot, ring, granter)
        asking = [member for member in asking if member.cursor.waiting]
        all_done = all(member.cursor.waiting or not member.out for member in self.members.values())
        if self.cursor.open and self.cursor.at_end and asking and all_done:
            for member in self.members.values():
                member.cursor.waiting = False
                member.consumer.set_waiting(False)
                member.consumer.send_sooner_or_later(messages.Ended(member.cursor.serial))
            self.members.clear()
            self._close()

    def _give(self, member: Member, slot: Slot, ring: Ring, granter: Granter) -> None:
        key = self.cursor.next_key
        assert key is not None
        lease = ring.grant(slot, member.consumer.number)
        member.out[lease] = key
        member.cursor.waiting = False
        member.consumer.set_waiting(False)
        granter.hand_over(member.consumer, member.cursor.serial, slot, lease, self.cursor.advance(), waited=True)


def _can_be_given(member: Member) -> bool:
    return member.cursor.waiting and not member.consumer.held_back and not member.consumer.blocked


class Groups:
    """All groups of a daemon, by data set and name. They stay: their next pass is the next epoch."""

    def __init__(self, ring: Ring, granter: Granter) -> None:
        self._ring = ring
        self._granter = granter
        self._numbers = itertools.count(1)
        self._groups: dict[tuple[int, str], Group] = {}

    def of(self, consumer: Consumer) -> Group | None:
        """Return the group that an attached consumer is in, or `None`."""
        if consumer.group is None or consumer.dataset is None or not consumer.attached:
            return None
        key = consumer.dataset.number, consumer.group
        if key not in self._groups:
            if len(self._groups) >= _MAX_GROUPS:
                self._groups = {name: group for name, group in self._groups.items() if group.members}
            shard = Shard(consumer.dataset.order.batches_per_epoch)
            self._groups[key] = Group(next(self._numbers), consumer.dataset.number, shard)
        return self._groups[key]

    @property
    def cursors(self) -> Iterable[Cursor]:
        """The cursors of the passes that go on."""
        return [group.prepare() for group in self._groups.values() if group.members]

    @property
    def passes(self) -> dict[int, Cursor]:
        """The cursor of the pass that each member is in, by the consumer's number."""
        return {number: group.cursor for group in self._groups.values() for number in group.members}

    def serve(self, reserve: Reserve) -> None:
        """Serve every group."""
        for group in self._groups.values():
            if group.members:
                group.serve(self._ring, reserve, self._granter)
