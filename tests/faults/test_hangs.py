"""Nobody waits without an end or a message: stopped daemons and fork servers, readers stuck in the kernel."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import prefetchd
from prefetchd.client import admin, channel, launch
from prefetchd.ipc.run_directory import daemon_paths
from tests.conftest import DEADLINE_S, DaemonProcess, end_thread, wait_until
from tests.faults.conftest import (
    Content,
    Sabotage,
    ask_status,
    content_of,
    exact,
    expected_content,
    write_manifest,
)
from tests.faults.test_daemon import wait_gone
from tests.faults.test_readers import fork_server_pid

Serve = Callable[..., DaemonProcess]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and tells sooner than users' processes do, and gives up when it would: not before it is continued."""
    monkeypatch.setattr(channel, "LOOK_S", 0.1)
    monkeypatch.setattr("prefetchd.client.connection.LOOK_S", 0.1)
    monkeypatch.setattr(channel, "REPORT_S", 0.3)


@pytest.fixture
def resigned(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up sooner, too: for daemons that nobody continues."""
    monkeypatch.setattr(channel, "GIVE_UP_S", 1.0)


def test_loop_names_a_stopped_daemon_and_goes_on_when_it_is_continued(
    serve: Serve, forty: Path, forty_content: Content, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = serve(forty, *exact("--num-workers", 1))
    with prefetchd.batches() as loader:
        batches = iter(loader)
        os.kill(daemon.pid, signal.SIGSTOP)

        def continue_it() -> None:
            wait_until(lambda: "is stopped" in caplog.text, "it is said that the daemon is stopped")
            os.kill(daemon.pid, signal.SIGCONT)

        thread = threading.Thread(target=continue_it)
        thread.start()
        assert content_of(batches) == forty_content
        end_thread(thread)
    assert (
        f"pid {daemon.pid} is stopped (SIGSTOP, or a debugger); continue it with: kill -CONT {daemon.pid}"
        in caplog.text
    )


def test_stopped_daemon_is_given_up_in_the_end_by_all_who_wait(
    serve: Serve, forty: Path, resigned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = serve(forty, *exact("--num-workers", 1))
    loader = prefetchd.batches()
    batches = iter(loader)
    wait_until(lambda: ask_status()["readers"][0]["does"] == "idle", "the ring is full")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        started_s = time.monotonic()
        with pytest.raises(prefetchd.DaemonLost, match=r"has sent nothing for 1 s: pid .* is stopped.*kill -CONT"):
            next(batches)
        with pytest.raises(prefetchd.DaemonLost, match=r"has sent nothing for 1 s"):
            loader.status()
        with pytest.raises(prefetchd.DaemonLost, match=r"has not answered for 0\.2 s: pid .* is stopped"):
            prefetchd.batches(timeout=0.2)
        monkeypatch.setattr(admin, "ask_over", functools.partial(admin.ask_over, timeout_s=0.2))
        from prefetchd.cli.main import main

        monkeypatch.setattr(sys, "argv", ["prefetchd", "status"])
        assert main() == 1
        queue: list[socket.socket] = []

        def queue_up() -> None:
            while True:
                queue.append(launch.connect("default", timeout_s=0))

        with pytest.raises(prefetchd.DaemonNotFound, match=r"pid .* is stopped.*queue of new connections is full"):
            queue_up()
        assert time.monotonic() - started_s < DEADLINE_S
        for sock in queue:
            sock.close()
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
        loader.close()


@pytest.mark.parametrize("reconnect", [False, True])
def test_loader_that_is_closed_by_another_thread_ends_its_loop_and_starts_no_other_daemon(
    forty: Path, impatient: None, caplog: pytest.LogCaptureFixture, reconnect: bool
) -> None:
    # An epoch may be granted whole before the daemon stops: only a loop without an end waits for sure.
    loader = prefetchd.batches(forty, batch_size=5, image_size=32, num_workers=1, epochs=None, reconnect=reconnect)
    batches = iter(loader)
    next(batches)
    pid = loader.status()["pid"]
    errors = []

    def loop() -> None:
        with pytest.raises(prefetchd.PrefetchdError, match="it was closed") as error:
            for _ in batches:
                pass
        errors.append(error)

    os.kill(pid, signal.SIGSTOP)
    thread = threading.Thread(target=loop)
    thread.start()
    wait_until(lambda: "is stopped" in caplog.text, "the loop waits")
    continuing = threading.Timer(0.2, os.kill, (pid, signal.SIGCONT))  # else the end is waited for, then forced
    continuing.start()
    loader.close()
    end_thread(thread)
    continuing.join()
    assert len(errors) == 1
    assert not [child for child in psutil.Process().children() if "prefetchd.daemon.private" in child.cmdline()]


@pytest.mark.parametrize("adapter", ["prefetchd", "prefetchd.torch"])
def test_thread_that_waits_is_woken_at_once_by_close_though_batches_are_held(
    serve: Serve, forty: Path, monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    if adapter == "prefetchd.torch":
        pytest.importorskip("torch")
    monkeypatch.setattr("prefetchd.client.connection.LOOK_S", 3600.0)  # it does not wake by itself
    daemon = serve(forty, *exact("--num-workers", 1))
    loader = importlib.import_module(adapter).batches(epochs=None)
    batches = iter(loader)
    held = [next(batches)]
    said = []

    def loop() -> None:
        try:
            for _ in batches:
                pass
        except prefetchd.PrefetchdError as error:
            said.append(str(error))

    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        thread = threading.Thread(target=loop)
        thread.start()
        wait_until(lambda: held_up(thread), "the loop waits")
        loader.close()
        end_thread(thread)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert "it was closed" in said[0]
    wait_until(lambda: daemon.status()["ring"]["leased"] == 1, "what the loop was granted is back")
    held.clear()
    wait_until(lambda: not daemon.status()["consumers"], "nothing of it is left")


def held_up(thread: threading.Thread) -> bool:
    """Whether a thread waits for what the daemon says."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_qualname in ("Channel.wait", "Poller.wait")


def test_status_from_another_thread_takes_nothing_from_the_loop(
    serve: Serve, forty: Path, forty_content: Content
) -> None:
    serve(forty, *exact("--num-workers", 1))
    with prefetchd.batches() as loader:
        over = threading.Event()
        names = set()

        def ask() -> None:
            while not over.is_set():
                names.add(loader.status()["name"])

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            loader.set_epoch(0)
            assert content_of(iter(loader)) == forty_content
        over.set()
        for thread in threads:
            end_thread(thread)
        assert names == {"default"}


def test_private_daemon_that_is_stopped_as_it_starts_is_given_up_and_ended(
    forty: Path, resigned: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = tmp_path / "python"  # the interpreter that it is started with: it stops before it is one
    stopping.write_text(f'#!/bin/sh\nkill -STOP $$\nexec {sys.executable} "$@"\n')
    stopping.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stopping))
    monkeypatch.setattr("prefetchd.client.session._END_S", 0.2)
    with pytest.raises(prefetchd.DaemonLost, match="is stopped"):
        prefetchd.batches(forty, batch_size=5, image_size=32, num_workers=1)


