"""What is held stays as it is while the ring turns among processes, threads and forks, and in forked children."""

from __future__ import annotations

import json

from tests.process.commands import (
    finish,
    large_ring,
    run_script,
    start_script,
)
from tests.process.test_lifetimes import STRICT

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
