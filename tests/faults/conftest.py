"""What the fault tests share: manifests, decoders that fail on purpose, and what an undisturbed run delivers."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import prefetchd
from prefetchd.client import launch
from prefetchd.ipc import messages, sockets
from tests.conftest import wait_until
from tests.images import write_jpeg

SIZE = 32  # pixels a side of every batch here
BATCH = 5

Content = list[tuple[int, int, tuple[int, ...], str]]


def content_of(batches: Iterable[prefetchd.Batch]) -> Content:
    """Epoch, index, sample ids and a checksum of pixels and labels of each batch; drops each at once."""
    seen: Content = []
    for batch in batches:
        digest = hashlib.sha256(np.ascontiguousarray(batch.x).tobytes() + batch.y.tobytes()).hexdigest()
        seen.append((batch.epoch, batch.index, tuple(batch.sample_ids.tolist()), digest))
        del batch
    return seen


def expected_content(manifest: Path, size: int = SIZE, batch: int = BATCH) -> Content:
    """What one epoch in order must be, by OpenCV alone: the undisturbed run that all others are held to."""
    lines = manifest.read_text().splitlines()
    content: Content = []
    for index, first in enumerate(range(0, len(lines), batch)):
        pixels, labels = [], []
        for line in lines[first : first + batch]:
            path, _, label = line.rpartition(" ")
            image = cv2.imread(str(manifest.parent / path))
            pixels.append(cv2.resize(image, (size, size)))
            labels.append(int(label))
        data = np.stack(pixels).tobytes() + np.array(labels, np.int64).tobytes()
        ids = tuple(range(first, min(len(lines), first + batch)))
        content.append((0, index, ids, hashlib.sha256(data).hexdigest()))
    return content


def exact(*more: object) -> list[object]:
    """Options of a daemon whose batches equal `expected_content`."""
    return ["--batch-size", BATCH, "--image-size", SIZE, "--color", "bgr", "--no-shrink-on-load", *more]


@pytest.fixture(scope="session")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 40 tiny JPEGs, eight batches."""
    return write_manifest(tmp_path_factory.mktemp("forty"), 40)


@pytest.fixture(scope="session")
def forty_content(forty: Path) -> Content:
    return expected_content(forty)


def write_manifest(folder: Path, n_samples: int) -> Path:
    lines = []
    for number in range(n_samples):
        write_jpeg(folder / f"{number:03d}.jpg", (40, 48), seed=number)
        lines.append(f"{number:03d}.jpg {100 + number}\n")
    manifest = folder / "manifest.txt"
    manifest.write_text("".join(lines))
    return manifest


class Sabotage:
    """Marks files whose decoding fails; see `sitecustomize_source`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mark(self, path: Path, word: str) -> None:
        """Make decoding the JPEG at `path` do `word`; its pixels stay what they are."""
        path.write_bytes(path.read_bytes() + (b"\nSABOTAGE " + word.encode()).ljust(32))

    def wait_pid(self, word: str) -> int:
        """Wait until a reader stands at the gate; return its pid."""
        wait_until((self.folder / word).exists, f"a reader is at {word}")
        return int((self.folder / word).read_text())

    def standing(self) -> set[int]:
        """The readers that stand at a file marked with `stand`."""
        return {int(path.name.removeprefix("stand-")) for path in self.folder.glob("stand-*[0-9]")}

    def open_gates(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sabotage:
    folder = tmp_path / "sabotage"
    folder.mkdir()
    source = Path(__file__).with_name("sitecustomize_source.py").read_text()
    (folder / "sitecustomize.py").write_text(source)
    elsewhere = os.environ.get("PYTHONPATH")  # such as a checkout that is tested without being installed
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), elsewhere))))
    monkeypatch.setenv("SABOTAGE_FOLDER", str(folder))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return Sabotage(folder)


class Script:
    """A consumer in a process of its own, running `code`; it says lines, and hears one when told to go on."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """Wait for its next line."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        if not said:
            self.process.wait(10)
            assert self.process.stderr is not None
            pytest.fail(f"the consumer ended: {self.process.stderr.read()}")
        return said

    def tell(self, text: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self, number: int = signal.SIGKILL) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(20)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status


@pytest.fixture
def script(nothing_left: None) -> Iterator[Callable[[str], Script]]:
    """Start consumers; they are killed after the test."""
    started: list[Script] = []

    def start(code: str) -> Script:
        started.append(Script(code))
        return started[-1]

    yield start
    for one in started:
        one.end()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def ask_status(name: str = "default") -> dict[str, Any]:
    """What `prefetchd status --json` prints, without the time that an interpreter takes to start."""
    sock = launch.connect(name, timeout_s=0)
    try:
        sockets.send(sock, messages.encode(messages.AskStatus(messages.PROTOCOL)))
        data, _ = sockets.receive(sock)
    finally:
        sock.close()
    report: dict[str, Any] = messages.decode_to_consumer(data).report
    return report
