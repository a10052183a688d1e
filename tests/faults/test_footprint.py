"""The memory budget, measured from outside every 20 ms: never more than it, at the smallest budget that is accepted."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from PIL import Image

import prefetchd
from prefetchd.ipc.process import private_bytes
from tests.conftest import DaemonProcess, wait_until
from tests.images import photograph, write_jpeg

Serve = Callable[..., DaemonProcess]

MIB = 1 << 20
_SAMPLE_S = 0.02


def family_of(pid: int) -> list[int]:
    """The process and all its descendants, by `/proc` alone: psutil takes longer than the 20 ms between samples."""
    found = []
    new = [pid]
    while new:
        found += new
        children = []
        for one in new:
            with contextlib.suppress(OSError):
                for task in os.listdir(f"/proc/{one}/task"):
                    children += Path(f"/proc/{one}/task/{task}/children").read_text().split()
        new = [int(child) for child in children]
    return found


def segment_bytes(pids: list[int], *, slots_only: bool = False) -> int:
    """Allocated bytes of all shared memory that any of `pids` has open or mapped, each inode once.

    The manifest's index is one too; `slots_only` leaves it out.
    """
    inodes: dict[tuple[int, int], int] = {}
    for pid in pids:
        for folder in ("fd", "map_files"):
            try:
                names = os.listdir(f"/proc/{pid}/{folder}")
            except OSError:
                continue
            for name in names:
                link = f"/proc/{pid}/{folder}/{name}"
                try:
                    target = os.readlink(link)
                    if "prefetchd-" not in target or (slots_only and "prefetchd-manifest" in target):
                        continue
                    state = os.stat(link)
                except OSError:
                    continue
                inodes[state.st_dev, state.st_ino] = state.st_blocks * 512
    return sum(inodes.values())


class Watch:
    """Samples a daemon's footprint in a thread, for as long as the block lasts.

    Attributes:
        max_bytes: the most that was seen.
        at_max: what it was made of: process id -> bytes, and the ring under 0.
        samples: how often it looked.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.max_bytes = 0
        self.at_max: dict[int, int] = {}
        self.samples = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            started_s = time.monotonic()
            pids = family_of(self._pid)
            parts = {pid: private_bytes(pid) for pid in pids}
            parts[0] = segment_bytes(pids)
            total = sum(parts.values())
            self.samples += 1
            if total > self.max_bytes:
                self.max_bytes, self.at_max = total, parts
            self._stop.wait(max(0.0, _SAMPLE_S - (time.monotonic() - started_s)))

    def report(self) -> str:
        parts = ", ".join(f"{pid or 'ring'} {n / MIB:.1f}" for pid, n in self.at_max.items())
        return f"at most {self.max_bytes / MIB:.1f} MiB in {self.samples} samples ({parts})"


