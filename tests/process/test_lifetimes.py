"""What a user holds never changes, and nothing they do to it changes it for others: views, releases, ends."""

from __future__ import annotations

import signal
import zlib
from pathlib import Path

import numpy as np
import pytest

import prefetchd
from tests.conftest import wait_until
from tests.process.commands import (
    LARGE,
    large_ring,
    run_script,
)

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")
STRICT = ("-X", "dev", "-W", "error")


def crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array))


# --- views


def test_arrays_are_read_only_views_on_64_byte_boundaries(serve, photographs):
    serve(photographs, "--batch-size", "5", "--image-size", "17x19", "--color", "gray", "--num-workers", "1")
    with prefetchd.batches() as loader:
        for batch in loader:
            for array in (batch.x, batch.y, batch.sample_ids):
                assert array.ctypes.data % 64 == 0
                assert not array.flags.owndata
                assert not array.flags.writeable
                with pytest.raises(ValueError, match="WRITEABLE"):
                    array.setflags(write=True)
            with pytest.raises(ValueError, match="read-only"):
                batch.x[:] = 0


WRITE = """
import ctypes, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import prefetchd
x, y = next(iter(prefetchd.batches()))
print("writing", flush=True)
ctypes.memset(x.ctypes.data, 0, 1)
print("written", flush=True)
"""


def test_write_from_c_kills_the_writer_and_touches_nobody_else(module_daemon, tmp_path):
    with prefetchd.batches() as loader:
        items = iter(loader)
        first = next(items)
        before = crc(first.x)
        result = run_script(tmp_path / "write.py", WRITE)
        assert (result.returncode, result.stdout) == (-signal.SIGSEGV, "writing\n"), result.stderr
        assert crc(first.x) == before
        assert sum(len(y) for _, y in items) == 46
        del first, items
        wait_until(lambda: not module_daemon.status()["ring"]["leased"], "the slots of both are back")


def test_writable_arrays_are_private_to_their_loader(serve, photographs):
    serve(photographs, *large_ring(5))
    with prefetchd.batches() as others, prefetchd.batches(writable=True, epochs=2) as loader:
        truth = {batch.index: crc(batch.x) for batch in others}
        for batch, theirs in zip(loader, (batch for _ in range(2) for batch in others), strict=True):
            # The ring turns: a slot that was written to shows its next batch as it is.
            assert crc(batch.x) == truth[batch.index]
            batch.x[:] = 7
            y = batch.y
            y += 1000
            assert crc(theirs.x) == truth[theirs.index]
            assert batch.y.tolist() == [label + 1000 for label in theirs.y.tolist()]


# --- keeping

KEEP = """
import gc, subprocess, sys, zlib
import numpy as np
import prefetchd

loader = prefetchd.batches({arguments})
whole, parts, buffers = [], [], []
for x, y in loader:
    if len(whole) < 3:
        whole.append(x)
    elif len(parts) < 3:
        parts.append(x[1:, ::2, :, 1].transpose(2, 0, 1).reshape(-1)[5:] if len(parts) else x[:, 3:9])
    elif len(buffers) < 3:
        buffers.append(memoryview(x)[1:] if len(buffers) else memoryview(y))
    else:
        kept = y[::-1]
{tensors}
del x, y
gc.collect()

def checksums():
    arrays = [*whole, *parts, *map(np.asarray, buffers), kept]
    return [zlib.crc32(np.ascontiguousarray(array)) for array in arrays]

before = checksums()
for _ in range(2):                      # the ring turns while they are held
    for x, y in loader:
        pass
del x, y
assert checksums() == before
{end}
gc.collect()
assert checksums() == before
print("kept", len(before))
# The interpreter ends with all of it alive, some of it in a reference cycle.
cycle = [whole]
cycle.append(cycle)
"""
STOP_DAEMON = "subprocess.run([sys.executable, '-m', 'prefetchd', 'stop'], check=True, stdout=subprocess.DEVNULL)"


@pytest.mark.parametrize("end", ["del loader", "loader.close()", "items = iter(loader); next(items)"])
def test_what_is_held_outlives_the_loader_and_nothing_is_printed(module_daemon, tmp_path, end):
    check_kept(tmp_path, end)


def test_what_is_held_outlives_the_daemon_and_nothing_is_printed(serve, photographs, tmp_path):
    serve(photographs, *QUICK)
    check_kept(tmp_path, STOP_DAEMON)


def check_kept(tmp_path, end):
    result = run_script(tmp_path / "keep.py", KEEP.format(arguments="", tensors="", end=end), *STRICT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "kept 10\n"


@pytest.mark.parametrize("end", ["pass", "del loader", "loader.close()"])
def test_what_is_held_outlives_a_private_daemon_and_nothing_is_printed(photographs, tmp_path, end):
    arguments = f"{str(photographs)!r}, batch_size=4, image_size=16, num_workers=1, memory_budget='128MiB'"
    code = KEEP.format(arguments=arguments, tensors="", end=end)
    result = run_script(tmp_path / "keep.py", code, *STRICT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "kept 10\n"


TENSORS = """
import warnings
import torch
warnings.simplefilter("error")
items = iter(loader)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")     # torch warns that the array is not writable
    tensors = [torch.from_numpy(next(items).x)[1:, ::2] for _ in range(3)]
items.close()
whole += [tensor.numpy() for tensor in tensors]
sums = [int(tensor.long().sum()) for tensor in tensors]
"""


def test_tensors_of_torch_keep_their_batch(serve, photographs, tmp_path):
    pytest.importorskip("torch")
    serve(photographs, *QUICK)
    end = "del whole[3:]; loader.close(); gc.collect()\n"
    end += "assert [int(tensor.long().sum()) for tensor in tensors] == sums; before = before[:3] + before[6:]"
    result = run_script(tmp_path / "keep.py", KEEP.format(arguments="", tensors=TENSORS, end=end))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "kept 10\n"


def test_slot_goes_back_when_the_last_view_of_it_dies(module_daemon):
    with prefetchd.batches() as loader:
        items = iter(loader)
        batch = next(items)
        part = batch.x[2:, ::3]
        pixels = memoryview(part[0])
        items.close()
        del batch, items
        assert module_daemon.status()["ring"]["leased"] == 1
        del part
        assert module_daemon.status()["ring"]["leased"] == 1
        del pixels
        wait_until(lambda: module_daemon.status()["ring"]["leased"] == 0, "the release")


# --- ends and copies


def test_consumer_that_exits_leaves_the_ring_to_the_others(serve, photographs, tmp_path):
    daemon = serve(photographs, *LARGE)
    code = "import prefetchd\nfor x, y in prefetchd.batches(): pass\nprint(len(y))\n"
    with prefetchd.batches() as loader:
        first = next(iter(loader))
        before = crc(first.x)
        for number in range(2):
            assert run_script(tmp_path / f"short{number}.py", code, *STRICT).stdout == "2\n"
        assert crc(first.x) == before
        assert sum(len(y) for _, y in loader) == 50
    assert not list(Path("/dev/shm").glob(f"*{daemon.pid}*"))


def test_batch_pickles_with_all_that_it_tells(module_daemon):
    """A batch that is sent to another process is a copy that needs no daemon."""
    import pickle

    with prefetchd.batches() as loader:
        *_, batch = loader
        copy = pickle.loads(pickle.dumps(batch))
        assert (copy.epoch, copy.index, copy.repeated) == (batch.epoch, batch.index, batch.repeated)
        for mine, theirs in zip((*copy, copy.sample_ids), (*batch, batch.sample_ids), strict=True):
            assert np.array_equal(mine, theirs)
