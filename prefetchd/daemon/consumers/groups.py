"""Groups: loops that share one pass over the data, so that each batch goes to exactly one of them.

    Want --> waiting --grant--> works on it --Want, CloseCursor--> ... --Ended--> the pass is over

Nothing is granted ahead: a batch that a slow member had not asked for would wait for it. A batch is done when its lease
ends, or the loop that holds it. When a member's process dies, its batches go to others before any new one: those at
least once, all others exactly once. So a pass is over only when every batch was granted and every member that holds one
asks for another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from prefetchd.daemon.consumers.consumer import Consumer, State
from prefetchd.daemon.consumers.grants import Granter
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import Reserve, may_grant, ready_for
from prefetchd.ipc import messages
from prefetchd.ring.slots import Key, Ring, Slot
from prefetchd.sampling.sharding import Shard

_MAX_GROUPS = 1024  # above that, groups without members are dropped, with the epoch that they were at


@dataclass(slots=True, eq=False)
class Member:
    """A consumer in a group.

    Attributes:
        consumer: borrowed.
        guaranteed_slots: how many slots it may hold, however many the others hold.
        out: by lease: the batches that it was granted and has not done.
    """

    consumer: Consumer
    guaranteed_slots: int
    out: dict[int, Key] = field(default_factory=dict)


class Group:
    """One group: its members, and the cursor of the pass that they share."""

    def __init__(self, number: int, dataset: int, shard: Shard) -> None:
        self.cursor = Cursor(-number, 0, dataset, shard, open=False)
        self.members: dict[int, Member] = {}

    def begin(self, consumer: Consumer, message: messages.OpenCursor, guaranteed_slots: int) -> Cursor:
        """Begin a loop of the member: it joins the pass that is going on, or begins the next one.

        Returns its standing with the ring: a cursor that goes nowhere.
        """
        self.leave(consumer, message.taken)
        self.members[consumer.number] = Member(consumer, guaranteed_slots)
        if not self.cursor.open:
            n_epochs = None if message.stop_epoch is None else message.stop_epoch - message.epoch
            self.cursor.begin_epoch(max(self.cursor.epoch, message.epoch))
            self.cursor.stop_epoch = None if n_epochs is None else self.cursor.epoch + n_epochs
            self.cursor.open = True
        return Cursor(
            consumer.number,
            message.serial,
            self.cursor.dataset,
            self.cursor.shard,
            guaranteed_slots=guaranteed_slots,
        )

    def leave(self, consumer: Consumer, taken: int = 0) -> None:
        """Remove a member whose loop or process has ended; batches of leases after `taken` go to others."""
        member = self.members.pop(consumer.number, None)
        if member is None:
            return
        self.cursor.again.extend(key for lease, key in member.out.items() if lease > taken)
        if not self.members and self.cursor.open:
            self._close()  # the last member has left the pass

    def _close(self) -> None:
        """End the pass; the next one is the next epoch."""
        cursor = self.cursor
        cursor.again.clear()
        cursor.open = False
        cursor.begin_epoch(cursor.epoch if cursor.stop_epoch == cursor.epoch else cursor.epoch + 1)
        cursor.stop_epoch = None

    def released(self, consumer: Consumer, lease: int) -> None:
        """Count a batch of the member as done."""
        member = self.members.get(consumer.number)
        if member is not None:
            member.out.pop(lease, None)

    def prepare(self) -> Cursor:
        """Return the pass's cursor, with what its members may still claim."""
        members = self.members.values()
        self.cursor.waiting = any(member.consumer.is_waiting and not member.consumer.held_back for member in members)
        self.cursor.guaranteed_slots = sum(max(0, member.guaranteed_slots - len(member.out)) for member in members)
        return self.cursor

    def serve(self, ring: Ring, reserve: Reserve, granter: Granter) -> None:
        """Grant ready batches to the members that wait; tell all when the pass is over."""
        waiting = [member for member in self.members.values() if _can_be_served(member.consumer)]
        waiting.sort(key=lambda member: member.consumer.waiting_since_s)
        for member in waiting:
            consumer = member.consumer
            assert consumer.cursor is not None
            slot = ready_for(ring, self.cursor)
            if (
                slot is None
                or not may_grant(ring, consumer.cursor, reserve, slot)
                or not consumer.socket.open_slot(slot)
            ):
                granter.explain_wait(consumer, None if self.cursor.at_end else self.cursor.next_key, slot, reserve)
            else:
                self._grant(member, slot, ring, granter)
        waiting = [member for member in waiting if member.consumer.is_waiting]
        all_done = all(member.consumer.is_waiting or not member.out for member in self.members.values())
        if self.cursor.open and self.cursor.at_end and waiting and all_done:
            for member in self.members.values():
                _send_ended(member.consumer)
            self.members.clear()
            self._close()

    def _grant(self, member: Member, slot: Slot, ring: Ring, granter: Granter) -> None:
        key = self.cursor.next_key
        assert key is not None
        lease = ring.grant(slot, member.consumer.number)
        member.out[lease] = key
        granter.hand_over(member.consumer, slot, lease, self.cursor.advance())


def _can_be_served(consumer: Consumer) -> bool:
    return consumer.is_waiting and not consumer.held_back and not consumer.socket.blocked


def _send_ended(consumer: Consumer) -> None:
    if consumer.is_looping and consumer.cursor is not None:
        consumer.socket.send_surely(messages.Ended(consumer.cursor.serial))
        consumer.become(State.IDLE)


class Groups:
    """All groups of a daemon, by data set and name. They stay: their next pass is the next epoch."""

    def __init__(self, ring: Ring, granter: Granter) -> None:
        self._ring = ring
        self._granter = granter
        self._numbers = itertools.count(1)
        self._groups: dict[tuple[int, str], Group] = {}

    def of(self, consumer: Consumer) -> Group | None:
        """Return the group that an attached consumer is in, or `None`."""
        if consumer.attachment is None or consumer.group is None:
            return None
        dataset = consumer.attachment.dataset
        key = dataset.number, consumer.group
        if key not in self._groups:
            if len(self._groups) >= _MAX_GROUPS:
                self._groups = {name: group for name, group in self._groups.items() if group.members}
            shard = Shard(dataset.order.batches_per_epoch)
            self._groups[key] = Group(next(self._numbers), dataset.number, shard)
        return self._groups[key]

    @property
    def cursors(self) -> Iterable[Cursor]:
        """The cursors of the passes that go on."""
        return [group.prepare() for group in self._groups.values() if group.members]

    @property
    def passes(self) -> dict[int, Cursor]:
        """By the number of each member: the cursor of the pass that it is in."""
        return {number: group.cursor for group in self._groups.values() for number in group.members}

    def serve(self, reserve: Reserve) -> None:
        """Serve every group."""
        for group in self._groups.values():
            if group.members:
                group.serve(self._ring, reserve, self._granter)
