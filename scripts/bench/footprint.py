"""The memory of prefetchd's processes, against the constants that its memory plan counts with.

    python scripts/bench/footprint.py [MANIFEST] [--workers 2] [--seconds 8]

Runs two private daemons and reads Pss_Anon + SwapPss of each of their processes every 20 ms:

  idle      on images of 8x8 pixels: what the processes take before they decode anything that matters
  working   on the given photographs, or on some made in code, in a loop without pause

Pages that the fork server and the readers share after the fork are counted in parts, as Pss does. So the parts depend
on the number of readers, and the sum does not. Compared are the constants of prefetchd/daemon/memory/plan.py:

  DAEMON_BYTES      with daemon + fork server + resource tracker, at most
  READER_BYTES      with the largest idle reader, at most
  ALLOWANCE_BYTES   with the largest working reader's maximum less the largest idle one's
  plan              all of these together, with the maximum of the sum over all processes of the working daemon

Exits with status 1 if one of them is exceeded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import psutil
from measure import MIB, Sampler, descendants, manifest_or_photographs, private_bytes, setting, shared_bytes, table

import prefetchd
from prefetchd.daemon.memory.plan import ALLOWANCE_BYTES, DAEMON_BYTES, READER_BYTES


class Roles:
    """Tells the processes of the one private daemon below this process apart, and records their memory."""

    def __init__(self) -> None:
        self.bytes: dict[str, list[int]] = defaultdict(list)
        self.totals: list[int] = []
        self.rings: list[int] = []
        self._names: dict[int, str] = {}

    def _name(self, process: psutil.Process) -> str:
        if process.pid not in self._names:
            try:
                words, parent = process.cmdline(), process.parent()
            except psutil.NoSuchProcess:
                return "other"
            if "prefetchd.daemon.private" in words:
                name = "daemon"
            elif "prefetchd.reader.fork_server" in words:
                name = (
                    "reader"
                    if parent is not None and "prefetchd.reader.fork_server" in parent.cmdline()
                    else "fork server"
                )
            elif any("resource_tracker" in word for word in words):
                name = "tracker"
            else:
                return "other"  # on its way to become another
            n_readers = sum(known.startswith("reader") for known in self._names.values())
            self._names[process.pid] = f"reader {n_readers}" if name == "reader" else name
        return self._names[process.pid]

    def sample(self) -> int:
        """Record what every process takes now; return the sum."""
        total = 0
        processes = descendants()
        for process in processes:
            n_bytes = private_bytes(process.pid)
            if n_bytes:
                self.bytes[self._name(process)].append(n_bytes)
                total += n_bytes
        self.totals.append(total)
        self.rings.append(shared_bytes([os.getpid(), *(process.pid for process in processes)]))
        return total

    def max_bytes(self, prefix: str) -> int:
        """Return the most that one process of this kind took."""
        return max((max(values) for name, values in self.bytes.items() if name.startswith(prefix)), default=0)


def tiny_images(folder: Path) -> Path:
    for number in range(16):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), number, np.uint8))
    manifest = folder / "manifest.txt"
    manifest.write_text("".join(f"{number}.png {number}\n" for number in range(16)))
    return manifest


def run(manifest: Path, seconds: float, batch_size: int, image_size: int, workers: int, *, pause_s: float) -> Roles:
    """Consume for `seconds` from a private daemon; return what its processes took from the first batch on."""
    roles = Roles()
    with prefetchd.batches(
        manifest, batch_size=batch_size, image_size=image_size, shuffle=True, num_workers=workers, epochs=None
    ) as loader:
        batches = iter(loader)
        next(batches)
        with Sampler(roles.sample):
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                next(batches)
                if pause_s:
                    time.sleep(pause_s)
    return roles


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="photographs; made in code if not given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to work (8)")
    options = parser.parse_args()

    print(setting("prefetchd", "numpy", "opencv-python-headless", "psutil"), flush=True)
    with tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as folder:
        idle = run(tiny_images(Path(folder)), 2.0, 4, 8, options.workers, pause_s=0.2)
    with manifest_or_photographs(options.manifest) as manifest:
        working = run(manifest, options.seconds, options.batch_size, 224, options.workers, pause_s=0.0)

    def mib(n_bytes: float) -> str:
        return f"{n_bytes / MIB:.1f}"

    def row(name: str, idle_bytes: list[int], working_bytes: list[int]) -> list[str]:
        cells = []
        for values in (idle_bytes, working_bytes):
            cells += [mib(statistics.median(values)), mib(max(values))] if values else ["-", "-"]
        return [name, *cells]

    rows = [["MiB", "idle p50", "idle max", "working p50", "working max"]]
    rows += [row(name, idle.bytes[name], working.bytes[name]) for name in sorted({*idle.bytes, *working.bytes})]
    rows.append(row("all processes", idle.totals, working.totals))
    rows.append(row("ring", idle.rings, working.rings))
    both = [a + b for a, b in zip(working.totals, working.rings, strict=True)]
    rows.append(row("footprint", [a + b for a, b in zip(idle.totals, idle.rings, strict=True)], both))
    print(f"\n{table(rows)}\n")

    fixed = max(
        sum(roles.max_bytes(kind) for kind in ("daemon", "fork server", "tracker")) for roles in (idle, working)
    )
    idle_reader, working_reader = idle.max_bytes("reader"), working.max_bytes("reader")
    plan = DAEMON_BYTES + options.workers * (READER_BYTES + ALLOWANCE_BYTES)
    checks = [
        ("DAEMON_BYTES", DAEMON_BYTES, fixed),
        ("READER_BYTES", READER_BYTES, idle_reader),
        ("ALLOWANCE_BYTES", ALLOWANCE_BYTES, max(0, working_reader - idle_reader)),
        (f"plan, {options.workers} readers", plan, max(working.totals)),
    ]
    rows = [["constant", "planned MiB", "measured MiB", ""]]
    rows += [[name, mib(has), mib(found), "holds" if found <= has else "EXCEEDED"] for name, has, found in checks]
    print(table(rows))
    return int(any(found > has for _, has, found in checks))


if __name__ == "__main__":
    sys.exit(main())
