"""Bad samples, through real processes: what each policy delivers, what is said of them, and that it never varies."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import prefetchd
from tests.conftest import DaemonProcess, wait_until
from tests.faults.conftest import BATCH, Content, Sabotage, ask_status, content_of, exact, expected_content
from tests.images import write_bad, write_jpeg

Serve = Callable[..., DaemonProcess]

# What the reason must say, by the name that `write_bad` gives.
REASONS = {
    "missing": "No such file",
    "empty": "empty",
    "truncated": "cut short",
    "truncated_progressive": "cut short",
    "truncated_png": "cut short",
    "header_only": "",
    "text": "not an image",
    "zeros": "not an image",
    "directory": "directory",
    "fifo": "FIFO|not a regular file",
    "bomb": "65000x65000.*max.image.pixels",
}
GOOD_EACH = 3


def png_bomb(path: Path) -> Path:
    """A PNG whose header claims 65000 x 65000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", 65000, 65000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    return path


class Bad:
    """A manifest in which every `GOOD_EACH` good samples a bad one comes, and then five bad ones: a whole batch.

    Attributes:
        manifest: its path.
        bad: sample id -> name of the kind, for the bad ones.
        n_samples: samples, good and bad.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        paths = write_bad(folder / "bad")
        paths["bomb"] = png_bomb(folder / "bad" / "bomb.png")
        lines: list[str] = []
        self.bad: dict[int, str] = {}

        def add(path: Path) -> None:
            lines.append(f"{path.relative_to(folder)} {100 + len(lines)}\n")

        def add_good() -> None:
            add(write_jpeg(folder / f"{len(lines):03d}.jpg", (40, 48), seed=len(lines)))

        for kind in REASONS:
            for _ in range(GOOD_EACH):
                add_good()
            self.bad[len(lines)] = kind
            add(paths[kind])
        while len(lines) % BATCH:
            add_good()
        for number in range(BATCH):
            self.bad[len(lines)] = "missing"
            add(folder / f"gone {number}.jpg")
        for _ in range(BATCH):
            add_good()
        self.n_samples = len(lines)
        self.manifest = folder / "list.txt"
        self.manifest.write_text("".join(lines))
        self.lines = lines

    def expected(self, substitute: bool, folder: Path) -> Content:
        """The batches that the policy must deliver, by OpenCV."""
        good = [sample for sample in range(self.n_samples) if sample not in self.bad]
        content: Content = []
        for first in range(0, self.n_samples, BATCH):
            ids = list(range(first, min(self.n_samples, first + BATCH)))
            if substitute:
                ids = [next(i for i in [*good, good[0]] if i >= sample or sample > good[-1]) for sample in ids]
            else:
                ids = [sample for sample in ids if sample not in self.bad]
            if ids:
                # The labels and pixels are those of the samples that are there.
                part = self.manifest.with_name("part.txt")
                part.write_text("".join(self.lines[sample] for sample in ids))
                digest = expected_content(part)[0][3]
            else:
                digest = "empty"
            content.append((0, first // BATCH, tuple(ids), digest))
        return content


@pytest.fixture
def bad(tmp_path: Path) -> Bad:
    return Bad(tmp_path / "data")


def without_empty(content: Content) -> Content:
    return [batch if batch[2] else (*batch[:3], "empty") for batch in content]


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_skip_and_substitute(serve: Serve, bad: Bad, tmp_path: Path, policy: str, readers: int) -> None:
    """The decisions are those of the manifest alone: the same with one reader and with three, and in every epoch."""
    wanted = bad.expected(policy == "substitute", tmp_path)
    daemon = serve(bad.manifest, *exact("--num-workers", readers, "--on-error", policy))
    with prefetchd.batches(epochs=3) as loader:
        seen = without_empty(content_of(loader))
    assert seen == [(epoch, *batch[1:]) for epoch in range(3) for batch in wanted]
    status = ask_status()
    assert status["bad_samples"] == len(bad.bad)
    assert status["reader_crashes"] == 0
    assert {entry["sample_id"] for entry in status["bad"]} == set(bad.bad)
    for sample, kind in bad.bad.items():
        said = [line for line in daemon.log.splitlines() if f"bad sample {sample}:" in line]
        assert len(said) == 1, said
        path = bad.lines[sample].rpartition(" ")[0]
        assert f"list.txt line {sample + 1}: " in said[0]
        assert path in said[0]
        assert re.search(REASONS[kind], said[0]), said[0]
    if policy == "skip":
        empty = [batch for batch in seen if not batch[2]]
        assert len(empty) == 3


def test_empty_batch_has_length_0(bad: Bad) -> None:
    with prefetchd.batches(
        bad.manifest, batch_size=BATCH, image_size=32, on_error="skip", num_workers=1, dtype="float32"
    ) as loader:
        batch = next(batch for batch in loader if not len(batch.x))
        assert batch.x.shape == (0, 32, 32, 3)
        assert batch.x.dtype == "float32"
        assert batch.y.shape == (0,)
        assert batch.sample_ids.shape == (0,)
        del batch


@pytest.fixture(scope="module")
def bad_sixth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For each kind a manifest of seven samples whose sixth is bad, and the path of that."""
    folder = tmp_path_factory.mktemp("sixth")
    paths = write_bad(folder / "bad")
    paths["bomb"] = png_bomb(folder / "bad" / "bomb.png")
    good = [f"{write_jpeg(folder / f'{n}.jpg', (40, 48), seed=n).name} {n}\n" for n in range(7)]
    manifests = {}
    for kind in REASONS:
        manifests[kind] = folder / f"{kind} list.txt", paths[kind]
        lines = [*good[:5], f"{paths[kind].relative_to(folder)} 5\n", good[6]]
        manifests[kind][0].write_text("".join(lines))
    return manifests


