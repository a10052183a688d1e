"""`prefetchd set`: a running daemon changes its budget and its readers, and consumers notice nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest

import prefetchd
from prefetchd.cli.main import main
from prefetchd.daemon.memory.plan import MIN_SLOTS
from tests.conftest import DaemonProcess, wait_until
from tests.process.commands import run_command, run_here

OPTIONS = ("--batch-size", 8, "--image-size", 256, "--dtype", "float32", "--num-workers", 1)
MIB = 1 << 20


def set_options(*words: str):
    return run_command("set", *words)


def ring(daemon: DaemonProcess) -> int:
    return daemon.status()["ring"]["slots"]


def test_a_shrink_takes_free_slots_at_once_and_held_ones_as_they_come_back(serve, photographs):
    """What is held stays valid, the budget in force is what is held, and `status` says so."""
    daemon = serve(photographs, *OPTIONS, "--memory-budget", "160MiB")
    slots = ring(daemon)
    assert slots > MIN_SLOTS + 4
    loader = prefetchd.batches(epochs=None, on_hold="wait")
    batches = iter(loader)
    held = [next(batches) for _ in range(slots - 3)]
    copies = [x.copy() for x, _ in held]
    least = int(re.search(r"memory-budget (\d+)MiB", set_options("memory-budget=1MiB").stderr)[1])
    assert daemon.status()["memory"]["budget_bytes"] == 160 * MIB, "what was refused changes nothing"
    changed = set_options(f"memory-budget={least}MiB")
    assert changed.returncode == 0, changed.stderr
    assert f"budget of {least}.0 MiB" in changed.stdout or f"budget of {least} MiB" in changed.stdout
    n_held = len(held)
    # A loop at even times has two batches granted ahead.
    wait_until(lambda: ring(daemon) <= n_held + 2, "the free slots are given back")
    memory = daemon.status()["memory"]
    assert memory["budget_bytes"] == least * MIB
    assert memory["in_force_bytes"] > memory["budget_bytes"]
    assert "in force" in run_command("status").stdout
    for (x, _), copy in zip(held, copies, strict=True):
        assert np.array_equal(x, copy)
    del held, x
    wait_until(lambda: ring(daemon) == MIN_SLOTS, "the ring has shrunk")
    memory = daemon.status()["memory"]
    assert memory["in_force_bytes"] == memory["budget_bytes"]
    assert memory["footprint_bytes"] <= least * MIB
    assert [next(batches).index for _ in range(10)] == [(slots - 3 + i) % len(loader) for i in range(10)]
    loader.close()


def test_readers_come_and_go_while_batches_stay_the_same(serve, photographs):
    daemon = serve(photographs, *OPTIONS, "--memory-budget", "400MiB")
    with prefetchd.batches(epochs=None) as loader:
        batches = iter(loader)
        want = [x.copy() for x, _ in (next(batches) for _ in range(len(loader)))]
        for n_readers, words in ((3, ["num-workers=3"]), (1, ["--num-workers", "1"]), (2, ["num_workers=2"])):
            assert run_here("set", *words).returncode == 0
            for copy in want:
                assert np.array_equal(next(batches)[0], copy)
            wait_until(lambda n=n_readers: len(daemon.reader_pids()) == n, f"{n_readers} readers")
    assert daemon.status()["reader_crashes"] == 0
    assert daemon.status()["memory"]["budget_bytes"] == 400 * MIB


def test_growth_is_taken_up(serve, photographs):
    daemon = serve(photographs, *OPTIONS, "--memory-budget", "120MiB")
    before = ring(daemon)
    assert run_here("set", "memory-budget=200MiB").returncode == 0
    wait_until(lambda: ring(daemon) > before, "the ring has grown")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("batch-size=3",), "a running daemon can change memory-budget and num-workers alone"),
        (("num-workers=many",), "num-workers"),
        (("num-workers=-1",), "from 0 to 1024"),
        (("memory-budget=lots",), "512MiB"),
        (("nothing",), "OPTION=VALUE"),
        ((), "cannot set nothing"),
        (("num-workers=2", "--num-workers", "3"), "given twice"),
        (("=1GiB",), "OPTION=VALUE"),
        (("num-workers=2", "num_workers=3"), "given twice"),
        (("num-workers=900",), "memory-budget"),
    ],
)
def test_what_cannot_be_set_is_refused_in_one_line(serve_module, photographs, words, said):
    daemon = serve_module(photographs, *OPTIONS, "--memory-budget", "120MiB")
    refused = run_here("set", *words)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert daemon.status()["memory"]["budget_bytes"] == 120 * MIB


def test_an_option_that_only_other_commands_have_is_said_so(capsys):
    with pytest.raises(SystemExit):
        main(["set", "--batch-size", "3"])
    assert "--batch-size, which is an option of other commands; see" in capsys.readouterr().err


def test_python_changes_a_daemon_as_the_command_does(serve, photographs):
    daemon = serve(photographs, *OPTIONS, "--memory-budget", "120MiB", name="other")
    before = ring(daemon)
    assert "200" in prefetchd.set_options("other", memory_budget=200 * MIB, num_workers=2)
    wait_until(lambda: ring(daemon) > before and len(daemon.reader_pids()) == 2, "it has what it was given")
    assert daemon.status()["memory"]["budget_bytes"] == 200 * MIB


def test_what_python_cannot_set_is_an_error_of_its_class_and_changes_nothing(serve, photographs, monkeypatch):
    daemon = serve(photographs, *OPTIONS, "--memory-budget", "120MiB", name="other")
    monkeypatch.setenv("PREFETCHD_NAME", "other")
    with pytest.raises(prefetchd.BudgetError, match="memory_budget"):
        prefetchd.set_options(memory_budget="1MiB")
    with pytest.raises(prefetchd.ConfigError, match="num_workers"):
        prefetchd.set_options(num_workers="many")
    with pytest.raises(prefetchd.ConfigError, match="no option was given"):
        prefetchd.set_options()
    with pytest.raises(prefetchd.DaemonNotFound):
        prefetchd.set_options("none", num_workers=1)
    assert daemon.status()["memory"]["budget_bytes"] == 120 * MIB


def test_an_automatic_budget_grows_as_loops_attach_and_shrinks_as_they_go(serve, photographs):
    """More loops than the ring had slots at the start, at several places: none is refused."""
    daemon = serve(photographs, *OPTIONS, "--patience", 0)
    start, slots = daemon.status()["memory"], ring(daemon)
    loaders = [prefetchd.batches() for _ in range(slots)]
    loops = [iter(loader) for loader in loaders]
    for number, loop in enumerate(loops):
        for index in range(1 + number % 5):
            assert next(loop).index == index
    wait_until(lambda: ring(daemon) == 2 * slots + 2, "each loop has its slots")
    memory = daemon.status()["memory"]
    assert start["budget_bytes"] < memory["budget_bytes"] <= memory["ceiling_bytes"]
    assert "memory-budget auto: grown to" in daemon.log
    assert "growing up to" in run_command("status").stdout
    for loader in loaders:
        loader.close()
    wait_until(lambda: ring(daemon) == slots, "the ring has shrunk")
    assert daemon.status()["memory"]["budget_bytes"] == start["budget_bytes"]
