"""Steady loops: those that take a batch at even times, and need not say so.

    even takes -> the loop ends leases by its queue, the daemon looks at about each take -> no take -> as usual

A message for each lease that ends wakes the daemon, which costs the loop as much as all the rest of a ready batch. A
loop that is slower than the readers takes its batches evenly. So the daemon looks by itself soon after it expects a
take, gives the slot back and grants the next batch, all while the loop works on its batch. It does so only while no
loop waits and the ring is as large as it should be. Such a loop has one grant more ahead: where the daemon looks late,
as on a busy machine, it finds its next batch all the same. A loop that stops is looked for a few times; then it sends
messages again, and the daemon sleeps.

Owned by the consumers' manager, which calls `look` after each round. It borrows consumers and event loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from prefetchd.daemon.consumers.consumer import Consumer, State
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring.queues import Ended

_LEAST_STEP_S = 0.004  # a look costs some 0.1 ms
_MOST_STEP_S = 0.5  # a lease comes back within a second
_STEADY = 3  # steps of even length, after which a loop counts as steady
_UNEVEN = 2.0  # times longer or shorter than usual
_EARLY = 0.95  # of a step, from one look to the next: looks stay close behind the takes
_AGAIN = 0.25  # of a step, after a look that came before the take
_MOST_MISSED = 4  # looks without a take
_LAST_LOOK_S = 0.005  # after the loop was told to send messages: it may have read the word before


@dataclass(slots=True)
class _Pace:
    """How one loop takes its batches: how many so far, when that was seen, and the length of its step."""

    n_taken: int
    seen_s: float
    step_s: float = 0.0
    n_even: int = 0
    n_missed: int = 0
    look_s: float = math.inf  # when to look for its next take, where it sends no messages

    @property
    def is_quiet(self) -> bool:
        return self.look_s < math.inf

    def take(self, n_taken: int, now_s: float) -> None:
        """Count the takes that are seen now."""
        step_s = (now_s - self.seen_s) / (n_taken - self.n_taken)
        is_even = self.step_s / _UNEVEN <= step_s <= self.step_s * _UNEVEN
        self.n_even = self.n_even + 1 if is_even else 0
        self.step_s += (step_s - self.step_s) * (0.25 if is_even else 1)
        self.n_taken, self.seen_s, self.n_missed = n_taken, now_s, 0

    @property
    def is_steady(self) -> bool:
        return self.n_even >= _STEADY and _LEAST_STEP_S <= self.step_s <= _MOST_STEP_S


@dataclass(eq=False)
class SteadyLoops:
    """Lets steady loops do without messages."""

    _consumers: Mapping[int, Consumer]
    _loop: EventLoop
    _paces: dict[int, _Pace] = field(default_factory=dict)
    _armed_s: float = math.inf

    def look(self, *, has_plenty: bool) -> None:
        """Follow each loop. `has_plenty`: whether no loop waits, and a slot may come back a step later."""
        if not has_plenty:
            for number in list(self._paces):
                self._end(number)
            return
        now_s = self._loop.clock()
        for number in self._paces.keys() - self._consumers.keys():
            del self._paces[number]
        next_s = math.inf
        for consumer in self._consumers.values():
            if consumer.state is not State.RUNNING or consumer.own_cursor is None:
                self._end(consumer.number)
                continue
            pace = self._paces.get(consumer.number)
            if pace is None:
                self._paces[consumer.number] = _Pace(consumer.n_taken, now_s)
                continue
            self._follow(consumer, pace, now_s)
            next_s = min(next_s, pace.look_s)
        if next_s < self._armed_s:
            self._armed_s = next_s
            self._loop.call_later(next_s - now_s, self._disarm)

    def _disarm(self) -> None:
        self._armed_s = math.inf  # the round that follows looks

    def _follow(self, consumer: Consumer, pace: _Pace, now_s: float) -> None:
        if consumer.n_taken > pace.n_taken:
            pace.take(consumer.n_taken, now_s)
            if not pace.is_steady:
                self._speak(consumer, pace)
            elif pace.is_quiet:
                pace.look_s = now_s + pace.step_s * _EARLY
            elif consumer.untaken:
                _say(consumer, Ended.BY_QUEUE)
                pace.look_s = now_s + pace.step_s * _EARLY
        elif now_s >= pace.look_s:
            pace.n_missed += 1
            pace.look_s = now_s + pace.step_s * _AGAIN
            if pace.n_missed > _MOST_MISSED:
                self._speak(consumer, pace)

    def _end(self, number: int) -> None:
        """Follow a loop no longer."""
        pace, consumer = self._paces.pop(number, None), self._consumers.get(number)
        if pace is not None and consumer is not None:
            self._speak(consumer, pace)

    def _speak(self, consumer: Consumer, pace: _Pace) -> None:
        """Have a loop send messages again, and look once more at what it wrote into its queue before it knew."""
        if pace.is_quiet:
            pace.look_s, pace.n_even = math.inf, 0
            _say(consumer, Ended.AS_USUAL)
            self._loop.call_later(_LAST_LOOK_S, lambda: None)


def _say(consumer: Consumer, how: Ended) -> None:
    consumer.is_polled = how is Ended.BY_QUEUE
    if consumer.attachment is not None:
        consumer.attachment.grants.say_how_leases_end(how)
