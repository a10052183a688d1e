"""What the examples train on: the manifest that is named on the command line, or photographs made in code.

A photograph's label is the name of its tint, so a small network learns it in a few epochs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def arguments(description: str | None) -> argparse.Namespace:
    """Return the command line: `manifest`, `epochs`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="list file, or directory with a folder per class")
    parser.add_argument("--epochs", type=int, default=5)
    found = parser.parse_args()
    if found.manifest is None:
        found.manifest = _photographs()
    return found


def _photographs() -> Path:
    sys.path.insert(0, str(CHECKOUT / "scripts"))
    from photographs import make_photographs

    print("making photographs in .demo ...", file=sys.stderr)
    return make_photographs(CHECKOUT / ".demo")
