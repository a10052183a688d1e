"""The demo: photographs, `prefetchd serve`, a consumer, the figures, and a contact sheet of one batch.

Run it with scripts/demo, which sees to the environment first. Without a manifest it makes photographs in code. The
daemon is a child of this process and is stopped however this process ends, short of SIGKILL.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from photographs import make_photographs

import prefetchd

CHECKOUT = Path(__file__).resolve().parent.parent
PREFETCHD = [sys.executable, "-P", "-m", "prefetchd"]
READY_S = 60.0
STOP_S = 15.0
MIB = 1 << 20


def say(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    """Print, also where nobody listens any more: the clean-up must not fail for that."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=stream or sys.stdout, flush=True)


class Progress:
    """A bar on stderr; where that is no terminal, a plain line now and then."""

    _WIDTH = 30
    _PLAIN_EVERY_S = 2.0

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_terminal = sys.stderr.isatty()
        self._shown_s = time.monotonic() if not self._is_terminal else 0.0

    def show(self, fraction: float, text: str) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s < (0.1 if self._is_terminal else self._PLAIN_EVERY_S) and fraction < 1:
            return
        self._shown_s = now_s
        if self._is_terminal:
            bar = "#" * round(self._WIDTH * min(fraction, 1.0))
            say(f"\r{self._what} [{bar:<{self._WIDTH}}] {text}\033[K", end="", stream=sys.stderr)
        else:
            say(f"{self._what}: {text}", stream=sys.stderr)

    def end(self) -> None:
        if self._is_terminal:
            say("", stream=sys.stderr)


class Serving:
    """Owns a `prefetchd serve`; passes its log on to stderr and stops it at the end of the `with` block."""

    def __init__(self, manifest: Path, name: str, options: Sequence[str]) -> None:
        self.name = name
        self.started_s = time.perf_counter()
        command = [*PREFETCHD, "serve", str(manifest), "--name", name, *options]
        say(f"$ prefetchd {' '.join(command[len(PREFETCHD) :])}")
        # A process group of its own: Ctrl-C reaches this process, which then stops the daemon in good order.
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
        )
        self._is_ready = False
        self._decided = threading.Event()  # it is ready, or its log has ended
        self._log = threading.Thread(target=self._pass_log_on, daemon=True)
        self._log.start()

    def _pass_log_on(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            say(line, end="", stream=sys.stderr)
            if "ready:" in line:
                self._is_ready = True
                self._decided.set()
        self._decided.set()

    def wait_ready(self) -> None:
        if not self._decided.wait(READY_S):
            raise SystemExit(f"demo: the daemon was not ready within {READY_S:g} s")
        if not self._is_ready:
            raise SystemExit("demo: the daemon ended before it was ready; see its log above")

    def status(self) -> dict[str, Any]:
        command = [*PREFETCHD, "status", "--json", self.name]
        report: dict[str, Any] = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=30).stdout
        )
        return report

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None and self._is_ready:
            say(f"$ prefetchd stop {self.name}")
            subprocess.run([*PREFETCHD, "stop", self.name], check=False, timeout=30)
        elif self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            say("demo: the daemon does not stop; killing it", stream=sys.stderr)
            self.process.kill()
            self.process.wait()
        self._log.join(STOP_S)


def contact_sheet(x: np.ndarray, y: np.ndarray, classes: Sequence[str] | None, columns: int = 8) -> np.ndarray:
    """Return a BGR sheet of up to 32 RGB images (n, h, w, 3), each with its label below."""
    gap_px, caption_px, n = 8, 22, min(len(x), 32)
    rows, (height, width) = -(-n // columns), x.shape[1:3]
    step_y, step_x = height + caption_px + gap_px, width + gap_px
    sheet = np.full((rows * step_y + gap_px, min(columns, n) * step_x + gap_px, 3), 255, np.uint8)
    for i in range(n):
        top, left = gap_px + i // columns * step_y, gap_px + i % columns * step_x
        sheet[top : top + height, left : left + width] = x[i][:, :, ::-1]
        label = np.atleast_1d(y[i])
        is_class = classes is not None and label.size == 1
        text = classes[int(label[0])] if is_class else " ".join(f"{value:g}" for value in label)
        corner = (left + 2, top + height + caption_px - 6)
        cv2.putText(sheet, text[:26], corner, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return sheet


def consume(serving: Serving, seconds: float, sheet_path: Path) -> list[str]:
    """Take batches for about `seconds`; write the contact sheet; return the lines of the report."""
    attach_s = time.perf_counter()
    with prefetchd.batches(daemon=serving.name, epochs=None) as loader:
        progress = Progress("consuming")
        begin_s = first_s = last_s = 0.0
        images = since_mark = 0
        mark: tuple[float, int] | None = None  # the clock and the epoch from which on images are counted
        for batch in loader:
            x, y = batch
            last_s = time.perf_counter()
            if not images:
                begin_s = first_s = last_s
                cv2.imwrite(str(sheet_path), contact_sheet(x, y, loader.classes))
            images += len(x)
            elapsed_s = last_s - begin_s
            if mark is not None:
                since_mark += len(x)
            elif batch.epoch >= 1 or elapsed_s > seconds / 4:  # of a large data set, a quarter of the time
                mark = last_s, batch.epoch
            progress.show(
                elapsed_s / seconds,
                f"epoch {batch.epoch}, batch {batch.index + 1}/{len(loader)}, {images} images, {elapsed_s:.0f} s",
            )
            if elapsed_s >= seconds and since_mark:
                break
        progress.end()
        memory = serving.status()["memory"]
    assert mark is not None
    rate = since_mark / (last_s - mark[0])
    budget = memory["budget_bytes"]
    return [
        f"images/s              {rate:.0f} (epochs {mark[1]} to {batch.epoch}, {since_mark} images of "
        f"{x.shape[1]}x{x.shape[2]}, {len(os.sched_getaffinity(0))} cores)",
        f"time to first batch   {(first_s - attach_s) * 1e3:.0f} ms after attaching, "
        f"{first_s - serving.started_s:.2f} s after the start of prefetchd serve",
        f"memory footprint      {memory['footprint_bytes'] / MIB:.0f} MiB now, "
        f"{memory['max_footprint_bytes'] / MIB:.0f} MiB at most, of a budget of {budget / MIB:.0f} MiB"
        f"{'' if memory['max_footprint_bytes'] <= budget else ' - OVER THE BUDGET'}",
        f"contact sheet         {sheet_path}",
    ]


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("manifest", nargs="?", type=Path, help="a list file or a directory with a folder per class")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to consume (8)")
    parser.add_argument("--images", type=int, default=256, help="photographs to make (256)")
    parser.add_argument("--sheet", type=Path, default=CHECKOUT / "demo.png", help="contact sheet (demo.png)")
    parser.add_argument("--budget", default="auto", help="memory budget of the daemon (auto)")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    manifest = arguments.manifest
    if manifest is None:
        progress = Progress("making photographs")
        manifest = make_photographs(
            CHECKOUT / ".demo", arguments.images, lambda done, total: progress.show(done / total, f"{done}/{total}")
        )
        progress.end()
    options = ["--batch-size", "32", "--shuffle", "--memory-budget", arguments.budget]
    with Serving(manifest, f"demo-{os.getpid()}", options) as serving:
        serving.wait_ready()
        report = consume(serving, arguments.seconds, arguments.sheet)
    say("\n" + "\n".join(report))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("\ndemo: interrupted; nothing is left running", stream=sys.stderr)
        sys.exit(130)
    except prefetchd.PrefetchdError as error:
        sys.exit(f"demo: {error}")
