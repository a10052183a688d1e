"""Images from an object store that answers late, beside the same files on the local disk, and beside other loaders.

    python scripts/bench/stores.py [MANIFEST] [--delays-ms 20,50,200] [--repeat 8] [--rounds 3] [--only local,s3_files]
        [--peers-python PYTHON]

The store is the server of `tests/servers`, in a process of its own on the loopback interface: it speaks S3, and waits
so long before the first byte of each answer, for any number of requests at once. All loaders deliver shuffled batches
of 64 RGB images of 224x224, uint8, with two workers. Each measurement has an interpreter of its own, and they take
turns (A B C ... A B C ...); figures are medians over the rounds. The clock runs from the fourth batch to the end of the
first epoch: nothing of the store is on the disk before.

`local` has the files in the page cache. `s3_files` reads a manifest and each image by a request, `s3_tar` ranges of tar
shards by an index that is kept. `boto3_getitem` and `s3fs_getitem` are PyTorch's DataLoader with that library in
`__getitem__`. `mosaicml` and `litdata` are those libraries' streaming readers, with shards of 32 MiB that their own
writers made; `--peers-python` names an interpreter that has them all.

The last columns are processor time an image: of the loader with all its processes, in the same window, and of the
server, in the whole run; both share the machine. `--cores` pins the server and the loaders, such as `0/1-3`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import psutil
from measure import manifest_or_photographs, measure_apart, setting, table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.servers.web import WebServer

HERE = Path(__file__).resolve().parent
BUCKET = "bench"
SHARDS = 8
OURS = {"local": "", "s3_files": f"s3://{BUCKET}/train.txt", "s3_tar": f"s3://{BUCKET}/train-{{0..{SHARDS - 1}}}.tar"}
IN_GETITEM = ("boto3_getitem", "s3fs_getitem")
PEERS = ("mosaicml", "litdata")
MEASUREMENT_S = 600.0


def cores(text: str) -> set[int]:
    """Return the numbers of `0-2,5`."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


