"""Fixtures for all tests: a run directory of their own, small data sets, daemons, and the promise to leave nothing."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis.strategies import none

import tests.profiles  # noqa: F401
from prefetchd.client.admin import ask_daemon
from prefetchd.ipc import messages
from prefetchd.ipc.run_directory import daemon_paths, lock_owner

DEADLINE_S = 30.0
# A promise of a second is held to it by the median of several measurements (`assert_prompt`). A single one may take
# longer on a machine that is busy with other things; what nobody notices takes minutes, or never comes.
PROMISED_S = 1.0
PROMPT_S = 10.0


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for `condition` itself; fail naming `what` if it does not come in time."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end_s:
            pytest.fail(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.01)


def end_thread(thread: threading.Thread, deadline_s: float = DEADLINE_S) -> None:
    """Wait for the end of `thread`; fail if it does not come in time."""
    thread.join(deadline_s)
    assert not thread.is_alive(), f"{thread.name} has not ended within {deadline_s:g} s"


def assert_prompt(took_s: list[float]) -> None:
    """Hold at least five measurements of what is promised within a second to it, by their median."""
    assert len(took_s) >= 5
    shown = ", ".join(f"{one_s:.2f}" for one_s in took_s)
    assert statistics.median(took_s) < PROMISED_S, f"promised within {PROMISED_S:g} s, took {shown}"
    assert max(took_s) < PROMPT_S, f"one case took longer than {PROMPT_S:g} s: {shown}"


def _shm_names() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(("prefetchd", "psm_"))}


def _own_processes() -> set[int]:
    """All descendants of this process, and any process of ours elsewhere that carries its mark."""
    mark = os.environ["PREFETCHD_TEST_MARK"]
    found = set()
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get("PREFETCHD_TEST_MARK") == mark
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _descriptors() -> set[str]:
    """What this process has open, as far as a leak would show: sockets, memfds, segments, pidfds."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if any(kind in target for kind in ("socket:", "memfd:", "/dev/shm", "pidfd")):
            found.add(f"{name} {target}")
    return found


