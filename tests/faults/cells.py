"""The cells of the fault campaign, and the table that `docs/reliability.md` has of them.

`campaign.py` runs a cell. The table is made of the cells alone, so a test finds a stale page without a run.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- cells: scripts/bench/chaos.py --cells --write -->", "<!-- end of cells -->"


class Outcome(enum.Enum):
    """What a cell promises, in the words of the table."""

    EXACT = "every batch arrives, exact; what died is replaced"
    RESUMES = "named in `status` or its error; goes on exactly when it is continued"
    LOST = "`DaemonLost` within a second; held arrays stay; nothing is left; the next daemon serves the same"
    FREED = "its slots are back within a second; others see every batch"
    BEARS = "named in `status`, blocks nobody; goes on exactly when it is continued"
    ENDS = "all end; nothing is left"
    NONE = "there is none: nothing to kill"
    MEMFD = "slots come from a memfd instead; every batch arrives, exact"
    REFUSED = "refused in one line; nothing is left"
    NEWCOMERS = "those attached go on exactly; newcomers are told that none is to be found"


MOMENTS = ("start", "filling", "ready", "leased", "epoch end", "shutting down")
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGSEGV": signal.SIGSEGV}


@dataclass(frozen=True)
class Cell:
    """One cell: `fault` befalls `party` at `moment`; `outcome` is what must be."""

    party: str
    fault: str
    moment: str
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.party}-{self.fault}-{self.moment}".replace(" ", "_")


def _cells() -> Iterator[Cell]:
    deadly = ("SIGKILL", "SIGSEGV")
    for moment in MOMENTS:
        ends = moment == "shutting down"
        for fault in deadly:
            yield Cell("daemon", fault, moment, Outcome.ENDS if ends else Outcome.LOST)
            yield Cell("fork server", fault, moment, Outcome.ENDS if ends else Outcome.EXACT)
            yield Cell("reader", fault, moment, Outcome.ENDS if ends else Outcome.EXACT)
            yield Cell("consumer", fault, moment, Outcome.ENDS if ends else Outcome.FREED)
        yield Cell("daemon", "SIGSTOP", moment, Outcome.ENDS if ends else Outcome.RESUMES)
        yield Cell("fork server", "SIGSTOP", moment, Outcome.ENDS if ends else Outcome.EXACT)
        yield Cell("reader", "SIGSTOP", moment, Outcome.ENDS if ends else Outcome.EXACT)
        yield Cell("consumer", "SIGSTOP", moment, Outcome.ENDS if ends else Outcome.BEARS)
    for fault in ("exit 0", "exception", "MemoryError", "closed descriptors"):
        yield Cell("reader", fault, "filling", Outcome.EXACT)
        for moment in ("ready", "leased", "epoch end"):
            yield Cell("consumer", fault, moment, Outcome.FREED)
    for fault in (*deadly, "exit 0", "exception", "MemoryError"):
        for moment in ("start", "filling", "leased", "epoch end"):
            yield Cell("embedded parent", fault, moment, Outcome.ENDS)
    for fault in SIGNALS:
        yield Cell("resource tracker", fault, "ready", Outcome.NONE)
    yield Cell("daemon", "full /dev/shm", "start", Outcome.MEMFD)
    yield Cell("daemon", "full disk", "start", Outcome.REFUSED)
    for moment in ("ready", "leased"):
        yield Cell("daemon", "socket removed", moment, Outcome.NEWCOMERS)
    yield Cell("daemon", "clock jump", "leased", Outcome.EXACT)


CELLS = tuple(_cells())


def table(cells: Iterable[Cell]) -> str:
    """Return the cells as a table: a row for each party, fault and outcome, with its moments."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        rows.setdefault((cell.party, cell.fault, cell.outcome.value), []).append(cell.moment)
    lines = ["| party | fault | moments | outcome |", "|---|---|---|---|"]
    for (party, fault, outcome), moments in rows.items():
        when = "all six" if len(moments) == len(MOMENTS) else ", ".join(moments)
        lines.append(f"| {party} | {fault} | {when} | {outcome} |")
    return "\n".join(lines)


def documented_table(page: Path = PAGE) -> str:
    """Return the table that stands between the marks of the page."""
    _, begin, rest = page.read_text().partition(_BEGIN)
    text, end, _ = rest.partition(_END)
    assert begin, f"{page} has no {_BEGIN}"
    assert end, f"{page} has no {_END}"
    return text.strip()


def write_table(page: Path = PAGE) -> None:
    """Put the table of all cells between the marks of the page."""
    page.write_text(page.read_text().replace(documented_table(page), table(CELLS)))
