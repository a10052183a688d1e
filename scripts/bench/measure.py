"""What the benchmarks share: memory by process, shared memory, photographs, tables, versions.

Measured from outside, from /proc only, so that it can contradict what prefetchd says of itself.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

# With it set, each process that is measured would compile the package anew, which no user's does.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

MIB = 1 << 20
SAMPLE_EVERY_S = 0.02
_SHARED = ("/dev/shm/", "/memfd:", "memfd:")


def private_bytes(pid: int) -> int:
    """Return Pss_Anon + SwapPss of a process; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "SwapPss:")))


def shared_bytes(pids: Iterable[int]) -> int:
    """Return the bytes of all shared-memory segments that the processes have open or mapped, each counted once.

    The allocated blocks of those that are open; the length of the map of those that are only mapped.
    """
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path).startswith(_SHARED):
                        state = os.stat(entry.path)
                        found[state.st_ino] = state.st_blocks * 512
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                fields = line.split(maxsplit=5)
                if len(fields) == 6 and fields[5].startswith(_SHARED):
                    low, high = (int(part, 16) for part in fields[0].split("-"))
                    found.setdefault(int(fields[4]), high - low)
    return sum(found.values())


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """Return all processes below `pid` (below this one)."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def family(pid: int) -> list[int]:
    """Return `pid` and the processes below it, by the kernel's lists of children: psutil looks at every process."""
    found: list[int] = []
    new = [pid]
    while new:
        found += new
        children: list[str] = []
        for one in new:
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{one}/task"):
                    children += Path(f"/proc/{one}/task/{task}/children").read_text().split()
        new = [int(child) for child in children]
    return found


def segment_bytes(pids: Iterable[int]) -> int:
    """Return the allocated bytes of prefetchd's segments that the processes have open or mapped, each inode once.

    Needs the right to look into `/proc/PID/map_files` (root) for those that are only mapped.
    """
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        for folder in ("fd", "map_files"):
            with contextlib.suppress(OSError):
                for entry in os.scandir(f"/proc/{pid}/{folder}"):
                    with contextlib.suppress(OSError):
                        if "prefetchd-" in (target := os.readlink(entry.path)) and target.startswith(_SHARED):
                            state = os.stat(entry.path)
                            found[state.st_dev, state.st_ino] = state.st_blocks * 512
    return sum(found.values())


def loader_bytes() -> int:
    """Return the footprint of the loader that this process runs: private memory of its processes, shared memory.

    This process's own private memory is the training loop's and not counted; segments that it maps are.
    """
    pids = [process.pid for process in descendants()]
    return sum(map(private_bytes, pids)) + shared_bytes([os.getpid(), *pids])


class Sampler:
    """Calls `measure` every 20 ms in a thread, for the time of a `with` block."""

    def __init__(self, measure: Callable[[], int] = loader_bytes) -> None:
        self._measure = measure
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.values: list[int] = []

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._end.is_set():
            self.values.append(self._measure())
            due_s = max(due_s + SAMPLE_EVERY_S, time.monotonic())
            self._end.wait(due_s - time.monotonic())

    @property
    def median_bytes(self) -> float:
        return statistics.median(self.values)

    @property
    def max_bytes(self) -> int:
        return max(self.values)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of `values` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@contextlib.contextmanager
def manifest_or_photographs(given: Path | None, n_images: int = 256) -> Iterator[Path]:
    """Give `given`, or photographs made for the time of the block."""
    if given is not None:
        yield given
        return
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from photographs import make_photographs

    with tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as folder:
        print(f"making {n_images} photographs ...", file=sys.stderr, flush=True)
        yield make_photographs(Path(folder), n_images)


def measure_apart(words: Sequence[str], environment: dict[str, str], limit_s: float) -> dict[str, Any]:
    """Return what a script prints as JSON on its last line, or what went wrong as `problem`."""
    with tempfile.TemporaryFile("w+") as log:
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=limit_s,
                env={**os.environ, **environment},
            )
            return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]
        except subprocess.TimeoutExpired:
            return {"problem": f"it took more than {limit_s:g} s"}
        except (IndexError, ValueError):
            log.seek(0)
            said = [line for line in log.read().splitlines() if line.strip()]
            return {"problem": said[-1] if said else f"exit status {done.returncode}"}


def setting(*packages: str) -> str:
    """Return lines that say what was run, where, and with which versions."""
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"$ python {' '.join(sys.argv)}\n{', '.join(versions)}; Linux {platform.release()}, "
        f"{len(os.sched_getaffinity(0))} cores; load before {load}"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return `rows`, the first of which is the head, in columns: the first left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
