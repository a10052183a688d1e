"""Storage that answers late, with faults on top: reading ahead changes nothing of what is delivered."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

import prefetchd
from prefetchd.data.read_threads import N_THREADS
from tests.conftest import DaemonProcess, wait_until
from tests.faults.conftest import BATCH, Sabotage, content_of, exact, expected_content, write_manifest
from tests.images import write_jpeg

Serve = Callable[..., DaemonProcess]


@pytest.fixture
def slow_reads(sabotage: Sabotage, monkeypatch: pytest.MonkeyPatch) -> Sabotage:
    monkeypatch.setenv("SABOTAGE_READ_S", "0.02")
    return sabotage


def test_readers_killed_while_they_read_ahead(serve: Serve, slow_reads: Sabotage, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    gates = ["008", "017"]
    for name in gates:
        slow_reads.mark(tmp_path / f"{name}.jpg", f"gate-{name}")
    daemon = serve(manifest, *exact("--num-workers", 1), ready=False)
    for name in gates:
        pid = slow_reads.wait_pid(f"gate-{name}")
        assert psutil.Process(pid).num_threads() > N_THREADS  # it reads ahead
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not psutil.pid_exists(pid), f"reader {pid} is gone")
        if name == gates[0]:
            loader = prefetchd.batches()
            batches = iter(loader)
    slow_reads.open_gates()
    assert content_of(batches) == wanted
    loader.close()
    assert daemon.status()["reader_crashes"] == len(gates)
    assert daemon.status()["bad_samples"] == 0


@pytest.mark.parametrize(
    ("n_reads", "first"),
    [
        pytest.param(BATCH - 1, "001.jpg", id="once-the-first-was-late"),
        pytest.param(3 * BATCH + 1, "050.jpg", id="later"),
    ],
)
def test_many_reads_are_under_way_at_once(
    serve: Serve, slow_reads: Sabotage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_reads: int, first: str
) -> None:
    """Of all that a reader has in hand: at first the tasks of one batch, then many. It hears of none while it waits."""
    manifest = write_manifest(tmp_path, 100)
    wanted = expected_content(manifest)
    monkeypatch.setenv("SABOTAGE_READ_S", "0.1")
    monkeypatch.setenv("SABOTAGE_MEET", f"{n_reads} {first}")
    serve(manifest, *exact("--num-workers", 1))
    with prefetchd.batches() as loader:
        assert content_of(loader) == wanted
    assert (slow_reads.folder / "met").exists()


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A manifest of 60 images and masks; names of masks sort behind those of all images."""
    lines = []
    for number in range(60):
        write_jpeg(tmp_path / f"{number:03d}.jpg", (40, 48), seed=number)
        cv2.imwrite(str(tmp_path / f"mask-{number:03d}.png"), np.full((40, 48), number, np.uint8))
        lines.append(f"{number:03d}.jpg mask-{number:03d}.png\n")
    manifest = tmp_path / "masks.txt"
    manifest.write_text("".join(lines))
    return manifest


def test_masks_are_read_ahead_as_their_images_are(
    serve: Serve, slow_reads: Sabotage, masked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many masks are under way at once, each goes with its own image, and one that is missed takes no other's place."""
    monkeypatch.setenv("SABOTAGE_READ_S", "0.1")  # more than a busy machine adds: reads decide how much is in hand
    monkeypatch.setenv("SABOTAGE_MEET", f"{2 * BATCH} mask-030.png")
    (masked.parent / "mask-012.png").unlink()
    (masked.parent / "017.jpg").write_bytes(b"no image")
    daemon = serve(masked, *exact("--num-workers", 1, "--target", "mask", "--on-error", "skip"))
    seen: list[int] = []
    with prefetchd.batches(epochs=2) as loader:
        for batch in loader:
            assert [row.min() for row in batch.y] == [row.max() for row in batch.y] == batch.sample_ids.tolist()
            seen += batch.sample_ids.tolist()
            del batch
    assert seen == 2 * [number for number in range(60) if number not in (12, 17)]
    assert (slow_reads.folder / "met").exists()
    assert daemon.status()["bad_samples"] == 2
    assert "mask-012.png: No such file" in daemon.log


def test_samples_that_are_tried_again_while_reads_are_ahead(serve: Serve, slow_reads: Sabotage, tmp_path: Path) -> None:
    """By the same reader and by a fresh one; and what is not there is missed as it would be by itself."""
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    for number, word in ((6, "memory-a"), (7, "memory-b"), (13, "once-a"), (22, "raise-a"), (31, "leave-a")):
        slow_reads.mark(tmp_path / f"{number:03d}.jpg", word)
    manifest.write_text(manifest.read_text() + "".join(f"missing-{number}.jpg 0\n" for number in range(5)))
    daemon = serve(manifest, *exact("--num-workers", 2, "--on-error", "skip"))
    with prefetchd.batches(epochs=3) as loader:
        seen = content_of(loader)
    for epoch in range(3):
        here = [(index, ids, digest) for e, index, ids, digest in seen if e == epoch and ids]
        assert here == [(index, ids, digest) for _, index, ids, digest in wanted]
    assert daemon.status()["bad_samples"] == 5


def test_read_ahead_that_never_ends_is_a_hung_reader(
    serve: Serve, slow_reads: Sabotage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    monkeypatch.setenv("SABOTAGE_HANG", "023.jpg")
    daemon = serve(manifest, *exact("--num-workers", 1, "--reader-timeout", 1))
    with prefetchd.batches() as loader:
        assert content_of(loader) == wanted
    assert "made no progress" in daemon.log
    assert daemon.status()["reader_crashes"] >= 1  # more where one that is well has no time to say so for a second


def test_decode_that_needs_the_whole_allowance_has_it(serve: Serve, slow_reads: Sabotage, tmp_path: Path) -> None:
    """In the smallest budget there is nothing to ask for: what was read ahead must make room."""
    manifest = write_manifest(tmp_path, 40)
    large = write_jpeg(tmp_path / "large.jpg", (1200, 1400)).read_bytes()
    for number in range(8, 40, 3):
        (tmp_path / f"{number:03d}.jpg").write_bytes(large)
    wanted = expected_content(manifest)
    with pytest.raises(prefetchd.BudgetError) as refused:
        prefetchd.batches(manifest, batch_size=5, image_size=32, num_workers=1, memory_budget="1MiB")
    least = str(refused.value).split('memory_budget="')[1].split('"')[0]
    serve(manifest, *exact("--num-workers", 1, "--memory-budget", least))
    with prefetchd.batches() as loader:
        assert content_of(loader) == wanted


def test_cache_that_fills_while_reads_are_ahead(serve: Serve, slow_reads: Sabotage, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 40)
    wanted = expected_content(manifest)
    for run in range(2):
        name = f"run-{run}"
        daemon = serve(manifest, *exact("--num-workers", 2, "--cache", tmp_path / "cache"), name=name)
        with prefetchd.batches(daemon=name, epochs=2) as loader:
            seen = content_of(loader)
        assert [each[1:] for each in seen] == 2 * [each[1:] for each in wanted]
        cache = daemon.status()["datasets"][0]["cache"]
        assert cache["rows"] >= 40  # one that two readers decode at a time is kept twice
        assert (cache["misses"] == 0) == (run == 1)
        daemon.stop()
