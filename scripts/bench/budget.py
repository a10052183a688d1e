"""The promise of the memory budget, measured from outside every 20 ms: the maximum of the footprint, by scenario.

    python scripts/bench/budget.py [--seconds 5] [--hours H] [--only WORD] [--list]

Footprint = private memory (Pss_Anon + SwapPss) of the daemon and all below it + the allocated blocks of every segment
that any of them, or this process, has open or mapped, each inode once. Each scenario is a private daemon with its
budget, and a loop over its batches for `--seconds`; `--hours` goes on with the hardest of them, in turn, for so long.
The smallest budget of a scenario is what the daemon names when it refuses 1 MiB. Exits with status 1 if one was
exceeded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import MIB, Sampler, family, private_bytes, segment_bytes, setting, table

import prefetchd

_LEAK = """
import numpy as np

kept = []


def leak(image, rng):
    kept.append(np.ones(1 << 20, np.uint8))
    return image
"""


class Data:
    """Makes each manifest once, when a scenario first asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def photographs(self) -> Path:
        """Forty-eight photographs of 375 x 500 pixels."""
        manifest = self.folder / "photographs.txt"
        if not manifest.exists():
            rng = np.random.default_rng(0)
            for number in range(48):
                small = rng.integers(0, 256, (24, 32, 3), np.uint8)
                cv2.imwrite(str(self.folder / f"{number}.jpg"), cv2.resize(small, (500, 375)))
            manifest.write_text("".join(f"{number}.jpg {number}\n" for number in range(48)))
        return manifest

    def million(self) -> Path:
        """A manifest of a million lines that name the photographs again and again."""
        manifest = self.folder / "million.txt"
        if not manifest.exists():
            self.photographs()
            manifest.write_text("".join(f"{number % 48}.jpg {number}\n" for number in range(1_000_000)))
        return manifest

    def huge(self) -> Path:
        """One photograph in fifty has 100 megapixels, and one is a bomb: 65,000 x 65,000 in its header."""
        manifest = self.folder / "huge.txt"
        if not manifest.exists():
            self.photographs()
            small = cv2.imread(str(self.folder / "0.jpg"))
            cv2.imwrite(str(self.folder / "huge.jpg"), cv2.resize(small, (11_600, 8_700)))
            cv2.imwrite(
                str(self.folder / "huge progressive.jpg"),
                cv2.resize(small, (11_600, 8_700)),
                [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
            )
            data = bytearray((self.folder / "0.jpg").read_bytes())
            frame = data.index(b"\xff\xc0")
            data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
            (self.folder / "bomb.jpg").write_bytes(data)
            names = [f"{number % 48}.jpg" for number in range(150)]
            names[20], names[70], names[120] = "huge.jpg", "huge progressive.jpg", "bomb.jpg"
            manifest.write_text("".join(f"{name} 0\n" for name in names))
        return manifest

    def leak(self) -> str:
        """A transform that keeps a MiB of every call."""
        (self.folder / "leaking.py").write_text(_LEAK)
        return "leaking:leak"


@dataclass(frozen=True)
class Scenario:
    """One daemon: what it serves and within how much; `budget` is "least", "least+N" in MiB, or a size."""

    name: str
    manifest: Callable[[Data], Path]
    budget: str
    options: dict[str, Any] = field(default_factory=dict)
    is_hard: bool = False  # one of those that `--hours` repeats


def scenarios() -> list[Scenario]:
    """All of them."""
    found = []
    for readers in (1, 2, 4, 8):
        options = {"num_workers": readers, "image_size": 224, "batch_size": 32}
        found.append(Scenario(f"{readers} readers", Data.photographs, "least", options, is_hard=readers == 2))
    for size, dtype in ((224, "float32"), (512, "uint8"), (512, "float32"), (1024, "uint8"), (1024, "float32")):
        options = {"num_workers": 2, "image_size": size, "batch_size": 8, "dtype": dtype}
        found.append(Scenario(f"{size} px {dtype}", Data.photographs, "least", options))
    for budget in ("256MiB", "1GiB", "4GiB"):
        options = {"num_workers": 2, "image_size": 512, "batch_size": 8, "dtype": "float32"}
        found.append(Scenario("512 px float32", Data.photographs, budget, options))
    found.append(Scenario("auto", Data.photographs, "auto", {"image_size": 224, "batch_size": 64}))
    million = {"num_workers": 2, "shuffle": True}
    found.append(Scenario("a million lines", Data.million, "least", million))
    huge = {"num_workers": 2, "batch_size": 8, "on_error": "skip", "shuffle": True}
    found.append(Scenario("100 MP and a bomb", Data.huge, "512MiB", huge, is_hard=True))
    found.append(Scenario("100 MP, 4 readers", Data.huge, "640MiB", {**huge, "num_workers": 4}))
    whole = {**huge, "shrink_on_load": False}
    found.append(Scenario("100 MP, whole", Data.huge, "1536MiB", whole))
    found.append(Scenario("leaks 1 MiB a call", Data.photographs, "least", {"num_workers": 2, "leaks": True}, True))
    return found


def least_mib(manifest: Path, options: dict[str, Any]) -> int:
    """Return the smallest budget that the refusal of a smaller one names."""
    said = ""
    try:
        with prefetchd.batches(manifest, memory_budget="1MiB", **options) as loader:
            next(iter(loader))
    except prefetchd.BudgetError as error:
        said = str(error)
    named = re.search(r'memory_budget="(\d+)MiB"', said)
    assert named is not None, said
    return int(named[1])


def footprint() -> int:
    """The footprint of all that runs below this process."""
    pids = family(os.getpid())[1:]
    return sum(map(private_bytes, pids)) + segment_bytes([os.getpid(), *pids])


def run(scenario: Scenario, data: Data, seconds: float) -> list[str]:
    """Run one; return its row: name, budget, most, samples, batches."""
    manifest = scenario.manifest(data)
    options = dict(scenario.options)
    if options.pop("leaks", False):
        options["transform"] = data.leak()
    if scenario.budget.startswith("least"):
        mib = least_mib(manifest, options)
        options["memory_budget"] = f"{mib}MiB"
    else:
        options["memory_budget"] = scenario.budget
    batches = 0
    with Sampler(footprint) as sampler:
        start_s = time.monotonic()
        with prefetchd.batches(manifest, epochs=None, **options) as loader:
            for _ in loader:
                batches += 1
                if time.monotonic() - start_s > seconds:
                    break
            # What was asked for, or less where the machine has less; `auto` is the daemon's own sum.
            budget_bytes = loader.status()["memory"]["budget_bytes"]
    held = "holds" if sampler.max_bytes <= budget_bytes else "EXCEEDED"
    return [
        scenario.name,
        f"{budget_bytes / MIB:.0f}",
        f"{sampler.max_bytes / MIB:.1f}",
        f"{100 * sampler.max_bytes / budget_bytes:.0f}%",
        str(len(sampler.values)),
        str(batches),
        held,
    ]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as name:
        sys.path.insert(0, name)  # for the leaking transform
        yield Path(name)


def main() -> int:
    """Run them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each scenario works (5)")
    parser.add_argument("--hours", type=float, default=0.0, help="then go on with the hardest ones for so long")
    parser.add_argument("--only", default="", metavar="WORD", help="only the scenarios with this in their name")
    parser.add_argument("--list", action="store_true", help="name the scenarios, and end")
    options = parser.parse_args()
    chosen = [scenario for scenario in scenarios() if options.only in scenario.name]
    if options.list:
        print("\n".join(f"{scenario.name} ({scenario.budget})" for scenario in chosen))
        return 0
    print(setting("prefetchd", "numpy", "opencv-python-headless"), flush=True)
    head = ["scenario", "budget MiB", "most MiB", "of it", "samples", "batches", ""]
    rows = [head]
    with _folder() as folder:
        data = Data(folder)
        for scenario in chosen:
            rows.append(run(scenario, data, options.seconds))
            print("  ".join(rows[-1]), flush=True)
        hard = [scenario for scenario in chosen if scenario.is_hard]
        end_s = time.monotonic() + options.hours * 3600
        while options.hours and time.monotonic() < end_s:
            for scenario in hard:
                left_s = end_s - time.monotonic()
                if left_s > 0:
                    rows.append(run(scenario, data, min(left_s, options.hours * 3600 / len(hard))))
                    print("  ".join(rows[-1]), flush=True)
    print(f"\n{table(rows)}")
    return int(any(row[-1] == "EXCEEDED" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
