"""The daemon killed: consumers hear of it at once, what they hold stays, nothing is left, the next takes over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import prefetchd
from prefetchd.ipc.run_directory import daemon_paths, lock_owner
from tests.conftest import DEADLINE_S, PROMPT_S, DaemonProcess, end_thread, wait_until
from tests.faults.conftest import Content, Sabotage, Script, content_of, exact, write_manifest

Serve = Callable[..., DaemonProcess]
Start = Callable[[str], Script]


def wait_gone(processes: list[psutil.Process], deadline_s: float = DEADLINE_S) -> None:
    """Wait until none of `processes` runs; a zombie that nobody reaps does not."""

    def running() -> bool:
        return any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)

    def none_left() -> bool:
        try:
            return not running()
        except psutil.NoSuchProcess:
            return False

    wait_until(none_left, f"{[one.pid for one in processes]} have ended", deadline_s)


def run_files() -> list[str]:
    folder = daemon_paths("default").socket.parent
    return os.listdir(folder) if folder.exists() else []


def shm_names() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(("prefetchd", "psm_"))}


def test_waiting_consumer_keeps_what_it_holds(serve: Serve, sabotage: Sabotage, tmp_path: Path) -> None:
    """It waits for a batch that a reader stands in the middle of."""
    manifest = write_manifest(tmp_path, 20)
    sabotage.mark(tmp_path / "012.jpg", "gate-012")
    daemon = serve(manifest, *exact("--num-workers", 1), ready=False)
    loader = prefetchd.batches()
    batches = iter(loader)
    held = [next(batches), next(batches)]
    before = content_of(held)
    sabotage.wait_pid("gate-012")
    family = daemon.descendants()
    killed_at: list[float] = []

    def kill_when_it_waits() -> None:
        wait_until(lambda: daemon.status()["consumers"][0]["waiting"], "the consumer waits")
        killed_at.append(time.monotonic())
        os.kill(daemon.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_it_waits)
    killer.start()
    with pytest.raises(prefetchd.DaemonLost, match=r"daemon 'default' \(pid \d+\) ended.*stays"):
        next(batches)
    raised_at = time.monotonic()
    end_thread(killer)
    assert raised_at - killed_at[0] < PROMPT_S
    wait_gone(family)
    wait_until(lambda: not run_files(), "the run directory is empty")
    assert content_of(held) == before
    with pytest.raises(prefetchd.DaemonLost):
        next(iter(loader))
    loader.close()
    assert content_of(held) == before


def test_busy_consumers_hear_at_their_next_batch(
    serve: Serve, script: Start, forty: Path, forty_content: Content
) -> None:
    """What the daemon had granted ahead is still good; then comes the error, in this process and in others."""
    names = shm_names()
    daemon = serve(forty, *exact("--num-workers", 2))
    other = script(
        "import sys, prefetchd\n"
        "batches = iter(prefetchd.batches(epochs=None))\n"
        "held = next(batches)\n"
        "total = int(held.x.sum())\n"
        "print('holding', flush=True); sys.stdin.readline()\n"
        "try:\n"
        "    for batch in batches: pass\n"
        "except prefetchd.DaemonLost: print('lost', int(held.x.sum()) == total, flush=True)\n"
    )
    other.line()
    with prefetchd.batches(epochs=None) as loader:
        batches = iter(loader)
        held = [next(batches), next(batches)]
        family = daemon.descendants()
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.process.wait(20)
        started_s = time.monotonic()
        with pytest.raises(prefetchd.DaemonLost):
            held.extend(batches)
        assert time.monotonic() - started_s < PROMPT_S
        other.tell()
        assert other.line() == "lost True"
        wait_gone(family)
        assert content_of(held) == over_epochs(forty_content, len(held))
        wait_until(lambda: shm_names() <= names, "no name is left")  # other runs have theirs for a moment
    wait_until(lambda: not run_files(), "the run directory is empty")
    x = held[0].x
    with pytest.raises(ValueError, match="read-only"):
        x[0, 0, 0, 0] = 1
    serve(forty, *exact("--num-workers", 1), name="second")
    with prefetchd.batches(daemon="second") as loader:
        assert content_of(loader) == forty_content
    assert content_of(held) == over_epochs(forty_content, len(held))


def test_killed_with_a_stopped_reader(serve: Serve, forty: Path) -> None:
    """A stopped reader does not see its socket end; the fork server ends it."""
    daemon = serve(forty, *exact("--num-workers", 2))
    family = daemon.descendants()
    os.kill(daemon.reader_pids()[0], signal.SIGSTOP)
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.process.wait(20)
    wait_gone(family)
    wait_until(lambda: not run_files(), "the run directory is empty")


def test_next_serve_takes_over_at_once(serve: Serve, forty: Path, forty_content: Content) -> None:
    """It starts while the dead one's fork server still cleans up, and keeps its files."""
    for _ in range(3):
        daemon = serve(forty, *exact("--num-workers", 1))
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.process.wait(20)
    daemon = serve(forty, *exact("--num-workers", 1))
    wait_until(lambda: len(psutil.Process(daemon.pid).children()) >= 1, "it has a fork server")
    assert lock_owner(daemon_paths("default").lock) == daemon.pid
    with prefetchd.batches(timeout=5) as loader:
        assert content_of(loader) == forty_content
    assert sorted(run_files()) == ["default.lock", "default.sock"]
    assert daemon.stop() == 0


