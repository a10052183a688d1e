"""Trainers that fork after they have attached: the child neither releases nor corrupts, and is told what it may not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import DaemonProcess, wait_until
from tests.faults.conftest import ask_status, exact

Serve = Callable[..., DaemonProcess]

PARENT = """
import json, multiprocessing, os, subprocess, sys, zlib
import prefetchd
loader = prefetchd.batches()
batches = iter(loader)
held = [next(batches), next(batches)]
before = [zlib.crc32(one.x) for one in held]
def child():
    errors = []
    for what in (lambda: next(batches), lambda: next(iter(loader)), lambda: list(loader)):
        try:
            what()
        except prefetchd.PrefetchdError as error:
            errors.append("forked child" in str(error))
    assert errors == [True] * 3, errors
    held.clear()
    loader.close()
{fork}
assert [zlib.crc32(one.x) for one in held] == before
print(json.dumps([batch.index for batch in batches]))
"""

WAYS = {
    "os.fork": """
pid = os.fork()
if pid == 0:
    child()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
""",
    "os.fork and an ordinary exit": """
pid = os.fork()
if pid == 0:
    child()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
""",
    "multiprocessing": """
process = multiprocessing.get_context("fork").Process(target=child)
process.start(); process.join()
assert process.exitcode == 0
""",
    "a pool of workers": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, range(-9, 0)) == list(range(9, 0, -1))
""",
    "subprocess": """
subprocess.run([sys.executable, "-c", "pass"], check=True)
subprocess.run(["true"], check=True, preexec_fn=lambda: None)
""",
}
TORCH = {
    "a DataLoader of PyTorch": """
import torch.utils.data
numbers = torch.utils.data.DataLoader(list(range(20)), batch_size=5, num_workers=2, multiprocessing_context="fork")
assert sum(int(batch.sum()) for batch in numbers) == 190
""",
}


@pytest.mark.parametrize("ways", [WAYS, TORCH], ids=["python", "torch"])
def test_children_release_and_corrupt_nothing(serve: Serve, forty: Path, ways: dict[str, str]) -> None:
    """One after the other, of one parent."""
    if ways is TORCH:
        pytest.importorskip("torch", exc_type=ImportError)
    serve(forty, *exact("--num-workers", 1))
    result = subprocess.run(
        [sys.executable, "-c", PARENT.format(fork="".join(ways.values()))],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "[2, 3, 4, 5, 6, 7]\n"
    wait_until(lambda: ask_status()["ring"]["leased"] == 0, "every slot is back")


GAPS = """
import gc, os
import numpy as np
import prefetchd
loader = prefetchd.batches()
batches = iter(loader)
held = [next(batches), next(batches)]
n_bytes, starts = held[0].root.nbytes, [one.root.ctypes.data for one in held]
pid = os.fork()
if pid == 0:
    mine = [np.full(n_bytes + 4096, 7, np.uint8) for _ in range(60)]
    assert any(one.ctypes.data <= start < one.ctypes.data + n_bytes for one in mine for start in starts), "no gap"
    held.clear()
    loader.close()
    del batches, loader
    gc.collect()
    assert all(int(one.min()) == 7 for one in mine)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_child_that_drops_the_batches_keeps_its_own_memory(serve: Serve, forty: Path) -> None:
    """What it allocates falls where the maps were that it did not inherit."""
    serve(forty, *exact("--image-size", 224, "--num-workers", 1, "--memory-budget", "192MiB"))
    result = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, timeout=110, check=True)
    assert (result.stdout, result.stderr) == ("0\n", "")


THREADS = """
import os, threading
import prefetchd
loader = prefetchd.batches(epochs=None)
batches = iter(loader)
own, is_held, may_end = threading.local(), threading.Event(), threading.Event()
def hold():
    own.held = [next(batches), next(batches)]
    is_held.set()
    may_end.wait()
thread = threading.Thread(target=hold)
thread.start()
is_held.wait()
pid = os.fork()
if pid == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print(loader.status()["ring"]["leased"])
may_end.set()
thread.join()
"""


def test_what_a_thread_of_the_parent_held_is_not_released_by_the_child(serve: Serve, forty: Path) -> None:
    """The child drops it before any hook of ours has run."""
    serve(forty, *exact("--num-workers", 1))
    result = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=110, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) >= 2


TOUCH = """
import os, sys, resource
import prefetchd
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
loader = prefetchd.batches()
held = next(iter(loader))
pid = os.fork()
if pid == 0:
    def touches_what_it_did_not_inherit():
        return held.x.sum()
    touches_what_it_did_not_inherit()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_child_that_touches_an_inherited_array_is_killed_with_its_traceback(serve: Serve, forty: Path) -> None:
    """It would else see the array change when its parent gives the slot back; so it has none, and is told where."""
    serve(forty, *exact("--num-workers", 1))
    result = subprocess.run([sys.executable, "-c", TOUCH], capture_output=True, text=True, timeout=110, check=True)
    assert result.stdout == f"{-signal.SIGSEGV}\n"
    assert "Segmentation fault" in result.stderr
    assert "in touches_what_it_did_not_inherit" in result.stderr
