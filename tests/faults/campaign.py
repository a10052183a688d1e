"""The fault campaign: party x fault x moment, each cell with its stated outcome, run against real processes.

The cells are data (`cells.py`); `run_cell` brings a daemon and a consumer to the moment, does the fault, and holds the
outcome to what was stated: by a checksum of every batch delivered, and by counting what is left. A selection runs as
tests (`test_campaign.py`); `scripts/bench/chaos.py --cells` runs all, and so does `scripts/nightly`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import prefetchd
from tests.conftest import PROMPT_S, DaemonProcess, _descriptors, _own_processes, _shm_names, wait_until
from tests.faults.cells import SIGNALS, Cell, Outcome
from tests.faults.conftest import Content, Sabotage, Script, ask_status, content_of, exact, expected_content
from tests.faults.conftest import write_manifest as write_samples

ROOT = Path(__file__).parents[2]
GATE = 17  # the sample in whose decoding a reader stands still at the moment `filling`


# The consumer in a process of its own. It tells what it has, and hears one word for each thing that it is to do.
CONSUMER = """
import hashlib, json, os, sys
import prefetchd
def told(batches):
    for b in batches:
        digest = hashlib.sha256(b.x.tobytes() + b.y.tobytes()).hexdigest()
        yield b.epoch, b.index, b.sample_ids.tolist(), digest
arguments = json.loads(sys.argv[1])
print("here", flush=True)
loader = prefetchd.batches(*arguments.pop("source"), **arguments)
print("attached", flush=True)
held, batches, seen = [], iter(loader), []
try:
    for word in sys.stdin:
        word = word.strip()
        if word == "take":
            held.append(next(batches)); seen.extend(told(held[-1:]))
        elif word == "rest":
            held.clear(); seen.extend(told(batches))
        elif word == "to the end":
            while True:
                seen.extend(told(loader))
        elif word == "tell":
            print(json.dumps([seen, list(told(held))]), flush=True); continue
        elif word == "exit 0":
            os._exit(0)
        elif word == "exception":
            raise ValueError
        elif word == "MemoryError":
            raise MemoryError
        elif word == "closed descriptors":
            os.closerange(3, 4096)
            try:
                seen.extend(told(batches))
            except (prefetchd.PrefetchdError, OSError):
                pass
            os._exit(0)
        print("done", flush=True)
except prefetchd.DaemonLost:
    print("lost", json.dumps(list(told(held)) == seen[:len(held)]), flush=True)
    sys.stdin.readline()
