"""`prefetchd serve`, `status` and `stop`, as a user types them."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

import prefetchd
from tests.process.commands import refused, refused_here, run_command

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")


def run_files() -> list[Path]:
    return list(Path(os.environ["XDG_RUNTIME_DIR"]).rglob("*.*"))


def test_serve_without_options_says_all_in_one_ready_line(serve, photographs):
    log = serve(photographs).log
    ready = [line for line in log.splitlines() if "ready:" in line]
    assert len(ready) == 1
    assert re.search(
        r"ready: 50 samples, batches of 32x224x224x3 uint8, \d+ slots of [\d.]+ ?[KMG]iB, \d+ readers, "
        r"memory budget [\d.]+ ?[MG]iB.*; attach with prefetchd\.batches\(\)$",
        ready[0],
    ), ready[0]


def test_ready_line_of_a_named_daemon_says_how_to_attach_to_it(serve, photographs):
    assert serve(photographs, *QUICK, name="val").log.rstrip().endswith("prefetchd.batches(daemon='val')")


def test_options_come_from_the_toml_file_and_the_command_line_wins(serve, photographs, tmp_path):
    folder = photographs.parent
    config = tmp_path / "options.toml"
    source = os.path.relpath(photographs, tmp_path)
    config.write_text(f'source = "{source}"\nbatch-size = 4\nimage_size = "16x24"\nlayout = "nchw"\nnum-workers = 1\n')
    daemon = serve("--config", config, "--batch-size", "5")
    status = daemon.status()
    assert status["datasets"][0]["batch_shape"] == [5, 3, 16, 24]
    assert Path(status["datasets"][0]["source"]).resolve() == folder.resolve() / photographs.name
    assert len(status["readers"]) == 1


def test_second_daemon_of_a_name_is_refused_and_the_first_goes_on(serve, photographs):
    daemon = serve(photographs, *QUICK, name="twice")
    line = refused("serve", photographs, *QUICK, "--name", "twice")
    assert "'twice'" in line
    assert f"pid {daemon.pid}" in line
    assert "prefetchd stop twice" in line
    assert daemon.status()["pid"] == daemon.pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_serve_with_status_0_and_nothing_left(serve, photographs, number):
    daemon = serve(photographs, *QUICK)
    assert run_files()
    daemon.process.send_signal(number)
    assert daemon.process.wait(20) == 0
    assert not run_files()
    assert "Traceback" not in daemon.log


def test_signal_while_serve_is_starting_ends_it_without_a_traceback(serve, photographs):
    from tests.conftest import wait_until

    daemon = serve(photographs, *QUICK, ready=False)
    wait_until(run_files, "the lock file")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(20) in (0, -signal.SIGTERM)
    assert "Traceback" not in daemon.log


def test_status_tells_of_ring_memory_readers_and_consumers(serve, photographs):
    daemon = serve(photographs, *QUICK, name="shown")
    with prefetchd.batches(daemon="shown") as loader:
        items = iter(loader)
        first = next(items)
        result = run_command("status", "--json", "--name", "shown")
        assert result.returncode == 0
        assert result.stderr == ""
        status = json.loads(result.stdout)
        words = run_command("status", "shown").stdout
    assert len(first.x) == 4
    assert status["pid"] == daemon.pid
    (data,) = status["datasets"]
    assert (data["n_samples"], data["batches_per_epoch"]) == (50, 13)
    ring = status["ring"]
    assert ring["free"] + ring["filling"] + ring["ready"] == ring["slots"]
    assert ring["leased"] >= 1
    assert 0 < status["memory"]["footprint_bytes"] <= status["memory"]["budget_bytes"]
    assert [consumer["pid"] for consumer in status["consumers"]] == [os.getpid()]
    assert "50 samples, 13 batches an epoch of 4x16x16x3 uint8" in words
    assert f"pid {os.getpid()}: epoch 0" in words


def test_stop_ends_the_daemon_of_that_name_only(serve, photographs):
    one, other = serve(photographs, *QUICK, name="one"), serve(photographs, *QUICK, name="other")
    result = run_command("stop", "one")
    assert result.returncode == 0, result.stderr
    assert "'one'" in result.stdout
    assert one.process.wait(20) == 0
    assert other.status()["pid"] == other.pid
    assert {path.name for path in run_files()} == {"other.sock", "other.lock"}


@pytest.mark.parametrize("command", ["status", "stop"])
def test_command_without_a_daemon_says_how_to_start_one(command):
    line = refused(command, "nobody")
    assert "'nobody'" in line
    assert "prefetchd serve" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "0"], "--batch-size 0"),
        (["--batch-size", "many"], "--batch-size many.*whole number"),
        (["--image-size", "1x2x3"], "--image-size 1x2x3"),
        (["--scale", "0.5"], "uint8"),
        (["--mean", "1,2", "--dtype", "float32"], "mean"),
        (["--name", "../up"], "--name ../up"),
        (["--config", "/nowhere/at/all.toml"], "/nowhere/at/all.toml"),
        (["--color", "puce"], "puce.*rgb"),
        (["--colour", "rgb"], "--colour"),
    ],
)
def test_wrong_option_is_refused_in_one_line(photographs, arguments, words):
    assert re.search(words, refused_here("serve", photographs, *arguments))


def test_unknown_key_in_the_toml_file_is_refused_with_the_near_one(photographs, tmp_path):
    config = tmp_path / "options.toml"
    config.write_text("batch-sise = 4\n")
    assert "batch_size" in refused_here("serve", photographs, "--config", config).replace("-", "_")


@pytest.mark.parametrize("text", ["", "\n# nothing but words\n\n"])
def test_empty_manifest_is_refused(tmp_path, text):
    manifest = tmp_path / "manifest.txt"
    manifest.write_text(text)
    assert str(manifest) in refused_here("serve", manifest)
    assert not run_files()


def test_missing_manifest_is_refused(tmp_path):
    assert "nowhere.txt" in refused("serve", tmp_path / "nowhere.txt")
    assert "no manifest was given" in refused_here("serve")


def test_budget_that_is_no_size_is_refused(photographs):
    assert "size 'lots'" in refused_here("serve", photographs, "--memory-budget", "lots")


def test_budget_too_small_names_the_smallest_and_that_one_works(serve, photographs):
    line = refused_here("serve", photographs, *QUICK, "--memory-budget", "8MiB")
    named = re.search(r"--memory-budget (\d+)MiB", line)
    assert named, line
    least = int(named[1])
    assert f" {least}MiB" in refused_here("serve", photographs, *QUICK, "--memory-budget", f"{least - 1}MiB")
    daemon = serve(photographs, *QUICK, "--memory-budget", f"{least}MiB")
    with prefetchd.batches() as loader:
        assert sum(len(x) for x, _ in loader) == 50
    memory = daemon.status()["memory"]
    assert memory["budget_bytes"] == least << 20
    assert memory["max_footprint_bytes"] <= memory["budget_bytes"]
