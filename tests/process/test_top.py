"""`prefetchd top`, as a user types it, and the counters of the status report that it is made from."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import prefetchd
from tests.conftest import wait_until
from tests.process.commands import refused, refused_here, run_command

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")


def test_once_prints_one_frame_with_every_party(serve, photographs):
    daemon = serve(photographs, *QUICK)
    with prefetchd.batches(epochs=None) as loader:
        running = iter(loader)
        held = next(running)
        result = run_command("top", "--once")
        del held, running
    assert result.returncode == 0, result
    assert result.stderr == ""
    assert str(os.getpid()) in result.stdout
    assert str(daemon.reader_pids()[0]) in result.stdout
    assert "trainer-bound 100%" in result.stdout
    assert result.stdout.count(" decoded, ") == 1


def test_the_report_counts_samples_and_the_time_that_a_loop_stands_still(module_daemon):
    daemon = module_daemon
    with prefetchd.batches() as loader:
        n_samples = sum(len(y) for _, y in loader)
        (consumer,) = daemon.status()["consumers"]
        assert consumer["samples"] == n_samples == 50
        assert not consumer["running"]
        waited_s = consumer["waited_s"]
        assert daemon.status()["consumers"][0]["waited_s"] == waited_s  # nobody waits between two epochs
    status = daemon.status()
    assert status["samples_made"] >= 50
    assert status["readers"][0]["busy_s"] > 0
    wait_until(lambda: daemon.status()["readers"][0]["state"] == "idle", "the reader has nothing to do")


def test_on_a_terminal_it_is_drawn_until_q_and_the_terminal_is_given_back(module_daemon):
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "prefetchd", "top", "--interval", "0.1"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    shown = b""
    try:
        while shown.count(b" decoded, ") < 3:
            shown += os.read(ours, 65536)
        os.write(ours, b"q")
        while not shown.endswith(b"\x1b[?25h\x1b[?1049l"):
            shown += os.read(ours, 65536)
        assert process.wait(20) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_without_a_daemon_it_says_so_in_one_line(photographs):
    assert "none is running" in refused("top", "--once")
    assert "--interval" in refused_here("top", "--interval", "0")