def smallest_budget(*arguments: object) -> int:
    """What the refusal of a budget that is too small names, in MiB."""
    command = [sys.executable, "-m", "prefetchd", "serve", *map(str, arguments), "--memory-budget", "1MiB"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    found = re.search(r"--memory-budget (\d+)MiB or more", refused.stderr)
    assert found, refused.stderr
    return int(found[1])


@pytest.fixture(scope="session")
def large_and_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty ordinary photographs, and among them three of 12 megapixels and two large progressive ones."""
    folder = tmp_path_factory.mktemp("large")
    large = cv2.resize(photograph(300, 400, 1), (4000, 3000), interpolation=cv2.INTER_CUBIC)
    lines = []
    for number in range(40):
        path = folder / f"{number:02d}.jpg"
        if number in (5, 6, 22):
            assert cv2.imwrite(str(path), large)
        elif number in (13, 30):
            Image.fromarray(large[:2000, :3000]).save(path, progressive=True, quality=90)
        else:
            write_jpeg(path, (375, 500), seed=number)
        lines.append(f"{path.name} {number}\n")
    manifest = folder / "manifest.txt"
    manifest.write_text("".join(lines))
    return manifest


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_smallest_budget_holds(serve: Serve, photographs: Path, dtype: str) -> None:
    options = ("--batch-size", 16, "--image-size", 128, "--num-workers", 2, "--dtype", dtype, "--shuffle")
    least = smallest_budget(photographs, *options)
    daemon = serve(photographs, *options, "--memory-budget", f"{least}MiB", ready=False)
    with Watch(daemon.pid) as watch:
        daemon.wait_ready()
        with prefetchd.batches(epochs=15) as loader:
            assert sum(len(x) for x, _ in loader) == 15 * 50
    print(f"{dtype}: budget {least} MiB, {watch.report()}")
    assert watch.max_bytes <= least * MIB, f"{watch.report()}, budget {least} MiB\n{daemon.log}"
    assert "over the budget" not in daemon.log


@pytest.mark.parametrize("readers", [1, 3])
def test_large_images_take_turns(serve: Serve, large_and_small: Path, readers: int) -> None:
    """Full decodes of 12 megapixels in the smallest budget that one of them fits in, by any number of readers."""
    options = ("--batch-size", 8, "--image-size", 96, "--no-shrink-on-load", "--num-workers", readers)
    options = (*options, "--dtype", "float32", "--scale", "0.004")
    least = smallest_budget(large_and_small, *options)
    daemon = serve(large_and_small, *options, "--memory-budget", f"{least}MiB", name="tight")
    needed = 0
    with (
        prefetchd.batches(daemon="tight") as loader,
        pytest.raises(
            prefetchd.BudgetError, match=r"cannot decode sample \d+ \(.* line \d+: .*give memory_budget=\"\d+MiB\""
        ) as caught,
    ):
        for _ in loader:
            pass
    needed = int(re.search(r'memory_budget="(\d+)MiB"', str(caught.value))[1])  # type: ignore[index]
    assert daemon.stop() == 0
    daemon = serve(large_and_small, *options, "--memory-budget", f"{needed}MiB", name="wide", ready=False)
    with Watch(daemon.pid) as watch:
        daemon.wait_ready()
        with prefetchd.batches(daemon="wide", epochs=2) as loader:
            assert [batch.sample_ids.tolist() for batch in loader] == 2 * [
                list(range(first, first + 8)) for first in range(0, 40, 8)
            ]
    print(f"{readers} readers: least {least}, budget {needed} MiB, {watch.report()}")
    assert watch.max_bytes <= needed * MIB, f"{watch.report()}, budget {needed} MiB\n{daemon.log}"
    assert "over the budget" not in daemon.log
    assert daemon.stop() == 0


def test_auto_budget_holds_with_large_images(serve: Serve, large_and_small: Path) -> None:
    """It grows for them by reservation, and what is in use is never more than it was then."""
    daemon = serve(large_and_small, "--batch-size", 8, "--shuffle", "--no-shrink-on-load", ready=False)
    n_samples, budgets = 0, []
    with Watch(daemon.pid) as watch:
        daemon.wait_ready()
        with prefetchd.batches(epochs=3) as loader:
            for x, _ in loader:
                n_samples += len(x)
                budgets.append(daemon.status()["memory"])
    assert n_samples == 3 * 40
    budget_bytes = max(memory["budget_bytes"] for memory in budgets)
    print(f"auto {budget_bytes / MIB:.0f} MiB, {watch.report()}")
    assert watch.max_bytes <= budget_bytes <= max(memory["ceiling_bytes"] for memory in budgets), daemon.log
    assert "memory-budget auto: grown to" in daemon.log
    assert "over the budget" not in daemon.log


def test_status_agrees_with_what_is_seen_from_outside(serve: Serve, photographs: Path) -> None:
    """The daemon's own figure counts every process and every segment: nothing is forgotten."""
    daemon = serve(photographs, "--batch-size", 16, "--image-size", 128, "--num-workers", 2)
    with prefetchd.batches() as loader:
        assert sum(len(x) for x, _ in loader) == 50

    def at_rest() -> bool:
        """Whether nothing is freed or filled any more, so that two looks, one after the other, may agree."""
        status = daemon.status()
        return not status["consumers"] and status["ring"]["ready"] == status["ring"]["slots"]

    wait_until(at_rest, "the loader is forgotten and the ring is full")
    status = daemon.status()
    family = family_of(daemon.pid)
    assert set(map(int, status["memory"]["process_bytes"])) == set(family)
    assert status["memory"]["ring_bytes"] + status["memory"]["queue_bytes"] == segment_bytes(family, slots_only=True)
    outside = sum(map(private_bytes, family))
    assert outside == pytest.approx(sum(status["memory"]["process_bytes"].values()), rel=0.1)
