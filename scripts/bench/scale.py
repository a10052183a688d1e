"""What one daemon drives: readers that answer at once, and many of everything, by cost and not by cores.

    python scripts/bench/scale.py [MANIFEST] --readers 1,8,32,128 --consumers 1,8,64 --datasets 1,4

The daemon, its sockets, its ring and its consumers are the real ones. The readers are not: one process answers for all
of them, writes nothing, and says that each row took `--row-ms`, so that work is cut as for images. So what is measured
is what the daemon itself takes for a batch of 64 images of 224 pixels. All consumers are loaders of this process, which
takes a batch of each in turn.

  batches/s, rows/s    that the consumers got, on this machine and beside its other work
  cost                 processor time of the daemon for each batch that it made, in microseconds
  ratio                that cost over the cost in the first line
  messages, turns      that the daemon sent and received, and rounds of its event loop, for each batch that it made

One consumer, or one reader, is varied at a time; the others are at their first value.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from measure import manifest_or_photographs, setting, table

COUNTED = ("sent", "received", "turns")


# --- the daemon's process


def be_daemon(arguments: list[str]) -> int:
    """Run `prefetchd serve` with the readers of this script, and print counters at each line of input."""
    from prefetchd import __main__ as program
    from prefetchd.daemon.readers import fork_server_start
    from prefetchd.ipc import event_loop, sockets

    row_s, *words = arguments
    counts: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            found = function(*given, **named)  # what raises, as for a socket with nothing to read, is no message
            counts[name] += 1
            return found

        return call

    class CountingLoop(event_loop.EventLoop):
        def run(self, after_events: Any) -> None:
            self.watch(0, self._report)
            super().run(counted("turns", after_events))

        def _report(self) -> None:
            if not os.read(0, 64):
                self.unwatch(0)
                self.stop()
            else:
                os.write(1, json.dumps([counts[name] for name in COUNTED]).encode() + b"\n")

    sockets.send = counted("sent", sockets.send)
    sockets.receive = counted("received", sockets.receive)
    event_loop.EventLoop = CountingLoop  # type: ignore[misc]
    fork_server_start.child_command = lambda module, fd, *rest: [  # type: ignore[attr-defined,misc]
        sys.executable, __file__, "--be-readers", str(fd), row_s,
    ]  # fmt: skip
    sys.argv = ["prefetchd", "serve", *words]
    return program.main()


# --- the readers' process


def be_readers(fd: int, row_s: float) -> None:
    """Answer for all readers, at once, until the daemon has gone."""
    from prefetchd.ipc import reader_messages, sockets

    server = socket.socket(fileno=fd)
    poll = select.poll()
    poll.register(server, select.POLLIN)
    readers: dict[int, socket.socket] = {}
    children: list[int] = []
    stack_fd = os.memfd_create("no stack", os.MFD_CLOEXEC)
    try:
        while True:
            for ready, _ in poll.poll():
                if ready == server.fileno():
                    data, fds = sockets.receive(server)
                    message = reader_messages.decode_to_fork_server(data)
                    if not isinstance(message, reader_messages.Spawn):
                        return
                    readers[fds[0]] = socket.socket(fileno=fds[0])
                    poll.register(fds[0], select.POLLIN)
                    children.append(_sleeping_child())
                    pidfd = os.pidfd_open(children[-1])
                    answer = reader_messages.encode(reader_messages.Spawned(message.reader, children[-1]))
                    sockets.send(server, answer, [pidfd])
                    os.close(pidfd)
                    continue
                try:
                    data, fds = sockets.receive(readers[ready])
                except sockets.ConnectionEnded:
                    poll.unregister(ready)
                    readers.pop(ready).close()
                    continue
                sockets.close_all(fds)
                _answer(readers[ready], reader_messages.decode_to_reader(data), stack_fd, row_s)
    except sockets.ConnectionEnded:
        return
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def _sleeping_child() -> int:
    """Return the pid of a process that does nothing: the daemon looks at its readers' processes."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def _answer(reader: socket.socket, message: Any, stack_fd: int, row_s: float) -> None:
    from prefetchd.ipc import reader_messages, sockets

    match message:
        case reader_messages.Boot():
            sockets.send(reader, reader_messages.encode(reader_messages.ReaderReady()), [stack_fd])
        case reader_messages.Fills():
            for fill in message.fills:  # a message each, as those of images are
                done = reader_messages.Done(fill.task, [], fill.n_rows * row_s, 0.0, 0, 0.0)
                sockets.send(reader, reader_messages.encode(reader_messages.AllDone([done])))


# --- one measurement


