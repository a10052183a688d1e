"""Arrays and ragged sequences, served by real daemons: from files to the loop, and what a changing file does."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import prefetchd
from prefetchd.ring.queues import ENOUGH_AHEAD, Ended
from tests.conftest import end_thread, wait_until
from tests.process.commands import refused_here, run_command


def whole_epoch(loader: prefetchd.Loader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y and the sample ids of one pass, copied, in the samples' order."""
    parts = [(x.copy(), y.copy(), batch.sample_ids.copy()) for batch in loader for x, y in [batch]]
    x, y, ids = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = ids.argsort()
    return x[order], y[order], ids[order]


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, np.ndarray, Path, np.ndarray]:
    """x of 1000 rows of 80 int32 and y of 1000 float32, with the files that they are in."""
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 30000, (1000, 80), np.int32), rng.random(1000, np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    return tmp_path / "x.npy", x, tmp_path / "y.npy", y


def test_daemon_serves_arrays_to_a_loop(serve, table):
    """From the command line; every row once an epoch, in an order of its own, with its label."""
    x_path, x, y_path, y = table
    daemon = serve(x_path, "--labels", y_path, "--batch-size", 64, "--shuffle", "--num-workers", 2)
    assert "ready: 1000 samples, batches of 64x80 int32" in daemon.log
    with prefetchd.batches() as loader:
        orders = []
        for _ in range(2):
            served_x, served_y, ids = whole_epoch(loader)
            np.testing.assert_array_equal(served_x, x)
            np.testing.assert_array_equal(served_y, y)
            np.testing.assert_array_equal(ids, np.arange(1000))
            assert (served_x.dtype, served_y.dtype) == (x.dtype, y.dtype)
            orders.append(next(iter(loader)).sample_ids.tolist())
        assert orders[0] != orders[1]
        assert loader.classes is None


def test_private_daemon_serves_shards_and_npz(tmp_path, table):
    x_path, x, y_path, y = table
    folder = tmp_path / "shards with a space"
    folder.mkdir()
    for number in range(4):
        np.save(folder / f"{number}.npy", x[number * 250 : (number + 1) * 250])
    np.savez(tmp_path / "d.npz", x=x, y=y)
    for source, labels in ((folder, y_path), (tmp_path / "d.npz", None), (os.fsencode(x_path), os.fsencode(y_path))):
        with prefetchd.batches(source, labels=labels, batch_size=300, shuffle=True, num_workers=1) as loader:
            served_x, served_y, _ = whole_epoch(loader)
            np.testing.assert_array_equal(served_x, x)
            np.testing.assert_array_equal(served_y, y)


def test_private_daemon_serves_ragged_sequences(tmp_path):
    rng = np.random.default_rng(5)
    lengths = rng.integers(0, 150, 700)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = rng.integers(1, 1000, offsets[-1], np.int32)
    np.save(tmp_path / "tokens.npy", tokens)
    np.save(tmp_path / "offsets.npy", offsets)
    config = tmp_path / "serve.toml"
    config.write_text('source = "tokens.npy"\noffsets = "offsets.npy"\nmax-length = 80\nlengths = "y"\n')
    with prefetchd.batches(config=config, batch_size=64, shuffle=True, num_workers=2) as loader:
        x, y, _ = whole_epoch(loader)
    np.testing.assert_array_equal(y, np.column_stack((np.arange(700), np.minimum(lengths, 80))))
    for row, n, end in zip(x, y[:, 1], offsets[1:], strict=True):
        np.testing.assert_array_equal(row, np.concatenate((np.zeros(80 - n, np.int32), tokens[end - n : end])))


def test_memory_does_not_follow_the_files_size(serve, tmp_path):
    """256 MiB of rows in a budget of 128 MiB: what is mapped is the kernel's to drop, and is not loaded."""
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (65536, 4096))
    array[:, 0] = np.arange(65536) % 251
    array.flush()
    del array
    daemon = serve(tmp_path / "x.npy", "--memory-budget", "128MiB", "--num-workers", 1, "--batch-size", 256)
    with prefetchd.batches() as loader:
        for batch in loader:
            np.testing.assert_array_equal(batch.x[:, 0], batch.y % 251)
    memory = daemon.status()["memory"]
    assert memory["max_footprint_bytes"] <= memory["budget_bytes"]


