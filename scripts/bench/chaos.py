"""Faults on purpose: every cell of the campaign, or random ones for as long as wanted, against real processes.

    python scripts/bench/chaos.py --cells [--only TEXT] [--write]
    python scripts/bench/chaos.py --seconds 3600 --seed 1

`--cells` runs party x fault x moment (`tests/faults/cells.py`) and prints each with whether its outcome was as stated.
What is promised within a second is held to it by the median over the cells that promise it. `--write` puts the table
of the cells into `docs/reliability.md`, if all of them were run and none failed. `--seconds` runs rounds of a daemon,
trainers and a seeded injector that kills, stops and continues any of them at random moments: nothing may be lost,
doubled or left, and nothing may hang. A round that fails is named with its seed, by which it is run again.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import PROMISED_S  # noqa: E402
from tests.faults.campaign import can_mount, run_cell  # noqa: E402
from tests.faults.cells import CELLS, PAGE, Cell, Outcome, write_table  # noqa: E402
from tests.faults.random_faults import run_round  # noqa: E402

_CELL_S = 60
_ROUND_S = 90


class Hang(BaseException):
    """Something did not end."""


def _hang(*_: object) -> None:
    raise Hang("it hangs")


def attempt(seconds: int, function: Callable[..., object], *arguments: object) -> str:
    """Call `function`; return what went wrong, or an empty text."""
    signal.alarm(seconds)
    try:
        function(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException:  # an assertion, a test's failure, a hang
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return ""


def run_cells(only: str) -> tuple[int, int]:
    """Run the cells whose names hold `only`; return how many were run, and how many promises were broken."""
    n_run = n_failed = 0
    took_s: dict[Outcome, list[float]] = {}
    for cell in CELLS:
        if only not in str(cell):
            continue
        if cell.fault.startswith("full") and not can_mount():
            print(f"{'left out':8}          {cell}: mounting takes root", flush=True)
            continue
        start_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            wrong = attempt(_CELL_S, hold, cell, Path(folder), took_s)
        print(f"{'FAILED' if wrong else 'ok':8} {time.monotonic() - start_s:5.1f} s  {cell}", flush=True)
        if wrong:
            print(wrong, flush=True)
        n_run += 1
        n_failed += bool(wrong)
    for outcome, found_s in took_s.items():
        middle_s = statistics.median(found_s)
        late = middle_s >= PROMISED_S
        print(f"{'FAILED' if late else 'ok':8} {middle_s:5.2f} s  median of {len(found_s)} cells: {outcome.value}")
        n_failed += late
    return n_run, n_failed


def hold(cell: Cell, folder: Path, took_s: dict[Outcome, list[float]]) -> None:
    """Run a cell, and add to `took_s` how long what it promises within a second took."""
    if found_s := run_cell(cell, folder):
        took_s.setdefault(cell.outcome, []).extend(found_s)


def run_rounds(seconds: float, seed: int) -> int:
    """Run rounds for `seconds`; return how many failed."""
    end_s, rounds, failed = time.monotonic() + seconds, 0, 0
    faults = 0
    while time.monotonic() < end_s:
        done: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            wrong = attempt(_ROUND_S, run_round, seed + rounds, Path(folder), done)
        faults += len(done)
        if wrong:
            failed += 1
            print(f"FAILED round of seed {seed + rounds}: {', '.join(done)}\n{wrong}", flush=True)
        rounds += 1
    print(f"{rounds} rounds, {faults} faults, {failed} rounds failed (seeds {seed} to {seed + rounds - 1})")
    return failed


def main() -> int:
    """Run what the command line asks for; the exit status tells whether all was as stated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", action="store_true", help="run every cell")
    parser.add_argument("--only", default="", help="of the cells, those whose name holds this")
    parser.add_argument("--write", action="store_true", help="write the table of the cells into docs/reliability.md")
    parser.add_argument("--seconds", type=float, default=0, help="run random faults for so long")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    failed = 0
    if arguments.cells:
        n_run, failed = run_cells(arguments.only)
        print(f"{n_run} of {len(CELLS)} cells, {failed} promises broken", flush=True)
        if arguments.write and n_run == len(CELLS) and not failed:
            write_table()
        elif arguments.write:
            print(f"cannot write the table into {PAGE}: not every cell was run and was as stated", file=sys.stderr)
            return 1
    if arguments.seconds:
        failed += run_rounds(arguments.seconds, arguments.seed)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
