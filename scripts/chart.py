"""Draw docs/images/sharing.svg, the chart of the README, from the figures in docs/performance.md.

python scripts/chart.py            # write it
python scripts/chart.py --check    # fail if it is not what the figures say
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from bar_chart import bar_chart

ROOT = Path(__file__).parents[1]
CHART = ROOT / "docs" / "images" / "sharing.svg"
OURS, THEIRS = "4 trainers, prefetchd", "4 trainers, a DataLoader each"


def figures() -> dict[str, tuple[float, float]]:
    """Return images/s of each trainer and MiB in all, by the row of the table `Several trainers`."""
    table = (ROOT / "docs" / "performance.md").read_text().partition("## Several trainers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \|.*\| (\d+) MiB \|$", table, re.MULTILINE)
    return {name: (float(images), float(mib)) for name, images, mib in rows}


def draw() -> str:
    """Return the chart as SVG."""
    found = figures()
    rows = [("prefetchd, one daemon", found[OURS][0], True), ("a DataLoader each", found[THEIRS][0], False)]
    return bar_chart("images/s of each of 4 trainers, 2 cores", rows)


def main() -> int:
    if "--check" in sys.argv[1:]:
        if not CHART.exists() or CHART.read_text() != draw():
            print(f"{CHART} is not what docs/performance.md says; run python scripts/chart.py", file=sys.stderr)
            return 1
        return 0
    CHART.parent.mkdir(exist_ok=True)
    CHART.write_text(draw())
    return 0


if __name__ == "__main__":
    sys.exit(main())
