"""`prefetchd tune`: what more or less memory and readers buy, measured on this data and this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prefetchd.cli.arguments import EPILOG, Subparsers, add_source_options, check_range, config_of
from prefetchd.errors import BudgetError, ConfigError

if TYPE_CHECKING:
    from prefetchd.cli.measure.measure import Measured
    from prefetchd.cli.views.charts import Progress
    from prefetchd.config.options import Config


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "tune",
        help="measure readers and memory budgets, and choose",
        description="Measure throughput and footprint of this data on this machine over readers and memory budget; "
        "print the table, mark the knee, and say the command line to use. Each point is a private daemon whose "
        "batches are taken as fast as they come. With --num-workers only that number of readers is tried.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--target",
        action="append",
        default=argparse.SUPPRESS,
        dest="targets",
        metavar="N",
        help="images/s that your model consumes; also what labels are, as for serve: label or mask",
    )
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="for each point, at most (3)")
    parser.add_argument(
        "--plot", default="tune.svg", metavar="FILE", help="where the plot goes (tune.svg); '' for none"
    )
    parser.add_argument("--json", action="store_true", help="print everything, as JSON")
    add_source_options(parser, without=("target",))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and advise."""
    check_range(arguments, "seconds", 0.2, 600)
    target = _take_targets(arguments)
    _check_plot(arguments.plot)
    config = config_of(arguments, "tune")
    from prefetchd.cli.measure import plan_choice
    from prefetchd.cli.views.charts import Progress
    from prefetchd.ipc import system

    with Progress("measuring", sys.stderr) as progress:
        points, refused = _measure_all(config, arguments.seconds, progress)
    if not points:
        raise BudgetError(f"cannot tune: no plan could be measured; the first one: {refused[0]}")
    chosen, said = plan_choice.advise(points, target, system.usable_cores(), config)
    command = plan_choice.command_line(config, chosen)
    failure = _write_plot(arguments.plot, points, chosen, config, target) if arguments.plot else None
    if arguments.json:
        answer = {
            "points": [dataclasses.asdict(point) for point in points],
            "refused": refused,
            "knee": dataclasses.asdict(plan_choice.knee(points)),
            "chosen": dataclasses.asdict(chosen),
            "target_held": None if target is None else chosen.images_per_s >= target,
            "said": said,
            "command": command,
        }
        print(json.dumps(answer, indent=2))
    else:
        lines = [*plan_choice.table(points), *(f"not measured: {why}" for why in refused), "", *said]
        lines = [*lines, *([f"plot: {arguments.plot}"] if arguments.plot and failure is None else [])]
        print("\n".join([*lines, "", f"    {command}"]))
    if failure is not None:  # after the figures, which took minutes
        raise failure
    return 0 if target is None or chosen.images_per_s >= target else 1


def _take_targets(arguments: argparse.Namespace) -> float | None:
    """Return the target rate; a `--target` that is a word is the option of that name, for `config_of`."""
    rate = None
    for word in getattr(arguments, "targets", ()):
        try:
            rate = float(word)
        except ValueError:
            arguments.target = word
        else:
            if not 0 < rate < 1e9:
                raise ConfigError(f"cannot use --target {word}: it must be images a second, more than 0, below 1e9")
    return rate


def _measure_all(config: Config, seconds: float, progress: Progress) -> tuple[list[Measured], list[str]]:
    """Measure more readers and larger budgets while the rate grows; return the points, and the refusals."""
    from prefetchd.cli.measure.measure import measure
    from prefetchd.cli.measure.plan_choice import RING_SLOTS, is_worth_more, reader_counts
    from prefetchd.daemon.memory.limits import machine_limits
    from prefetchd.daemon.memory.plan import MIB, MIN_SLOTS, smallest_budget
    from prefetchd.daemon.schedule.datasets import open_datasets
    from prefetchd.errors import ManifestError, PrefetchdError
    from prefetchd.ipc import system

    (dataset,) = open_datasets({"": config})
    slot_bytes, source = dataset.layout.slot_bytes, dataset.source
    limit = machine_limits()[0]
    counts = [config.num_workers] if config.num_workers else reader_counts(system.usable_cores())
    points: list[Measured] = []
    refused: list[str] = []
    best_rates: list[float] = []
    total, done = len(counts) * len(RING_SLOTS), 0
    for number, n_readers in enumerate(counts):
        least = smallest_budget(n_readers, slot_bytes, dataset.shared_bytes, source.facts.reader_bytes)
        found: list[float] = []
        for n_slots in RING_SLOTS:
            budget_bytes = least + (n_slots - MIN_SLOTS) * slot_bytes
            if budget_bytes > limit.n_bytes or not is_worth_more(found):
                break
            plan = dataclasses.replace(config, num_workers=n_readers, memory_budget=str(budget_bytes))
            try:
                point = measure(plan, seconds, lambda: progress.update(done, total))  # noqa: B023 - called at once
            except (ConfigError, ManifestError):
                raise
            except PrefetchdError as error:
                refused.append(f"{n_readers} readers, {budget_bytes // MIB} MiB: {error}")
            else:
                points.append(point)
                found.append(point.images_per_s)
            done += 1
            progress.update(done, total)
        done = (number + 1) * len(RING_SLOTS)
        best_rates.append(max(found, default=0.0))
        if not is_worth_more(best_rates):
            break
    return points, refused


def _check_plot(path: str) -> None:
    """Raise `ConfigError` if no plot can be written to `path`, before the measurement."""
    folder = os.path.dirname(os.path.abspath(path))
    if path and (os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK)):
        why = "it is a folder" if os.path.isdir(path) else f"{folder} is not a writable folder"
        raise ConfigError(f"cannot write the plot {path}: {why}; name another with --plot, or '' for none")


def _write_plot(
    path: str, points: list[Measured], chosen: Measured, config: Config, target: float | None
) -> ConfigError | None:
    """Write the plot; return the error if that fails."""
    from prefetchd.cli.measure.plan_choice import plot
    from prefetchd.cli.output_file import write_whole

    try:
        write_whole(path, plot(points, chosen, f"{config.source}: images/s over memory budget", target).encode())
    except OSError as error:
        return ConfigError(f"cannot write the plot {path}: {error.strerror}; name another with --plot")
    return None
