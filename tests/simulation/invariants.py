"""What must always hold in a world, and what its loops may end with.

`Watch.look` runs after each round of the daemon, and now and then while the daemon sleeps: a wake-up that was lost
shows as a wait that nothing explains. A wait is measured by the reason that `status` names for it, and each reason has
a bound that follows from the world's description.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.memory.plan import MIN_SLOTS
from prefetchd.daemon.schedule.windows import _arrange, arrange, most_windows, n_places
from prefetchd.daemon.status import _waits_for
from prefetchd.errors import PrefetchdError
from prefetchd.ring.slots import Content, Slot
from tests.simulation.kernel import SimulationError
from tests.simulation.readers import CONTENT, FATAL
from tests.simulation.spec import LoopSpec, WorldSpec

if TYPE_CHECKING:
    from prefetchd.daemon.server import Daemon
    from tests.simulation.programs import Trainer
    from tests.simulation.world import World

_FEW_SLOTS = 16
_SLACK_S = 2.0
_BOOT_S = 0.2
_LOOK_S = 2.0  # of a loader, before it looks into the daemon again
_UNBOUNDED = ("members",)
_TRIES = {"crash": 5, "hang": 9}  # of a sample alone, before it is known to be bad; 3 of others


def work_bound_s(spec: WorldSpec) -> float:
    """Return how long the work in hand may take before a batch that a loop waits for is made, in seconds."""
    rows = max(dataset.batch_size for dataset in spec.datasets)
    row_s = max(dataset.row_s * (1 + dataset.uneven) + dataset.read_s for dataset in spec.datasets)
    kinds = [kind for dataset in spec.datasets for _, kind in dataset.bad]
    hang_s = spec.reader_timeout_s + 3
    trouble_s = {"hang": 3 * hang_s, "late": hang_s, "kernel": hang_s + spec.kernel_hang_s + 8, "crash": 1.0}
    total = (spec.n_slots + 8) * rows * (row_s + 8 * spec.wake_s) + 3 * _BOOT_S
    total += sum(trouble_s.get(kind, 0.5) for kind in kinds)
    for fault in spec.faults:
        total += 4.0 + (fault.for_s if "stop" in fault.what else 0.0) + (hang_s if "fork server" in fault.what else 0.0)
        total += fault.for_s + 60.0 if fault.what == "shortage" else 0.0
    if any(dataset.leak_bytes for dataset in spec.datasets):
        total += (spec.n_slots + 8) * rows * _BOOT_S
    return 2 * total + _SLACK_S


class Watch:
    """Looks at daemon and trainers, and fails the world when a rule is broken."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kernel = world.kernel
        self._looked_s = self._kernel.now_s
        self._n_looks = 0
        self.bound_s = work_bound_s(world.spec)
        self._waits: dict[int, defaultdict[tuple[object, ...], float]] = {}
        self._keys: dict[int, tuple[object, ...]] = {}
        self._unheard: dict[int, float] = {}  # since when the daemon does not know that a loop waits
        self._beyond: dict[int, float] = {}  # since when a consumer has more leases than its loop holds
        self._n_returned = 0
        self._may_exceed = any(fault.what in ("set", "shortage") for fault in world.spec.faults)
        self.n_daemon_deaths = 0
        self.longest_s: defaultdict[str, float] = defaultdict(float)  # wait, by reason
        self._kernel.call_later(1.0, self._now_and_then)

    def _now_and_then(self) -> None:
        if self._world.daemon is not None:
            self.look(self._world.daemon)
        if not self._world.finished:
            self._kernel.call_later(max(1.0, self.bound_s / 8), self._now_and_then)

    def daemon_died(self) -> None:
        """Nothing of the last daemon counts for the next."""
        self.n_daemon_deaths += 1
        self._waits.clear()
        self._keys.clear()
        self._unheard.clear()
        self._beyond.clear()

    def look(self, daemon: Daemon) -> None:
        """Check everything that can be seen between two rounds."""
        passed_s, self._looked_s = self._kernel.now_s - self._looked_s, self._kernel.now_s
        self._n_looks += 1
        if not hasattr(daemon, "_controller") or not daemon._announced:
            return  # it is starting
        if "grant" not in vars(daemon._ring):
            self._watch_grants(daemon)
        if len(daemon._ring.slots) <= _FEW_SLOTS or not self._n_looks % 8:
            self._check_ring(daemon)
        self._check_budget(daemon)
        self._check_queue(daemon)
        process = self._world.daemon_process
        if process is not None and not process.stopped:
            self._check_waits(daemon, passed_s)
            self._check_unheard(daemon)

    # --- grants

    def _watch_grants(self, daemon: Daemon) -> None:
        """Check each grant, from now on, before it is made."""
        grant = daemon._ring.grant

        def checked(slot: Slot, consumer: int) -> int:
            try:
                self._check_grant(daemon, slot, consumer)
            except SimulationError as error:
                self._kernel.fail(error)
            return grant(slot, consumer)

        vars(daemon._ring)["grant"] = checked

    def _check_grant(self, daemon: Daemon, slot: Slot, number: int) -> None:
        """Check that a grant ahead, or beyond what a loop is guaranteed, leaves the other windows what they are."""
        ring, cursors = daemon._ring, daemon._consumers.cursors
        cursor = next((each for each in cursors if each.consumer == number), None)
        if cursor is None:  # a member of a group
            return
        within = ring.held_by(number) < cursor.guaranteed_slots
        if (cursor.waiting and (within or slot.leases)) or (within and slot.leases):
            return
        spare = len(ring.slots) - ring.leased_slots - (not slot.leases)
        needed = 0 if within else 1
        for window in arrange(cursors, len(ring.slots)):
            members = [member for member in window.members if member.open]
            if members and cursor not in members:
                needed += max(0, min(each.guaranteed_slots - ring.held_by(each.consumer) for each in members))
        if spare < needed:
            raise SimulationError(f"a grant to {number} leaves {spare} slots, and other windows may claim {needed}")

    # --- memory

    def _check_ring(self, daemon: Daemon) -> None:
        ring = daemon._ring
        leased, keys = 0, set()
        for slot in ring.slots.values():
            leased += bool(slot.leases)
            if slot.leases and (slot.content is not Content.READY or slot.writers):
                raise SimulationError(f"slot {slot.number} is held and filled at once")
            if slot.key is not None:
                if slot.key in keys:
                    raise SimulationError(f"batch {slot.key} is in two slots")
                keys.add(slot.key)
        if leased != ring.leased_slots:
            raise SimulationError(f"{leased} slots are held, and the ring counts {ring.leased_slots}")

    def look_at_leases(self, daemon: Daemon) -> None:
        """Check that no consumer has more leases than its loop holds; right after the daemon has read what came back.

        What a loop was granted, and has not taken when it ends, must go back, and not only with the loader.
        """
        trainers = {trainer.name: trainer for trainer in self._world.trainers}
        bound_s = 5.0 + 300 * self._world.spec.wake_s + self._stopped_s()
        for number, consumer in daemon._consumers.consumers.items():
            request = consumer.attachment.request if consumer.attachment is not None else None
            if request is None or request.name not in trainers:
                continue
            spec = trainers[request.name].spec
            most = spec.hold + 2 * consumer.is_looping + 2 * bool(spec.second_at)
            n_held = daemon._ring.held_by(number) - len(consumer.untaken)
            process = self._kernel.processes[consumer.pid]
            if n_held <= most or process.stopped or not process.alive:
                self._beyond.pop(number, None)
            elif self._kernel.now_s - self._beyond.setdefault(number, self._kernel.now_s) > bound_s:
                raise SimulationError(f"{request.name} has {n_held} leases, and its loop holds {most} at most")

    def _check_budget(self, daemon: Daemon) -> None:
        account = daemon._memory.budget
        if account.ring_bytes != sum(slot.segment.n_bytes for slot in daemon._ring.slots.values()):
            raise SimulationError("the budget counts other slots than the ring has")
        if account.n_readers < sum(not reader.stuck for reader in daemon._pool.readers.values()):
            raise SimulationError("there are more readers than the budget counts")
        if account.spare_bytes < 0 and not self._may_exceed:
            raise SimulationError(f"{-account.spare_bytes} bytes beyond the budget are reserved")

    def _check_queue(self, daemon: Daemon) -> None:
        """Check that chunks wait for readers in the order in which their batches are needed."""
        for queue in (daemon._builder._queue, daemon._builder._fresh_queue):
            turns = [chunk.job.turn for chunk in queue]
            if turns != sorted(turns):
                raise SimulationError(f"chunks wait in the order {turns} of their batches")

    # --- waits

    def _check_waits(self, daemon: Daemon, passed_s: float) -> None:
        manager = daemon._consumers
        if manager.granter is not None and daemon._ring.n_returned != self._n_returned:
            self._n_returned = daemon._ring.n_returned
            for spent in self._waits.values():
                spent.pop(("slots",), None)
        here = set()
        for number, consumer in manager.consumers.items():
            if not consumer.is_waiting or consumer.attachment is None:
                continue
            here.add(number)
            spent = self._waits.setdefault(number, defaultdict(float))
            if number in self._keys:
                key = self._keys[number]
                spent[key] += passed_s
                self.longest_s[str(key[0])] = max(self.longest_s[str(key[0])], spent[key])
                self._check_wait(daemon, consumer, key, spent[key])
            self._keys[number] = self._reason(daemon, consumer)
        for number in [number for number in self._waits if number not in here]:
            del self._waits[number]
            self._keys.pop(number, None)

    def _reason(self, daemon: Daemon, consumer: Consumer) -> tuple[object, ...]:
        """Return what a loop waits for, as `status` has it; with the loop and the epoch that it is waited for in."""
        found = _waits_for(consumer, daemon._consumers, is_short_of_memory=daemon._memory.target.paused)
        assert found is not None
        group = daemon._consumers.groups.of(consumer)
        head = daemon._consumers.pacer.waits.get(consumer.number if group is None else group.cursor.consumer)
        if found["reason"] == "slower loop" and head is not None:
            if head.patience_s and not head.patience_left_s:
                cursors, n_slots = daemon._consumers.cursors, len(daemon._ring.slots)
                if n_places(_arrange(cursors, n_slots, wait_for_all=False)) > most_windows(n_slots):
                    return ("a ring that is too small",)
            return "slower loop", head.consumer, head.serial, head.epoch
        if found["reason"] == "readers" and not daemon._pool.busy and not daemon._builder.has_jobs:
            return ("readers that have nothing to do",)
        return (found["reason"],)

    def _check_wait(self, daemon: Daemon, consumer: Consumer, key: tuple[object, ...], waited_s: float) -> None:
        spec, reason = self._world.spec, key[0]
        process = self._kernel.processes[consumer.pid]
        assert consumer.attachment is not None
        if process.stopped or not process.alive or reason in _UNBOUNDED:
            return
        if reason == "slower loop":
            bound_s = spec.patience_s + _SLACK_S + sum(fault.for_s for fault in spec.faults if "daemon" in fault.what)
        elif reason == "other loaders":
            bound_s = consumer.attachment.request.start_timeout_s + _SLACK_S + self._stopped_s()
        elif reason == "slots":
            bound_s = max(loop.hold_timeout_s for loop in spec.loops) + _SLACK_S + 2 * _LOOK_S + self._stopped_s()
        elif reason == "readers that have nothing to do":
            bound_s = _SLACK_S + self._stopped_s()
        elif reason == "a ring that is too small":
            bound_s = sum(loop.pause_s + loop.step_s * 50 + loop.rest_s for loop in spec.loops) + self.bound_s
        else:
            bound_s = self.bound_s
        if waited_s > bound_s:
            name = consumer.attachment.request.name
            raise SimulationError(f"{name} has waited {waited_s:.1f} s for {key}, {bound_s:.1f} s is the bound")

    def _stopped_s(self) -> float:
        return sum(fault.for_s for fault in self._world.spec.faults)

    def _check_unheard(self, daemon: Daemon) -> None:
        """Check that the daemon knows of every loop that waits."""
        waiting = {
            consumer.attachment.request.name
            for consumer in daemon._consumers.consumers.values()
            if consumer.attachment is not None and consumer.is_waiting
        }
        bound_s = 5.0 + 300 * self._world.spec.wake_s + self._stopped_s()
        for trainer in self._world.trainers:
            number = trainer.number
            process = self._world.clients.get(trainer.spec.process)
            if trainer.waits_since_s is None or process is None or process.stopped or trainer.name in waiting:
                self._unheard.pop(number, None)
                continue
            unknown_s = self._kernel.now_s - self._unheard.setdefault(number, self._kernel.now_s)
            if unknown_s > bound_s:
                raise SimulationError(f"{trainer.name} has waited {unknown_s:.1f} s for a daemon that does not know it")

    # --- the end

    def check_idle(self, daemon: Daemon) -> None:
        """Check that a daemon without loops holds nothing, when it has had the time to fall asleep."""
        if daemon._consumers.consumers:
            raise SimulationError(f"{len(daemon._consumers.consumers)} consumers are left")
        ring, account = daemon._ring, daemon._memory.budget
        if ring.leased_slots or any(slot.leases for slot in ring.slots.values()):
            raise SimulationError(f"{ring.leased_slots} slots are held by nobody")
        if any(slot.writers for slot in ring.slots.values()):
            raise SimulationError("a slot has a writer, and no reader is at work")
        if account.large_bytes:
            raise SimulationError(f"{account.large_bytes} bytes are reserved for decodes, and none goes on")

    def finish(self) -> None:
        """Check what the whole world came to."""
        self._check_confirmations()
        self._check_spawns()
        self._check_groups()

    def _check_confirmations(self) -> None:
        """Check that a bad sample is tried alone until it is known to be bad, and not again in each epoch."""
        spec = self._world.spec
        disturbed = sum("reader" in fault.what or "fork" in fault.what for fault in spec.faults)
        for (dataset, sample_id), times in self._world.statistics.alone.items():
            kind = self._world.kind(dataset, sample_id)
            leaks = 3 if spec.datasets[dataset].leak_bytes else 1  # a full reader hands it on
            # Where bad samples end the loop, each new loop tries them again: they may have been mended.
            loops = [loop.iterations for loop in spec.loops if loop.dataset == dataset]
            begun = max(1, sum(loops)) if spec.datasets[dataset].on_error == "raise" else 1
            bound = (_TRIES.get(kind or "", 3) + 2 * disturbed) * leaks * begun * (1 + self.n_daemon_deaths)
            if kind in CONTENT and kind != "random" and times > bound:
                raise SimulationError(
                    f"the {kind} sample {sample_id} was tried alone {times} times, {bound} is the bound"
                )

    def _check_spawns(self) -> None:
        """Check that readers are started for those that end, and for samples in doubt, and not by the hundred."""
        spec, statistics = self._world.spec, self._world.statistics
        if any(dataset.leak_bytes for dataset in spec.datasets):
            return  # each reader is replaced after some rows
        n_readers = max(spec.num_workers or spec.n_cores, 3)
        bound = (2 + len(spec.faults)) * (n_readers + 4) + sum(statistics.alone.values()) + statistics.n_died
        if statistics.n_spawned > bound:
            raise SimulationError(f"{statistics.n_spawned} readers were started, {bound} is the bound")

    def _check_groups(self) -> None:
        """Check that each batch of a pass went to one member; to one at least where a member died."""
        whats = [fault.what for fault in self._world.spec.faults]
        if any("daemon" in what for what in whats):
            return
        anyone_died = any("client" in what for what in whats)
        for (dataset, name), places in self._world.passes.items():
            members = [
                trainer
                for trainer in self._world.trainers
                if (trainer.spec.dataset, trainer.spec.group) == (dataset, name)
            ]
            twice = [place for place, times in places.items() if times > 1]
            if twice and not anyone_died:
                raise SimulationError(f"the group got {twice} more than once")
            if any(member.error is not None or member.spec.break_at or member.spec.second_at for member in members):
                continue
            n_batches = self._world.contents[dataset].order.batches_per_epoch
            whole = {epoch for member in members for epoch in member.whole_passes}
            for epoch in whole if anyone_died else {place[0] for place in places}:
                missed = set(range(n_batches)) - {batch for each, batch, _ in places if each == epoch}
                if missed:
                    raise SimulationError(f"nobody in the group has done batches {sorted(missed)} of epoch {epoch}")