@pytest.mark.parametrize("how", ["truncated", "replaced"])
@pytest.mark.parametrize("which", ["x", "y"])
def test_file_that_changes_while_it_is_served_ends_every_loop_with_an_error(serve, table, tmp_path, how, which):
    """A `ManifestError` within the epoch at the latest: no hang, no crash, and every row until then is right."""
    x_path, x, y_path, y = table
    path = {"x": x_path, "y": y_path}[which]
    daemon = serve(x_path, "--labels", y_path, "--batch-size", 8, "--shuffle", "--num-workers", 2)
    loader = prefetchd.batches(epochs=None)
    seen = 0

    def run() -> None:
        nonlocal seen
        for batch in loader:
            np.testing.assert_array_equal(batch.x, x[batch.sample_ids])
            np.testing.assert_array_equal(batch.y, y[batch.sample_ids])
            seen += 1
            if seen == 20:
                if how == "truncated":
                    os.truncate(path, 4096 if which == "x" else 200)
                else:
                    (tmp_path / "other").write_bytes(path.read_bytes())
                    (tmp_path / "other").replace(path)

    with pytest.raises(prefetchd.ManifestError, match=rf"cannot go on with .*{which}\.npy.*; start again"):
        run()
    assert seen < 10_000
    loader.close()
    assert daemon.process.wait(20) == 1
    assert f"{which}.npy" in daemon.log.splitlines()[-1]
    assert "Traceback" not in daemon.log


def test_arrays_that_cannot_be_served_are_refused_in_one_line(table, tmp_path):
    x_path, _, y_path, _ = table
    np.save(tmp_path / "objects.npy", np.array([None, "a"], object), allow_pickle=True)
    assert "Python objects" in refused_here("serve", tmp_path / "objects.npy")
    np.save(tmp_path / "short.npy", np.arange(7))
    assert "has 1000 samples" in refused_here("serve", x_path, "--labels", tmp_path / "short.npy")
    assert "concerns images only" in refused_here("serve", x_path, "--labels", y_path, "--image-size", 32)
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    assert "no samples" in refused_here("serve", tmp_path / "empty.npy")
    with pytest.raises(prefetchd.ManifestError, match="no samples"):
        prefetchd.batches(tmp_path / "empty.npy")


def test_help_tells_of_arrays():
    text = run_command("serve", "--help").stdout
    for word in (".npy", ".npz", "--labels", "--offsets", "--max-length", "--pad-value", "--lengths"):
        assert word in text


@pytest.mark.parametrize("is_over", [False, True])
def test_slot_that_comes_back_while_its_loop_has_more_to_go_on_with_is_there_for_another_loop_at_once(
    serve, tmp_path, monkeypatch, is_over
):
    """A loop with grants ahead releases later, several leases together, as nobody waits for them.

    A loop that is over releases at once, though grants of it lie unread in its grant queue.
    """
    monkeypatch.setattr(
        "prefetchd.client.connection.LOOK_S", 60
    )  # a loop that waits does not wake the daemon to ask for its state
    np.save(tmp_path / "x.npy", np.zeros((1024, 4), np.int32))
    serve(tmp_path / "x.npy", "--batch-size", 1, "--shuffle", "--num-workers", 1)
    with prefetchd.batches() as holder, prefetchd.batches(hold_timeout=60) as other:
        wait_until(lambda: holder.status()["ring"]["ready"] == holder.status()["ring"]["slots"] > 16, "a full ring")
        other.set_epoch(7)  # whose batches are not the other's
        holding, asking, theirs = iter(holder), iter(other), []
        held = [next(holding) for _ in range(5)]
        connection = holder._connection
        wait_until(lambda: connection._grants.has_ahead(ENOUGH_AHEAD), "it has more to go on with")
        del held[4]
        assert len(connection._leases._unsent_returns) == 1  # in its return queue: nobody waits for the slot
        if is_over:
            holding.close()

        def ask() -> None:
            with contextlib.suppress(prefetchd.PrefetchdError):  # at the end
                while True:
                    theirs.append(next(asking))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it waits for a slot
            asker = threading.Thread(target=ask)
            asker.start()

            wait_until(lambda: any(one["stalled"] for one in holder.status()["consumers"]), "it waits for a slot")
            if not is_over:
                wait_until(lambda: connection._grants.leases_end == Ended.BY_MESSAGE, "the daemon asks for messages")
            n_theirs = len(theirs)
            del held[3]
            assert not connection._leases._unsent_returns  # sent, with the one before
            wait_until(lambda: len(theirs) > n_theirs, "it has its batch")
            other.close()
            end_thread(asker)  # closing ends its wait, though what it holds keeps the connection
