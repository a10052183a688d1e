"""The documentation says what the program does: the page of the command line is as the parser has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_page_of_the_command_line_is_not_stale():
    """Mend it with: python scripts/cli_page.py."""
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "cli_page.py", "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
