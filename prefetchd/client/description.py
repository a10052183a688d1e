"""What a loader is, in words: for `repr`, for notebooks, for log lines, and for the advice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from prefetchd.config.convert import path
from prefetchd.errors import one_line

if TYPE_CHECKING:
    from prefetchd.client.meter import LoaderStats
    from prefetchd.ipc.messages import Attached
    from prefetchd.ring.layout import BatchLayout, FieldLayout
    from prefetchd.sampling.sharding import Shard


def source_name(info: Attached) -> str:
    """Return the name that people know the data by, on one line: that of the data set, or of its file or folder."""
    config = info.config
    if info.dataset:
        return info.dataset
    if config.get("mix"):
        return "a mix of " + ", ".join(os.path.basename(_shown(name)) for name in config["mix"])
    source = _shown(config.get("source"))
    return os.path.basename(source.rstrip("/")) or source


def _shown(given: object) -> str:
    """Return a path or URL of the options, as it went over the wire, for people."""
    return one_line(path(given) or "") if given else ""


def arrays(info: Attached, batch_size: int, fields: Iterable[FieldLayout]) -> str:
    """Return shape and dtype of a full batch's arrays."""
    shown = ", ".join(f"{each.name} {(batch_size, *each.shape)} {each.dtype}" for each in fields)
    return shown + (f", or smaller: {len(info.layouts)} buckets" if info.layouts else "")


def order(config: dict[str, Any]) -> str:
    """Return in which order samples come."""
    if config.get("weights") is not None:
        return f"drawn by weights={config['weights']!r}, seed {config['seed']}"
    if config.get("shuffle_block"):
        return f"shuffled in blocks of {config['shuffle_block']:,}, seed {config['seed']}"
    return f"shuffled, seed {config['seed']}" if config.get("shuffle") else "in the order of the data"


def noun(info: Attached) -> str:
    """Return what samples are called."""
    return "images" if "decoder" in info.versions else "samples"


def name_of(info: Attached, shard: Shard) -> str:
    """Return the name of the data, and the rank if there are several."""
    return source_name(info) + (f", rank {shard.rank}" if shard.world_size > 1 else "")


def facts(info: Attached, layout: BatchLayout, shard: Shard, *, is_private: bool, next_batch: str) -> dict[str, str]:
    """Return what people ask of a loader, by the word for it.

    Args:
        info: the daemon's answer when the loader attached.
        layout: of the batches.
        shard: which of them the loader delivers.
        is_private: whether the daemon is the loader's own.
        next_batch: where the loop is.
    """
    whose = f"private (pid {info.pid})" if is_private else f"{info.name!r} (pid {info.pid})"
    found = {
        "data": f"'{source_name(info)}'",
        "samples": f"{info.n_samples:,}",
        "batches": f"{shard.steps():,} an epoch, of {layout.batch_size:,}",
        "arrays": arrays(info, layout.batch_size, layout.fields),
        "order": order(info.config),
        "rank": f"rank {shard.rank} of {shard.world_size}" if shard.world_size > 1 else "",
        "daemon": whose,
        "next": next_batch,
    }
    return {name: text for name, text in found.items() if text}


def share_line(stats: LoaderStats, noun: str) -> str:
    """Return the rate and the share of waiting, in words."""
    return f"{stats.samples_per_s:,.0f} {noun}/s, {stats.waiting_share:.0%} of the time waiting for the loader"


def adviser(info: Attached, *, is_private: bool) -> Callable[[LoaderStats], str]:
    """Return what makes the warning of a loop that waits for the loader most of its time, with what to do."""
    config = info.config
    source = _shown(config.get("source"))
    named = f" {source}" if source and not source.startswith("<") else ""
    look = (
        f"`prefetchd tune{named}` measures what helps"
        if is_private
        else (f"`prefetchd top {info.name}` shows what it waits for")
    )
    remedies = [look, "more num_workers help while cores are idle"]
    if not config.get("cache") and noun(info) == "images":
        remedies.append("cache='FOLDER' decodes each image once")

    def advice(stats: LoaderStats) -> str:
        return (
            f"the loop waited for the loader {stats.waiting_share:.0%} of the last {stats.elapsed_s:.0f} s "
            f"({stats.samples_per_s:,.0f} {noun(info)}/s, num_workers={config.get('num_workers') or 'auto'}): "
            f"reading is slower than training; {', '.join(remedies)}"
        )

    return advice