def _reads_everything() -> bool:
    """Whether this process may read files whose mode forbids it, as root may."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("not_root") and _reads_everything():
        pytest.skip("this user may read every file")


def pytest_collection_finish() -> None:
    """Exempt what is loaded by now from garbage collection: one is made after each test, in a tenth of the time."""
    # Hypothesis takes note of random generators at its first example, and finds none that is exempt.
    settings(max_examples=1)(given(none())(lambda _: None))()
    gc.collect()
    gc.freeze()


def _restore_loggers() -> str:
    """Give the loggers the state that Python begins with; return what they were, if it was another."""
    root, ours = logging.getLogger(), logging.getLogger("prefetchd")
    speaks = ours.isEnabledFor(logging.WARNING)  # kept from an earlier call, until a level is set
    found = root.level, ours.level, ours.disabled, ours.propagate, logging.root.manager.disable, speaks, ours.parent
    found += (ours.filters, root.filters)
    if found == (logging.WARNING, logging.NOTSET, False, True, logging.NOTSET, True, root, [], []):
        return ""
    root.setLevel(logging.WARNING)
    ours.filters, root.filters, ours.parent = [], [], root
    ours.setLevel(logging.NOTSET)
    ours.disabled, ours.propagate = False, True
    logging.disable(logging.NOTSET)
    return (
        "level of root {}, of prefetchd {}, disabled {}, propagates {}, off up to {}, warns {}, under {}, filters {} {}"
    ).format(*found)


@pytest.fixture(autouse=True)
def log_as_at_first(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give each test the loggers as Python has them: a library that a test imports may turn them down for all later.

    Who left them otherwise is named at the end of the run.
    """
    before = _restore_loggers()
    yield
    after = _restore_loggers()
    for when, found in (("before", before), ("by", after)):
        if found:
            request.node.user_properties.append(("log", f"{when} {request.node.nodeid}: {found}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = (each for reports in terminalreporter.stats.values() for each in reports)
    said = {value for each in reports for name, value in getattr(each, "user_properties", ()) if name == "log"}
    for line in sorted(said):
        terminalreporter.write_line(f"the loggers were changed {line}")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test with processes: no child, no `/dev/shm` name, no file in the run directory, no descriptor.

    Other workers of pytest-xdist run tests meanwhile: the mark in the environment tells their processes apart, and a
    name of theirs in `/dev/shm` lasts a moment.
    """
    if "unit" in request.path.parts:
        yield
        return
    # Not in tmp_path: the path of a socket has 107 bytes at most, and a worker's temporary folder is deep already.
    with tempfile.TemporaryDirectory(prefix="test-run-") as run_directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", run_directory)
        monkeypatch.setenv("PREFETCHD_TEST_MARK", f"{os.getpid()}-{request.node.nodeid}")
        monkeypatch.delenv("PREFETCHD_NAME", raising=False)
        names, descriptors = _shm_names(), _descriptors()
        yield
        gc.collect()
        try:
            wait_until(lambda: not _own_processes(), "every process of the test has ended")
        except BaseException:
            for pid in _own_processes():
                psutil.Process(pid).kill()
            raise
        new = _shm_names() - names
        wait_until(lambda: not new & _shm_names(), "no new name is in /dev/shm")
        assert not list(Path(run_directory).rglob("*.*"))
        assert _descriptors() <= descriptors


class DaemonProcess:
    """A `prefetchd serve` started for a test; `wrapper` are words that run the command behind them in their place."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        name: str,
        wrapper: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*wrapper, sys.executable, "-m", "prefetchd", "serve", *arguments, "--name", name],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=environment,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_ready(self) -> DaemonProcess:
        wait_until(lambda: "ready:" in self.log or self.process.poll() is not None, "the daemon's ready line")
        assert self.process.poll() is None, self.log
        return self

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def status(self) -> dict:
        """What `prefetchd status --json` prints, without a process for it."""
        return ask_daemon(self.name, messages.AskStatus(messages.PROTOCOL)).report

    def reader_pids(self) -> list[int]:
        return [reader["pid"] for reader in self.status()["readers"] if reader["ready"]]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(20)


def _is_free(name: str) -> bool:
    return lock_owner(daemon_paths(name).lock) is None


@pytest.fixture
def serve(tmp_path: Path, nothing_left: None) -> Iterator[Callable[..., DaemonProcess]]:
    """Start a daemon: `serve("manifest.txt", "--batch-size", "4", name="x")`; it is stopped after the test."""
    started: list[DaemonProcess] = []

    def start(
        *arguments: object, name: str = "default", ready: bool = True, wrapper: tuple[str, ...] = ()
    ) -> DaemonProcess:
        daemon = DaemonProcess(tmp_path, [str(argument) for argument in arguments], name, wrapper)
        started.append(daemon)
        return daemon.wait_ready() if ready else daemon

    yield start
    serving = []  # those that served to the last, or were killed so late that they were not reaped
    for daemon in started:
        if daemon.process.poll() is None:
            serving += [daemon] if "ready:" in daemon.log else []
            daemon.process.terminate()  # all at once, then wait
    for daemon in started:
        daemon.process.wait(20)  # not `stop`: a second SIGTERM kills one that has restored the default handler
    ends = [(daemon.name, daemon.process.returncode) for daemon in serving]
    assert all(status in (0, -signal.SIGKILL) for _, status in ends), ends
    for daemon in started:
        wait_until(functools.partial(_is_free, daemon.name), "the daemon's lock is free")


class ModuleDaemons:
    """Daemons for tests that only read from them, each started for the first test of a module that asks for it."""

    def __init__(self, folder: Path, run_directory: str) -> None:
        self._folder = folder
        self.run_directory = run_directory
        self._daemons: dict[str, tuple[list[str], DaemonProcess]] = {}

    def get(self, *arguments: object, name: str = "default") -> DaemonProcess:
        words = [str(argument) for argument in arguments]
        if name not in self._daemons:
            environment = {**os.environ, "XDG_RUNTIME_DIR": self.run_directory}
            del environment["PREFETCHD_TEST_MARK"]  # it is no process of the test that asked first
            self._daemons[name] = words, DaemonProcess(self._folder, words, name, environment=environment)
        started, daemon = self._daemons[name]
        assert started == words, f"another test of the module has started {name!r} with other words"
        return daemon.wait_ready()

    def are_left_alone(self) -> bool:
        reports = [daemon.status() for _, daemon in self._daemons.values()]
        return not any(report["consumers"] or report["ring"]["leased"] for report in reports)

    def stop(self) -> None:
        daemons = [daemon for _, daemon in self._daemons.values()]
        for daemon in daemons:
            if daemon.process.poll() is None:
                daemon.process.terminate()  # all at once, then wait
        ends = {daemon.name: (daemon.process.wait(20), daemon.log) for daemon in daemons}
        assert all(status == 0 for status, _ in ends.values()), ends


@pytest.fixture(scope="module")
def _module_daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleDaemons]:
    with tempfile.TemporaryDirectory(prefix="test-run-") as run_directory:
        daemons = ModuleDaemons(tmp_path_factory.mktemp("daemons"), run_directory)
        try:
            yield daemons
        finally:
            daemons.stop()
        assert not list(Path(run_directory).rglob("*.*"))


@pytest.fixture
def serve_module(
    _module_daemons: ModuleDaemons, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., DaemonProcess]]:
    """As `serve`, for tests that only read: the daemon goes on, for all tests of the module that ask for the same."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", _module_daemons.run_directory)
    yield _module_daemons.get
    gc.collect()
    wait_until(_module_daemons.are_left_alone, "the test has given all back")


@pytest.fixture
def module_daemon(serve_module: Callable[..., DaemonProcess], photographs: Path) -> DaemonProcess:
    """A daemon for tests that only read, one a module: the photographs in order, 13 batches of 4 of 16 x 16 pixels."""
    return serve_module(photographs, "--batch-size", "4", "--image-size", "16", "--num-workers", "1")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 50 small JPEG photographs, `path label` a line, labels 0 to 49."""
    import cv2

    from tests.images import photograph

    folder = tmp_path_factory.mktemp("photographs")
    lines = []
    for number in range(50):
        image = photograph(90 + number % 7, 120 + number % 5, seed=number)
        path = folder / f"photo {number:02d}.jpg"
        assert cv2.imwrite(str(path), image)
        lines.append(f"{path.name} {number}\n")
    manifest = folder / "manifest.txt"
    manifest.write_text("".join(lines))
    return manifest