"""


class Trainer(Script):
    """The consumer of a cell."""

    def __init__(self, source: list[str], **options: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONSUMER, json.dumps({"source": source, **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "here"

    def do(self, word: str) -> None:
        self.tell(word)
        assert self.line() == "done"

    def end(self, number: int = signal.SIGKILL) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(20)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return status


class World:
    """What a cell happens in: a folder, samples, a daemon, a trainer; `close` counts what is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "run").mkdir(mode=0o700)
        (folder / "sabotage").mkdir()
        source = Path(__file__).with_name("sitecustomize_source.py").read_text()
        (folder / "sabotage" / "sitecustomize.py").write_text(source)
        self.manifest = write_samples(folder, 40)
        self.expected = expected_content(self.manifest)
        self.sabotage = Sabotage(folder / "sabotage")
        self._environ = dict(os.environ)
        os.environ.update(
            XDG_RUNTIME_DIR=str(folder / "run"),
            PREFETCHD_TEST_MARK=f"{os.getpid()}-{folder}",
            PYTHONPATH=os.pathsep.join((str(folder / "sabotage"), str(ROOT))),
            SABOTAGE_FOLDER=str(folder / "sabotage"),
            PYTHONDONTWRITEBYTECODE="1",
        )
        gc.collect()
        self._names, self._fds = _shm_names(), _descriptors()
        self.took_s: list[float] = []
        self._daemons: list[DaemonProcess] = []
        self._trainers: list[Trainer] = []

    def serve(self, *, ready: bool = True) -> DaemonProcess:
        arguments = [str(one) for one in exact("--num-workers", 2)]
        daemon = DaemonProcess(self.folder, [str(self.manifest), *arguments], "default")
        self._daemons.append(daemon)
        return daemon.wait_ready() if ready else daemon

    def trainer(self, *source: str, **options: object) -> Trainer:
        self._trainers.append(Trainer(list(source), **options))
        return self._trainers[-1]

    def private_options(self) -> dict[str, object]:
        return {"batch_size": 5, "image_size": 32, "color": "bgr", "shrink_on_load": False, "num_workers": 2}

    def fork_server(self, parent: int) -> int:
        def find() -> int:
            for child in psutil.Process(parent).children():
                with contextlib.suppress(psutil.Error):
                    if "prefetchd.reader.fork_server" in child.cmdline():
                        return child.pid
            return 0

        wait_until(find, "there is a fork server")
        return find()

    def reader(self, parent: int) -> int:
        fork_server = psutil.Process(self.fork_server(parent))
        wait_until(fork_server.children, "there is a reader")
        return fork_server.children()[0].pid

    def close(self) -> None:
        """End everything, and hold that nothing is left."""
        try:
            self.sabotage.open_gates()
            for trainer in self._trainers:
                trainer.end()
            for daemon in self._daemons:
                if daemon.process.poll() is None:
                    daemon.process.send_signal(signal.SIGCONT)
                assert daemon.stop() in (0, -signal.SIGKILL, -signal.SIGSEGV, 1), daemon.log
            gc.collect()
            wait_until(lambda: not _own_processes(), "every process has ended")
            wait_until(lambda: _shm_names() <= self._names, "no name is left in /dev/shm")
            wait_until(lambda: not list((self.folder / "run").rglob("*.*")), "no socket and no lock are left")
            assert _descriptors() <= self._fds
        finally:
            for pid in _own_processes():
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).kill()
            os.environ.clear()
            os.environ.update(self._environ)


def as_content(told: list[list[object]]) -> Content:
    return [(e, i, tuple(ids), digest) for e, i, ids, digest in told]  # type: ignore[misc, arg-type]


def run_cell(cell: Cell, folder: Path) -> list[float]:
    """Run one cell in an empty folder; raise if it is not as stated.

    Returns:
        How long what is promised within a second took, in seconds; empty where nothing such was measured.
    """
    world = World(folder)
    try:
        if cell.outcome is Outcome.NONE:
            _no_tracker(world)
        elif cell.party == "embedded parent":
            _embedded_parent(world, cell)
        elif cell.fault in ("full /dev/shm", "full disk"):
            _full(world, cell)
        elif cell.fault == "socket removed":
            _socket_removed(world, cell)
        elif cell.fault == "clock jump":
            _clock_jump(world)
        else:
            _attached(world, cell)
    finally:
        world.close()
    return world.took_s


SOFT = {"exit 0": "leave", "exception": "raise", "MemoryError": "memory", "closed descriptors": "close"}


def _attached(world: World, cell: Cell) -> None:
    """Daemon and trainer, brought to the moment; then the fault, and what must be."""
    if cell.moment == "filling":
        word = f"{SOFT[cell.fault]}-" if cell.party == "reader" and cell.fault in SOFT else "gate-"
        world.sabotage.mark(world.folder / f"{GATE:03d}.jpg", f"{word}{GATE:03d}")
    daemon = world.serve(ready=cell.moment not in ("start", "filling"))
    trainer = world.trainer()
    if cell.moment == "start":
        victim = {
            "daemon": lambda: daemon.pid if world.fork_server(daemon.pid) else 0,
            "fork server": lambda: world.fork_server(daemon.pid),
            "reader": lambda: world.reader(daemon.pid),
            "consumer": lambda: trainer.pid,
        }[cell.party]()
    else:
        assert trainer.line() == "attached"
        taken = {"filling": 2, "leased": 2, "shutting down": 2, "epoch end": 0}.get(cell.moment, 0)
        for _ in range(taken):
            trainer.do("take")
        if cell.moment == "epoch end":
            trainer.do("rest")
        at_gate = 0
        if cell.moment == "filling" and not (cell.party == "reader" and cell.fault in SOFT):
            at_gate = world.sabotage.wait_pid(f"gate-{GATE:03d}")
        victim = {
            "daemon": lambda: daemon.pid,
            "fork server": lambda: world.fork_server(daemon.pid),
            "reader": lambda: at_gate or world.reader(daemon.pid),
            "consumer": lambda: trainer.pid,
        }[cell.party]()
    if cell.moment == "shutting down":
        os.kill(daemon.pid, signal.SIGTERM)
    if cell.fault in SIGNALS:
        with contextlib.suppress(ProcessLookupError):  # it may have shut down already
            os.kill(victim, SIGNALS[cell.fault])
    elif cell.party == "consumer":
        trainer.tell(cell.fault)
    _CHECKS[cell.outcome](world, cell, daemon, trainer)


