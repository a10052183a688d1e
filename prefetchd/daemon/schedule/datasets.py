"""The data sets of a daemon, each with its own configuration, source, order and layout.

The daemon opens them once, at its start, and never changes them. They share readers, ring and memory budget, so the
options of those are the daemon's and the same for all (`config.options.DAEMON_OPTIONS`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefetchd.columns.passed import PassedTable, passed_options
from prefetchd.config.options import OPTIONS, Config
from prefetchd.data.kinds import InapplicableOption, kind_of
from prefetchd.data.order.plan import OrderPlan, plan_order
from prefetchd.data.registry import Source, open_source
from prefetchd.errors import ConfigError, one_line
from prefetchd.ipc import bridge_messages
from prefetchd.ipc.messages import Message
from prefetchd.ipc.reader_messages import OpenDataset
from prefetchd.ring.layout import BatchLayout
from prefetchd.sampling.order import Order

_COMPARED_FILES = 16  # with those of an agent, of each source


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """One data set.

    Attributes:
        number: its name on the wire and in the ring's keys, from 0.
        name: its name for consumers; empty if the daemon serves one data set without a name.
        config: its options.
        source: where its samples come from, owned.
        plan: of its order, owned.
        layouts: of a batch in a slot; several where batches of different shapes take turns, by number.
    """

    number: int
    name: str
    config: Config
    source: Source
    plan: OrderPlan
    layouts: tuple[BatchLayout, ...]

    @property
    def order(self) -> Order:
        """Which samples are in which batch."""
        return self.plan.order

    @property
    def layout(self) -> BatchLayout:
        """The layout that takes the most bytes."""
        return max(self.layouts, key=lambda layout: layout.slot_bytes)

    @property
    def wire_layouts(self) -> list[dict[str, Any]]:
        """All layouts as plain values, by number; empty where there is one."""
        return [layout.to_wire() for layout in self.layouts] if len(self.layouts) > 1 else []

    @property
    def versions(self) -> dict[str, str]:
        """What decides the bytes of batches besides the content options."""
        return {**self.source.facts.versions, **self.plan.versions}

    @property
    def shared_bytes(self) -> int:
        """Bytes of memory segments that all readers share, beside the ring."""
        return self.source.facts.shared_bytes + self.plan.shared_bytes

    @property
    def reader_bytes(self) -> int:
        """Bytes of private memory that it takes in each reader, beyond what every reader has."""
        return self.source.facts.reader_bytes + self.plan.reader_bytes

    def for_readers(self) -> tuple[OpenDataset, list[int]]:
        """Return the message with which a reader opens it, and its descriptors, borrowed."""
        (handle, fds), (order, order_fds) = self.source.handle(), self.plan.handle()
        layouts = self.layout.to_wire(), order, self.wire_layouts
        message = OpenDataset(self.number, self.config.to_wire(), handle, *layouts)
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
    first = datasets[0].config
    if first.keep is None and first.keep_size != OPTIONS["keep_size"].default:
        raise ConfigError('cannot use keep_size without a folder; give keep="DIR", or leave it out')
    if first.keep is not None and not any(dataset.source.facts.is_far for dataset in datasets):
        raise ConfigError(
            f"cannot use keep with {one_line(first.source)}: nothing of it is read from a store; leave keep out"
        )
    return datasets


def bridge_briefing(config: Config, datasets: Sequence[Dataset]) -> list[tuple[Message, list[int]]]:
    """Return the first messages to the bridge, with their descriptors, borrowed: which agents to ask, what to serve.

    Raises:
        ConfigError: if the token or a file for TLS cannot be read, or nothing that is served travels.
    """
    if all(dataset.source.facts.answers_together for dataset in datasets):
        raise ConfigError(
            "cannot use agents with arrays: to read a row takes less than to send it; leave agents out, or serve images"
        )
    if config.ray is not None and importlib.util.find_spec("ray") is None:
        raise ConfigError("cannot use ray: it is not installed; pip install 'prefetchd[ray]'")
    from prefetchd.ipc.trust import check_files, read_token  # loads what only agents need

    token = os.urandom(32).hex().encode() if config.token_file is None else read_token(config.token_file)
    check_files({"tls_ca": config.tls_ca, "tls_cert": config.tls_cert, "tls_key": config.tls_key})
    has_functions = any(each.config.transform or each.config.target_transform for each in datasets)
    setup = bridge_messages.Setup(
        list(config.agents), token, config.tls_cert, config.tls_key, config.tls_ca, config.reader_timeout, config.ray,
        config.remote_workers, has_functions, list(config.python_path),
    )  # fmt: skip
    briefing: list[tuple[Message, list[int]]] = [(setup, [])]
    for dataset in datasets:
        facts = dataset.source.facts
        if facts.answers_together:
            continue  # this machine's own readers do those
        briefing.append(dataset.for_readers())
        travels = bridge_messages.Travels(
            facts.max_task_rows, facts.reader_bytes, facts.digest, facts.versions, _some_files(dataset.source)
        )  # fmt: skip
        briefing.append((travels, []))
    return [*briefing, (bridge_messages.Start(), [])]


def _some_files(source: Source) -> list[bytes]:
    """Return paths of files that some samples, spread over a data set, are in."""
    from prefetchd.data.images.source import ImageSource
    from prefetchd.data.mix.source import MixedSource

    if isinstance(source, MixedSource):
        return [path for part in source.parts for path in _some_files(part)]
    if not isinstance(source, ImageSource):
        return []
    n_samples = source.facts.n_samples
    sample_ids = sorted({n_samples * number // _COMPARED_FILES for number in range(_COMPARED_FILES)})
    paths = {sample.path for sample in source.records.samples(sample_ids)}
    return sorted(os.fsencode(path) for path in paths if os.path.isabs(path))


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
    facts = source.facts
    every = facts.bucket_fields or (facts.fields,)
    layouts = tuple(BatchLayout(config.batch_size, fields, facts.sources) for fields in every)
    return Dataset(number, name, config, source, plan, layouts)
