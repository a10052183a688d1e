"""Faults planted on purpose: small changes of the package, each of which some world must find.

    python -m tests.simulation.planted [NAME ...]              the worlds that are known to find each, then others
    python -m tests.simulation.planted --from 5000             other worlds, as every night
    python -m tests.simulation.planted --write                 search from seed 0; write down what finds each

A file `planted_faults/NAME.patch` has a head, and hunks, each with the file that it changes:

    why: what is broken
    seeds: 17 4            worlds that found it, tried first
    worlds: 18             how many worlds, from seed 0 on, it took to find it
    with: pauses           features of worlds that are switched on
    needs: crashes, hangs  worlds without any of these features cannot find it, and are counted without being run
    --- prefetchd/daemon/schedule/pacing.py
     context
    -what is there
    +what takes its place

A hunk has no line numbers: its context and what it takes away must occur once in the file. A patch that no longer
applies is an error. The package is copied, patched and imported again, so the working tree is never touched. A world
finds a fault if it fails with it and passes without it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = Path(__file__).parents[2]
_FOLDER = Path(__file__).parent / "planted_faults"
_PAGE = _ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- planted: python -m tests.simulation.planted --write -->\n", "<!-- end of planted -->"
_HUNK = "--- "
_SOME = 1000  # worlds, after which a fault counts as not found
_KNOWN = 2  # seeds that are written down
_SOON = 60  # a seed above this is the only one


class DoesNotApplyError(Exception):
    """A patch whose context is not in the file, or is there more than once."""


@dataclass(frozen=True)
class Hunk:
    """Text of a file, and what takes its place."""

    file: str
    before: str
    after: str

    def apply(self, root: Path) -> None:
        """Change the file below `root`.

        Raises:
            DoesNotApplyError: if the text is not in it once.
        """
        path = root / self.file
        source = path.read_text() if path.exists() else ""
        if (found := source.count(self.before)) != 1:
            raise DoesNotApplyError(f"its text is {found} times in {self.file}; write the patch again:\n{self.before}")
        path.write_text(source.replace(self.before, self.after))


@dataclass(frozen=True)
class Planted:
    """One planted fault.

    Attributes:
        name: of its file.
        why: what is broken.
        seeds: of worlds that find it.
        worlds: how many worlds, from seed 0 on, it took to find it; 0 if none did.
        features: of worlds, that are switched on in any case.
        needs: features of worlds, one of which a world must have to find it; any world, if there are none.
        hunks: what it changes.
    """

    name: str
    why: str
    seeds: tuple[int, ...]
    worlds: int
    features: frozenset[str]
    needs: frozenset[str]
    hunks: tuple[Hunk, ...]

    @property
    def path(self) -> Path:
        """Its file."""
        return _FOLDER / f"{self.name}.patch"


def read(path: Path) -> Planted:
    """Read one file."""
    head, *hunks = path.read_text().split(f"\n{_HUNK}")
    fields = dict(line.split(":", 1) for line in head.splitlines())
    seeds = tuple(map(int, fields.get("seeds", "").split()))
    features, needs = (
        frozenset(each.strip() for each in fields.get(name, "").split(",") if each.strip())
        for name in ("with", "needs")
    )
    worlds = int(fields.get("worlds", 0))
    return Planted(path.stem, fields["why"].strip(), seeds, worlds, features, needs, tuple(map(_hunk, hunks)))


def _hunk(text: str) -> Hunk:
    file, _, body = text.partition("\n")
    lines = (body.removesuffix("\n") + "\n").splitlines(keepends=True)
    before = "".join(line[1:] if line != "\n" else line for line in lines if line[0] in " -\n")
    after = "".join(line[1:] if line != "\n" else line for line in lines if line[0] in " +\n")
    return Hunk(file, before, after)


def all_planted() -> list[Planted]:
    """Return every planted fault, by name."""
    return [read(path) for path in sorted(_FOLDER.glob("*.patch"))]


def _is_swapped(name: str) -> bool:
    return name.partition(".")[0] == "prefetchd" or name.startswith("tests.simulation.")


class Build:
    """One state of the package, imported from below `root`, with the simulation of it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._modules: dict[str, ModuleType] = {}

    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        """Have its modules in the place of others."""
        others = {name: module for name, module in sys.modules.items() if _is_swapped(name) and name != __name__}
        for name in others:
            del sys.modules[name]
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self._root))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            self._modules = {
                name: module for name, module in sys.modules.items() if _is_swapped(name) and name != __name__
            }
            for name in self._modules:
                del sys.modules[name]
            sys.modules.update(others)
            sys.path.remove(str(self._root))

    def run(self, seed: int, fault: Planted) -> str:
        """Run a world, if it may find the fault; return what fails in it, or nothing."""
        with self._active():
            spec: Any = importlib.import_module("tests.simulation.spec")
            world: Any = importlib.import_module("tests.simulation.world")
            assert Path(importlib.import_module("prefetchd").__file__ or "").is_relative_to(self._root)
            drawn = spec.draw(seed, fault.features)
            if fault.needs and fault.needs.isdisjoint(drawn.features):
                return ""
            try:
                world.run_world(drawn)
            except world.WorldFailed as failed:
                return f"{type(failed.error).__name__}: {failed.error}"
            return ""


