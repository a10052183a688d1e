"""Faults on purpose: every cell of the campaign, or random ones for as long as wanted, against real processes.

    python scripts/bench/chaos.py --cells [--only TEXT] [--write docs/reliability.md]
    python scripts/bench/chaos.py --seconds 3600 --seed 1

`--cells` runs party x fault x moment (`tests/faults/campaign.py`), prints each with its outcome, and writes the table
between the marks of the page that `--write` names. `--seconds` runs rounds of a daemon, trainers and a seeded injector
that kills, stops and continues any of them at random moments: nothing may be lost, doubled or left, and nothing hang.
A round that fails is named with its seed, by which it is run again.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.faults.campaign import CELLS, MOMENTS, Cell, can_mount, run_cell  # noqa: E402
from tests.faults.random_faults import run_round  # noqa: E402

_CELL_S = 60
_ROUND_S = 90
_BEGIN, _END = "<!-- cells: scripts/bench/chaos.py --cells --write -->", "<!-- end of cells -->"


class Hang(BaseException):
    """Something did not end."""


def _hang(*_: object) -> None:
    raise Hang("it hangs")


def attempt(seconds: int, function: Any, *arguments: object) -> str:
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


def run_cells(only: str) -> list[tuple[Cell, str]]:
    """Run the cells whose names hold `only`; return each with what went wrong."""
    results = []
    for cell in CELLS:
        if only not in str(cell) or (cell.fault.startswith("full") and not can_mount()):
            continue
        start_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            wrong = attempt(_CELL_S, run_cell, cell, Path(folder))
        print(f"{'FAILED' if wrong else 'ok':6} {time.monotonic() - start_s:5.1f} s  {cell}", flush=True)
        if wrong:
            print(wrong, flush=True)
        results.append((cell, wrong))
    return results


def table(results: list[tuple[Cell, str]]) -> str:
    """Return the cells as a table: a row for each party, fault and outcome, with the moments that it was run at."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for cell, wrong in results:
        outcome = "FAILED" if wrong else cell.outcome.value
        rows.setdefault((cell.party, cell.fault, outcome), []).append(cell.moment)
    lines = ["| party | fault | moments | outcome |", "|---|---|---|---|"]
    for (party, fault, outcome), moments in rows.items():
        when = "all six" if len(moments) == len(MOMENTS) else ", ".join(moments)
        lines.append(f"| {party} | {fault} | {when} | {outcome} |")
    return "\n".join(lines)


def write_table(path: Path, text: str) -> None:
    """Put `text` between the marks in `path`."""
    page = path.read_text()
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    path.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


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
    parser.add_argument("--write", type=Path, help="page to write the table of the cells into")
    parser.add_argument("--seconds", type=float, default=0, help="run random faults for so long")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    failed = 0
    if arguments.cells:
        results = run_cells(arguments.only)
        failed = sum(bool(wrong) for _, wrong in results)
        print(f"\n{table(results)}\n\n{len(results)} cells, {failed} failed")
        if arguments.write and not failed:
            write_table(arguments.write, table(results))
    if arguments.seconds:
        failed += run_rounds(arguments.seconds, arguments.seed)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
