"""A reader killed, stopped or crashed: every sample still arrives exactly once, in order, and readers are replaced."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import prefetchd
from tests.conftest import DaemonProcess, wait_until
from tests.faults.conftest import Content, Sabotage, content_of, exact, expected_content, write_manifest

Serve = Callable[..., DaemonProcess]


def fork_server_pid(daemon: DaemonProcess) -> int:
    return next(
        child.pid
        for child in psutil.Process(daemon.pid).children()
        if "prefetchd.reader.fork_server" in " ".join(child.cmdline())
    )


def test_undisturbed_run_is_what_opencv_says(serve: Serve, forty: Path, forty_content: Content) -> None:
    daemon = serve(forty, *exact("--num-workers", 2))
    with prefetchd.batches() as loader:
        assert content_of(loader) == forty_content
    assert daemon.status()["reader_crashes"] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_readers_ended_in_mid_batch_several_times(
    serve: Serve, sabotage: Sabotage, tmp_path: Path, number: signal.Signals
) -> None:
    """One reader after the other stands in the middle of a batch, and is killed, crashed or stopped there."""
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    gates = ["003", "012"] if number == signal.SIGSTOP else ["003", "012", "013", "027"]
    for name in gates:
        sabotage.mark(tmp_path / f"{name}.jpg", f"gate-{name}")
    daemon = serve(manifest, *exact("--num-workers", 1), ready=False)
    seen = []
    for name in gates:
        pid = sabotage.wait_pid(f"gate-{name}")
        os.kill(pid, number)
        wait_until(lambda pid=pid: not psutil.pid_exists(pid), f"reader {pid} is gone")
        seen.append(pid)
        if name == gates[0]:
            # Nothing but the ring bounds how far the readers go, so the rest needs a consumer to go on.
            loader = prefetchd.batches()
            batches = iter(loader)
    sabotage.open_gates()
    assert content_of(batches) == wanted
    loader.close()
    assert len(set(seen)) == len(gates)
    status = daemon.status()
    assert status["reader_crashes"] == len(gates)
    assert status["bad_samples"] == 0
    assert len(daemon.reader_pids()) == 1


def test_reader_that_exits_with_0_by_itself(serve: Serve, sabotage: Sabotage, tmp_path: Path) -> None:
    """The first time each of these is decoded its reader is gone; so it is in a group, not alone, and stays good."""
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    for name in ("004", "021", "022"):
        sabotage.mark(tmp_path / f"{name}.jpg", f"leave-{name}")
    daemon = serve(manifest, *exact("--num-workers", 2))
    with prefetchd.batches() as loader:
        assert content_of(loader) == wanted
    assert "exit status 0" in daemon.log
    assert daemon.status()["reader_crashes"] == 3
    assert daemon.status()["bad_samples"] == 0
    wait_until(lambda: len(daemon.reader_pids()) == 2, "two readers stand")


def test_all_readers_at_once(serve: Serve, sabotage: Sabotage, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    for number in range(40):  # whichever a reader is given first: that is for those to say that come first
        sabotage.mark(tmp_path / f"{number:03d}.jpg", "stand")
    daemon = serve(manifest, *exact("--num-workers", 3), ready=False)
    wait_until(lambda: len(sabotage.standing()) == 3, "each reader is at work on a sample")
    pids = sabotage.standing()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    sabotage.open_gates()
    with prefetchd.batches() as loader:
        assert content_of(loader) == wanted
    assert daemon.status()["reader_crashes"] == 3
    wait_until(lambda: len(daemon.reader_pids()) == 3, "three readers stand")
    assert not pids & set(daemon.reader_pids())


def test_fork_server_killed(serve: Serve, sabotage: Sabotage, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    sabotage.mark(tmp_path / "017.jpg", "gate-017")
    daemon = serve(manifest, *exact("--num-workers", 2), ready=False)
    at_gate = sabotage.wait_pid("gate-017")
    fork_server = fork_server_pid(daemon)
    os.kill(fork_server, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(at_gate), "its reader is gone")
    with prefetchd.batches() as loader:
        assert content_of(loader) == wanted
    wait_until(lambda: len(daemon.reader_pids()) == 2, "two new readers stand")
    assert at_gate not in daemon.reader_pids()
    assert fork_server_pid(daemon) != fork_server
    assert "the fork server ended" in daemon.log


def test_hung_reader_is_replaced_after_the_timeout(serve: Serve, sabotage: Sabotage, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    sabotage.mark(tmp_path / "008.jpg", "gate-008")
    daemon = serve(manifest, *exact("--num-workers", 2, "--reader-timeout", 1), ready=False)
    hung = sabotage.wait_pid("gate-008")
    wait_until(lambda: not psutil.pid_exists(hung), "the hung reader is killed")
    with prefetchd.batches() as loader:
        assert content_of(loader) == wanted
    assert "made no progress" in daemon.log
    assert "_saboteur" in daemon.log  # its stack
    assert daemon.status()["bad_samples"] == 0


def test_readers_killed_at_random_moments(serve: Serve, forty: Path, forty_content: Content) -> None:
    """Whoever works when a batch arrives is killed: nothing says where the reader stands then."""
    daemon = serve(forty, *exact("--num-workers", 2))
    wanted = [content for epoch in range(4) for content in ((epoch, *batch[1:]) for batch in forty_content)]
    seen: Content = []
    with prefetchd.batches(epochs=4) as loader:
        for number, batch in enumerate(loader):
            seen += content_of([batch])
            del batch
            if number % 4 == 1:
                pids = daemon.reader_pids()
                if pids:
                    with contextlib.suppress(ProcessLookupError):  # the daemon may not have seen its end yet
                        os.kill(pids[0], signal.SIGKILL)
    assert seen == wanted
    assert daemon.status()["bad_samples"] == 0


def test_libraries_are_loaded_once_and_not_by_each_reader(serve: Serve, forty: Path) -> None:
    """The process that forks the readers has OpenCV mapped: a fresh reader stands in milliseconds."""
    daemon = serve(forty, *exact("--num-workers", 1))
    wait_until(daemon.reader_pids, "a reader stands")
    assert "/cv2" in Path(f"/proc/{fork_server_pid(daemon)}/maps").read_text()
