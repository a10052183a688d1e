"""Print the lowest versions that pyproject.toml allows, a requirement a line: scripts/lowest.py [EXTRA ...]

Those of the dependencies, and of the extras named. `numpy>=2.0` becomes `numpy==2.0`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def lowest(requirement: str) -> str:
    if not (found := re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement)):
        sys.exit(f"cannot find the lowest version of {requirement!r}; write it as NAME>=VERSION in pyproject.toml")
    return f"{found[1]}=={found[2]}"


project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
chosen = [*project["dependencies"]]
for extra in sys.argv[1:]:
    chosen += project["optional-dependencies"][extra]
print("\n".join(map(lowest, chosen)))
