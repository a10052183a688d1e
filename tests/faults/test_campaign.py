"""Some cells of the fault campaign, and a round of random faults; `scripts/bench/chaos.py` runs all, for any time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import can_mount, run_cell
from tests.faults.cells import CELLS, PAGE, Cell, documented_table, table, write_table
from tests.faults.random_faults import run_round

# Those that no other test has; each takes a second or two.
QUICK = (
    "fork_server-SIGKILL-epoch_end",
    "consumer-MemoryError-leased",
    "consumer-closed_descriptors-ready",
    "embedded_parent-SIGSEGV-filling",
    "daemon-full_/dev/shm-start",
    "daemon-full_disk-start",
    "daemon-socket_removed-leased",
    "daemon-clock_jump-leased",
    "resource_tracker-SIGKILL-ready",
)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if str(cell) in QUICK], ids=str)
def test_cell(cell: Cell, tmp_path: Path, nothing_left: None) -> None:
    if cell.fault.startswith("full") and not can_mount():
        pytest.skip("mounting takes root")
    folder = tmp_path / "cell"
    folder.mkdir()
    run_cell(cell, folder)


def test_every_quick_cell_is_one() -> None:
    assert set(QUICK) <= {str(cell) for cell in CELLS}
    assert len({str(cell) for cell in CELLS}) == len(CELLS)


def test_documented_table_is_that_of_the_cells() -> None:
    """Mend it with: python scripts/bench/chaos.py --cells --write."""
    assert documented_table() == table(CELLS)


def test_table_is_written_between_the_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text().replace(table(CELLS), table(CELLS[:3])))
    assert documented_table(page) == table(CELLS[:3])
    write_table(page)
    assert page.read_text() == PAGE.read_text()


def test_round_of_random_faults(tmp_path: Path, nothing_left: None) -> None:
    folder = tmp_path / "round"
    folder.mkdir()
    run_round(3, folder, [], n_faults=4)