class Bench:
    """The data, the server and the measurements. Borrows `folder`."""

    def __init__(self, manifest: Path, folder: Path, given: argparse.Namespace) -> None:
        self._given = given
        self._folder = folder
        self._bucket = folder / "served" / BUCKET
        (self._bucket / "images").mkdir(parents=True)
        self.manifest = self._bucket / "train.txt"
        lines = []
        pairs = [line.rpartition(" ") for line in manifest.read_text().splitlines() if line.strip()]
        for copy in range(given.repeat):
            for number, (path, _, _) in enumerate(pairs):
                name = f"images/{copy}-{number:05d}.jpg"
                shutil.copyfile(manifest.parent / path.strip(), self._bucket / name)
                lines.append(f"{name} {number}\n")
        self.manifest.write_text("".join(lines))
        self._index = folder / "train.index"

    def write_shards(self) -> None:
        """Write tar shards of the same samples, and their index over the store."""
        lines = self.manifest.read_text().splitlines()
        for shard in range(SHARDS):
            with tarfile.open(self._bucket / f"train-{shard}.tar", "w") as tar:
                for line in lines[shard::SHARDS]:
                    name, _, label = line.rpartition(" ")
                    tar.add(self._bucket / name, Path(name).name)
                    member = self._folder / "label"
                    member.write_text(label)
                    tar.add(member, f"{Path(name).stem}.cls")

    def index(self, server: WebServer) -> None:
        """Index the shards where they are served."""
        command = [sys.executable, "-m", "prefetchd", "index", OURS["s3_tar"], "-o", str(self._index)]
        subprocess.run(command, check=True, env={**os.environ, **server.environment}, stdin=subprocess.DEVNULL)

    def make(self, arm: str) -> None:
        """Write the shards of another library by itself."""
        target = self._bucket / arm
        maker = {"mosaicml": "make_mds", "litdata": "make_litdata"}[arm]
        self._run(maker, str(self.manifest), str(target), {})

    def measure(self, arm: str, server: WebServer) -> dict[str, Any]:
        """Measure one arm once; say what went wrong as its `problem`."""
        source = OURS.get(arm) or f"s3://{BUCKET}/{arm}"
        if arm in IN_GETITEM:
            source = OURS["s3_files"]
        if arm == "local":
            source = str(self.manifest)
        with tempfile.TemporaryDirectory(dir=self._folder) as kept:
            process = psutil.Process(server.process.pid)
            before = process.cpu_times()
            found = self._run("ours" if arm in OURS else arm, source, kept, server.environment, arm == "s3_tar")
            after = process.cpu_times()
        if "problem" not in found:
            found["server_s"] = (after.user + after.system - before.user - before.system) / found["n_images"]
        return found

    def _run(
        self, arm: str, source: str, folder: str, environment: dict[str, str], is_indexed: bool = False
    ) -> dict[str, Any]:
        given = self._given
        is_peer = arm in (*IN_GETITEM, *PEERS, "make_mds", "make_litdata")
        words = [given.peers_python if is_peer else sys.executable, str(HERE / "measure_stores.py"), arm, source]
        words += ["--folder", folder, "--workers", str(given.workers), "--batch-size", str(given.batch_size)]
        words += ["--warm", str(given.warm)]
        if is_indexed:
            words += ["--index", str(self._index)]
        return measure_apart(words, environment, MEASUREMENT_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, nargs="?", help="text manifest, `path label` a line")
    parser.add_argument("--delays-ms", default="20,50,200", help="to the first byte, with commas (20,50,200)")
    parser.add_argument("--repeat", type=int, default=8, help="take the images so many times over (8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--warm", type=int, default=4, help="batches before the clock (4)")
    parser.add_argument("--only", default="local,s3_files,s3_tar", help="arms, with commas; `all` for all that can run")
    parser.add_argument(
        "--peers-python", default=sys.executable, help="interpreter with torch, boto3, s3fs, streaming, litdata"
    )
    parser.add_argument("--cores", help="cores of the server and of the loaders, such as 0/1-3 (all)")
    given = parser.parse_args()
    known = (*OURS, *IN_GETITEM, *PEERS)
    arms = list(known) if given.only == "all" else given.only.split(",")
    if unknown := set(arms) - set(known):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    print(setting("prefetchd", "obstore", "torch", "boto3", "s3fs"), flush=True)
    with (
        manifest_or_photographs(given.manifest) as manifest,
        tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as name,
    ):
        bench = Bench(manifest.resolve(), Path(name), given)
        if "s3_tar" in arms:
            bench.write_shards()
        for arm in PEERS:
            if arm in arms:
                bench.make(arm)
        with WebServer(Path(name) / "served") as server:
            if given.cores:
                of_server, _, of_loaders = given.cores.partition("/")
                os.sched_setaffinity(server.process.pid, cores(of_server))
                os.sched_setaffinity(0, cores(of_loaders))
            if "s3_tar" in arms:
                bench.index(server)
            for delay_ms in map(float, given.delays_ms.split(",")):
                server.set_delay(delay_ms / 1e3)
                print(table(measured(bench, server, arms, delay_ms, given.rounds)), flush=True)


def measured(bench: Bench, server: WebServer, arms: list[str], delay_ms: float, rounds: int) -> list[list[str]]:
    """Return the table of one delay."""
    seen: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for number in range(rounds):
        for arm in arms:
            found = bench.measure(arm, server)
            said = found.get("problem") or f"{found['images_per_s']:,.0f}"
            print(f"  {delay_ms:g} ms, round {number}: {arm}: {said}", flush=True)
            seen[arm].append(found)
    rows = [
        [f"{delay_ms:g} ms to the first byte", "images/s", "of local", "first batch", "CPU ms an image", "server's"]
    ]
    for arm, found in seen.items():
        good = [each for each in found if "problem" not in each]
        if not good:
            continue
        rate = statistics.median(each["images_per_s"] for each in good)
        pairs = [
            each["images_per_s"] / local["images_per_s"]
            for each, local in zip(found, seen.get("local", found), strict=True)
            if "problem" not in each and "problem" not in local
        ]
        first_s, loader_s, server_s = (
            statistics.median(each[key] for each in good) for key in ("first_s", "loader_s", "server_s")
        )
        ratio = f"{statistics.median(pairs):.2f}" if pairs else "-"
        rows.append([arm, f"{rate:,.0f}", ratio, f"{first_s:.2f} s", f"{loader_s * 1e3:.2f}", f"{server_s * 1e3:.2f}"])
    return rows


if __name__ == "__main__":
    main()