@pytest.mark.parametrize("kind", REASONS)
def test_raise_names_the_sample(serve_module: Serve, bad_sixth: dict[str, tuple[Path, Path]], kind: str) -> None:
    """The batches before the bad one come first; the error says manifest, line, path, reason and the way out."""
    sources = [f"{each}={manifest}" for each, (manifest, _) in bad_sixth.items()]
    serve_module(*sources, "--batch-size", 2, "--image-size", 32, "--num-workers", 1, name="raising")
    seen: list[list[int]] = []
    again: list[list[int]] = []

    def read(into: list[list[int]]) -> None:
        for batch in loader:
            into.append(batch.sample_ids.tolist())

    with prefetchd.batches(daemon="raising", dataset=kind) as loader:
        with pytest.raises(prefetchd.SampleError) as caught:
            read(seen)
        # The next pass is no worse: it delivers what there is and says the same.
        with pytest.raises(prefetchd.SampleError, match="line 6"):
            read(again)
    text = str(caught.value)
    assert seen == again == [[0, 1], [2, 3]]
    assert f"{kind} list.txt line 6:" in text
    assert os.fspath(bad_sixth[kind][1]) in text
    assert 'on_error="skip"' in text
    assert "\n" not in text
    assert re.search(REASONS[kind], text), text


def test_shuffled_decisions_are_the_same_in_a_second_run(serve: Serve, bad: Bad) -> None:
    runs = []
    for name, readers in (("one", 1), ("two", 3), ("three", 1)):
        daemon = serve(
            bad.manifest, *exact("--num-workers", readers, "--on-error", "substitute", "--shuffle"), name=name
        )
        with prefetchd.batches(daemon=name, epochs=2) as loader:
            runs.append(content_of(loader))
        assert daemon.stop() == 0
    assert runs[0] == runs[1] == runs[2]
    delivered = {sample for batch in runs[0] for sample in batch[2]}
    assert not delivered & set(bad.bad)


@pytest.mark.parametrize("how", ["segv", "exit"])
def test_sample_that_takes_its_reader_down_is_a_bad_sample(
    serve: Serve, sabotage: Sabotage, tmp_path: Path, how: str
) -> None:
    lines = [f"{write_jpeg(tmp_path / f'{n}.jpg', (40, 48), seed=n).name} {n}\n" for n in range(20)]
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(lines))
    for sample in (7, 8):
        sabotage.mark(tmp_path / f"{sample}.jpg", how)
    daemon = serve(manifest, *exact("--num-workers", 2, "--on-error", "skip"))
    with prefetchd.batches(epochs=2) as loader:
        ids = [list(batch[2]) for batch in content_of(loader)]
    assert ids == 2 * [[0, 1, 2, 3, 4], [5, 6, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]
    assert [entry["sample_id"] for entry in sorted(ask_status()["bad"], key=lambda e: e["sample_id"])] == [7, 8]
    assert daemon.log.count("bad sample 7:") == daemon.log.count("bad sample 8:") == 1
    assert "it ends the reader" in daemon.log
    wait_until(lambda: len(daemon.reader_pids()) == 2, "two readers stand")


def test_fresh_readers_are_not_started_for_each_bad_sample(serve: Serve, tmp_path: Path) -> None:
    """Half of the files are refused by the decoder, and the ring reaches over several epochs."""
    lines = []
    for number in range(160):
        path = write_jpeg(tmp_path / f"{number}.jpg", (24, 32), seed=number)
        if number % 2:
            path = tmp_path / f"{number}.png"
            _, png = cv2.imencode(".png", np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8))
            png[len(png) // 2] ^= 0xFF
            path.write_bytes(png.tobytes())
        lines.append(f"{path.name} {number}\n")
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(lines))
    daemon = serve(manifest, *exact("--num-workers", 2, "--on-error", "skip"))
    with prefetchd.batches(epochs=2) as loader:
        ids = [sample for batch in content_of(loader) for sample in batch[2]]
    assert ids == 2 * list(range(0, 160, 2))
    status = daemon.status()
    assert status["bad_samples"] == 80
    assert max(reader["number"] for reader in status["readers"]) <= 40


