"""`prefetchd index`: go through tar shards once, and keep where their samples are in a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from prefetchd.cli.arguments import Subparsers, add_debug
from prefetchd.errors import ConfigError, one_line


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "index",
        help="keep where the samples of tar shards are",
        description="Go through tar shards once and write where their members are, and what the small ones hold, to a "
        "file. With --index FILE they are then served at once, with any other options. Shards that change need a new "
        "one.",
    )
    parser.add_argument(
        "source", metavar="SHARDS", help="tar shards: one, a directory of them, or a pattern such as 's-{000..099}.tar'"
    )
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the file that is written, or replaced")
    parser.add_argument(
        "--store-option",
        action="append",
        metavar="KEY=VALUE",
        help="what the store of a URL is told besides the usual variables, such as endpoint=http://host:9000",
    )
    add_debug(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the index."""
    from prefetchd.cli.views.charts import Progress
    from prefetchd.config.units import format_bytes, format_count
    from prefetchd.config.validate import make_config
    from prefetchd.data.kinds import expand, kind_of
    from prefetchd.data.stores.urls import is_url
    from prefetchd.data.tar.index_writer import IndexFile
    from prefetchd.data.tar.members import scan_shards
    from prefetchd.data.tar.records import check_not_compressed

    name = one_line(arguments.source)
    if is_url(arguments.source):
        from prefetchd.data.stores.client import set_up

        set_up(make_config(source=arguments.source, store_options=arguments.store_option))
    if kind_of(arguments.source) != "tar":
        raise ConfigError(
            f"cannot index {name}: it is neither .tar files nor a folder of them; serve other data without an index"
        )
    paths = expand(arguments.source, "tar", name)
    check_not_compressed(paths)
    with IndexFile(arguments.output) as file, Progress("indexing", sys.stderr) as progress:
        for number, shard in enumerate(scan_shards(paths)):
            file.add(shard)
            progress.update(number + 1, len(paths), shard.name)
    counts = f"{format_count(len(paths), 'shard')}, {format_count(file.n_members, 'member')}"
    print(f"{arguments.output}: {counts}, {format_bytes(file.n_bytes)}", file=sys.stderr)
    return 0