def _witness(world: World) -> None:
    """Another loop sees every batch."""
    world.sabotage.open_gates()
    with prefetchd.batches() as loader:
        assert content_of(loader) == world.expected


def _rest_of(world: World, trainer: Trainer, moment: str) -> None:
    """The trainer goes on from where it is, and has seen every batch exactly once."""
    world.sabotage.open_gates()
    if moment == "start":
        assert trainer.line() == "attached"
    if moment != "epoch end":
        trainer.do("rest")
    trainer.tell("tell")
    assert as_content(json.loads(trainer.line())[0]) == world.expected


def _goes_on(world: World, cell: Cell, daemon: DaemonProcess, trainer: Trainer) -> None:
    _rest_of(world, trainer, cell.moment)
    _witness(world)
    wait_until(lambda: len(daemon.reader_pids()) == 2, "two readers stand")
    wait_until(lambda: ask_status()["ring"]["leased"] == 0, "every slot is back")
    assert ask_status()["bad_samples"] == 0


def _resumes(world: World, cell: Cell, daemon: DaemonProcess, trainer: Trainer) -> None:
    wait_until(lambda: psutil.Process(daemon.pid).status() == psutil.STATUS_STOPPED, "the daemon is stopped")
    from prefetchd.ipc.process import describe_process

    assert "is stopped" in describe_process(daemon.pid)
    os.kill(daemon.pid, signal.SIGCONT)
    _goes_on(world, cell, daemon, trainer)


def _lost(world: World, cell: Cell, daemon: DaemonProcess, trainer: Trainer) -> None:
    started_s = time.monotonic()
    if cell.moment != "start":
        trainer.tell("to the end")
        said = trainer.line()
        assert said == "lost true", said
        world.took_s.append(time.monotonic() - started_s)
        assert world.took_s[0] < PROMPT_S
    trainer.end()
    world.sabotage.open_gates()
    daemon.process.wait(20)
    wait_until(lambda: not _own_processes(), "the whole family has ended")
    world.serve()
    _witness(world)


def _freed(world: World, cell: Cell, daemon: DaemonProcess, trainer: Trainer) -> None:
    trainer.process.wait(10)
    if cell.moment == "start":
        daemon.wait_ready()
    started_s = time.monotonic()
    wait_until(lambda: not ask_status()["consumers"], "the consumer is forgotten", PROMPT_S)
    wait_until(lambda: ask_status()["ring"]["leased"] == 0, "its slots are back", PROMPT_S)
    world.took_s.append(time.monotonic() - started_s)
    _witness(world)


def _bears(world: World, cell: Cell, daemon: DaemonProcess, trainer: Trainer) -> None:
    wait_until(lambda: psutil.Process(trainer.pid).status() == psutil.STATUS_STOPPED, "the consumer is stopped")
    if cell.moment == "start":
        daemon.wait_ready()
    else:
        assert [one["state"] for one in ask_status()["consumers"]] == ["T"]
    _witness(world)
    os.kill(trainer.pid, signal.SIGCONT)
    _rest_of(world, trainer, cell.moment)


def _ends(world: World, cell: Cell, daemon: DaemonProcess, trainer: Trainer) -> None:
    if cell.party == "daemon" and cell.fault == "SIGSTOP":
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.pid, signal.SIGCONT)
    daemon.process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.kill(trainer.pid, signal.SIGKILL)


