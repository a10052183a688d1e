"""What simulated worlds have met: messages, states of consumers and slots with their transitions, errors, waits.

What was never met is listed; what a simulated world cannot meet is in `UNREACHED`, with the reason.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prefetchd.daemon.consumers import consumer
from prefetchd.ipc import messages, reader_messages
from prefetchd.ring.slots import Content, Ring
from tests.simulation.world import Outcome

_STATES = consumer.State
_PRIVATE = (
    "worlds have a named daemon: a private one begins with its configuration, in tests/process/test_daemon_start.py"
)
UNREACHED = {
    "message Configure": _PRIVATE,
    "message DryRunDone": "users' functions run in a process of their own: tests/process/test_augmentation.py",
    "message DryRunFailed": "as DryRunDone",
    "message BootFailed": "simulated readers find their data as it was opened: tests/faults/test_manifest_changes.py",
    "consumer connected -> disconnected": "every simulated loader attaches first; see tests/faults/test_bad_peers.py",
}


def _all_messages() -> set[str]:
    unions = (
        messages.ToDaemon, messages.ToConsumer, reader_messages.ToReader, reader_messages.FromReader,
        reader_messages.ToForkServer, reader_messages.FromForkServer, reader_messages.FromDryRun,
    )  # fmt: skip
    return {f"message {each.__name__}" for union in unions for each in union.__args__}


def _all_transitions() -> set[str]:
    of_consumers = {
        f"consumer {one.value} -> {other.value}" for one, others in consumer._NEXT.items() for other in others
    }
    of_slots = {
        "slot free -> filling", "slot ready -> filling", "slot filling -> ready", "slot filling -> free",
        "slot removed", "slot leased", "slot released", "slot released twice", "slot left by a dead reader",
    }  # fmt: skip
    return of_consumers | of_slots


@dataclass
class Coverage:
    """Counts of everything that was met."""

    met: Counter[str] = field(default_factory=Counter)
    worlds: int = 0
    virtual_s: float = 0.0
    batches: int = 0
    features: Counter[str] = field(default_factory=Counter)

    def add(self, features: tuple[str, ...], outcome: Outcome) -> None:
        """Count a world that ran to its end."""
        self.worlds += 1
        self.virtual_s += outcome.virtual_s
        self.batches += outcome.batches
        self.features.update(features)
        self.met.update({f"message {name}": times for name, times in outcome.messages.items()})
        self.met.update({f"ends with {name}": times for name, times in outcome.ended.items()})
        self.met.update({f"waits for {name}": 1 for name in outcome.waits})

    @property
    def never_met(self) -> list[str]:
        """What no world has met, without what is known not to be met."""
        return sorted((_all_messages() | _all_transitions()) - set(self.met) - set(UNREACHED))

    def report(self) -> str:
        """Return what was met, and what was not, for people."""
        lines = [f"{self.worlds} worlds, {self.virtual_s / 3600:.1f} hours of their own time, {self.batches} batches"]
        lines += [f"  {times:>9}  {what}" for what, times in sorted(self.met.items())]
        lines.append("never met: " + (", ".join(self.never_met) or "nothing"))
        lines += [f"  not to be met here: {what}: {why}" for what, why in UNREACHED.items() if what not in self.met]
        return "\n".join(lines)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count the transitions of consumers and slots meanwhile."""
        wrapped: list[tuple[type, str, Any]] = []

        def wrap(owner: type, name: str, count: Callable[..., None]) -> None:
            method = getattr(owner, name)
            wrapped.append((owner, name, method))

            def counted(self: Any, *args: Any) -> Any:
                count(self, *args)
                return method(self, *args)

            setattr(owner, name, counted)

        wrap(consumer.Consumer, "become", self._became)
        wrap(Ring, "start_fill", self._filled)
        wrap(Ring, "finish_fill", lambda *_: self._count("slot filling -> ready"))
        wrap(Ring, "abandon", lambda *_: self._count("slot filling -> free"))
        wrap(Ring, "remove", lambda *_: self._count("slot removed"))
        wrap(Ring, "grant", lambda *_: self._count("slot leased"))
        wrap(Ring, "release", self._released)
        wrap(Ring, "reader_exited", self._left)
        try:
            yield
        finally:
            for owner, name, method in wrapped:
                setattr(owner, name, method)

    def _count(self, what: str) -> None:
        self.met[what] += 1

    def _became(self, one: consumer.Consumer, state: _STATES) -> None:
        self.met[f"consumer {one.state.value} -> {state.value}"] += 1

    def _filled(self, ring: Ring, slot: Any, key: Any, layout: int = 0) -> None:
        self.met["slot ready -> filling" if slot.content is Content.READY else "slot free -> filling"] += 1

    def _released(self, ring: Ring, lease: int, owner: int) -> None:
        self.met["slot released" if lease in ring._lease_slots else "slot released twice"] += 1

    def _left(self, ring: Ring, reader: int) -> None:
        if any(reader in slot.writers for slot in ring.slots.values()):
            self.met["slot left by a dead reader"] += 1
