"""How many readers `num_workers=auto` has: simulated loops and machines, and what the policy makes of them."""

from __future__ import annotations

import itertools

import pytest

from prefetchd.daemon.memory.autoscale import Autoscale, Window


def simulate(
    policy: Autoscale, n: int, windows: int, *, consumes: float, each: float, useful: int, idle_cores: float = 8.0
) -> list[int]:
    """Windows with a loop that consumes so much, readers that make `each` a second, and `useful` of them that help."""
    found = []
    for _ in range(windows):
        made = each * min(n, useful)
        rate = min(made, consumes)
        waited = max(0.0, 1 - made / consumes)
        busy = n * (rate / made)
        n = policy.step(n, Window(waited, busy, rate, idle_cores))
        found.append(n)
    return found


def changes(numbers: list[int]) -> int:
    return sum(a != b for a, b in itertools.pairwise(numbers))


def test_readers_are_added_while_loops_wait_and_it_helps():
    assert simulate(Autoscale(8, 4), 1, 40, consumes=1000, each=100, useful=8)[-1] == 8


@pytest.mark.parametrize("useful", [1, 2, 5])
def test_it_settles_where_more_no_longer_help(useful):
    """Past the cores that there are, another reader adds nothing and is taken back; tries become rare."""
    numbers = simulate(Autoscale(8, 4), 1, 1000, consumes=1000, each=100, useful=useful)
    assert numbers[-1] == useful
    assert max(numbers) == useful + 1
    assert changes(numbers[100:]) <= 12


def test_it_does_not_climb_beyond_the_cores_while_they_are_busy():
    """Decoding keeps the cores busy: where samples a second vary by a tenth, a climb would follow the noise."""
    rates = itertools.cycle((100, 110, 95, 120))
    policy = Autoscale(4, 2)
    assert {policy.step(2, Window(0.9, 2.0, next(rates), 0.1)) for _ in range(100)} == {2}


def test_it_climbs_beyond_the_cores_where_readers_wait_for_storage():
    numbers = simulate(Autoscale(4, 2), 2, 40, consumes=1000, each=100, useful=4, idle_cores=1.8)
    assert numbers[-1] == 4


@pytest.mark.parametrize(("n", "busy", "wanted"), [(2, 1.6, 3), (2, 1.4, 2), (10, 9.2, 11), (10, 8.8, 10)])
def test_it_climbs_while_nearly_all_are_busy(n: int, busy: float, wanted: int):
    """Of many, those of other machines wait a little for the network between two chunks."""
    assert Autoscale(16, 16).step(n, Window(0.9, busy, 100.0 * n, 0.0)) == wanted


def test_a_step_that_brings_less_than_a_third_of_its_share_is_taken_back():
    policy = Autoscale(8, 4)
    assert policy.step(3, Window(0.9, 3.0, 300, 2.0)) == 4
    assert policy.step(4, Window(0.9, 4.0, 330, 2.0)) == 3, "a fourth reader brings 100 at best"


def test_idle_readers_are_removed_and_it_settles():
    """A loop that takes 250 a second needs three readers of 100."""
    numbers = simulate(Autoscale(8, 4), 8, 1000, consumes=250, each=100, useful=8)
    assert numbers[-1] in (3, 4)
    assert changes(numbers[200:]) <= 12


def test_a_step_down_after_which_loops_wait_is_taken_back():
    policy = Autoscale(8, 4)
    for _ in range(5):
        n = policy.step(4, Window(0.0, 2.0, 100, 1.0))
    assert n == 3
    assert policy.step(3, Window(0.5, 3.0, 90, 1.0)) == 4


def test_never_fewer_than_one_nor_more_than_the_most():
    policy = Autoscale(2, 1)
    assert {policy.step(1, Window(0.0, 0.0, 0, 1.0)) for _ in range(50)} == {1}
    assert {policy.step(2, Window(1.0, 2.0, 100, 1.0)) for _ in range(50)} == {2}


def test_step_that_was_not_taken_is_not_judged():
    """A plan may have no memory for one more reader: the next window is one of as many readers as before."""
    policy, window = Autoscale(4, 2), Window(1.0, 1.0, 100.0, 1.0)
    assert policy.step(1, window) == 2
    assert policy.step(1, window) == 2, "the caller may say nothing"
    policy.refused()
    assert policy.step(1, window) == 2


def test_step_down_that_was_not_taken_is_not_judged():
    policy = Autoscale(4, 4)
    for _ in range(5):
        n = policy.step(4, Window(0.0, 2.0, 100, 1.0))
    assert n == 3
    policy.refused()
    assert policy.step(4, Window(0.5, 3.0, 90, 1.0)) == 4