@contextlib.contextmanager
def daemon(manifest: Path, n_readers: int, n_datasets: int, options: argparse.Namespace) -> Iterator[Any]:
    """Run a daemon in a run directory of its own, ready to serve; give its process."""
    with tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        words = [f"d{number}={manifest}" for number in range(n_datasets)]
        words += [f"--num-workers={n_readers}", "--shuffle", f"--memory-budget={options.budget}"]
        words += [f"--batch-size={options.batch_size}", f"--image-size={options.image_size}"]
        command = [sys.executable, __file__, "--be-daemon", str(options.row_ms / 1000), *words]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line.decode())
                if b"ready:" in line:
                    break
            else:
                sys.exit(f"the daemon ended: {''.join(lines[-3:])}")
            try:
                yield process
            finally:
                process.communicate(timeout=60)


def measure(
    manifest: Path, n_readers: int, n_consumers: int, n_datasets: int, options: argparse.Namespace
) -> list[float]:
    """Return batches a second, and for each batch made: the daemon's seconds, messages and turns."""
    import prefetchd

    with daemon(manifest, n_readers, n_datasets, options) as process, contextlib.ExitStack() as stack:
        loaders = [
            stack.enter_context(prefetchd.batches(dataset=f"d{number % n_datasets}", epochs=None, timeout=60))
            for number in range(n_consumers)
        ]
        loops = [iter(loader) for loader in loaders]
        watched = psutil.Process(process.pid)

        def look() -> tuple[float, int, list[int]]:
            times = watched.cpu_times()
            process.stdin.write(b"count\n")
            process.stdin.flush()
            counts = json.loads(process.stdout.readline())
            made = loaders[0].status()["batches_made"]
            return times.user + times.system, made, counts

        _warm_up(loops, loaders[0])
        before, start_s = look(), time.monotonic()
        n_taken = _take(loops, options.seconds)
        after, took_s = look(), time.monotonic() - start_s
        n_made = max(1, after[1] - before[1])
        sent, received, turns = (b - a for a, b in zip(before[2], after[2], strict=True))
        for loop in loops:
            loop.close()
    return [n_taken / took_s, (after[0] - before[0]) / n_made, (sent + received) / n_made, turns / n_made]


def _warm_up(loops: list[Any], loader: Any) -> None:
    """Take batches until the ring grows no more: to reserve a slot's pages costs as much as dozens of batches."""
    n_slots = -1
    while n_slots != (n_slots := loader.status()["ring"]["slots"]):
        _take(loops, 0.5)


def _take(loops: list[Any], seconds: float) -> int:
    """Take a batch of each loop in turn for so long; return how many were taken in all."""
    end_s, n_taken = time.monotonic() + seconds, 0
    while time.monotonic() < end_s:
        for loop in loops:
            next(loop)
        n_taken += len(loops)
    return n_taken


def main() -> int:
    """Measure, and print a table."""
    if sys.argv[1:2] == ["--be-daemon"]:
        return be_daemon(sys.argv[2:])
    if sys.argv[1:2] == ["--be-readers"]:
        be_readers(int(sys.argv[2]), float(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="photographs; made in code if not given")
    for name, numbers in (("readers", "2,8,32,128"), ("consumers", "1,8,64"), ("datasets", "1,8")):
        parser.add_argument(f"--{name}", default=numbers, help=f"with commas ({numbers})")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement (4)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--row-ms", type=float, default=1.0, help="what a row is said to take (1)")
    parser.add_argument("--budget", default="12GiB", help="memory budget; each reader reserves its share of it (12GiB)")
    options = parser.parse_args()
    readers, consumers, datasets = (
        [int(number) for number in getattr(options, name).split(",")] for name in ("readers", "consumers", "datasets")
    )
    cases = [(n, consumers[0], datasets[0]) for n in readers]
    cases += [(readers[0], n, datasets[0]) for n in consumers[1:]] + [(readers[0], n, n) for n in datasets[1:]]
    print(setting("prefetchd"), flush=True)
    lines = [["readers", "consumers", "data sets", "batches/s", "rows/s", "cost us", "ratio", "messages", "turns"]]
    first = 0.0
    with manifest_or_photographs(options.manifest) as given, tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "many.txt"
        samples = [line.rsplit(maxsplit=1) for line in given.read_text().splitlines()]
        text = "".join(f"{given.parent.absolute() / path} {label}\n" for path, label in samples)
        manifest.write_text(text * (1 + 64 * options.batch_size // len(samples)))
        for n_readers, n_consumers, n_datasets in cases:
            rate, cost_s, messages, turns = measure(manifest, n_readers, n_consumers, n_datasets, options)
            first = first or cost_s
            numbers = [f"{rate:.0f}", f"{rate * options.batch_size:.0f}", f"{cost_s * 1e6:.0f}"]
            numbers += [f"{cost_s / (first or 1):.2f}", f"{messages:.1f}", f"{turns:.1f}"]
            lines.append([str(n_readers), str(n_consumers), str(n_datasets), *numbers])
            print(" ".join(lines[-1]), file=sys.stderr, flush=True)
    print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
