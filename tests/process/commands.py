"""Running commands and scripts as users do: in processes of their own, with their output looked at."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from prefetchd.cli.main import main
from prefetchd.daemon.memory import plan
from prefetchd.ring.layout import BatchLayout, xy_fields

Result = subprocess.CompletedProcess[str]

# Batches whose slot is a little over 1 MiB, so that a budget in MiB decides the number of slots exactly.
LARGE = ("--batch-size", "4", "--image-size", "300", "--num-workers", "1")
LARGE_SLOT_BYTES = BatchLayout(4, xy_fields(((300, 300, 3), "uint8"))).slot_bytes


def run_command(*arguments: object, cwd: Path | None = None) -> Result:
    """Run `prefetchd ARGUMENTS` to its end."""
    command = [sys.executable, "-m", "prefetchd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=cwd)


class NoReaders:
    """Stands in for the pool of a daemon that is refused before it needs a reader: starting them takes longest."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def stop(self) -> None:
        pass


def _memfds() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:prefetchd"):
                found.add(int(name))
    return found


@contextlib.contextmanager
def _as_a_process() -> Iterator[None]:
    """Give back what the end of a daemon's process would: signal handlers, pytest's time limit, a source's index."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    handlers = {number: signal.getsignal(number) for number in numbers}
    left_s, _ = signal.getitimer(signal.ITIMER_REAL)
    memfds = _memfds()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, left_s)
        gc.collect()
        for fd in _memfds() - memfds:
            os.close(fd)


def run_here(*arguments: object) -> Result:
    """Run `prefetchd ARGUMENTS` in this process: for what ends before a reader has anything to do.

    What is written to descriptors 1 and 2 is caught, as that of a process is.
    """
    root, ours = logging.getLogger(), logging.getLogger("prefetchd")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers[:] = []
    words = list(map(str, arguments))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_as_a_process())
        stack.enter_context(mock.patch("prefetchd.daemon.server.Pool", NoReaders))
        files = [stack.enter_context(tempfile.TemporaryFile("w+", errors="surrogateescape")) for _ in range(2)]
        for fd, file in enumerate(files, start=1):
            saved = os.dup(fd)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, fd)
            os.dup2(file.fileno(), fd)
        stack.enter_context(contextlib.redirect_stdout(files[0]))
        stack.enter_context(contextlib.redirect_stderr(files[1]))
        try:
            status: Any = main(words)
        except SystemExit as end:
            status = end.code
        finally:
            root.handlers[:] = handlers
            root.setLevel(levels[0])
            ours.setLevel(levels[1])
        said = []
        for file in files:
            file.seek(0)
            said.append(file.read())
    return subprocess.CompletedProcess(words, status, *said)


def refused(*arguments: object) -> str:
    """Run a command that must fail; return the one line, in our words, that it says about that."""
    return _only_line(run_command(*arguments))


def refused_here(*arguments: object) -> str:
    """Do as `refused`, in this process: for what is refused before a reader has anything to do."""
    return _only_line(run_here(*arguments))


def _only_line(result: Result) -> str:
    assert result.returncode in (1, 2), result
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("prefetchd")
    return lines[0]


def start_script(path: Path, code: str, *options: str, session: bool = False) -> subprocess.Popen[str]:
    """Start `code` as a script file with pipes to it."""
    path.write_text(code)
    return subprocess.Popen(
        [sys.executable, *options, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )


def finish(process: subprocess.Popen[str], deadline_s: float = 100) -> Result:
    """Close a script's input and wait for its end."""
    try:
        out, err = process.communicate("", timeout=deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the script did not end: {out} {err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_script(path: Path, code: str, *options: str) -> Result:
    """Run `code` as a script file to its end."""
    return finish(start_script(path, code, *options))


def large_ring(n_slots: int) -> tuple[str, ...]:
    """Options for a daemon with `LARGE` batches and exactly `n_slots` slots."""
    mib = 1 << 20
    budget_bytes = plan.smallest_budget(1, -(-n_slots * LARGE_SLOT_BYTES // plan.MIN_SLOTS))
    return (*LARGE, "--memory-budget", f"{budget_bytes // mib}MiB")


def tree(pid: int) -> list[psutil.Process]:
    """The process and all its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def ended(processes: Iterable[psutil.Process]) -> bool:
    """Whether all of them are over (one that only waits to be reaped is)."""
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            continue
    return True
