"""How many nodes `remote_workers=auto` asks Ray for: simulated loops and clusters, and what comes of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from prefetchd.daemon.memory.node_scale import NodeScale
from prefetchd.daemon.memory.plan import RAY_AGENTS


@dataclass
class Cluster:
    """Nodes of four cores, each of which comes a window after it is asked for, while there are any.

    Those that are not needed any more go `late` windows after that is said.
    """

    n_nodes: int
    busy_s: float = 0.0
    samples: int = 0
    n_wanted: int = 1
    n_placed: int = 0
    late: int = 1
    _n_windows: int = 0

    @property
    def n_readers(self) -> int:
        return 4 * self.n_placed

    def pass_window(self) -> None:
        """Have nodes come and go."""
        self._n_windows = self._n_windows + 1 if self.n_placed > self.n_wanted else 0
        if self._n_windows in (0, self.late):
            self.n_placed, self._n_windows = min(self.n_wanted, self.n_nodes), 0

    def want(self, n_nodes: int) -> None:
        self.n_wanted = n_nodes


class Loop:
    """A loop that takes `consumes` samples a second of what readers here, and nodes of 100 a second each, make."""

    def __init__(self, cluster: Cluster, here: float = 50.0) -> None:
        self.cluster, self._here, self._scale, self._waited_s = cluster, here, NodeScale(), 0.0
        self.counts: list[int] = []

    def run(self, windows: int, consumes: float, *, useful: int = 64, may_step: bool = True) -> int:
        """Let so many windows of two seconds pass; return how many nodes are asked for then."""
        for _ in range(windows):
            cluster = self.cluster
            able = self._here + 100.0 * min(cluster.n_placed, useful)
            load = min(1.0, consumes / able)
            self._waited_s += 2.0 * max(0.0, 1 - able / consumes)
            cluster.busy_s += 2.0 * load * cluster.n_readers
            cluster.samples += round(2.0 * load * (able - self._here))
            self._scale.follow(cluster, 2.0, self._waited_s, may_step=may_step)
            self.counts.append(cluster.n_wanted)
            cluster.pass_window()
        return cluster.n_wanted


def test_nodes_are_added_while_loops_wait_and_it_helps():
    assert Loop(Cluster(10)).run(60, consumes=1000) == 8, "with seven, a loop waits a fourth of the time"


def test_no_more_nodes_than_the_bridge_has_memory_for():
    loop = Loop(Cluster(100))
    assert loop.run(200, consumes=10_000, useful=100) == RAY_AGENTS
    assert max(loop.counts) == RAY_AGENTS


def test_one_beyond_the_cluster_is_asked_for_as_long_as_loops_wait():
    loop = Loop(Cluster(3))
    assert loop.run(60, consumes=2000) == 4, "an autoscaler may bring one more"
    loop.cluster.n_nodes = 6
    assert loop.run(60, consumes=2000) == 7
    assert loop.run(5, consumes=300) <= 6, "nobody waits: it is not asked for any more"


def test_it_settles_where_more_no_longer_help():
    """Beyond two, nodes wait for the same storage: a third is taken back, and tries become rare."""
    loop = Loop(Cluster(10))
    loop.run(1000, consumes=2000, useful=2)
    assert max(loop.counts) == 3
    assert sum(a != b for a, b in zip(loop.counts[100:], loop.counts[101:], strict=False)) <= 12
    assert loop.counts[-1] == 2


def test_many_readers_here_do_not_hide_what_a_node_brings():
    assert Loop(Cluster(10), here=400.0).run(60, consumes=1000) == 5


def test_nodes_are_let_go_while_they_idle_and_one_stays():
    loop = Loop(Cluster(8))
    assert loop.run(60, consumes=1000) == 8
    assert loop.run(600, consumes=200) in (2, 3, 4), "more would idle"
    assert min(loop.counts[-100:]) > 1, "with one, the loop would wait"
    assert loop.run(2000, consumes=1) in (1, 2)


def test_node_that_is_long_in_going_is_let_go_all_the_same():
    loop = Loop(Cluster(8, late=4))
    assert loop.run(60, consumes=1000) == 8
    loop.run(60, consumes=150)
    idle = loop.counts[60:]
    assert min(idle) <= 2
    assert all(later <= earlier for earlier, later in itertools.pairwise(idle)), "no step down is undone"


@pytest.mark.parametrize("why", ["memory is short", "no node has come"])
def test_no_step_while_nothing_can_be_judged(why: str):
    loop = Loop(Cluster(0 if why == "no node has come" else 8))
    assert loop.run(50, consumes=800, may_step=why == "no node has come") == 1