def allowed_error(world: World, trainer: Trainer, error: PrefetchdError, *, is_peek: bool) -> bool:
    """Return whether the world gives a loop a reason to end with `error`."""
    spec, text, loop = world.spec, str(error), trainer.spec
    dataset = spec.datasets[loop.dataset]
    kinds = {kind for _, kind in dataset.bad}
    all_kinds = {kind for each in spec.datasets for _, kind in each.bad}
    whats = [fault.what for fault in spec.faults]
    killed = sum(what.startswith(("kill", "crash", "stop")) for what in whats)
    deaths = any("daemon" in what for what in whats) or "kernel" in all_kinds
    match type(error).__name__:
        case "SampleError":
            return (
                (dataset.on_error == "raise" and bool(kinds & set(CONTENT)))
                or ("input/output" in text and bool(kinds & set(FATAL)))
                or ("hangs in the kernel" in text and "kernel" in all_kinds)
                or ("its reader was ended" in text and killed + len(all_kinds & {"late", "kernel", "hang"}) > 0)
            )
        case "BudgetError":
            small = not spec.auto_budget and (spec.n_slots < 3 * len(spec.loops) + 4 or "set" in whats)
            if text.startswith("cannot decode"):
                fits = spec.auto_budget or spec.large_bytes <= (spec.n_slots - MIN_SLOTS) * spec.slot_bytes
                return "too large" in kinds or (
                    "large" in kinds and (not fits or "set" in whats or "shortage" in whats)
                )
            return small or "shortage" in whats
        case "RingExhausted":
            # In a ring too small for a place of its own for each, a loop that stands still holds what others need.
            n_decode = -(-spec.large_bytes // spec.slot_bytes) if "large" in all_kinds else 0  # it takes slots' memory
            small = not spec.auto_budget and (spec.n_slots < 2 * len(spec.loops) + 1 + n_decode or "set" in whats)
            stuck = "readers that do not end keep" in text and "kernel" in all_kinds
            return stuck or is_peek or (loop.hold >= 2 and not loop.copies) or (small and len(spec.loops) > 1)
        case "DaemonLost" | "DaemonNotFound":
            return deaths
    return (
        ("a newer iter()" in text and bool(loop.second_at))
        or ("it was closed" in text and bool(loop.second_at))
        or ("start together" in text and _may_wait_in_vain(world, loop, whats))
        or ("every reader" in text and "kernel" in all_kinds)
        or ("cannot start readers" in text and killed >= 3)
    )


def _may_wait_in_vain(world: World, loop: LoopSpec, whats: list[str]) -> bool:
    """Return whether a loop that starts with others may find too few of them within its time."""
    together = [
        other
        for other in world.trainers
        if (other.spec.dataset, other.spec.start_together) == (loop.dataset, loop.start_together)
    ]
    others = [other.spec for other in together]
    one_ended = any(other.error is not None for other in together if other.spec is not loop)
    soon = [other for other in others if abs(other.start_s - loop.start_s) < loop.timeout_s - 1]
    disturbed = any("client" in what or "daemon" in what for what in whats)
    return loop.start_together > 1 and (
        len(soon) < loop.start_together or len(others) % loop.start_together > 0 or disturbed or one_ended
    )
