"""What a user holds never changes, and nothing they do to it changes it for others: views, releases, forks, ends."""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

import prefetchd
from prefetchd.ring.queues import ENOUGH_AHEAD
from tests.conftest import end_thread, wait_until
from tests.process.commands import (
    LARGE,
    finish,
    large_ring,
    run_script,
    start_script,
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


# --- holding too much


def wait_for_grant(loader: prefetchd.Loader) -> None:
    """Wait until the loop has another batch to go on with."""
    wait_until(lambda: loader._connection._grants.has_next, "the next batch is granted ahead")


def untold(loader: prefetchd.Loader) -> int:
    """How many batches were dropped of which the daemon was not told."""
    return len(loader._connection._leases._unsent_returns)


def test_slot_that_comes_back_in_a_small_ring_is_told_at_once_and_there_for_a_loop_that_waits(serve, photographs):
    serve(photographs, *large_ring(7))
    with prefetchd.batches() as holder, prefetchd.batches(hold_timeout=60) as other:
        other.set_epoch(7)  # whose batches are not the other's
        holding, theirs = iter(holder), []
        held = [next(holding) for _ in range(3)]
        del held[0]
        wait_for_grant(holder)

        def ask() -> None:
            with contextlib.suppress(prefetchd.PrefetchdError):  # at the end
                theirs.extend(other)

        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            asker = threading.Thread(target=ask)
            asker.start()
            wait_until(lambda: warned, "it has stood still for a second")
            n_theirs = len(theirs)
            held.clear()  # two: one may be kept for the readers to fill
            assert not untold(holder)
            wait_until(lambda: len(theirs) > n_theirs, "it has what the other held")
            other.close()
            end_thread(asker)


def test_nothing_of_a_loader_is_left_that_was_closed_before_it_told_what_it_dropped(module_daemon):
    with prefetchd.batches() as loader:
        items = iter(loader)
        held = [next(items), next(items)]
        wait_until(lambda: loader._connection._grants.has_ahead(ENOUGH_AHEAD), "more is granted ahead")
        held.clear()
        assert untold(loader)
    wait_until(lambda: not module_daemon.status()["consumers"], "the daemon knows it no more")


def test_nothing_is_granted_to_a_loop_that_waited_for_a_slot_when_another_thread_closed_its_loader(serve, photographs):
    daemon = serve(photographs, *large_ring(4))
    loader = prefetchd.batches(hold_timeout=600)
    held, said = [], []

    def loop() -> None:
        with pytest.raises(prefetchd.PrefetchdError, match="it was closed") as error:
            held.extend(loader)
        said.append(error)

    thread = threading.Thread(target=loop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread.start()
        wait_until(lambda: any(one["waiting"] for one in daemon.status()["consumers"]), "the loop waits for a slot")
        loader.close()
        end_thread(thread)
    assert said
    for left in reversed(range(len(held))):
        held.pop()
        wait_until(lambda left=left: daemon.status()["ring"]["leased"] == left, "the slot is back and nobody else's")
    assert not daemon.status()["consumers"]


def test_holding_more_than_the_ring_ends_in_a_warning_and_ring_exhausted(serve, photographs):
    daemon = serve(photographs, *large_ring(4))
    assert daemon.status()["ring"]["slots"] == 4
    with prefetchd.batches(hold_timeout=1.5) as loader:
        with (
            pytest.warns(RuntimeWarning, match="waiting for a slot: of 4 slots this loader holds") as warned,
            pytest.raises(prefetchd.RingExhausted, match=r"this loader holds \d.*copy.*on_hold='copy'.*memory_budget"),
        ):
            list(loader)
        assert warned[0].filename == __file__
        gc.collect()
        assert sum(len(y) for _, y in loader) == 50  # what was held is back, and the loader goes on


def test_who_else_holds_the_ring_is_named(serve, photographs, tmp_path):
    serve(photographs, *large_ring(5))
    code = """
import prefetchd
items = iter(prefetchd.batches())
held = [next(items), next(items)]
print("on", flush=True)
input()
"""
    other = start_script(tmp_path / "other.py", code)
    assert other.stdout is not None
    assert other.stdout.readline() == "on\n"
    with prefetchd.batches(hold_timeout=0.3) as loader:
        items = iter(loader)
        with (
            pytest.warns(RuntimeWarning, match=f"pid {other.pid} holds [123]"),
            pytest.raises(prefetchd.RingExhausted, match=f"pid {other.pid} holds [123]"),
        ):
            list(items)
    other.kill()
    finish(other)


def test_on_hold_copy_delivers_private_copies_instead(serve, photographs):
    serve(photographs, *large_ring(5))
    with prefetchd.batches(on_hold="copy", hold_timeout=5) as loader:
        first = list(loader)
        sums = [crc(x) for x, _ in first]
        again = [crc(x) for x, _ in loader]
        assert [crc(x) for x, _ in first] == sums == again
        assert [label for _, y in first for label in y.tolist()] == list(range(50))


# --- many at once, with forks

TRAINERS = """
import gc, json, os, random, sys, threading, warnings, zlib
import prefetchd

warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)  # Python 3.12
N_EPOCHS = {n_epochs}
failures, seen = [], {{}}
lock = threading.Lock()

def fork():
    pid = os.fork()
    if pid == 0:                        # drops all that it inherited, then ends
        try:
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

def train(number):
    rng = random.Random(number)
    held = []
    try:
        with prefetchd.batches(epochs=N_EPOCHS, hold_timeout=60) as loader:
            for step, batch in enumerate(loader):
                mine = zlib.crc32(batch.x), zlib.crc32(batch.y)
                with lock:
                    theirs = seen.setdefault(f"{{batch.epoch}} {{batch.index}}", mine)
                if mine != theirs:
                    failures.append(f"epoch {{batch.epoch}} batch {{batch.index}} differs from another thread's")
                if step % 10 == number % 10:
                    fork()
                for x, y, sums in held:
                    if (zlib.crc32(x), zlib.crc32(y)) != sums:
                        failures.append(f"a held batch changed by step {{step}}")
                held.append((batch.x, batch.y[::1], mine))
                del batch
                if len(held) > 1:       # with the loop's own: two, sometimes three
                    del held[rng.randrange(2)]
    except BaseException as error:
        failures.append(repr(error))

threads = [threading.Thread(target=train, args=(int(sys.argv[1]) + number,)) for number in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({{"failures": failures, "seen": seen}}))
"""


def test_held_batches_never_change_while_the_ring_turns_among_processes_threads_and_forks(serve, photographs, tmp_path):
    n_epochs = 5
    daemon = serve(photographs, *large_ring(13), "--shuffle")
    n_slots = daemon.status()["ring"]["slots"]
    code = TRAINERS.format(n_epochs=n_epochs)
    trainers = [
        start_script(tmp_path / f"trainer{number}.py", code.replace("sys.argv[1]", f"{number}3")) for number in (1, 2)
    ]
    reports = []
    for trainer in trainers:
        result = finish(trainer)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        reports.append(json.loads(result.stdout))
    for report in reports:
        assert report["failures"] == []
        assert len(report["seen"]) == 13 * n_epochs
    assert reports[0]["seen"] == reports[1]["seen"]
    assert daemon.status()["batches_made"] >= 13 * n_epochs > 4 * n_slots


# --- forked children

FORK = """
import gc, os, sys
import prefetchd

loader = prefetchd.batches({arguments})
items = iter(loader)
held = [next(items), next(items)]
before = [batch.x.copy() for batch in held]
pid = os.fork()
if pid == 0:
    for what in (lambda: next(items), lambda: next(iter(loader)), lambda: loader.close()):
        try:
            what()
        except prefetchd.PrefetchdError as error:
            print("refused" if "forked child" in str(error) else error, flush=True)
    del held, items
    gc.collect()
    del loader
    sys.exit(0)                         # an end as any other, with finalizers
assert os.waitpid(pid, 0)[1] == 0
print("child over", flush=True)
sys.stdin.read()
assert all((batch.x == was).all() for batch, was in zip(held, before))
print(sum(len(y) for _, y in items))
"""


def test_forked_child_is_refused_and_its_end_releases_nothing(module_daemon, tmp_path):
    parent = start_script(tmp_path / "fork.py", FORK.format(arguments=""), *STRICT)
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(3)] == ["refused\n", "refused\n", "child over\n"]
    status = module_daemon.status()
    held = [consumer["held_slots"] for consumer in status["consumers"] if consumer["pid"] == parent.pid]
    assert held == [2]
    result = finish(parent)
    assert (result.returncode, result.stdout) == (0, "42\n"), result.stderr


def test_forked_child_of_a_private_loader_ends_nothing(photographs, tmp_path):
    arguments = f"{str(photographs)!r}, batch_size=4, image_size=16, num_workers=1, memory_budget='128MiB'"
    result = run_script(tmp_path / "fork.py", FORK.format(arguments=arguments), *STRICT)
    assert (result.returncode, result.stdout) == (0, "refused\nrefused\nchild over\n42\n"), result.stderr
    assert result.stderr == ""


def test_forked_child_makes_a_loader_of_its_own(module_daemon, tmp_path):
    code = """
import os, prefetchd
loader = prefetchd.batches()
items = iter(loader)
next(items)
pid = os.fork()
if pid == 0:
    assert sum(len(y) for _, y in prefetchd.batches()) == 50
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(sum(len(y) for _, y in items))
"""
    result = run_script(tmp_path / "fork.py", code)
    assert (result.returncode, result.stdout) == (0, "46\n"), result.stderr


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


CLOSED_BESIDE_A_CHILD = """
import os, sys, prefetchd
loader = prefetchd.batches(sys.argv[1], batch_size=4, image_size=16, num_workers=1)
next(iter(loader))
read, write = os.pipe()
if not os.fork():
    os.close(write)
    os.read(read, 1)  # until the parent is done
    os._exit(0)
loader.close()
print(loader._sessions.current.process.returncode)
os.write(write, b".")
os.wait()
"""


def test_private_daemon_ends_in_good_order_though_a_forked_child_has_its_socket(photographs, tmp_path):
    code = CLOSED_BESIDE_A_CHILD.replace("sys.argv[1]", repr(str(photographs)))
    result = run_script(tmp_path / "fork.py", code)
    assert (result.returncode, result.stdout) == (0, "0\n"), result
