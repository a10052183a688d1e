"""`OrderPlan`: the order of a data set, made once in the daemon, and its table in one sealed memfd for the readers.

    daemon:  plan_order(config, source) -> OrderPlan -> handle() ... OpenDataset ... -> reader:  attach_order

A plain order has no table, and its handle is empty. Else the memfd has a row for each place of the order (see
`sampling.places`). Readers map it, and take no memory of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.sampling.order import Order
from prefetchd.sampling.places import Places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.columns.passed import PassedTable
    from prefetchd.columns.store import Columns
    from prefetchd.config.options import Config
    from prefetchd.data.source import Source

# Options with which not every sample is served once.
CHOOSING = ("subset", "order", "where", "split", "limit", "weights")


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
    if config.mix:
        from prefetchd.data.order.mix import plan_mix

        return OrderPlan(*plan_mix(config, source))
    if not any(getattr(config, name) for name in CHOOSING):
        return OrderPlan(_order(config, n, None))
    from prefetchd.data.order.subset import choose_samples  # what a plain order does not need is not loaded

    chosen = choose_samples(config, source, passed or {})
    ids, versions = chosen.ids, dict(chosen.versions)
    until: NDArray[np.float64] | None = None
    if config.weights is not None:
        from prefetchd.data.order.weights import weigh_places

        ids, until, versions["weights"] = weigh_places(config, source, ids, (passed or {}).get("weights"))
    if ids is None and until is None:
        return OrderPlan(_order(config, n if config.limit is None else min(n, config.limit), None))
    columns = _write(ids, until, n)
    return OrderPlan(_order(config, n, columns), versions, columns)


def plan_sweep(config: Config, source: Source) -> OrderPlan:
    """Return an order that has each sample which the options can serve once, by number; raises as `plan_order`."""
    order = replace(config, shuffle=False, shuffle_block=None, drop_last=False, weights=None, epoch_samples=None)
    if config.order is None:
        return plan_order(order, source)
    from prefetchd.data.order.subset import choose_samples, distinct

    ids = choose_samples(order, source, {}).ids
    assert ids is not None
    columns = _write(distinct(ids, source.facts.n_samples), None, source.facts.n_samples)
    return OrderPlan(_order(order, source.facts.n_samples, columns), {}, columns)


def _write(ids: NDArray[np.int64] | None, until: NDArray[np.float64] | None, n_samples: int) -> Columns:
    """Return the table in a sealed memfd, which the caller owns."""
    from prefetchd.columns.store import Columns
    from prefetchd.columns.writer import ColumnsWriter

    table = until if ids is None else ids
    assert table is not None
    with ColumnsWriter(len(table)) as writer:
        if ids is not None:
            writer.add_numbers("ids", ids.astype(np.uint32) if n_samples <= 1 << 32 else ids)
        if until is not None:
            writer.add_numbers("until", until)
        return Columns.attach(*writer.finish())


def attach_order(config: Config, n_samples: int, handle: Mapping[str, Any], fds: list[int]) -> Order:
    """Return, in a reader, the order whose `handle()` this is; owns `fds`. `n_samples` are those of the data set."""
    if not handle:
        return _order(config, min(n_samples, config.limit or n_samples), None)
    from prefetchd.columns.store import Columns

    with Columns.attach(handle["table"], fds[0]) as columns:  # the map goes on without the descriptor
        if config.mix:
            from prefetchd.data.order.mix import mixed_order

            return mixed_order(config, columns)
        return _order(config, n_samples, columns)


def _order(config: Config, n_samples: int, columns: Columns | None) -> Order:
    places = None
    if columns is not None:
        places = Places(*(columns[name].values if name in columns else None for name in ("ids", "until")))
        n_samples = config.epoch_samples or columns.n_rows
    return Order(
        n_samples, config.batch_size, config.drop_last, config.shuffle, config.seed, places, config.shuffle_block or 0
    )
