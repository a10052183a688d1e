"""The start line: loaders whose first loops begin together (`start_together`), as in a sweep. A part of the front desk.

A loader that has arrived is held back until as many have as it was told. If they do not come in time, each hears how
many did; one that dies while it waits is not counted any more.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from prefetchd.consumers import Consumer
from prefetchd.ipc import messages
from prefetchd.ipc.event_loop import EventLoop


class StartLine:
    """Holds consumers back until they can begin together; borrows consumers and loop."""

    def __init__(self, consumers: Mapping[int, Consumer], loop: EventLoop) -> None:
        self._consumers = consumers
        self._loop = loop
        self._serials: dict[int, int] = {}  # by consumer: the loop that it waits with

    def arrive(self, consumer: Consumer, serial: int) -> None:
        """Hold a consumer's first loop back until all are here; only the first."""
        if consumer.start_together < 2:
            return
        consumer.held_back = True
        self._serials[consumer.number] = serial
        if consumer.cursor is not None:
            consumer.cursor.patience_left_s = 0.0  # those who run already do not wait for it
        here = self._waiting_with(consumer)
        if len(here) >= consumer.start_together:
            for other in here:
                other.held_back, other.start_together = False, 0
                self._serials.pop(other.number, None)
                if other.cursor is not None:
                    other.cursor.patience_left_s = other.cursor.patience_s
            return
        self._loop.call_later(consumer.start_timeout_s, functools.partial(self._give_up, consumer, serial))

    def _waiting_with(self, consumer: Consumer) -> list[Consumer]:
        mine = consumer.dataset, consumer.start_together
        return [
            other
            for other in self._consumers.values()
            if other.held_back and (other.dataset, other.start_together) == mine
        ]

    def _give_up(self, consumer: Consumer, serial: int) -> None:
        if self._serials.get(consumer.number) != serial:
            return  # it has started, or waits with another loop, for which there is another time
        del self._serials[consumer.number]
        if not consumer.held_back or consumer.number not in self._consumers:
            return
        here = self._waiting_with(consumer)
        consumer.held_back = False
        if consumer.cursor is not None:
            consumer.cursor.open = False
        pids = ", ".join(str(other.pid) for other in here)
        text = (
            f"cannot start together: {len(here)} of {consumer.start_together} loaders have begun within "
            f"{consumer.start_timeout_s:g} s (pids {pids}); start the others, give a longer timeout, or lower "
            "start_together"
        )
        consumer.send_sooner_or_later(messages.Failed(serial, "PrefetchdError", text))
