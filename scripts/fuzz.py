"""The fuzz tests with fresh seeds: rounds of every test that draws its examples, each with the next seed.

    scripts/fuzz --seconds 600               rounds for so long; the one under way is finished
    scripts/fuzz --seed 81273                the round of this seed once more
    scripts/fuzz --seed 1 tests/unit/test_windows.py -x     of these tests only; such arguments go to pytest

Each round names its seed, and one that fails is run again by it. The suite itself keeps to fixed examples.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PYTEST = ("-m", "hypothesis", "-q", "-p", "no:cacheprovider", "-p", "tests.profiles", "--hypothesis-profile", "fresh")


def run_round(seed: int, more: list[str]) -> bool:
    """Run every fuzz test with the examples of `seed`; return whether all passed."""
    where = ("--rootdir", str(ROOT), "--config-file", str(ROOT / "pyproject.toml"))
    command = [sys.executable, "-m", "pytest", *where, *_PYTEST, "--hypothesis-seed", str(seed), *more]
    print(f"round of seed {seed}", flush=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    passed = not subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path}).returncode
    if not passed:
        print(f"FAILED; run it again with: scripts/fuzz --seed {seed} {' '.join(more)}".rstrip(), flush=True)
    return passed


def main() -> int:
    """Run the rounds that the command line asks for; the exit status tells whether all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0, help="begin rounds for so long (one round)")
    parser.add_argument("--seed", type=int, help="of the first round (a random one); the others have the next ones")
    options, more = parser.parse_known_args()
    first = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    end_s, seed, failed = time.monotonic() + options.seconds, first, []
    while seed == first or time.monotonic() < end_s:
        if not run_round(seed, more):
            failed.append(seed)
        seed += 1
    print(f"{seed - first} rounds (seeds {first} to {seed - 1}), failed: {', '.join(map(str, failed)) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
