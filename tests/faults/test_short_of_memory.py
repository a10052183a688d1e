"""Memory that runs out: functions that leak or take too much, a small `/dev/shm`, a control group that fills up."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import prefetchd
from tests.conftest import DaemonProcess, wait_until
from tests.faults.test_footprint import MIB, Watch, smallest_budget

Serve = Callable[..., DaemonProcess]

OPTIONS = ("--batch-size", 16, "--image-size", 64, "--num-workers", 2)

LEAKING = """
import numpy as np
kept = []
def leak(image, rng):
    kept.append(np.ones(1 << 20, np.uint8))
    return image
"""

GREEDY = """
import numpy as np
def greedy(label, rng):
    if label == 20:
        np.ones(1 << 30, np.uint8)
    return label
"""


def test_function_that_leaks_costs_fresh_readers_and_nothing_else(serve: Serve, photographs: Path, tmp_path: Path):
    """A MiB of every call is kept: readers go before the budget is exceeded, no sample is lost, and it is said once."""
    (tmp_path / "leaking.py").write_text(LEAKING)
    options = (*OPTIONS, "--transform", "leaking:leak", "--python-path", tmp_path)
    least = smallest_budget(photographs, *options)
    daemon = serve(photographs, *options, "--memory-budget", f"{least}MiB", ready=False)
    with Watch(daemon.pid) as watch:
        daemon.wait_ready()
        with prefetchd.batches(epochs=3) as loader:
            ids = [i for batch in loader for i in batch.sample_ids.tolist()]
    assert ids == 3 * list(range(50))
    status = daemon.status()
    assert status["num_workers"]["outgrown"] > 1
    assert status["reader_crashes"] == status["bad_samples"] == 0
    assert daemon.log.count("has grown to") == 1
    assert watch.max_bytes <= least * MIB, watch.report()


def test_function_that_takes_a_gigabyte_fails_its_batch_and_not_the_machine(
    serve: Serve, photographs: Path, tmp_path: Path
):
    """It is tried in fresh readers, then told under any policy; the other batches go on."""
    (tmp_path / "greedy.py").write_text(GREEDY)
    options = (*OPTIONS, "--target-transform", "greedy:greedy", "--python-path", tmp_path, "--on-error", "skip")
    least = smallest_budget(photographs, *options)
    daemon = serve(photographs, *options, "--memory-budget", f"{least}MiB")
    with Watch(daemon.pid) as watch, prefetchd.batches() as loader:
        batches = iter(loader)
        assert next(batches).index == 0
        with pytest.raises(prefetchd.PrefetchdError, match=r"greedy:greedy ran out of memory \(its reader may map \d"):
            next(batches)
        with prefetchd.batches() as other:
            assert next(iter(other)).index == 0
    status = daemon.status()
    assert status["reader_crashes"] == status["bad_samples"] == 0
    assert watch.max_bytes <= least * MIB, watch.report()


# --- a small /dev/shm

MOUNTED = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" "$@"')


def can_mount() -> bool:
    return (
        shutil.which("unshare") is not None and not subprocess.run([*MOUNTED, "true"], capture_output=True).returncode
    )


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount, in a namespace of its own")
def test_small_dev_shm_is_enough(serve: Serve, photographs: Path):
    """As in a container: what `/dev/shm` has no room for is memfds, which the plan says; it is not filled up."""
    big = ("--batch-size", 16, "--image-size", 128, "--num-workers", 2)
    daemon = serve(photographs, *big, wrapper=MOUNTED)
    assert "memfds, as /dev/shm has 1.0 MiB free" in daemon.log
    with prefetchd.batches(epochs=2) as loader:
        assert [i for batch in loader for i in batch.sample_ids.tolist()] == 2 * list(range(50))
    status = daemon.status()
    assert status["ring"]["slots"] * status["ring"]["slot_bytes"] > 4 * MIB


# --- a control group


def own_memory_cgroup() -> tuple[Path, str] | None:
    """This process's control group and the name of its file of limits, v1 or v2."""
    for entry in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = entry.split(":", 2)
        for root, name, right in (
            ("/sys/fs/cgroup", "memory.max", controllers == ""),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory" in controllers.split(",")),
        ):
            folder = Path(root + path)
            if right and folder.is_dir() and (name != "memory.max" or (folder / "cgroup.controllers").exists()):
                return folder, name
    return None


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A control group of 400 MiB below ours, in which nothing is left afterwards."""
    own = own_memory_cgroup()
    if own is None:
        pytest.skip("there is no memory control group here")
    folder = own[0] / f"prefetchd-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / own[1]).write_text(str(400 * MIB))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"may not make a control group ({error})")
    yield folder
    wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the control group is empty")
    folder.rmdir()


HOG = """
import sys
block = bytearray(int(sys.argv[1]) << 20)
block[::4096] = b'x' * len(block[::4096])
print('full', flush=True)
sys.stdin.read()
"""


def test_control_group_that_fills_up_gets_memory_back_and_then_gives_it_again(
    cgroup: Path, serve: Serve, photographs: Path
):
    """The plan heeds its limit; a neighbour that takes the rest makes the ring shrink; batches go on all the time."""
    inside = ("sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$0" "$@"')
    options = ("--batch-size", 16, "--image-size", 224, "--dtype", "float32", "--num-workers", 2)
    daemon = serve(photographs, *options, "--memory-budget", "4GiB", wrapper=inside)
    memory = daemon.status()["memory"]
    assert memory["budget_bytes"] <= 400 * MIB
    assert memory["limited_by"] == f"cgroup {cgroup}"
    assert daemon.process.poll() is None
    used = memory["footprint_bytes"]
    daemon.stop()

    daemon = serve(photographs, *options, "--memory-budget", "280MiB", wrapper=inside, name="second")
    full = daemon.status()["ring"]["slots"]
    used = daemon.status()["memory"]["footprint_bytes"]
    hog_mib = (400 * MIB - used) // MIB - 22
    hog = subprocess.Popen(
        [*inside, sys.executable, "-c", HOG, str(hog_mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert hog.stdout is not None
        assert hog.stdout.readline() == "full\n"
        with prefetchd.batches(daemon="second", epochs=None) as loader:
            batches = iter(loader)

            def shrunk() -> bool:
                next(batches)
                return "short of memory" in daemon.log and daemon.log.count("down to") >= 1

            wait_until(shrunk, "memory is given back")
            assert daemon.status()["ring"]["slots"] < full
            hog.communicate()

            def grown() -> bool:
                next(batches)
                return "memory is there again" in daemon.log

            wait_until(grown, "memory is taken again")
            wait_until(lambda: next(batches) and daemon.status()["ring"]["slots"] == full, "the ring is whole again")
    finally:
        hog.kill()
        hog.communicate()
    assert daemon.process.poll() is None
