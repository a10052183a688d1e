"""What agents on other machines cost the trainer's machine, and what a network lets through.

    python scripts/bench/remote.py [MANIFEST] [--fake 1,4,16,64] [--agents 1,2] [--line 1,10] [--rows N] [--size PX]
                                   [--beside ours,ours_agents,ray_data,tf_data_service] [--rounds N]

  fake N    N agents that answer at once with rows of zeros: processor time a row of daemon and bridge, and of both with
            the trainer's loop; rows and chunks a second, here, where the agents take the same cores, and the daemon's
            own reader what they leave; and what the kernel takes to copy a row out of a socket, and nothing else
  agents N  N real agents on this machine beside one reader: processor time an image of all processes, against readers
            of the daemon alone
  beside    other loaders whose work is done elsewhere, on the same photographs, all on this machine with two workers:
            images/s, and processor time an image of all processes, the loop's too; in turns, medians over the rounds
  line G    one agent of the first kind behind a network of G Gbit/s (a namespace, veth and tbf; needs root): the part
            of the line's limit that rows reach

Rows are 224 x 224 x 3 uint8, or of another --size. Processor time is what the kernel counts for the processes, so other
work on the machine changes it little; rates it changes much.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from measure import manifest_or_photographs, measure_apart, setting, table
from peers import HERE, write_manifest

import prefetchd

OPTIONS: dict[str, Any] = {"batch_size": 256, "image_size": 224, "shuffle": True, "memory_budget": "1GiB"}
SPACE, OUTSIDE, INSIDE = f"prefetchd-bench-{os.getpid()}", f"pfo{os.getpid()}", f"pfi{os.getpid()}"


def cpu_s(processes: list[psutil.Process]) -> float:
    """Processor seconds of processes so far, with those of children that have ended."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def daemon_processes(loader: prefetchd.Loader) -> list[psutil.Process]:
    daemon = psutil.Process(loader.status()["pid"])
    return [daemon, *daemon.children(recursive=True)]


def wait_joined(loader: prefetchd.Loader, n_agents: int) -> None:
    end_s = time.monotonic() + 120
    while len(loader.status()["agents"]) < n_agents:
        if time.monotonic() > end_s:
            raise SystemExit(f"not all agents have joined: {loader.status()['agents_missing']}")
        time.sleep(0.1)


@contextlib.contextmanager
def fake_agents(folder: Path, digest: str, count: int, *prefix: str, host: str = "127.0.0.1") -> Iterator[list[str]]:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fake_agents; fake_agents.main()"
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", code, str(folder / "token"), digest, str(count), host],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield [process.stdout.readline().strip() for _ in range(count)]
    finally:
        process.stdin.close()
        process.stdout.close()
        process.terminate()
        process.wait()


@contextlib.contextmanager
def real_agents(folder: Path, count: int) -> Iterator[tuple[list[str], list[psutil.Process]]]:
    command = [
        sys.executable, "-m", "prefetchd", "agent", "--listen", "127.0.0.1:0", "--token-file", str(folder / "token"),
        "--num-workers", "1", "--memory-budget", "1GiB",
    ]  # fmt: skip
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(count)
    ]
    try:
        addresses = []
        for process in started:
            assert process.stdout is not None
            addresses.append(":".join(process.stdout.readline().split()))
        yield addresses, [psutil.Process(process.pid) for process in started]
    finally:
        for process in started:
            process.terminate()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def digest_of(manifest: Path) -> str:
    with prefetchd.batches(manifest, num_workers=1, **OPTIONS) as loader:
        return str(loader.state_dict()["manifest_digest"])


def drive(loader: prefetchd.Loader, n_rows: int) -> tuple[int, float, float, float]:
    """Take batches until so many rows came; return rows, seconds, and processor seconds of daemon and of the loop."""
    batches = iter(loader)
    for _ in range(8):
        next(batches)
    processes, own = daemon_processes(loader), [psutil.Process()]
    bridge = [process for process in processes if "prefetchd.remote.bridge" in process.cmdline()]
    served = [processes[0], *bridge]
    before, before_own, began_s = cpu_s(served), cpu_s(own), time.perf_counter()
    seen = 0
    while seen < n_rows:
        seen += len(next(batches).y)
    return seen, time.perf_counter() - began_s, cpu_s(served) - before, cpu_s(own) - before_own


