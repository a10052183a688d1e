"""`prefetchd bench`: measure prefetchd on this data and machine, beside a generator and PyTorch's DataLoader."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prefetchd.cli.arguments import EPILOG, Subparsers, add_source_options, check_range, config_of
from prefetchd.config.units import format_count

if TYPE_CHECKING:
    from prefetchd.cli.measure.benchmark import Batches, Opens
    from prefetchd.config.options import Config

_PREFETCHD = "prefetchd"
_GENERATOR = "generator (cv2)"
_DATA_LOADER = "PyTorch DataLoader"


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "bench",
        help="measure this data beside a generator and PyTorch's DataLoader",
        description="Measure images a second, time to the first batch, the handoff of a ready batch and the footprint, "
        "and say what limits: decoding, disk or consumer. A hand-written generator (cv2.imread, cv2.resize, np.stack) "
        "and, if PyTorch is installed, its DataLoader with as many workers take turns with prefetchd.",
        epilog=EPILOG,
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each loader has its turn (3)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="for each turn (3)")
    parser.add_argument(
        "--step-ms", type=float, default=0.0, metavar="MS", help="what your model takes for a batch (0)"
    )
    parser.add_argument("--json", action="store_true", help="print everything, as JSON")
    add_source_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    for option, low, high in (("rounds", 1, 100), ("seconds", 0.2, 600), ("step_ms", 0, 60_000)):
        check_range(arguments, option, low, high)
    config = config_of(arguments, "bench")
    from prefetchd.cli.measure.benchmark import Figures, limit_of, summarise, table, take_turn
    from prefetchd.cli.measure.measure import measure
    from prefetchd.cli.views.charts import Progress

    step_s = arguments.step_ms / 1000
    with Progress("measuring", sys.stderr) as progress:
        measured = measure(config, arguments.seconds, step_s=step_s)  # also brings the files into the page cache
        contenders, left_out = _contenders(config, measured.n_readers)
        rows = {name: Figures() for name in contenders}
        for number in range(arguments.rounds):
            for place, (name, opens) in enumerate(contenders.items()):
                take_turn(opens, rows[name], arguments.seconds, step_s, prepares=name != _GENERATOR)
                progress.update(number * len(contenders) + place + 1, arguments.rounds * len(contenders))
    summary = summarise(rows)
    limit, why = limit_of(measured)
    if arguments.json:
        answer = {
            "loaders": summary,
            "limit": limit,
            "why": why,
            "left_out": left_out,
            "prefetchd": dataclasses.asdict(measured),
            "turns": {name: dataclasses.asdict(figures) for name, figures in rows.items()},
        }
        print(json.dumps(answer, indent=2))
    else:
        lines = [
            f"batches of {config.batch_size}, {measured.n_readers} readers or workers, medians of "
            f"{format_count(arguments.rounds, 'turn')} of {arguments.seconds:g} s in alternation",
            "",
            *table(summary),
            "",
            f"what limits prefetchd: {why}",
            *left_out,
        ]
        print("\n".join(lines))
    return 0


def _contenders(config: Config, n_readers: int) -> tuple[dict[str, Opens], list[str]]:
    """Return the loaders that take part, by name, and a line on each that does not."""
    from prefetchd.cli.measure.benchmark import Files, data_loader, generator, has_torch
    from prefetchd.data.images.source import ImageSource
    from prefetchd.data.manifest.records import Manifest
    from prefetchd.data.order.plan import CHOOSING
    from prefetchd.data.registry import open_source

    contenders: dict[str, Opens] = {_PREFETCHD: lambda: _prefetchd(config)}
    source = open_source(config)
    if not isinstance(source, ImageSource) or not isinstance(source.records, Manifest) or config.target == "mask":
        return contenders, [
            "left out: the generator and PyTorch's DataLoader, which read lists of labelled images only"
        ]
    if source.records.is_far:
        return contenders, ["left out: the generator and PyTorch's DataLoader, which read files of this machine only"]
    if any(getattr(config, name) for name in CHOOSING):
        return contenders, [
            "left out: the generator and PyTorch's DataLoader, which read the whole list; here one of "
            f"{', '.join(CHOOSING)} is given"
        ]
    files = Files(source.records, config)
    contenders[_GENERATOR] = lambda: generator(files)
    left_out = []
    if config.augment or config.transform or config.target_transform or config.resize != "stretch":
        left_out.append("note: the others only stretch images to the size: no crop, no augmentation, no function")
    if has_torch():
        contenders[_DATA_LOADER] = lambda: data_loader(files, n_readers)
    else:
        left_out.append("left out: PyTorch's DataLoader, as torch is not installed")
    return contenders, left_out


@contextlib.contextmanager
def _prefetchd(config: Config) -> Iterator[Batches]:
    from prefetchd.cli.measure.measure import open_loader

    with open_loader(config) as loader:
        yield iter(loader)