def test_daemon_at_work_says_at_what(
    serve: Serve, sabotage: Sabotage, tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The wait is not bounded while it answers."""
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    sabotage.mark(tmp_path / "008.jpg", "gate-008")
    serve(manifest, *exact("--num-workers", 1), ready=False)

    def open_late() -> None:
        wait_until(lambda: caplog.text.count("at work for") > 5, "it is said what it does")
        sabotage.open_gates()

    thread = threading.Thread(target=open_late)
    with caplog.at_level(logging.WARNING), prefetchd.batches() as loader:
        thread.start()
        assert content_of(loader) == wanted
    end_thread(thread)
    assert "on epoch 0 batch 1" in caplog.text


def test_stopped_fork_server_is_replaced(serve: Serve, forty: Path, forty_content: Content) -> None:
    """Also if no reader has died that it would have to replace."""
    daemon = serve(forty, *exact("--num-workers", 2))
    fork_server = fork_server_pid(daemon)
    os.kill(fork_server, signal.SIGSTOP)
    with prefetchd.batches(epochs=None) as loader:
        batches = iter(loader)
        assert content_of([next(batches) for _ in range(8)]) == forty_content
        while psutil.pid_exists(fork_server):
            next(batches)
    assert "killing the fork server" in daemon.log
    wait_until(lambda: len(daemon.reader_pids()) == 2, "two readers stand")


def test_killed_daemon_leaves_nothing_though_its_fork_server_and_readers_are_stopped(serve: Serve, forty: Path) -> None:
    """The kernel continues the fork server as its parent dies."""
    daemon = serve(forty, *exact("--num-workers", 2))
    family = daemon.descendants()
    for process in family:
        process.suspend()
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.process.wait(20)
    wait_gone(family)
    wait_until(lambda: not list(daemon_paths("default").socket.parent.iterdir()), "the run directory is empty")


def test_killed_daemon_and_fork_server_leave_no_stopped_readers(serve: Serve, forty: Path) -> None:
    daemon = serve(forty, *exact("--num-workers", 2))
    family = daemon.descendants()
    for pid in daemon.reader_pids():
        os.kill(pid, signal.SIGSTOP)
    fork_server = fork_server_pid(daemon)
    os.kill(fork_server, signal.SIGSTOP)
    os.kill(daemon.pid, signal.SIGKILL)
    os.kill(fork_server, signal.SIGKILL)
    daemon.process.wait(20)
    wait_gone(family)
    for path in daemon_paths("default").socket.parent.iterdir():  # nobody was left to remove them
        path.unlink()


@pytest.mark.parametrize("readers", [1, 2])
def test_reader_that_the_kernel_does_not_let_go_is_named_and_fails_its_batch_alone(
    serve: Serve, sabotage: Sabotage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    """As a dead mount does: killed, it does not end. What stands in for it is a daemon whose kills do not arrive."""
    monkeypatch.setenv("SABOTAGE_UNKILLABLE", "1")
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    sabotage.mark(tmp_path / "017.jpg", "gate-017")
    daemon = serve(manifest, *exact("--num-workers", readers, "--reader-timeout", "1"), ready=False)
    with prefetchd.batches(epochs=1) as loader:
        batches = iter(loader)
        seen = content_of([next(batches)])  # at once: a loop that begins when the batch has failed has it made again
        pid = sabotage.wait_pid("gate-017")
        assert seen + content_of([next(batches) for _ in range(2)]) == wanted[:3]
        if readers == 1:
            with pytest.raises(prefetchd.PrefetchdError, match=rf"every reader \(pid {pid}\) hangs in the kernel"):
                next(batches)
            with contextlib.suppress(ProcessLookupError):  # the fork server may have ended it, once the daemon gave up
                os.kill(pid, signal.SIGKILL)
            daemon.process.wait(10)
            return
        with pytest.raises(prefetchd.SampleError, match=rf"batch 3: its reader \(pid {pid}\) hangs in the kernel"):
            next(batches)
        assert "stuck in the kernel" in " ".join(one["does"] for one in ask_status()["readers"])
    assert psutil.pid_exists(pid)
    assert "was killed and does not end" in daemon.log
    with prefetchd.batches() as loader:  # others pass the gate; its slot stays its own
        assert content_of(loader) == wanted
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(set(daemon.reader_pids()) - {pid}) == 2, "another takes its place")
    with prefetchd.batches() as loader:
        assert [batch[1:] for batch in content_of(loader)] == [batch[1:] for batch in wanted]


def test_consumer_that_is_stopped_is_named_in_status(serve: Serve, forty: Path) -> None:
    serve(forty, *exact("--num-workers", 1))
    code = "import prefetchd, sys; l = prefetchd.batches(); print('here', flush=True); sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as consumer:
        assert consumer.stdout is not None
        consumer.stdout.readline()
        consumer.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: ask_status()["consumers"][0]["state"] == "T", "it is stopped")
            command = [sys.executable, "-m", "prefetchd", "status"]
            said = subprocess.run(command, capture_output=True, text=True, check=True)
            assert f"-c, pid {consumer.pid}: idle, 0 batches, holds 0 slots, STOPPED" in said.stdout
        finally:
            consumer.kill()
