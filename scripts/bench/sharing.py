"""Several trainers on the same photographs: one prefetchd daemon, a DataLoader each, or one shared by TensorSocket.

    python scripts/bench/sharing.py MANIFEST --trainers 4 --rounds 3
    python scripts/bench/sharing.py MANIFEST --handoff 1,4,16,64

Every trainer is a process of its own that reads one byte of every page of each batch of 64 RGB images, 224x224, and
drops it; all start together and run for `--seconds`. The kinds take turns (A B C A B C ...); medians over the rounds.

  alone, prefetchd     one trainer, one daemon of two readers
  prefetchd            all trainers, one daemon of two readers, the same budget (`--budget`)
  DataLoader           all trainers, each with two workers of its own
  TensorSocket         with `--tensorsocket`: all trainers, one DataLoader of two workers, shared by a TensorProducer
                       (`pip install tensorsocket`). Version 0.0.5 stalls in some runs, and so does this then. On
                       CPUs it sends each trainer the pixels through a socket, in one message for all of them; two
                       batches a message is the least that it can do

  images/s each        the median over the trainers of what each got
  slowest              the one that got least
  of alone             images/s each over what a trainer with prefetchd gets alone, in the same round
  CPU                  processor time of everything, in cores
  footprint            private memory (Pss_Anon + SwapPss) of the loaders' processes plus shared memory, maximum of
                       samples; the trainers' own private memory is not in it (so what TensorSocket's copy is not)

`--handoff` takes arrays, whose batches cost next to nothing to make, and counts the daemon's processor time for each
batch that a trainer takes, with so many trainers: it must not grow with their number.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import MIB, manifest_or_photographs, private_bytes, setting, shared_bytes, table

SIZE_PX = 224


@dataclass
class Result:
    images_s: list[float]
    cores: float
    footprint_bytes: int


# --- a trainer: `sharing.py --be KIND ...`, told to start and to stop over its standard input


def batches_of(kind: str, manifest: str, name: str) -> Generator[np.ndarray, None, None]:
    """Yield batches for ever."""
    if kind == "prefetchd":
        import prefetchd

        loader = prefetchd.batches(daemon=name, epochs=None, timeout=60)
        for x, _ in loader:
            yield x
    else:
        if kind == "tensorsocket":
            from tensorsocket import TensorConsumer

            loader = TensorConsumer(**ports_of(name), batch_size=64)
        else:
            loader = photographs_loader(manifest)
        while True:
            for x, _ in loader:
                yield x.numpy()


def photographs_loader(manifest: str, repeat: int = 1, *, drop_last: bool = False) -> Any:
    """Return a DataLoader of the photographs, listed `repeat` times over, with two workers."""
    import torch
    from loaders import Data, read_image
    from loaders.torch_cv2 import Photographs, _one_thread

    torch.set_num_threads(1)
    lines = [line.rsplit(" ", 1) for line in Path(manifest).read_text().splitlines()] * repeat
    paths, labels = [str(Path(manifest).parent / path) for path, _ in lines], [int(label) for _, label in lines]
    data = Data(Path(manifest), paths, labels, 64, 2, Path(manifest).parent)
    return torch.utils.data.DataLoader(
        Photographs(data, read_image), 64, shuffle=True, num_workers=2, worker_init_fn=_one_thread,
        persistent_workers=True, drop_last=drop_last,
    )  # fmt: skip


def ports_of(name: str) -> dict[str, Any]:
    """Return the ports that a TensorSocket of this `name` (four numbers) uses, as its options."""
    port, ack, *heart = map(int, name.split(","))
    return {"port": port, "ack_port": ack, "heart_ports": tuple(heart)}


def be_producer(manifest: str, name: str) -> None:
    """Share one DataLoader by TensorSocket until somebody ends this process."""
    from tensorsocket import TensorProducer

    # What is left at the end of an epoch is not sent, so epochs are longer than the few batches of the list.
    loader = photographs_loader(manifest, 8, drop_last=True)
    producer = TensorProducer(loader, **ports_of(name), producer_batch_size=2)
    while True:
        for _ in producer:
            pass


def be_trainer(kind: str, manifest: str, name: str, seconds: float) -> None:
    batches = batches_of(kind, manifest, name)
    next(batches)
    print("ready", flush=True)
    while kind == "tensorsocket" and not select.select([sys.stdin], [], [], 0)[0]:
        next(batches)  # it lets nobody else in while one of its consumers does not read
    sys.stdin.readline()
    end_s = time.monotonic() + seconds
    images, start_s = 0, time.monotonic()
    while time.monotonic() < end_s:
        x = next(batches)
        x.reshape(-1).view(np.uint8)[::4096].sum(dtype=np.int64)
        images += len(x)
    took_s = time.monotonic() - start_s
    batches.close()  # or those that are still at it would wait for this one
    print(images, took_s, flush=True)
    sys.stdin.readline()
    os._exit(0)  # what a loader does at its end is not measured


# --- running them


@contextlib.contextmanager
def daemon(source: str, name: str, *options: str) -> Iterator[psutil.Process]:
    process = subprocess.Popen(
        [sys.executable, "-m", "prefetchd", "serve", source, "--name", name, *options], stderr=subprocess.DEVNULL
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def producer(manifest: str) -> Iterator[tuple[str, psutil.Process]]:
    """Give the name of a TensorSocket, and the process that fills it."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
        for one in sockets:
            one.bind(("", 0))
        name = ",".join(str(one.getsockname()[1]) for one in sockets)
    process = psutil.Popen(
        [sys.executable, __file__, manifest, "--be", "producer", "--name", name], stdout=subprocess.DEVNULL
    )
    try:
        yield name, process
    finally:
        own = [process, *process.children(recursive=True)]
        for one in own:
            one.kill()
        process.wait()