def test_stale_files_of_a_family_killed_together(serve: Serve, forty: Path, forty_content: Content) -> None:
    """Daemon and fork server die in one moment: nobody cleans up, and the next takes the name over all the same."""
    daemon = serve(forty, *exact("--num-workers", 2))
    family = daemon.descendants()
    for process in family:
        if "prefetchd.reader.fork_server" in " ".join(process.cmdline()) and process.ppid() == daemon.pid:
            process.suspend()
            fork_server = process
    os.kill(daemon.pid, signal.SIGKILL)
    fork_server.kill()
    daemon.process.wait(20)
    wait_gone(family)
    assert sorted(run_files()) == ["default.lock", "default.sock"]
    assert lock_owner(daemon_paths("default").lock) is None
    status = subprocess.run(
        [sys.executable, "-m", "prefetchd", "status"], capture_output=True, text=True, timeout=20, check=False
    )
    assert status.returncode == 1
    assert "none is running" in status.stderr
    daemon = serve(forty, *exact("--num-workers", 1))
    with prefetchd.batches(timeout=5) as loader:
        assert content_of(loader) == forty_content
    assert daemon.stop() == 0
    assert not run_files()


def test_killed_while_it_starts(serve: Serve, forty: Path) -> None:
    daemon = serve(forty, *exact("--num-workers", 2), ready=False)
    wait_until(lambda: len(psutil.Process(daemon.pid).children(recursive=True)) >= 1, "its fork server was started")
    family = daemon.descendants()
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.process.wait(20)
    wait_gone(family)
    wait_until(lambda: not run_files(), "the run directory is empty")


def over_epochs(content: Content, n: int) -> Content:
    """The first `n` batches of a loop without end over what `content` is of one epoch."""
    return [(number // len(content), *content[number % len(content)][1:]) for number in range(n)]


def private_daemon() -> psutil.Process:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, which a later wait() will reap
            if "prefetchd.daemon.private" in child.cmdline():
                found.append(child)
    assert len(found) == 1
    return found[0]


def test_private_daemon_killed(forty: Path, forty_content: Content) -> None:
    loader = prefetchd.batches(
        forty, batch_size=5, image_size=32, color="bgr", shrink_on_load=False, num_workers=1, epochs=None
    )
    batches = iter(loader)
    held = [next(batches), next(batches)]
    daemon = private_daemon()
    family = daemon.children(recursive=True)
    daemon.kill()
    started_s = time.monotonic()
    with pytest.raises(prefetchd.DaemonLost):
        held.extend(batches)
    assert time.monotonic() - started_s < PROMPT_S
    wait_gone(family)
    assert content_of(held) == over_epochs(forty_content, len(held))
    loader.close()
    assert content_of(held) == over_epochs(forty_content, len(held))


def test_private_daemon_ends_with_a_killed_parent(script: Start, forty: Path) -> None:
    consumer = script(
        "import os, sys, prefetchd\n"
        f"loader = prefetchd.batches({str(forty)!r}, batch_size=5, image_size=32, num_workers=2)\n"
        "batches = iter(loader); held = next(batches)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.close(0), os.close(1), os.close(2)\n"
        "    import time; time.sleep(600)\n"
        "print(child, flush=True); sys.stdin.readline()\n"
    )
    child = psutil.Process(int(consumer.line()))
    family: list[psutil.Process] = []

    def complete() -> bool:
        """Whether its daemon, the fork server and both readers are there: the first batch takes but one of these."""
        family[:] = [one for one in psutil.Process(consumer.pid).children(recursive=True) if one.pid != child.pid]
        return len(family) >= 4

    wait_until(complete, "its whole family is there")
    try:
        consumer.end(signal.SIGKILL)
        wait_gone(family)
        assert child.is_running()
    finally:
        child.kill()
