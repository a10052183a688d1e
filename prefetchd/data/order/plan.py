"""`OrderPlan`: the order of a data set, made once in the daemon, and its table in one sealed memfd for the readers.

    daemon:  plan_order(config, source) -> OrderPlan -> handle() ... OpenDataset ... -> reader:  attach_order

A plain order has no table, and its handle is empty. Else the memfd has a row for each place of the order (see
`sampling.places`). Readers map it, and take no memory of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.sampling.order import Order
from prefetchd.sampling.places import Places

if TYPE_CHECKING:
    from prefetchd.columns.passed import PassedTable
    from prefetchd.config.options import Config
    from prefetchd.data.source import Source

CHOOSING = ("subset", "where", "split", "limit")  # options with which not every sample is served, once each


@dataclass(frozen=True, slots=True, eq=False)
class OrderPlan:
    """The order of a data set.

    Attributes:
        order: which samples are in which batch.
        versions: what decides the order besides the content options, such as the samples that a file named.
        columns: the memfd, owned; `None` for a plain order.
    """

    order: Order
    versions: dict[str, str] = field(default_factory=dict)
    columns: Columns | None = None

    @property
    def shared_bytes(self) -> int:
        """Bytes of the memfd."""
        return 0 if self.columns is None else self.columns.n_bytes

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Return plain values and descriptors, which stay this object's, from which a reader attaches."""
        if self.columns is None:
            return {}, []
        description, fd = self.columns.handle()
        return {"table": description}, [fd]


def plan_order(config: Config, source: Source, passed: Mapping[str, PassedTable] | None = None) -> OrderPlan:
    """Return the order of an open data set.

    Args:
        config: the options.
        source: the data set.
        passed: what options name that is in the starter's memory, by option; owned.

    Raises:
        ConfigError: if an option means nothing for the source, or no sample is left.
        ManifestError: if a file that an option names cannot be read.
    """
    n = source.facts.n_samples
    if not any(getattr(config, name) for name in CHOOSING):
        return OrderPlan(_order(config, n, None))
    from prefetchd.columns.writer import ColumnsWriter  # what a plain order does not need is not loaded
    from prefetchd.data.order.subset import choose_samples

    chosen = choose_samples(config, source, passed or {})
    if chosen.ids is None:
        return OrderPlan(_order(config, n, None))
    n_places = len(chosen.ids)
    with ColumnsWriter(n_places) as writer:
        writer.add_numbers("ids", chosen.ids.astype(np.uint32) if n <= 1 << 32 else chosen.ids)
        columns = Columns.attach(*writer.finish())
    return OrderPlan(_order(config, n_places, columns), chosen.versions, columns)


def attach_order(config: Config, n_samples: int, handle: Mapping[str, Any], fds: list[int]) -> Order:
    """Return, in a reader, the order whose `handle()` this is; owns `fds`. `n_samples` are those of the data set."""
    if not handle:
        return _order(config, n_samples, None)
    with Columns.attach(handle["table"], fds[0]) as columns:  # the map goes on without the descriptor
        return _order(config, columns.n_rows, columns)


def _order(config: Config, n_samples: int, columns: Columns | None) -> Order:
    places = None if columns is None else Places(columns["ids"].values)
    return Order(n_samples, config.batch_size, config.drop_last, config.shuffle, config.seed, places)
