"""A daemon killed and started again: the loop goes on with the exact next batch, nothing twice, nothing missing."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import prefetchd
from prefetchd.ring.queues import MAX_GRANTS_AHEAD
from tests.conftest import DaemonProcess, end_thread
from tests.faults.conftest import content_of, exact, expected_content, write_manifest
from tests.faults.test_daemon import over_epochs

Serve = Callable[..., DaemonProcess]

# More batches than can lie ready for a loop: one that has just begun has to reconnect for the last of them.
N_EPOCHS = 6
N_BATCHES = 8 * N_EPOCHS
assert N_BATCHES > MAX_GRANTS_AHEAD + 10


def kill(daemon: DaemonProcess, number: int = signal.SIGKILL) -> None:
    os.kill(daemon.pid, number)
    daemon.process.wait(20)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_loop_goes_on_with_the_exact_next_batch(serve: Serve, tmp_path: Path, number: int) -> None:
    """The next daemon has other readers and another budget; what was held stays valid."""
    manifest = write_manifest(tmp_path, 40)
    daemon = serve(manifest, *exact("--num-workers", 1))
    with prefetchd.batches(reconnect=True, epochs=N_EPOCHS) as loader:
        loop = iter(loader)
        first = loader._info.pid
        held = [next(loop), next(loop)]
        seen = content_of(held)
        kill(daemon, number)
        serve(manifest, *exact("--num-workers", 2, "--memory-budget", "200MiB"), ready=False)
        seen += content_of(loop)
        assert seen == over_epochs(expected_content(manifest), N_BATCHES)
        assert loader._info.pid != first
        assert content_of(held) == seen[:2]
        assert [epoch for epoch, *_ in content_of(loader)] == [epoch for epoch in range(6, 12) for _ in range(8)]


def test_loop_that_waits_while_nothing_runs_goes_on_when_it_is_back(serve: Serve, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 40)
    daemon = serve(manifest, *exact())
    with prefetchd.batches(reconnect=True, epochs=N_EPOCHS) as loader:
        loop = iter(loader)
        seen = content_of([next(loop) for _ in range(3)])
        kill(daemon)
        rest: list = []
        thread = threading.Thread(target=lambda: rest.extend(content_of(loop)))
        thread.start()
        serve(manifest, *exact(), ready=False)
        end_thread(thread)
        assert seen + rest == over_epochs(expected_content(manifest), N_BATCHES)


def test_private_daemon_is_started_again(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 40)
    options = {"batch_size": 5, "image_size": 32, "color": "bgr", "shrink_on_load": False, "num_workers": 1}
    with prefetchd.batches(manifest, **options, reconnect=True, epochs=N_EPOCHS) as loader:
        loop = iter(loader)
        seen = content_of([next(loop) for _ in range(10)])
        first = loader._info.pid
        os.kill(first, signal.SIGKILL)
        seen += content_of(loop)
        assert loader._info.pid != first
    assert seen == over_epochs(expected_content(manifest), N_BATCHES)


def test_two_ranks_and_a_resumed_loop_go_on_each_where_it_was(serve: Serve, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 40)
    daemon = serve(manifest, *exact("--num-workers", 1))
    with (
        prefetchd.batches(reconnect=True, rank=0, world_size=2, epochs=2 * N_EPOCHS) as even,
        prefetchd.batches(reconnect=True, rank=1, world_size=2, epochs=2 * N_EPOCHS) as odd,
    ):
        loops = iter(even), iter(odd)
        seen = content_of(batch for loop in loops for batch in (next(loop), next(loop)))
        state = even.state_dict()
        assert state["next_batch"] == 4
        kill(daemon)
        serve(manifest, *exact("--num-workers", 1))
        for loop in loops:
            seen += content_of(loop)
        assert sorted(seen) == over_epochs(expected_content(manifest), 2 * N_BATCHES)
        even.load_state_dict(state)
        assert [batch.index for batch in even][:3] == [4, 6, 0]


def test_another_manifest_under_the_same_name_is_refused(serve: Serve, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, 40)
    daemon = serve(manifest, *exact())
    with prefetchd.batches(reconnect=True, epochs=None) as loader:
        loop = iter(loader)
        next(loop)
        kill(daemon)
        other = tmp_path / "other.txt"
        other.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
        serve(other, *exact(), ready=False)
        with pytest.raises(prefetchd.ManifestError, match="other data"):
            content_of(loop)


def test_daemon_that_does_not_come_back_in_time_is_given_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(tmp_path, 40)
    daemon = serve(manifest, *exact())
    with prefetchd.batches(reconnect=True, epochs=None) as loader:
        loop = iter(loader)
        held = next(loop)
        kill(daemon)
        endpoint = loader._sessions._endpoint  # the first attaching has all the time that it takes
        monkeypatch.setattr(loader._sessions, "_endpoint", dataclasses.replace(endpoint, timeout_s=0.3))
        with pytest.raises(prefetchd.DaemonNotFound, match=r"none is running after 0\.3 s"):
            content_of(loop)
        assert held.x.any()
        monkeypatch.setattr(loader._sessions, "_endpoint", endpoint)
        serve(manifest, *exact())
        assert next(iter(loader)).epoch >= 1  # the loader can still be used


def test_without_reconnection_the_loss_is_the_loops(serve: Serve, tmp_path: Path) -> None:
    daemon = serve(write_manifest(tmp_path, 40), *exact())
    with prefetchd.batches(epochs=None) as loader:
        loop = iter(loader)
        next(loop)
        kill(daemon)
        with pytest.raises(prefetchd.DaemonLost):
            content_of(loop)


def test_batch_that_ends_every_daemon_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each daemon that comes back is lost before it delivers the next batch: waiting for more of them is no use."""
    monkeypatch.setattr("prefetchd.client.session._MAX_LOST_IN_A_ROW", 2)  # 5 take long to start
    gate = tmp_path / "seven batches were delivered"
    (tmp_path / "ending.py").write_text(
        "import os, psutil, signal, time\n"
        "def end(label, rng):\n"
        "    if label == 137:\n"
        f"        while not os.path.exists({str(gate)!r}):\n"
        "            time.sleep(0.01)\n"
        "        fork_server = psutil.Process(os.getppid())\n"
        "        os.kill(fork_server.ppid(), signal.SIGKILL)\n"
        "        signal.pause()\n"
        "    return label\n"
    )
    manifest = write_manifest(tmp_path, 40)
    options = {"batch_size": 5, "image_size": 32, "num_workers": 1, "python_path": [tmp_path]}
    with prefetchd.batches(manifest, **options, target_transform="ending:end", reconnect=True) as loader:
        loop = iter(loader)
        seen = [next(loop).index for _ in range(7)]
        gate.touch()
        with pytest.raises(prefetchd.DaemonLost):
            next(loop)
    assert seen == [*range(7)]
    assert sum("waiting for it to come back" in message for message in caplog.messages) == 2
