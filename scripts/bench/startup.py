"""How long prefetchd takes to begin: its import, a private daemon's first batch, attaching to a daemon that is there.

    python scripts/bench/startup.py MANIFEST

Every measurement is a fresh interpreter, with compiled bytecode from the second round on; the kinds take turns (A B C
...), `--rounds` times; the figures are medians.

  numpy               what `import numpy` takes in the interpreter
  import prefetchd    what it takes beyond that, after numpy
  first batch         from the start of the interpreter to the first batch of 64, 224x224, shuffled, of a private daemon
  attach              with everything imported: `batches()`, `iter` and the first `next`, of a daemon whose ring is full

With `--steps` it tells where the processor time of a start goes: what each of the processes imports, in turn. Those of
one line run one after another; the lines overlap, as far as there are cores.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import manifest_or_photographs, setting, table

NAME = "bench-startup"
TIMED = "import time; start = time.perf_counter()\n{work}\nprint(time.perf_counter() - start)"
OPTIONS = "batch_size=64, image_size=224, shuffle=True, num_workers=2"
KINDS = {
    "numpy": TIMED.format(work="import numpy"),
    "import prefetchd": "import numpy\n" + TIMED.format(work="import prefetchd"),
    "first batch": (
        "import sys, time, prefetchd\n"
        f"with prefetchd.batches(sys.argv[1], {OPTIONS}) as loader:\n"
        "    next(iter(loader))\n"
        "    print(time.time() - float(sys.argv[2]))"
    ),
    "attach": (
        "import numpy, prefetchd, prefetchd.client.connection\nprefetchd.batches\n"
        + TIMED.format(work=f"loader = prefetchd.batches(daemon={NAME!r}); next(iter(loader))")
    ),
}


LOADED = "from prefetchd.ipc.loading import LoadingModules\nwith LoadingModules():\n    import {what}"

# What each process does, by statements for each step.
STEPS = {
    "trainer": {
        "prefetchd, until it starts the daemon": "import prefetchd; prefetchd.batches; import prefetchd.client.session",
        "numpy, while the daemon starts": LOADED.format(what="numpy"),
        "the rest of the client": LOADED.format(what="prefetchd.client.connection"),
    },
    "daemon": {
        "until it starts the fork server": "import prefetchd.daemon.private",
        "the rest": LOADED.format(what="prefetchd.daemon.server"),
        "opening the data": (
            "from prefetchd.config.validate import make_config; from prefetchd.data.registry import open_source; "
            "source = open_source(make_config(source=sys.argv[1]))"
        ),
    },
    "fork server": {
        "until it loads those of readers": "import prefetchd.reader.fork_server",
        "numpy": LOADED.format(what="numpy"),
        "cv2": LOADED.format(what="cv2"),
        "readers' own modules": LOADED.format(what="prefetchd.data.images.pipeline, prefetchd.reader.process"),
    },
}


def measure_steps(manifest: Path, rounds: int) -> str:
    """Return a table of the processor time that each step of a start takes."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for process, steps in STEPS.items():
            code = "import sys, time\ntimes = [0.0, time.process_time()]\n"
            code += "".join(f"{step}\ntimes.append(time.process_time())\n" for step in steps.values())
            code += "print(*(b - a for a, b in zip(times, times[1:])))"
            done = subprocess.run(
                [sys.executable, "-c", code, str(manifest)], capture_output=True, text=True, check=True
            )
            names = ("the interpreter", *steps)
            for name, seconds in zip(names, map(float, done.stdout.split()), strict=True):
                found.setdefault((process, name), []).append(seconds)
    rows = [["process", "step", "CPU ms, median", "least"]]
    for (process, name), seconds in found.items():
        rows.append([process, name, f"{statistics.median(seconds) * 1e3:.0f}", f"{min(seconds) * 1e3:.0f}"])
    return table(rows)


def measure(code: str, manifest: Path) -> float:
    """Return what one fresh interpreter prints: seconds."""
    command = [sys.executable, "-c", code, str(manifest), repr(time.time())]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?", help="photographs; made in code if not given")
    parser.add_argument("--rounds", type=int, default=9, help="how often each has its turn (9)")
    parser.add_argument("--steps", action="store_true", help="tell where the processor time goes, and no more")
    options = parser.parse_args()
    print(setting("prefetchd", "numpy", "opencv-python-headless"), flush=True)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    if options.steps:
        with manifest_or_photographs(options.manifest) as manifest:
            print(f"\n{measure_steps(manifest, options.rounds)}")
        return
    with manifest_or_photographs(options.manifest) as manifest, tempfile.TemporaryFile() as log:
        words = ["--batch-size", "64", "--shuffle", "--num-workers", "2", "--name", NAME]
        daemon = subprocess.Popen([sys.executable, "-m", "prefetchd", "serve", str(manifest), *words], stderr=log)
        try:
            measure(KINDS["attach"], manifest)  # waits until it serves
            for _ in range(options.rounds):
                for kind, code in KINDS.items():
                    found[kind].append(measure(code, manifest))
                    time.sleep(0.3)  # the daemon fills its ring again
        finally:
            daemon.terminate()
            daemon.wait()
    rows = [["", "median ms", "slowest ms"]]
    for kind, seconds in found.items():
        rows.append([kind, f"{statistics.median(seconds) * 1e3:.1f}", f"{max(seconds) * 1e3:.1f}"])
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
