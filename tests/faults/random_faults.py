"""One round of random faults: a daemon, trainers, and a seeded injector that kills, stops and continues any of them.

Whatever it does, each trainer that lives sees each batch of its epochs exactly once and in order, by checksum, over all
restarts of the daemon (`reconnect=True`); and after the round nothing is left. The seed decides the schedule; when each
fault falls in the work of the others is the machine's doing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import psutil

from prefetchd.daemon.readers.job_tracker import CRASH_TRIES
from prefetchd.daemon.readers.pool import MAX_BOOT_FAILURES
from tests.conftest import wait_until
from tests.faults.campaign import Trainer, World, as_content
from tests.faults.conftest import ask_status

N_EPOCHS = 6
N_TRAINERS = 2


def run_round(seed: int, folder: Path, done: list[str], n_faults: int = 12) -> None:
    """Run the round of `seed` in an empty folder; tell each fault in `done`; raise if a promise is broken."""
    rng = random.Random(seed)
    world = World(folder)
    try:
        daemon = world.serve()
        trainers = [world.trainer(reconnect=True, epochs=N_EPOCHS) for _ in range(N_TRAINERS)]
        for trainer in trainers:
            assert trainer.line() == "attached"
            trainer.tell("rest")
        crashes = 0  # of readers; one that crashes on the same sample time and again is taken at its word, rightly
        in_a_row = 0  # of readers and fork servers; a daemon gives up after three that never get ready, rightly
        for _ in range(n_faults):
            time.sleep(rng.uniform(0, 0.08))  # no synchronisation: at any moment is the point
            party = rng.choice(("daemon", "fork server", "reader", "reader", "consumer", "newcomer"))
            fault = rng.choice(("kill", "segv", "stop"))
            if party == "reader" and fault == "segv":
                crashes += 1
                fault = "kill" if crashes > CRASH_TRIES else fault
            in_a_row += party in ("fork server", "reader") and fault != "stop"
            if in_a_row == MAX_BOOT_FAILURES:
                wait_until(lambda: any(one["ready"] for one in ask_status()["readers"]), "a reader is ready")
                in_a_row = 1  # the one that comes now
            if party == "daemon" and fault != "stop":
                os.kill(daemon.pid, signal.SIGKILL if fault == "kill" else signal.SIGSEGV)
                daemon.process.wait(10)
                daemon = world.serve()
            elif party == "newcomer":
                _newcomer(world, rng)
            else:
                _befall(party, fault, daemon.pid, trainers, rng)
            done.append(f"{party} {fault}")
        wanted = [(epoch, *batch[1:]) for epoch in range(N_EPOCHS) for batch in world.expected]
        for trainer in trainers:
            assert trainer.line() == "done"
            trainer.tell("tell")
            assert as_content(json.loads(trainer.line())[0]) == wanted
    finally:
        world.close()


def _befall(party: str, fault: str, daemon: int, trainers: list[Trainer], rng: random.Random) -> None:
    """Do `fault` to one of `party`; what is stopped is continued soon after. Trainers are only stopped."""
    with contextlib.suppress(psutil.Error, IndexError, ProcessLookupError, StopIteration):
        if party == "consumer":
            pid, fault = rng.choice(trainers).pid, "stop"
        elif party == "daemon":
            pid = daemon
        else:
            fork_server = next(
                one for one in psutil.Process(daemon).children() if "prefetchd.reader.fork_server" in one.cmdline()
            )
            pid = fork_server.pid if party == "fork server" else rng.choice(fork_server.children()).pid
        if fault == "stop":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(rng.uniform(0, 0.3))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        else:
            os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGSEGV)


def _newcomer(world: World, rng: random.Random) -> None:
    """A trainer that comes, holds some batches, and is killed."""
    trainer = world.trainer(timeout=10)
    if trainer.line() == "attached":
        for _ in range(rng.randrange(3)):
            trainer.tell("take")
    trainer.end()
