"""`prefetchd cache build|info|clear`: fill a cache of decoded samples ahead of training, describe it, remove it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prefetchd.cli.arguments import EPILOG, Subparsers, add_source_options, configs_of
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.config.options import Config

_DAY_S = 86400.0
_BATCH = 64
_CHECK_S = 1.0  # how often the free space is checked


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the commands."""
    parser = commands.add_parser(
        "cache",
        help="fill, show or clear a cache of decoded samples",
        description="A cache keeps decoded images in files (--cache DIR), so that nothing is decoded twice. It fills "
        "by itself in the first epoch.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="fill a cache ahead of training",
        description="Decode every sample of MANIFEST that is not in the cache yet. Give the options that training "
        "will have: those that decide what is kept (image-size, resize, color, ...) choose the rows. May be "
        "interrupted and started again.",
        epilog=EPILOG,
    )
    add_source_options(build, datasets)
    build.set_defaults(run=run_build)

    info = actions.add_parser("info", help="show what a cache holds", description="Show what a cache holds.")
    info.add_argument("folder", metavar="DIR", type=Path, help="the folder that --cache names")
    info.add_argument("--json", action="store_true", help="print everything, as JSON")
    info.set_defaults(run=run_info)

    clear = actions.add_parser(
        "clear",
        help="remove a cache, or what is old in it",
        description="Remove the rows of a cache. Only files that are prefetchd's are removed, and none that a daemon "
        "is using.",
    )
    clear.add_argument("folder", metavar="DIR", type=Path, help="the folder that --cache names")
    clear.add_argument("--only", metavar="ID", help="the rows of one pipeline, as `cache info` names it")
    clear.add_argument("--unused-days", metavar="N", type=float, help="only what no daemon has opened for N days")
    clear.set_defaults(run=run_clear)


def run_build(arguments: argparse.Namespace) -> int:
    """Fill the cache of each data set; return 1 if not all samples could be kept."""
    return max([_build(name, config) for name, config in configs_of(arguments).items()])


def _build(name: str, config: Config) -> int:
    """Fill the cache that `config` names by one epoch of a private daemon; return the exit status.

    Rows from earlier runs are found and checked, and not decoded again. So an interrupted build goes on where it was.

    Raises:
        PrefetchdError: if the pipeline cannot be cached, or the source cannot be served.
    """
    from prefetchd.cli.spelling import as_flags
    from prefetchd.cli.views.charts import Progress
    from prefetchd.client.loader import Loader
    from prefetchd.client.session import Endpoint
    from prefetchd.data.cache.keys import check_cache

    if config.cache is None:
        which = f" for the data set {name!r}" if name else ""
        raise ConfigError(f"cannot build a cache{which}: none is named; give --cache DIR")
    check_cache(config)
    # Options of later steps do not change the rows that are kept.
    kept_only = dataclasses.replace(
        config,
        batch_size=_BATCH,
        dtype=config.pixel_dtype,
        scale=None,
        mean=None,
        std=None,
        layout="nhwc",
        augment=(),
        views=(),
        transform=None,
        target_transform=None,
        shuffle=False,
        shuffle_block=None,
        weights=None,  # each sample that may be drawn
        replace=True,
        epoch_samples=None,
        stop="last" if config.mix else "first",
        drop_last=False,
        on_error="skip",
    )
    loader = Loader(Endpoint(kept_only))
    what = f"filling the cache of {name}" if name else "filling the cache"
    with loader, Progress(what, sys.stderr) as progress:
        done = good = 0
        checked_s = time.monotonic()
        for batch in loader:
            good += len(batch.sample_ids)
            done = min(loader.n_samples, (batch.index + 1) * _BATCH)
            progress.update(done, loader.n_samples)
            if time.monotonic() - checked_s > _CHECK_S:
                checked_s = time.monotonic()
                if not _has_room(kept_only):
                    break
        cache = loader.status()["datasets"][0]["cache"]
    bad = loader.n_samples - good
    left_out = f"; {bad} bad samples were left out" if bad and done == loader.n_samples else ""
    is_done = done == loader.n_samples and not cache["stopped"]
    state = "done" if is_done else f"not all are kept, {cache['stopped'] or 'there is no space for more'}"
    what = f"{name}: " if name else ""
    counts = f"{done:,} of {loader.n_samples:,} samples, {cache['rows_written']:,} rows written"
    print(as_flags(f"{what}{counts}: {state}{left_out}"), file=sys.stderr)
    return 0 if is_done else 1


def _has_room(config: Config) -> bool:
    """Return whether another row may be written, as far as this process can see."""
    from prefetchd.data.cache.allowance import WriteAllowance
    from prefetchd.data.cache.keys import limit_of

    assert config.cache is not None
    cache = Path(config.cache).expanduser().absolute()
    height, width = config.cache_image_size or config.image_size
    n_bytes = height * width * config.n_channels * {"uint8": 1, "uint16": 2, "float32": 4}[config.pixel_dtype]
    if config.cache_format == "jpeg":
        n_bytes //= 5  # about what a photograph's row takes
    return WriteAllowance(cache, limit_of(config)).allows(n_bytes)


def run_info(arguments: argparse.Namespace) -> int:
    """Print what the cache holds."""
    from prefetchd.config.units import format_bytes, format_count
    from prefetchd.data.cache.directory import list_cache

    found = list_cache(arguments.folder)
    if arguments.json:
        described = [
            {
                "id": kept.folder.name,
                "rows": kept.rows,
                "bytes": kept.n_bytes,
                "last_used": kept.last_used_s,
                "in_use": kept.in_use,
                "pipeline": kept.pipeline,
            }
            for kept in found
        ]
        print(json.dumps(described, indent=2))
        return 0
    total = sum(kept.n_bytes for kept in found)
    print(f"{arguments.folder}: {format_count(len(found), 'pipeline')}, {format_bytes(total)}")
    for kept in found:
        used = (
            "in use"
            if kept.in_use
            else f"last used {time.strftime('%Y-%m-%d %H:%M', time.localtime(kept.last_used_s))}"
        )
        options = " ".join(f"{name}={_shown(value)}" for name, value in kept.pipeline.items() if value is not None)
        print(f"  {kept.folder.name}  {format_count(kept.rows, 'row')}, {format_bytes(kept.n_bytes)}, {used}")
        print(f"    {options}")
    return 0


def _shown(value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return ",".join(map(_shown, value))
    return "x".join(map(str, value)) if isinstance(value, list) else str(value).replace(" ", "-")


def run_clear(arguments: argparse.Namespace) -> int:
    """Remove the chosen rows."""
    from prefetchd.config.units import format_bytes, format_count
    from prefetchd.data.cache.directory import list_cache, remove, remove_empty

    found = list_cache(arguments.folder)
    if arguments.only is not None:
        chosen = [kept for kept in found if kept.folder.name == arguments.only]
        if not chosen:
            known = ", ".join(kept.folder.name for kept in found)
            raise ConfigError(f"cannot clear {arguments.only!r}: {arguments.folder} has {known or 'no rows'}")
        found = chosen
    if arguments.unused_days is not None:
        before_s = time.time() - arguments.unused_days * _DAY_S
        found = [kept for kept in found if kept.last_used_s < before_s and not kept.in_use]
    freed = sum(remove(kept) for kept in found)
    remove_empty(arguments.folder)
    print(f"removed {format_count(len(found), 'pipeline')}, {format_bytes(freed)}")
    return 0