def cpu_s(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def run_trainers(kind: str, n: int, manifest: str, name: str, seconds: float, server: psutil.Process | None) -> Result:
    command = [sys.executable, __file__, manifest, "--be", kind, "--name", name, "--seconds", str(seconds)]
    trainers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(n)]
    try:
        for trainer in trainers:
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == "ready\n"
        own = [psutil.Process(trainer.pid) for trainer in trainers]
        others = [child for process in own for child in process.children(recursive=True)]
        others += [server, *server.children(recursive=True)] if server else []
        before_s, start_s = cpu_s(own + others), time.monotonic()
        for trainer in trainers:
            assert trainer.stdin is not None
            trainer.stdin.write("go\n")
            trainer.stdin.flush()
        footprint = 0
        while time.monotonic() < start_s + seconds - 0.2:
            pids = [process.pid for process in others]
            footprint = max(footprint, sum(map(private_bytes, pids)) + shared_bytes([*pids, *(p.pid for p in own)]))
            time.sleep(0.5)
        # While all of them run: what a process has used cannot be read once it has ended.
        cores = (cpu_s(own + others) - before_s) / (time.monotonic() - start_s)
        rates = []
        for trainer in trainers:
            assert trainer.stdout is not None
            images, took_s = map(float, trainer.stdout.readline().split())
            rates.append(images / took_s)
        return Result(rates, cores, footprint)
    finally:
        for trainer in trainers:
            trainer.communicate("end\n")


def compare(manifest: Path, options: argparse.Namespace) -> None:
    kinds = ["alone, prefetchd", f"{options.trainers} x prefetchd"]
    kinds += [] if options.no_torch else [f"{options.trainers} x DataLoader"]
    if options.tensorsocket:
        kinds.append(f"{options.trainers} x TensorSocket")
    results: dict[str, list[Result]] = {kind: [] for kind in kinds}
    serve = ("--batch-size", "64", "--image-size", str(SIZE_PX), "--shuffle", "--num-workers", "2")
    for _ in range(options.rounds):
        for kind in kinds:
            n = 1 if kind.startswith("alone") else options.trainers
            if kind.endswith("DataLoader"):
                result = run_trainers("torch", n, str(manifest), "", options.seconds, None)
            elif kind.endswith("TensorSocket"):
                with producer(str(manifest)) as (name, server):
                    result = run_trainers("tensorsocket", n, str(manifest), name, options.seconds, server)
            else:
                name = f"bench-{os.getpid()}"
                with daemon(str(manifest), name, *serve, "--memory-budget", options.budget) as server:
                    result = run_trainers("prefetchd", n, str(manifest), name, options.seconds, server)
            results[kind].append(result)
    alone = [result.images_s[0] for result in results[kinds[0]]]
    rows = [["", "images/s each", "slowest", "of alone", "CPU", "footprint MiB"]]
    for kind in kinds:
        each = [statistics.median(result.images_s) for result in results[kind]]
        rows.append(
            [
                kind,
                f"{statistics.median(each):.0f}",
                f"{min(min(result.images_s) for result in results[kind]):.0f}",
                f"{statistics.median(a / b for a, b in zip(each, alone, strict=True)):.2f}",
                f"{statistics.median(result.cores for result in results[kind]):.2f}",
                f"{max(result.footprint_bytes for result in results[kind]) / MIB:.0f}",
            ]
        )
    print(table(rows))


def handoff(counts: list[int], options: argparse.Namespace) -> None:
    rows = [["trainers", "batches/s in all", "daemon's CPU, us a batch taken"]]
    with tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as folder:
        source = Path(folder) / "x.npy"
        np.save(source, np.zeros((64 * 2000, 16), np.uint8))
        for n in counts:
            name = f"bench-{os.getpid()}"
            serve = ("--batch-size", "64", "--num-workers", "1", "--patience", "inf")
            with daemon(str(source), name, *serve) as server:
                run_trainers("prefetchd", 1, str(source), name, 0.3, server)  # every slot is filled once
                before = server.cpu_times()
                result = run_trainers("prefetchd", n, str(source), name, options.seconds, server)
                after = server.cpu_times()
            batches = sum(result.images_s) / 64 * options.seconds
            spent_s = after.user + after.system - before.user - before.system
            rows.append([str(n), f"{batches / options.seconds:.0f}", f"{1e6 * spent_s / batches:.0f}"])
    print(table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="photographs; made in code if not given")
    parser.add_argument("--trainers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--budget", default="256MiB")
    parser.add_argument("--no-torch", action="store_true", help="leave the DataLoader out")
    parser.add_argument("--tensorsocket", action="store_true", help="TensorSocket too, which may stall (see above)")
    parser.add_argument("--handoff", metavar="N,N,...", help="measure the daemon's work for so many trainers instead")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be == "producer":
        be_producer(str(options.manifest), options.name)
    if options.be:
        be_trainer(options.be, str(options.manifest), options.name, options.seconds)
        return
    print(setting("prefetchd", "numpy", "opencv-python-headless", "torch", "tensorsocket"), flush=True)
    if options.handoff:
        handoff([int(n) for n in options.handoff.split(",")], options)
        return
    with manifest_or_photographs(options.manifest) as manifest:
        compare(manifest, options)


if __name__ == "__main__":
    main()