_CHECKS = {
    Outcome.EXACT: _goes_on,
    Outcome.RESUMES: _resumes,
    Outcome.LOST: _lost,
    Outcome.FREED: _freed,
    Outcome.BEARS: _bears,
    Outcome.ENDS: _ends,
}


def _embedded_parent(world: World, cell: Cell) -> None:
    if cell.moment == "filling":
        world.sabotage.mark(world.folder / f"{GATE:03d}.jpg", f"gate-{GATE:03d}")
    trainer = world.trainer(str(world.manifest), **world.private_options())
    parent = psutil.Process(trainer.pid)
    if cell.moment == "start":
        wait_until(parent.children, "it has started its daemon")
    else:
        assert trainer.line() == "attached"
        for _ in range(2 if cell.moment != "epoch end" else 0):
            trainer.do("take")
        if cell.moment == "epoch end":
            trainer.do("rest")
        if cell.moment == "filling":
            world.sabotage.wait_pid(f"gate-{GATE:03d}")
    if cell.fault in SIGNALS:
        os.kill(trainer.pid, SIGNALS[cell.fault])
    else:
        trainer.tell(cell.fault)
    trainer.process.wait(15)
    wait_until(lambda: not _own_processes(), "its daemon and the readers have ended")


def _no_tracker(world: World) -> None:
    """Nobody starts one, so there is none to die: neither the daemon nor a consumer."""
    world.serve()
    with prefetchd.batches() as loader:
        assert content_of(loader) == world.expected
        family = [one for pid in _own_processes() for one in psutil.Process(pid).cmdline()]
        assert family
        assert not [one for one in family if "multiprocessing.resource_tracker" in one]


def _full(world: World, cell: Cell) -> None:
    """In a mount namespace of its own, with a small file system at /dev/shm, or in the place of the run directory."""
    shm = cell.fault == "full /dev/shm"
    where = "/dev/shm" if shm else str(world.folder / "run")
    options = [str(one) for one in exact("--num-workers", 1)]
    serve = [sys.executable, "-m", "prefetchd", "serve", str(world.manifest), *options]
    code = (
        "import hashlib, json, sys, prefetchd\n"
        "out = []\n"
        f"with prefetchd.batches({str(world.manifest)!r}, **json.loads(sys.argv[1])) as loader:\n"
        "    for b in loader:\n"
        "        digest = hashlib.sha256(b.x.tobytes() + b.y.tobytes()).hexdigest()\n"
        "        out.append((b.epoch, b.index, b.sample_ids.tolist(), digest))\n"
        "print(json.dumps(out))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(world.private_options())] if shm else serve
    # Full of data, or with room for the run directory alone.
    size = "size=4k" if shm else "nr_inodes=2"
    fill = 'head -c 65536 /dev/zero > "$1/fill" 2>/dev/null; ' if shm else ""
    mount = f'mount -t tmpfs -o {size},mode=700 none "$1" && {{ {fill} shift; exec "$@"; }}'
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", where, *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if shm:
        assert result.returncode == 0, result.stderr
        assert as_content(json.loads(result.stdout)) == world.expected
    else:
        said = result.stderr.splitlines()
        assert result.returncode == 1, result
        assert len(said) == 1, said
        assert "No space left" in said[0]


def _socket_removed(world: World, cell: Cell) -> None:
    world.serve()
    trainer = world.trainer()
    assert trainer.line() == "attached"
    if cell.moment == "leased":
        trainer.do("take")
    (world.folder / "run" / "prefetchd" / "default.sock").unlink()
    with pytest.raises(prefetchd.DaemonNotFound, match=r"default\.sock"):
        prefetchd.batches(timeout=0)
    _rest_of(world, trainer, cell.moment)


def _clock_jump(world: World) -> None:
    os.environ["SABOTAGE_CLOCK"] = "1"
    daemon = world.serve()
    trainer = world.trainer()
    assert trainer.line() == "attached"
    trainer.do("take")
    _goes_on(world, Cell("daemon", "clock jump", "leased", Outcome.EXACT), daemon, trainer)


def can_mount() -> bool:
    """Whether this process may have mounts of its own, as root may."""
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
