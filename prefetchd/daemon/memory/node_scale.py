"""Follows the loops with the number of nodes that Ray places agents on, where `remote_workers` is automatic.

A node is the unit: it brings all its cores, and starting an agent takes seconds. The policy is that of `num_workers`.
Owned by the memory controller, whose windows it shares.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Protocol

from prefetchd.config.units import format_count
from prefetchd.daemon.memory.autoscale import RESTING, Autoscale, Meter
from prefetchd.daemon.memory.plan import RAY_AGENTS

log = logging.getLogger("prefetchd")


class Nodes(Protocol):
    """The agents, as `RemoteReaders` has them."""

    busy_s: float
    samples: int
    n_wanted: int

    @property
    def n_readers(self) -> int:
        """Readers of all agents."""

    @property
    def n_placed(self) -> int:
        """Agents that Ray has placed, and that have joined."""

    def want(self, n_nodes: int) -> None:
        """Have Ray place agents on so many nodes."""


class NodeScale:
    """How many nodes decode: one more while loops wait and it helps, one fewer while they idle.

    There are at most as many as the bridge's memory is planned for.
    """

    def __init__(self) -> None:
        self._auto = Autoscale(RAY_AGENTS, RAY_AGENTS)
        self._meter = Meter(0.0, 0.0, 0, 0.0)
        self._n_nodes = 0

    def follow(self, remote: Nodes, elapsed_s: float, waited_s: float, *, may_step: bool) -> None:
        """Look at the last window, and ask for more nodes or fewer.

        A node that is asked for and has not come, since the cluster has no more, is asked for as long as loops wait:
        an autoscaler may bring it. The window in which a node comes or goes is not judged, nor those before it is gone.

        Args:
            remote: the agents.
            elapsed_s: the window's length.
            waited_s: seconds in which some loop waited, so far.
            may_step: whether the window may be judged.
        """
        n_nodes, before = remote.n_placed, self._n_nodes
        self._n_nodes = n_nodes
        window = self._meter.window(elapsed_s, waited_s, remote.busy_s, remote.samples, 0.0)
        if not may_step or not n_nodes or n_nodes != before or n_nodes > remote.n_wanted:
            return
        window = dataclasses.replace(window, busy=window.busy * n_nodes / max(1, remote.n_readers))
        wanted = self._auto.step(n_nodes, window)
        if wanted == remote.n_wanted or (wanted == n_nodes < remote.n_wanted and window.waited > RESTING):
            return
        log.info(
            "remote-workers auto: %s in place of %d (loops waited %.0f%% of the time, nodes were busy %.0f%%)",
            format_count(wanted, "node"), remote.n_wanted, 100 * window.waited, 100 * window.busy / n_nodes,
        )  # fmt: skip
        remote.want(wanted)
