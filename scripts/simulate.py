"""Simulated worlds with fresh seeds, for as long as wanted: the real daemon and loaders under a virtual clock.

    scripts/simulate --seconds 3600 --seed 1     worlds of seeds 1, 2, 3 ... for an hour
    scripts/simulate --worlds 300                so many worlds
    scripts/simulate --only 4711                 the world of this seed once more, with all its events
    scripts/simulate --replay world.json         a world that was written down

A world that fails is named by its seed with its last hundred events, run again to see that it fails alike, and shrunk;
the small world is printed as JSON. At the end a report tells what was met and what never was.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.simulation.coverage import Coverage
from tests.simulation.shrink import kind_of, shrink
from tests.simulation.spec import WorldSpec, draw, from_plain, to_plain
from tests.simulation.world import World, WorldFailed, folder, run_world


def explain(spec: WorldSpec, failed: WorldFailed, most: int) -> None:
    """Print a failure, whether it repeats, and the smallest world that fails alike."""
    print(f"FAILED {failed}", flush=True)
    try:
        run_world(spec)
    except WorldFailed as again:
        print("the replay is the same" if again.events == failed.events else "THE REPLAY DIFFERS", flush=True)
    else:
        print("THE REPLAY DOES NOT FAIL", flush=True)
        return
    small = shrink(spec, kind_of(failed), most=most, say=lambda text: print(f"  shrunk to {text}", flush=True))
    print(f"the smallest world that fails alike:\n{json.dumps(to_plain(small))}", flush=True)


def show(spec: WorldSpec) -> int:
    """Run one world and print all its events."""
    world = World(spec, folder())
    world.kernel.on_event = lambda event: print(*event)
    print(spec)
    print(world.run())
    return 0


def main() -> int:
    """Run the worlds that the command line asks for; the exit status tells whether all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="begin worlds for so long (60)")
    parser.add_argument("--worlds", type=int, default=0, help="run so many worlds, however long that takes")
    parser.add_argument("--seed", type=int, help="of the first world (a random one); the others have the next ones")
    parser.add_argument("--only", type=int, help="run the world of this seed, and print its events")
    parser.add_argument("--replay", type=Path, help="run the world in this JSON file, and print its events")
    parser.add_argument("--shrink", type=int, default=300, metavar="N", help="worlds to run to shrink a failure (300)")
    options = parser.parse_args()
    if options.only is not None or options.replay is not None:
        return show(
            draw(options.only) if options.replay is None else from_plain(json.loads(options.replay.read_text()))
        )
    first = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    end_s, seed, failed = time.monotonic() + options.seconds, first, []
    coverage = Coverage()
    while seed < first + options.worlds if options.worlds else time.monotonic() < end_s:
        spec = draw(seed)
        try:
            with coverage.watching():
                outcome = run_world(spec)
            coverage.add(spec.features, outcome)
        except WorldFailed as error:
            failed.append(seed)
            explain(spec, error, options.shrink)
        seed += 1
    print(coverage.report())
    print(f"{seed - first} worlds (seeds {first} to {seed - 1}), failed: {', '.join(map(str, failed)) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
