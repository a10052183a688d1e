"""Cases of the consumers' manager that were found once, in the machine of random events."""

from __future__ import annotations

from prefetchd.ipc import messages
from tests.unit.test_consumer_manager import Machine


def test_what_a_member_of_a_group_was_done_with_is_not_given_again_though_its_death_is_noticed_first():
    machine = Machine()
    machine.begin(12, 3, 0.0)
    for _ in range(2):
        machine.kill(machine.consumers[0])
        machine.attach(group="workers")
    for member in machine.consumers:
        machine.begin_loop(member, 0, 0, 1)
    doomed, other = machine.consumers
    seen = []
    try:
        while not seen:
            machine.take(doomed)
            machine.daemon_works(1, 3)
            seen += [key[2] for _, key in doomed.held]
        doomed.held.clear()  # told; and nobody has heard it yet
        machine.kill(doomed)
        for _ in range(10):
            if other.connection._grants.has_next:
                seen.append(other.connection.next_batch(other.serial, False).index)
                other.asked = False
            elif not other.asked:
                other.asked = True
                other.connection._channel.send(messages.Want(other.serial, other.connection._leases.taken))
            machine.daemon_works(1, 3)
        assert seen == [0, 1, 2]
    finally:
        other.expected = None
        machine.teardown()


def test_loop_that_stands_still_with_many_grants_leaves_others_enough_of_a_ring_that_shrinks():
    machine = Machine()
    machine.begin(40, 20, 0.0)
    idle, other = machine.consumers
    try:
        machine.daemon_works(4, 8)
        assert machine.ring.held_by(idle.number) > 5
        machine.end_loop(other)
        machine.memory.target.n_slots = machine.memory.budget.plan.n_slots = 5
        machine.daemon_works(4, 8)
        assert len(machine.ring.slots) < 40
        machine.begin_loop(other, 5, 0, 2)  # nothing of what lies ready for the other
        for _ in range(200):
            if other.expected is not None and machine.take(other):
                del other.held[:-1]
            machine.daemon_works(1, 3)
        assert other.expected is None  # it has seen all of it
        assert len(machine.ring.slots) <= machine.ring.held_by(idle.number) + 3
    finally:
        machine.teardown()


def test_loop_that_would_begin_too_far_from_the_others_for_the_ring_is_told_so_with_numbers():
    machine = Machine()
    machine.begin(3, 20, 5.0)
    machine.attach()
    _, far, farther = machine.consumers
    try:
        machine.daemon_works(1, 3)
        machine.begin_loop(far, 3, 0, 1)
        machine.begin_loop(farther, 6, 0, 1)
        machine.daemon_works(1, 3)
        said = []
        while farther.connection._channel.wait(0):
            said.append(farther.connection._receive(wait=False))
        failed = next(message for message in said if isinstance(message, messages.Failed))
        assert failed.error == "BudgetError"
        assert "at 3 places far apart, for which it takes 7 slots" in failed.text
        farther.expected = None
    finally:
        machine.teardown()


def test_ring_is_never_made_smaller_than_its_loops_need_where_they_are_in_it():
    machine = Machine()
    machine.begin(40, 20, 5.0)
    one, other = machine.consumers
    try:
        assert machine.manager.promised_slots == 3  # they are level
        machine.begin_loop(other, 0, 10, 1)
        machine.daemon_works(1, 3)
        assert len(machine.ring.slots) == 40  # where they are one window
        assert machine.manager.promised_slots == 5
        machine.begin_loop(one, 0, 8, 1)
        machine.come_round()
        assert machine.manager.promised_slots == 3
    finally:
        machine.teardown()


def test_loops_far_apart_go_on_in_the_smallest_ring_that_a_lowered_budget_leaves_them():
    machine = Machine()
    machine.begin(60, 50, 0.0)
    machine.attach()
    machine.attach()
    try:
        for number, consumer in enumerate(machine.consumers):
            machine.begin_loop(consumer, 0, 9 * number, 1)  # one window of the large ring
        machine.come_round()
        machine.memory.target.n_slots = machine.memory.budget.plan.n_slots = machine.manager.promised_slots
    finally:
        machine.teardown()  # all of them get on to their end


def test_a_grant_while_another_loop_waits_asks_for_another_look_at_what_to_fill():
    """The cursor that moved on may leave a slot for the batch that the other loop waits for."""
    machine = Machine()
    machine.begin(8, 20, 5.0)
    _, other = machine.consumers
    try:
        machine.begin_loop(other, 0, 5, 1)
        machine.take(other)
        machine.come_round()
        machine.fills_begin(1)
        machine.fills_end()
        assert machine.manager.serve_all()  # the first batch, to the loop that begins with it
        assert not machine.manager.serve_all()
    finally:
        machine.teardown()


def test_steady_loop_finds_its_next_batch_though_the_daemon_looks_late():
    machine = Machine()
    machine.begin(6, 20, 5.0)
    steady, other = machine.consumers
    try:
        machine.end_loop(other)
        machine.daemon_works(4, 3)
        granted = machine.manager.consumers[steady.number]
        for _ in range(10):
            assert machine.take(steady)
            del steady.held[:-1]
            machine.daemon_works(1, 3)
            machine.loop.now_s += 0.1
            machine.daemon_works(1, 3)
        assert granted.is_polled
        assert len(granted.untaken) == 2
        assert machine.take(steady)
        assert machine.take(steady)  # the daemon has not looked since
        machine.loop.now_s += 100.0
        machine.daemon_works(8, 3)
        assert not granted.is_polled
    finally:
        machine.teardown()