class Search:
    """Looks for worlds that find faults; copies of the package are made in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._intact = Build(_ROOT)
        self._passes: dict[tuple[int, frozenset[str]], bool] = {}

    def _found(self, build: Build, fault: Planted, seed: int) -> str:
        """Return what fails in a world with the fault and not without it."""
        said = build.run(seed, fault)
        world = seed, fault.features
        if said and world not in self._passes:
            self._passes[world] = not self._intact.run(seed, fault)
        return said if said and self._passes[world] else ""

    def plant(self, fault: Planted) -> Build:
        """Return the package with a fault.

        Raises:
            DoesNotApplyError: if the patch is of another state of the package.
        """
        root = self._folder / fault.name
        shutil.copytree(_ROOT / "prefetchd", root / "prefetchd", ignore=shutil.ignore_patterns("__pycache__"))
        for hunk in fault.hunks:
            hunk.apply(root)
        return Build(root)

    def first(self, fault: Planted, seeds: Iterable[int]) -> tuple[int, str] | None:
        """Return the first of the seeds that finds a fault, and what it says."""
        return next(self.all(fault, seeds), None)

    def all(self, fault: Planted, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield each of the seeds that finds a fault, and what it says."""
        build = self.plant(fault)
        for seed in seeds:
            if said := self._found(build, fault, seed):
                yield seed, said


def table(faults: Iterable[Planted]) -> str:
    """Return the faults as a table in Markdown, with the worlds that each took."""
    lines = ["| planted fault | found by world |", "|---|---|"]
    return "\n".join([*lines, *(f"| {fault.why} | {fault.worlds} |" for fault in faults)]) + "\n"


def page_with(text: str, faults: Iterable[Planted]) -> str:
    """Return the page of reliability with the table of the faults as they are now."""
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}{table(faults)}{_END}{tail}"


def _write(search: Search, fault: Planted, most: int) -> Planted:
    """Search from seed 0, and write down what was found."""
    found = []
    for seed, said in search.all(fault, range(most)):
        print(f"{fault.name}: seed {seed}: {said[:150]}", flush=True)
        found.append(seed)
        if len(found) == _KNOWN or seed > _SOON:
            break
    result = replace(fault, seeds=tuple(found), worlds=found[0] + 1 if found else 0)
    hunks = fault.path.read_text().split(f"\n{_HUNK}", 1)[1]
    head = {"why": fault.why}
    head |= {"with": ", ".join(sorted(fault.features)), "needs": ", ".join(sorted(fault.needs))}
    head |= {"seeds": " ".join(map(str, found)), "worlds": str(result.worlds)}
    lines = [f"{name}: {value}\n" for name, value in head.items() if value]
    fault.path.write_text(f"{''.join(lines)}{_HUNK}{hunks}")
    return result


def _try(search: Search, fault: Planted, first: int, most: int) -> bool:
    """Try the worlds known to find a fault, or those from `first` on; print and return whether it was found."""
    seeds: Sequence[int] = range(first, first + most)
    if not first:
        seeds = [*fault.seeds, *(seed for seed in range(fault.worlds) if seed not in fault.seeds)]
    found = search.first(fault, seeds)
    said = f"NOT FOUND by {len(seeds)} worlds" if found is None else f"seed {found[0]}: {found[1][:150]}"
    print(f"{fault.name}: {said}", flush=True)
    return found is not None


def main(argv: Sequence[str]) -> int:
    """Plant faults, one after another; return how many were not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of other seeds to try")
    parser.add_argument("--most", type=int, default=_SOME, help="how many worlds to try at most")
    parser.add_argument("--write", action="store_true", help="search from seed 0, and write down what was found")
    arguments = parser.parse_args(argv)
    logging.getLogger("prefetchd").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    faults = [fault for fault in all_planted() if not arguments.names or fault.name in arguments.names]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="prefetchd-planted-") as folder:
        search = Search(Path(folder))
        for fault in faults:
            if arguments.write:
                missed += not _write(search, fault, arguments.most).worlds
            else:
                missed += not _try(search, fault, arguments.first, arguments.most)
    if arguments.write:
        _PAGE.write_text(page_with(_PAGE.read_text(), all_planted()))
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
