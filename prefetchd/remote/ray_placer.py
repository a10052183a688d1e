"""Has Ray place agents: one on each node that is to decode. A thread of the bridge, which alone imports Ray.

    nodes of the cluster -> an actor each (`ray_agent`) -> its address -> a dialer, as for every agent

Nodes with accelerators are left to those who train, unless some nodes have the label `prefetchd=decode`: then exactly
those decode. What is asked for beyond the nodes that are there stays pending, where Ray's autoscaler sees it; where a
node takes it that joined later and is not to decode, it is ended. An actor that has died is placed again. When Ray
itself is gone, its agents are, and it is asked again with rests that grow.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefetchd.errors import one_line
from prefetchd.remote.ray_agent import NodeAgent

LABEL, DECODES = "prefetchd", "decode"
ACCELERATORS = ("GPU", "TPU", "HPU", "NPU", "neuron_cores")
_NODE_LABEL = "ray.io/node-id"
_LOOK_S = 1.0
_PENDING_S = 15.0
_REST_S = 10.0
_FIRST_REST_S = 1.0
_MOST_REST_S = 30.0


@dataclass(slots=True)
class Placed:
    """An actor: its node ("" while Ray has not placed it), its readers, and its agent's address once it has one.

    What it is asked, in this order: whether it runs, where its agent listens, and to wait for the agent's end.
    """

    actor: Any
    node: str
    n_readers: int
    asked_s: float
    runs: Any
    where: Any
    end: Any
    address: str = ""


@dataclass(slots=True)
class Wanted:
    """What is to be placed: readers by node, and those for which no node is there."""

    by_node: dict[str, int] = field(default_factory=dict)
    elsewhere: int = 0


def eligible(nodes: Sequence[Mapping[str, Any]], own_node: str) -> dict[str, int]:
    """Return the cores of each node that is to decode, by its number.

    Args:
        nodes: as `ray.nodes()` has them.
        own_node: where the daemon is: its own readers use its cores.
    """
    alive = [node for node in nodes if node["Alive"]]
    labelled = [node for node in alive if node.get("Labels", {}).get(LABEL) == DECODES]
    chosen = labelled or [
        node
        for node in alive
        if node["NodeID"] != own_node and not any(node["Resources"].get(name) for name in ACCELERATORS)
    ]
    return {node["NodeID"]: n for node in chosen if (n := int(node["Resources"].get("CPU", 0))) > 0}


def barred(nodes: Sequence[Mapping[str, Any]], cores: Mapping[str, int]) -> list[str]:
    """Return the nodes on which nothing may be placed: all but those of `eligible`."""
    return [node["NodeID"] for node in nodes if node["Alive"] and node["NodeID"] not in cores]


def wanted_nodes(cores: Mapping[str, int], n_nodes: int, here: Collection[str]) -> Wanted:
    """Return how many readers each of `n_nodes` nodes is to have: a core each; those `here` have agents already."""
    order = sorted(cores, key=lambda node: (node not in here, -cores[node], node))[:n_nodes]
    is_enough = n_nodes <= len(cores)
    return Wanted({node: cores[node] for node in order}, 0 if is_enough else max(cores.values(), default=1))


def wanted(cores: Mapping[str, int], n_workers: int) -> Wanted:
    """Return how many readers each node is to have: a core each, on as few nodes as hold `n_workers`."""
    found, left = Wanted(), n_workers
    for node, n_cores in sorted(cores.items(), key=lambda item: (-item[1], item[0])):
        if left > 0:
            found.by_node[node] = min(n_cores, left)
            left -= found.by_node[node]
    found.elsewhere = left
    return found


def reason_of(error: Exception) -> str:
    """Return what Ray raised as one line, also where it says nothing."""
    lines = str(error).strip().splitlines()
    return one_line(f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__)


class RayPlacer:
    """Keeps agents on the nodes of a cluster.

    Args:
        address: of the cluster, or "auto".
        n_workers: readers in all; 0 for a core each on `n_nodes` nodes.
        make: the arguments of `NodeAgent` but for the number of readers.
        joined: called with each address where an agent listens; in this thread.
        left: called with the address of an agent that is gone, and whether it was left out because fewer
            nodes are wanted.
        failed: called with why nothing can be placed.
    """

    def __init__(
        self,
        address: str,
        n_workers: int,
        make: tuple[bytes, bool, Sequence[str]],
        *,
        joined: Callable[[str], None],
        left: Callable[[str, bool], None],
        failed: Callable[[str], None],
    ) -> None:
        self._address, self._n_workers = address, n_workers
        self.n_nodes = 1
        self._token, self._allow_code, self._python_path = make
        self._joined, self._left, self._failed = joined, left, failed
        self._placed: list[Placed] = []
        self._rest_until: dict[str, float] = {}  # by node: its agent did not start
        self._fewer: dict[str, int] = {}  # readers of a node whose cores are taken; 0: all of them
        threading.Thread(target=self._run, name="ray", daemon=True).start()

    def _run(self) -> None:
        rest_s = _FIRST_REST_S
        while True:
            try:
                self._connect()
                while True:
                    self._look()
                    rest_s = _FIRST_REST_S
                    time.sleep(_LOOK_S)
            except Exception as error:  # Ray raises many kinds, and none may end the thread
                self._failed(reason_of(error))
            for placed in self._placed:
                self._forget(placed)
            self._placed = []
            time.sleep(rest_s)
            rest_s = min(_MOST_REST_S, 2 * rest_s)

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            ray.shutdown()
        ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")

    def _look(self) -> None:
        """See what has become of the actors, and place those that are missing."""
        import ray

        for placed in list(self._placed):
            self._look_at(placed)
        nodes = ray.nodes()
        cores = eligible(nodes, ray.get_runtime_context().get_node_id())
        barred_nodes = barred(nodes, cores)
        # Ray may have put what was pending on a node that has joined since.
        self._end([placed for placed in self._placed if placed.node in barred_nodes])
        here = {placed.node for placed in self._placed}
        room = self._room(cores)
        want = wanted(room, self._n_workers) if self._n_workers else wanted_nodes(room, self.n_nodes, here)
        if not self._n_workers:
            self._leave_out(want)
        if not cores and not self._n_workers:
            self._failed(
                f"no node of the cluster is to decode: those with cores have accelerators; give some the label "
                f"{LABEL}={DECODES}"
            )
        here = {placed.node for placed in self._placed}
        for node, n_readers in want.by_node.items():
            if node not in here and time.monotonic() > self._rest_until.get(node, 0.0):
                self._place(node, min(n_readers, self._fewer.get(node, n_readers)), [])
        if want.elsewhere and "" not in here and time.monotonic() > self._rest_until.get("", 0.0):
            n_readers = min(want.elsewhere, max(cores.values(), default=want.elsewhere))
            self._place("", n_readers, barred_nodes)

    def _room(self, cores: Mapping[str, int]) -> dict[str, int]:
        """Return the readers that each node can have: fewer than it has cores where others have some; not 0."""
        taken: dict[str, int] = {}
        for placed in self._placed:
            if placed.address:
                taken[placed.node] = taken.get(placed.node, 0) + placed.n_readers
        room = {node: min(n, max(self._fewer.get(node, n), taken.get(node, 0))) for node, n in cores.items()}
        return {node: n for node, n in room.items() if n}

    def _leave_out(self, want: Wanted) -> None:
        """End the agents of nodes that are not wanted any more, and those that came to a node with too few readers."""
        for placed in list(self._placed):
            if placed.node:
                most = want.by_node.get(placed.node, 0)
                is_right = 0 < min(most, self._fewer.get(placed.node, most)) <= placed.n_readers
            else:
                is_right = bool(want.elsewhere)
            if not is_right:
                self._end([placed])

    def _end(self, placed: Sequence[Placed]) -> None:
        """End agents that serve, or are to, where none is wanted."""
        for each in placed:
            self._placed.remove(each)
            self._forget(each, is_left_out=True)

    def _look_at(self, placed: Placed) -> None:
        import ray

        if ray.wait([placed.end], timeout=0)[0]:  # it has ended, by itself or with its node
            self._placed.remove(placed)
            self._forget(placed)
            if not placed.address:
                self._rest_until[placed.node] = time.monotonic() + _REST_S
                self._failed(f"the agent of node {placed.node[:8] or 'to come'} does not start; see that worker's log")
        elif not placed.address and ray.wait([placed.where], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # then its end is seen next
                placed.address, placed.node = ray.get(placed.where)
                if not self._fewer.get(placed.node, 1):  # some of its cores have become free
                    self._fewer[placed.node] = placed.n_readers
                self._joined(placed.address)
        elif not placed.address and self._has_no_room(placed):
            self._fewer[placed.node] = placed.n_readers // 2
            self._placed.remove(placed)
            self._forget(placed)

    @staticmethod
    def _has_no_room(placed: Placed) -> bool:
        """Return whether others seem to have the cores of its node, so that fewer are to be asked for.

        An actor that runs has them, however long its agent takes to start.
        """
        is_late = time.monotonic() - placed.asked_s > _PENDING_S
        if not is_late or not placed.node:
            return False
        import ray

        return not ray.wait([placed.runs], timeout=0)[0]

    def _place(self, node: str, n_readers: int, barred_nodes: Sequence[str]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn

        where: Any = "SPREAD"
        if node:
            where = NodeAffinitySchedulingStrategy(node, soft=False)
        elif barred_nodes:
            where = NodeLabelSchedulingStrategy(hard={_NODE_LABEL: NotIn(*barred_nodes)})
        remote = ray.remote(num_cpus=n_readers, max_concurrency=2, max_restarts=0, scheduling_strategy=where)(NodeAgent)
        actor = remote.remote(self._token, n_readers, self._allow_code, list(self._python_path))
        asked = actor.runs.remote(), actor.where.remote(), actor.wait.remote()
        placed = Placed(actor, node, n_readers, time.monotonic(), *asked)
        self._placed.append(placed)

    def _forget(self, placed: Placed, *, is_left_out: bool = False) -> None:
        import ray

        if placed.address:
            self._left(placed.address, is_left_out)
        with contextlib.suppress(Exception):  # it is dead, or Ray is
            ray.kill(placed.actor)
