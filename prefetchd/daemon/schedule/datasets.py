"""The data sets of a daemon, each with its own configuration, source, order and layout.

The daemon opens them once, at its start, and never changes them. They share readers, ring and memory budget, so the
options of those are the daemon's and the same for all (`config.DAEMON_OPTIONS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prefetchd.columns.passed import PassedTable, passed_options
from prefetchd.config.options import Config
from prefetchd.data.kinds import InapplicableOption, kind_of
from prefetchd.data.order.plan import OrderPlan, plan_order
from prefetchd.data.registry import Source, open_source
from prefetchd.errors import ConfigError
from prefetchd.ipc.reader_messages import OpenDataset
from prefetchd.ring.layout import BatchLayout
from prefetchd.sampling.order import Order


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """One data set.

    Attributes:
        number: its name on the wire and in the ring's keys, from 0.
        name: its name for consumers; empty if the daemon serves one data set without a name.
        config: its options.
        source: where its samples come from, owned.
        plan: of its order, owned.
        layout: of a batch in a slot.
    """

    number: int
    name: str
    config: Config
    source: Source
    plan: OrderPlan
    layout: BatchLayout

    @property
    def order(self) -> Order:
        """Which samples are in which batch."""
        return self.plan.order

    @property
    def versions(self) -> dict[str, str]:
        """What decides the bytes of batches besides the content options."""
        return {**self.source.facts.versions, **self.plan.versions}

    @property
    def shared_bytes(self) -> int:
        """Bytes of memory segments that all readers share, beside the ring."""
        return self.source.facts.shared_bytes + self.plan.shared_bytes

    def for_readers(self) -> tuple[OpenDataset, list[int]]:
        """Return the message with which a reader opens it, and its descriptors, borrowed."""
        (handle, fds), (order, order_fds) = self.source.handle(), self.plan.handle()
        message = OpenDataset(self.number, self.config.to_wire(), handle, self.layout.to_wire(), order)
        return message, [*fds, *order_fds]


def open_datasets(configs: Mapping[str, Config], tables: Mapping[str, PassedTable] | None = None) -> list[Dataset]:
    """Open and check every data set, by name; `tables` are those of sources in memory, and of options.

    Raises:
        PrefetchdError: if one of them cannot be served.
    """
    datasets = []
    tables = tables or {}
    for number, (name, config) in enumerate(configs.items()):
        try:
            datasets.append(_open(number, name, config, tables.get(name), passed_options(name, tables)))
        except InapplicableOption as error:
            raise ConfigError(_explain(error, config, configs)) from None
    return datasets


def _explain(error: InapplicableOption, config: Config, configs: Mapping[str, Config]) -> str:
    """Return the message of `error`, and how to give the option to those data sets only that take it."""
    value = getattr(config, error.option)
    is_off = "no-" if value is False else ""
    flag = error.option.replace("_", "-")
    flags = [
        f"--{is_off}{name}.{flag}"
        for name, other in configs.items()
        if getattr(other, error.option) == value and kind_of(other.source) != kind_of(config.source)
    ]
    if not flags:
        return str(error)
    return f"{error.why}; give an option of some data sets to each of them: {' '.join(flags)}"


def _open(
    number: int, name: str, config: Config, table: PassedTable | None, passed: Mapping[str, PassedTable]
) -> Dataset:
    source = open_source(config, table=table, passed=passed)
    plan = plan_order(config, source, passed)
    if not plan.order.batches_per_epoch:
        which = f" the data set {name!r}" if name else ""
        raise ConfigError(
            f"cannot serve{which}: {plan.order.n_samples} samples make no batch of {config.batch_size} with "
            "drop_last=True; lower batch_size or leave drop_last out"
        )
    layout = BatchLayout(config.batch_size, source.facts.fields, source.facts.sources)
    return Dataset(number, name, config, source, plan, layout)
