"""Faults planted on purpose: small patches of the package, each of which some world must find.

    python -m tests.simulation.planted [NAME ...] [--within N | --fresh]

A file `planted/NAME.patch` has a head and one hunk:

    file: prefetchd/daemon/schedule/pacing.py
    why: what is broken
    seeds: 17 4            worlds that found it, tried first
    with: pauses           features that are on in each of its worlds; others are drawn
    within: 200            it must be found by one of the seeds from 0 to this
    ---
     context
    -what is there
    +what takes its place

A hunk has no line numbers: its context and what it takes away must occur once in the file. A patch that no longer
applies is an error. The package is copied, patched and imported again, so the working tree is never touched.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "planted_faults"
_ROOT = Path(__file__).parents[2]


class DoesNotApply(Exception):
    """A patch whose context is not in the file, or is there more than once."""


@dataclass(frozen=True)
class Planted:
    """One planted fault.

    Attributes:
        name: of its file.
        file: what it changes.
        why: what is broken.
        seeds: of worlds that found it.
        features: on in each of its worlds.
        within: it must be found by one of the seeds below this.
        before, after: the text that is there, and what takes its place.
    """

    name: str
    file: str
    why: str
    seeds: tuple[int, ...]
    features: tuple[str, ...]
    within: int
    before: str
    after: str

    def applied(self, source: str) -> str:
        """Return the patched source.

        Raises:
            DoesNotApply: if the text is not in it once.
        """
        found = source.count(self.before)
        if found != 1:
            raise DoesNotApply(f"{self.name}: its text is {found} times in {self.file}; write the patch again")
        return source.replace(self.before, self.after)


def read(path: Path) -> Planted:
    """Read one file."""
    head, _, hunk = path.read_text().partition("---\n")
    fields = {name: text.strip() for name, _, text in (line.partition(":") for line in head.splitlines())}
    lines = hunk.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -\n")
    after = "".join(line[1:] for line in lines if line[0] in " +\n")
    seeds = tuple(map(int, fields["seeds"].split()))
    features = tuple(filter(None, fields.get("with", "").split(", ")))
    return Planted(path.stem, fields["file"], fields["why"], seeds, features, int(fields["within"]), before, after)


def all_planted() -> list[Planted]:
    """Return every planted fault, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.patch"))]


def _forget() -> None:
    """Have the package, and what simulates it, imported again."""
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "prefetchd" or name.startswith("tests.simulation.")
    ]:
        if name != __name__:
            del sys.modules[name]
    importlib.invalidate_caches()


def find(fault: Planted, seeds: Sequence[int], package: Path) -> Iterator[tuple[int, str]]:
    """Plant a fault in the copy of the package, run worlds, and yield each seed that finds it, with what it says."""
    path = package / fault.file
    source = path.read_text()
    path.write_text(fault.applied(source))
    try:
        _forget()
        spec = importlib.import_module("tests.simulation.spec")
        world = importlib.import_module("tests.simulation.world")
        assert Path(importlib.import_module("prefetchd").__file__ or "").is_relative_to(package)
        for seed in seeds:
            try:
                world.run_world(spec.draw(seed, fault.features))
            except world.WorldFailed as failed:
                yield seed, f"{type(failed.error).__name__}: {failed.error}"
    finally:
        path.write_text(source)
        _forget()


def main(argv: Sequence[str]) -> int:
    """Plant faults, one after another; return how many were not found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--within", type=int, default=0, help="try the seeds below this, not those known to find it")
    parser.add_argument("--fresh", action="store_true", help="as --within, with the number that each patch states")
    arguments = parser.parse_args(argv)
    logging.getLogger("prefetchd").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    missed = 0
    with tempfile.TemporaryDirectory(prefix="prefetchd-planted-") as folder:
        package = Path(folder)
        shutil.copytree(_ROOT / "prefetchd", package / "prefetchd", ignore=shutil.ignore_patterns("__pycache__"))
        sys.path[:0] = [folder, str(_ROOT)]
        for fault in all_planted():
            if arguments.names and fault.name not in arguments.names:
                continue
            rest = [seed for seed in range(arguments.within or fault.within) if seed not in fault.seeds]
            is_fresh = arguments.within or arguments.fresh
            seeds = range(arguments.within or fault.within) if is_fresh else [*fault.seeds, *rest]
            found = next(find(fault, seeds, package), None)
            missed += found is None
            said = f"seed {found[0]}: {found[1][:150]}" if found is not None else f"NOT FOUND by {len(seeds)} seeds"
            print(f"{fault.name}: {said}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