def test_sample_whose_decode_never_ends_is_a_bad_sample_that_costs_no_reader_again(
    serve: Serve, sabotage: Sabotage, tmp_path: Path
) -> None:
    """Our own time-out is no doing of the environment."""
    lines = [f"{write_jpeg(tmp_path / f'{n}.jpg', (40, 48), seed=n).name} {n}\n" for n in range(20)]
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(lines))
    sabotage.mark(tmp_path / "7.jpg", "stand")
    daemon = serve(manifest, *exact("--num-workers", 2, "--reader-timeout", 1, "--on-error", "skip"))
    with prefetchd.batches(epochs=2) as loader:
        ids = [list(batch[2]) for batch in content_of(loader)]
        hung = len(sabotage.standing())
        ids += [list(batch[2]) for batch in content_of(loader)]
    assert ids == 4 * [[0, 1, 2, 3, 4], [5, 6, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]
    (bad,) = ask_status()["bad"]
    assert bad["sample_id"] == 7
    assert "longer than reader_timeout=1 s, 2 times alone" in bad["reason"], "not once more for an epoch ahead"
    assert len(sabotage.standing()) == hung
    assert daemon.log.count("bad sample 7:") == 1


def test_what_kills_readers_from_outside_is_no_bad_sample(serve: Serve, sabotage: Sabotage, tmp_path: Path) -> None:
    """SIGKILL is the environment's doing: under any policy it is raised after some tries, never skipped."""
    lines = [f"{write_jpeg(tmp_path / f'{n}.jpg', (40, 48), seed=n).name} {n}\n" for n in range(20)]
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(lines))
    sabotage.mark(tmp_path / "12.jpg", "kill")
    serve(manifest, *exact("--num-workers", 1, "--on-error", "skip"))
    with prefetchd.batches() as loader:
        batches = iter(loader)
        assert len(content_of([next(batches), next(batches)])) == 2
        with pytest.raises(prefetchd.SampleError, match=r"line 13: .*SIGKILL"):
            next(batches)
    assert ask_status()["bad_samples"] == 0


def test_all_samples_bad(tmp_path: Path) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(f"text{n}.jpg {n}\n" for n in range(7)))
    for number in range(7):
        (tmp_path / f"text{number}.jpg").write_text("no image")
    options = {"batch_size": 3, "image_size": 32, "num_workers": 1}
    with (
        prefetchd.batches(manifest, on_error="skip", **options) as loader,
        pytest.raises(prefetchd.SampleError, match="none of its samples is good"),
    ):
        list(loader)
    with (
        prefetchd.batches(manifest, on_error="substitute", **options) as loader,
        pytest.raises(prefetchd.SampleError, match="all bad"),
    ):
        next(iter(loader))


def test_large_damaged_file_ends_no_reader(serve: Serve, tmp_path: Path, photographs: Path) -> None:
    """A slow read of it begins the reading ahead, and its memory is free again when that wants threads."""
    image = photographs.parent / "photo 00.jpg"
    for number in range(6):
        os.symlink(image, tmp_path / f"{number}.jpg")
    (tmp_path / "large.jpg").write_bytes(b"\xff\xd8")
    os.truncate(tmp_path / "large.jpg", 60_000_000)
    names = ["0.jpg", "large.jpg", *(f"{number}.jpg" for number in range(1, 6))]
    (tmp_path / "list.txt").write_text("".join(f"{name} {number}\n" for number, name in enumerate(names)))
    options = ("--batch-size", 7, "--image-size", 32, "--num-workers", 2, "--on-error", "skip")
    daemon = serve(tmp_path / "list.txt", *options)
    with prefetchd.batches() as loader:
        (batch,) = [batch.y.tolist() for batch in loader]
    assert batch == [0, 2, 3, 4, 5, 6]
    status = daemon.status()
    assert status["bad_samples"] == 1
    assert status["reader_crashes"] == status["num_workers"]["outgrown"] == 0
    assert "not an image of a known format" in daemon.log


@pytest.mark.not_root
def test_no_permission(tmp_path: Path) -> None:
    paths = write_bad(tmp_path / "bad")
    manifest = tmp_path / "list.txt"
    manifest.write_text(f"{paths['no_permission']} 1\n")
    with (
        prefetchd.batches(manifest, image_size=32, num_workers=1) as loader,
        pytest.raises(prefetchd.SampleError, match="Permission denied"),
    ):
        next(iter(loader))