def copy_us(n_rows: int) -> float:
    """Processor time a row that the kernel takes alone to copy rows out of a socket, into shared memory."""
    row_bytes = OPTIONS["image_size"] ** 2 * 3
    fd = os.memfd_create("prefetchd-bench")
    os.ftruncate(fd, 32 * row_bytes)
    with mmap.mmap(fd, 32 * row_bytes) as memory, socket.create_server(("127.0.0.1", 0)) as listener:
        os.close(fd)
        code = (
            f"import socket; body = bytes(32 * {row_bytes})\n"
            f"sock = socket.create_connection({listener.getsockname()!r})\n"
            f"for _ in range({n_rows // 32}): sock.sendall(body)"
        )
        with subprocess.Popen([sys.executable, "-c", code]), listener.accept()[0] as sock, memoryview(memory) as view:
            before_s, at, seen = time.process_time(), 0, 0
            while n := sock.recv_into(view[at : at + (1 << 20)]):
                at, seen = (at + n) % len(view), seen + n
            return 1e6 * (time.process_time() - before_s) / (seen / row_bytes)


def measure_fake(manifest: Path, folder: Path, counts: list[int], n_rows: int) -> None:
    rows = []
    digest = digest_of(manifest)
    for count in counts:
        with fake_agents(folder, digest, count) as addresses:
            options = {**OPTIONS, "agents": addresses, "token_file": folder / "token", "num_workers": 1}
            with prefetchd.batches(manifest, epochs=None, **options) as loader:
                wait_joined(loader, count)
                for process in daemon_processes(loader):
                    if "prefetchd.reader.fork_server" in process.cmdline():
                        process.nice(19)
                seen, took_s, served_s, own_s = drive(loader, n_rows)
                report = loader.status()
                made = sum(agent["samples"] for agent in report["agents"]) / max(1, report["samples_made"])
        rows.append([
            f"fake {count}", f"{1e6 * served_s / seen:.1f}", f"{1e6 * (served_s + own_s) / seen:.1f}",
            f"{seen / took_s:,.0f}", f"{seen / max(served_s, 1e-9):,.0f}", f"{made:.0%}",
        ])  # fmt: skip
    rows.append(["copy alone", f"{copy_us(n_rows):.1f}", *["-"] * 4])
    heads = ["", "CPU us a row", "with the loop", "rows/s here", "rows/s a core", "by agents"]
    print(table([heads, *rows]))


def measure_real(manifest: Path, folder: Path, counts: list[int], n_rows: int) -> None:
    rows = []
    for count in [0, *counts]:
        with contextlib.ExitStack() as stack:
            options: dict[str, Any] = {**OPTIONS, "batch_size": 64, "num_workers": 1, "memory_budget": "256MiB"}
            agents: list[psutil.Process] = []
            if count:
                addresses, agents = stack.enter_context(real_agents(folder, count))
                options |= {"agents": addresses, "token_file": folder / "token"}
            loader = stack.enter_context(prefetchd.batches(manifest, epochs=None, **options))
            wait_joined(loader, count)
            batches = iter(loader)
            for _ in range(2):
                next(batches)
            processes = [
                *daemon_processes(loader), *agents,
                *(child for agent in agents for child in agent.children(recursive=True)),
            ]  # fmt: skip
            made, before = loader.status()["samples_made"], cpu_s(processes)
            seen = 0
            while seen < n_rows:
                seen += len(next(batches).y)
            made = loader.status()["samples_made"] - made
            rows.append([f"agents {count}", f"{1e6 * (cpu_s(processes) - before) / made:,.0f}", f"{made}"])
    print(table([["", "CPU us an image", "images"], *rows]))


