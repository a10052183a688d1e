"""The order of a data set with buckets: its samples by bucket, in one memfd. In the daemon at open, and in readers.

The table has one column: the samples that are served, by bucket, and without `shuffle` the places of the batches behind
them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.data.order.subset import choose_samples, digest_of
from prefetchd.sampling.buckets import Buckets, places_in_order, sorted_by_bucket
from prefetchd.sampling.order import Order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from prefetchd.columns.passed import PassedTable
    from prefetchd.config.options import Config
    from prefetchd.data.source import Bucketed, Saving, Source

log = logging.getLogger("prefetchd")


@dataclass(frozen=True, slots=True)
class BucketReport:
    """The buckets as the log and `status` show them.

    Attributes:
        names: of the buckets.
        counts: how many samples of an epoch each has.
        batches: how many batches of an epoch.
        saving: what the buckets save; `None` if that is not known.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    batches: tuple[int, ...]
    saving: Saving | None

    def describe(self, whole: str) -> str:
        """Return a line for the log; `whole` is the one shape that batches would have without buckets."""
        rows = zip(self.names, self.counts, self.batches, strict=True)
        each = ", ".join(f"{name}: {n} samples in {made} batches" for name, n, made in rows)
        if self.saving is None:
            return f"buckets: {each}"
        after, before = self.saving.after, self.saving.before
        return f"buckets: {each}; {after:.1%} {self.saving.what}, and {before:.1%} if all were {whole}"

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain values, for `status --json`."""
        rows = zip(self.names, self.counts, self.batches, strict=True)
        buckets = [{"name": name, "samples": n, "batches": made} for name, n, made in rows]
        saving = self.saving and {
            "what": self.saving.what,
            "share": round(self.saving.after, 6),
            "share_without_buckets": round(self.saving.before, 6),
        }
        return {"buckets": buckets, "lost": saving}


def plan_buckets(
    config: Config, source: Source, passed: Mapping[str, PassedTable]
) -> tuple[Order, dict[str, str], Columns, BucketReport]:
    """Return the order of a source with buckets, what decides it, its table, which the caller owns, and a report.

    Args:
        config: the options.
        source: the data set, with `bucket_fields`.
        passed: what options name that is in the starter's memory, by option; owned.

    Raises:
        ConfigError: if an option means nothing for the source, or no sample is left.
        PrefetchdError: if the headers of images cannot be read.
        ManifestError: if a file that an option names cannot be read.
    """
    chosen = choose_samples(config, source, passed)
    bucketing = cast("Bucketed", source).put_into_buckets()
    served: NDArray[np.int64] | slice = slice(None) if chosen.ids is None else chosen.ids
    numbers = bucketing.numbers[served]
    versions = {**chosen.versions, "buckets": digest_of(numbers)}
    positions, counts = sorted_by_bucket(numbers, len(source.facts.bucket_fields))
    parts = [positions if chosen.ids is None else chosen.ids[positions]]
    if not config.shuffle:
        parts.append(places_in_order(positions, counts, config.batch_size, drop_last=config.drop_last))
    table = np.concatenate(parts)
    with ColumnsWriter(len(table)) as writer:
        writer.add_numbers("ids", table.astype(np.uint32) if source.facts.n_samples <= 1 << 32 else table)
        columns = Columns.attach(*writer.finish())
    order = bucket_order(config, columns, counts)
    assert order.buckets is not None
    report = BucketReport(
        tuple(bucketing.names), tuple(counts), tuple(order.buckets.batch_counts), bucketing.saving(served)
    )
    log.info("%s", report.describe(bucketing.whole))
    _warn_of_dropped(config, report)
    return order, versions, columns, report


def bucket_order(config: Config, columns: Columns, counts: Sequence[int]) -> Order:
    """Return the order with the table of `plan_buckets`, where each bucket has as many samples."""
    table: NDArray[np.integer] = columns["ids"].values
    n = sum(counts)
    buckets = Buckets(
        table[:n],
        counts,
        config.batch_size,
        drop_last=config.drop_last,
        seed=config.seed if config.shuffle else None,
        in_order=None if config.shuffle else table[n:],
    )
    return Order(n, config.batch_size, config.drop_last, config.shuffle, config.seed, buckets=buckets)


def _warn_of_dropped(config: Config, report: BucketReport) -> None:
    """Log which buckets have samples and no batch, with `drop_last`: those are never seen."""
    rows = zip(report.names, report.counts, report.batches, strict=True)
    unseen = [(name, n) for name, n, made in rows if n and not made]
    if unseen:
        log.warning(
            "%d samples are in no batch: the buckets %s have fewer than batch_size=%d, and drop_last leaves them out; "
            "lower batch_size, leave drop_last out, or give fewer buckets",
            sum(n for _, n in unseen),
            ", ".join(f"{name} ({n})" for name, n in unseen),
            config.batch_size,
        )
