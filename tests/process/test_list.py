"""`prefetchd list`, and commands that take a daemon by its `--pid`: named and private daemons."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest

import prefetchd
from prefetchd.client.admin import ask_all
from prefetchd.ipc import sockets
from tests.conftest import wait_until
from tests.process.commands import refused_here, run_command

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")


@contextlib.contextmanager
def private(source, **options):
    """Give a loader with a private daemon of its own, and that daemon's pid."""
    with prefetchd.batches(source, batch_size=4, image_size=16, num_workers=1, epochs=None, **options) as loader:
        yield loader, loader.status()["pid"]


def private_pids() -> set[int]:
    """Return the pids of this user's private daemons, also of those that tests in other processes have."""
    found = sockets.connect_to_private()
    for _, sock in found:
        sock.close()
    return {pid for pid, _ in found}


def test_list_shows_named_and_private_daemons_of_this_user(serve, photographs):
    daemon = serve(photographs, *QUICK, name="train")
    with private(photographs) as (loader, pid):
        batches = iter(loader)
        next(batches)
        rows = {int(line.split()[1]): line for line in run_command("list").stdout.splitlines()[1:]}
        assert rows[daemon.pid].startswith("train ")
        assert rows[pid].startswith("private ")
        assert str(photographs) in rows[pid]
        answer = {one["pid"]: one for one in json.loads(run_command("list", "--json").stdout)}
        assert answer[pid]["name"] == answer[pid]["report"]["name"] == "private"
        assert answer[daemon.pid]["report"]["datasets"][0]["n_samples"] == 50
        next(batches)  # those who ask come and go: the daemon serves its starter on
        batches.close()
    wait_until(lambda: pid not in private_pids(), "the private daemon is gone from the list")


def test_status_top_and_set_take_a_pid(serve, photographs):
    daemon = serve(photographs, *QUICK, name="train")
    with private(photographs, memory_budget="150MiB", name="mine") as (loader, pid):
        batches = iter(loader)
        next(batches)
        for known, name in ((pid, "private"), (daemon.pid, "train")):
            assert f"daemon '{name}', pid {known}, " in run_command("status", "--pid", known).stdout
        assert f"prefetchd 'private' pid {pid}" in run_command("top", "--once", "--pid", pid).stdout
        assert f"mine, pid {os.getpid()}: epoch 0 step " in run_command("status", "--pid", pid).stdout
        result = run_command("set", "--pid", pid, "memory-budget=190MiB")
        assert (result.returncode, result.stderr) == (0, "")
        assert loader.status()["memory"]["budget_bytes"] == 190 << 20
        next(batches)
        batches.close()


def test_a_pid_that_is_no_daemon_and_a_pid_beside_a_name_are_refused(nothing_left):
    assert f"cannot reach a daemon with pid {os.getpid()}: you have none" in refused_here(
        "status", "--pid", os.getpid()
    )
    assert "give one of the two" in refused_here("status", "--pid", 1, "train")
    assert "give one of the two" in refused_here("set", "--pid", 1, "train", "num-workers=2")


def test_a_daemon_that_does_not_answer_is_listed_with_the_reason(nothing_left):
    """A socket of this process stands for it: it accepts nobody."""
    with sockets.listen_privately():
        (found,) = [one for one in ask_all(timeout_s=0.1) if one[1] == os.getpid()]
    assert found[0] == "private"
    assert "has not answered for 0.1 s" in found[2]


@pytest.mark.skipif(os.getuid() != 0, reason="takes two users")
def test_a_name_that_another_user_has_taken_is_left_alone(nothing_left):
    code = f"""
import os, socket, sys
os.setuid(12345)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind("\\0prefetchd-{os.getuid()}-" + str(os.getpid()))
listener.listen()
print(os.getpid(), flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(f"\0prefetchd-{os.getuid()}-{pid}")  # it is there
        assert pid not in private_pids()
        process.communicate("")


def test_a_stray_folder_with_the_name_of_a_lock_is_no_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "prefetchd").mkdir(mode=0o700)
    (tmp_path / "prefetchd" / "stray.lock").mkdir()
    assert "stray" not in [name for name, _, _ in ask_all()]