def measure_beside(manifest: Path, folder: Path, names: list[str], n_rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    written = write_manifest(manifest, folder, 4)
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    for _ in range(n_rounds):
        for name in names:
            words = [sys.executable, str(HERE / "measure_remote.py"), name, str(written), "--folder", str(folder)]
            got = measure_apart(words, quiet, 120)
            if "problem" in got:
                print(f"{name}: {got['problem']}", file=sys.stderr)
            else:
                found[name].append(got)
    rows = [
        [name, *(f"{statistics.median(each[key] for each in got):,.0f}" for key in ("images_per_s", "cpu_us"))]
        for name, got in found.items()
        if got
    ]
    print(table([["", "images/s", "CPU us an image"], *rows]))


def measure_line(manifest: Path, folder: Path, gbits: list[float], n_rows: int) -> None:
    rows = []
    digest = digest_of(manifest)
    for gbit in gbits:
        try:
            with (
                line(gbit),
                fake_agents(folder, digest, 1, "ip", "netns", "exec", SPACE, host="10.211.7.2") as addresses,
            ):
                options = {**OPTIONS, "agents": addresses, "token_file": folder / "token", "num_workers": 1}
                with prefetchd.batches(manifest, epochs=None, **options) as loader:
                    wait_joined(loader, 1)
                    drive(loader, n_rows // 4)
                    before, began_s = loader.status()["agents"][0]["received_bytes"], time.perf_counter()
                    drive(loader, n_rows)
                    received = loader.status()["agents"][0]["received_bytes"] - before
                    part = 8 * received / (time.perf_counter() - began_s) / (gbit * 1e9)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"line {gbit:g}: left out, no such network can be made here ({error})")
            continue
        rows.append([f"line {gbit:g}", f"{received / 1e6:,.0f}", f"{part:.2f}"])
    if rows:
        print(table([["", "MB received", "of the line"], *rows]))


@contextlib.contextmanager
def line(gbit: float) -> Iterator[None]:
    """A namespace at the other end of a line of so many Gbit/s."""

    def run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    run("ip", "netns", "add", SPACE)
    try:
        run("ip", "link", "add", OUTSIDE, "type", "veth", "peer", "name", INSIDE, "netns", SPACE)
        run("ip", "addr", "add", "10.211.7.1/24", "dev", OUTSIDE)
        run("ip", "link", "set", OUTSIDE, "up")
        inside = ("ip", "netns", "exec", SPACE)
        run(*inside, "ip", "addr", "add", "10.211.7.2/24", "dev", INSIDE)
        run(*inside, "ip", "link", "set", INSIDE, "up")
        rate = f"{round(gbit * 1000)}mbit"
        run(
            *inside, "tc", "qdisc", "add", "dev", INSIDE, "root", "tbf", "rate", rate, "burst", "1mb", "latency", "50ms"
        )
        yield
    finally:
        subprocess.run(("ip", "netns", "delete", SPACE), capture_output=True)
        subprocess.run(("ip", "link", "delete", OUTSIDE), capture_output=True)


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path)
    parser.add_argument("--fake", default="1,4,16,64", help="how many agents that answer at once; empty for none")
    parser.add_argument("--agents", default="1,2", help="how many real agents")
    parser.add_argument("--line", default="1", help="Gbit/s")
    parser.add_argument("--beside", default="", help="loaders: ours, ours_agents, ray_data, tf_data_service")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="pixels a side of the images (224)")
    parser.add_argument("--rows", type=int, default=20_000)
    arguments = parser.parse_args()
    OPTIONS["image_size"] = arguments.size
    print(setting())
    with tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as name:
        folder = Path(name)
        fd = os.open(folder / "token", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, secrets.token_hex(32).encode())
        os.close(fd)
        with manifest_or_photographs(arguments.manifest) as manifest:
            if arguments.fake:
                measure_fake(manifest, folder, list(map(int, numbers(arguments.fake))), arguments.rows)
            if arguments.agents:
                measure_real(manifest, folder, list(map(int, numbers(arguments.agents))), arguments.rows // 10)
            if arguments.beside:
                measure_beside(manifest, folder, arguments.beside.split(","), arguments.rounds)
            if arguments.line:
                measure_line(manifest, folder, numbers(arguments.line), arguments.rows)


if __name__ == "__main__":
    main()
