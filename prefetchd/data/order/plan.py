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
from prefetchd.sampling.places import RACE_BYTES, Places, make_guide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.columns.passed import PassedTable
    from prefetchd.columns.store import Columns
    from prefetchd.config.options import Config
    from prefetchd.data.order.buckets import BucketReport
    from prefetchd.data.source import Source

_TABLES = ("ids", "until", "guide", "weights")  # of `Places`
# Options with which not every sample is served once.
CHOOSING = ("subset", "order", "where", "split", "limit", "weights")


@dataclass(frozen=True, slots=True, eq=False)
class OrderPlan:
    """The order of a data set.

    Attributes:
        order: which samples are in which batch.
        versions: what decides the order besides the content options, such as the samples that a file named.
        columns: the memfd, owned; `None` for a plain order.
        buckets: the buckets, in words and numbers; `None` without them.
    """

    order: Order
    versions: dict[str, str] = field(default_factory=dict)
    columns: Columns | None = None
    buckets: BucketReport | None = None

    @property
    def shared_bytes(self) -> int:
        """Bytes of the memfd."""
        return 0 if self.columns is None else self.columns.n_bytes

    @property
    def reader_bytes(self) -> int:
        """Bytes of private memory that the order takes in each reader."""
        places = self.order.places
        return 0 if places is None or places.weights is None else RACE_BYTES

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Return plain values and descriptors, which stay this object's, from which a reader attaches."""
        if self.columns is None:
            return {}, []
        description, fd = self.columns.handle()
        handle: dict[str, Any] = {"table": description}
        return (handle if self.buckets is None else {**handle, "counts": list(self.buckets.counts)}), [fd]


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
    if source.facts.bucket_fields:
        from prefetchd.data.order.buckets import plan_buckets

        return OrderPlan(*plan_buckets(config, source, passed or {}))
    if not any(getattr(config, name) for name in CHOOSING):
        return OrderPlan(_order(config, n, None))
    from prefetchd.data.order.subset import choose_samples  # what a plain order does not need is not loaded

    chosen = choose_samples(config, source, passed or {})
    ids, versions = chosen.ids, dict(chosen.versions)
    weights: dict[str, NDArray[Any] | None] = {}
    if config.weights is not None:
        from prefetchd.data.order.weights import weigh_places

        ids, found, versions["weights"] = weigh_places(
            config, source, ids, (passed or {}).get("weights"), chosen.labels
        )
        weights = {"until": found, "guide": make_guide(found)} if config.replace else {"weights": found}
    if ids is None and not weights:
        return OrderPlan(_order(config, n if config.limit is None else min(n, config.limit), None))
    columns = _write(n, ids=ids, **weights)
    return OrderPlan(_order(config, n, columns), versions, columns)


def plan_sweep(config: Config, source: Source) -> OrderPlan:
    """Return an order that has each sample which the options can serve once, by number; raises as `plan_order`."""
    order = replace(
        config, shuffle=False, shuffle_block=None, drop_last=False, weights=None, replace=True, epoch_samples=None
    )
    if config.weights is not None and (drawn := plan_order(config, source).columns) is not None:
        drawn.close()  # they decide no sample of a sweep, and are refused all the same
    if config.order is None:
        return plan_order(order, source)
    from prefetchd.data.order.subset import choose_samples, distinct

    ids = choose_samples(order, source, {}).ids
    assert ids is not None
    columns = _write(source.facts.n_samples, ids=distinct(ids, source.facts.n_samples))
    return OrderPlan(_order(order, source.facts.n_samples, columns), {}, columns)


def _write(n_samples: int, **tables: NDArray[Any] | None) -> Columns:
    """Return the tables, by name, in a sealed memfd, which the caller owns; `None` for one that there is no need of."""
    from prefetchd.columns.store import Columns
    from prefetchd.columns.writer import ColumnsWriter

    found = {name: table for name, table in tables.items() if table is not None}
    with ColumnsWriter(len(next(iter(found.values())))) as writer:
        for name, table in found.items():
            writer.add_numbers(name, table.astype(np.uint32) if name == "ids" and n_samples <= 1 << 32 else table)
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
        if "counts" in handle:
            from prefetchd.data.order.buckets import bucket_order

            return bucket_order(config, columns, handle["counts"])
        return _order(config, n_samples, columns)


def _order(config: Config, n_samples: int, columns: Columns | None) -> Order:
    places = None
    if columns is not None:
        places = Places(*(columns[name].values if name in columns else None for name in _TABLES))
        n_samples = config.epoch_samples or columns.n_rows
    return Order(
        n_samples, config.batch_size, config.drop_last, config.shuffle, config.seed, places, config.shuffle_block or 0
    )
