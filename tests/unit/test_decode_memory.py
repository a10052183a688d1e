"""The memory of decoding: the file's buffer, too little memory, and an estimate that holds."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import pytest

from prefetchd.config.options import Color
from prefetchd.data.files import FileBuffer, read_file
from prefetchd.data.images.headers.header import ImageHeader
from prefetchd.data.images.working_memory import decode_working_bytes
from tests.decoding import quiet  # noqa: F401
from tests.images import photograph, write_kinds


def test_the_buffer_is_kept_and_grows_and_is_asked_for_first(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"s" * 10)
    (tmp_path / "large").write_bytes(b"l" * 100_000)
    buffer = FileBuffer(1000)
    asked: list[int] = []
    small = read_file(tmp_path / "small", buffer, reserve=asked.append)
    assert bytes(small) == b"s" * 10
    assert asked == []
    assert bytes(read_file(tmp_path / "large", buffer, reserve=asked.append)) == b"l" * 100_000
    assert asked == [100_000]
    assert bytes(small) == b"s" * 10  # an old view is not pulled away
    capacity = buffer.capacity_bytes
    read_file(tmp_path / "small", buffer)
    assert buffer.capacity_bytes == capacity
    buffer.trim(1000)
    assert buffer.capacity_bytes == 1000

    def refuse(n_bytes: int) -> None:
        raise MemoryError(f"no {n_bytes} bytes")

    with pytest.raises(MemoryError, match="no 100000 bytes"):
        read_file(tmp_path / "large", buffer, reserve=refuse)


def test_too_little_memory_is_a_memory_error_and_not_a_bad_image(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    assert cv2.imwrite(str(path), cv2.resize(photograph(300, 300), (3000, 3000)))
    script = textwrap.dedent("""
        import resource, sys
        from prefetchd.data.images.decode import *
        from prefetchd.data.files import FileBuffer, read_file
        data = bytes(read_file(sys.argv[1], FileBuffer()))
        header = identify(data)
        used = next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmData"))
        limit = used + int(sys.argv[2]) * (1 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        try:
            print(decode_image(data, header, color="rgb", reduction=1).shape)
        except MemoryError as error:
            print("MemoryError", error)
    """)

    def run(spare_mib: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, str(path), str(spare_mib)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"},
        )
        return done.stdout

    for spare_mib in (1, 10, 30, 45):
        assert run(spare_mib).startswith("MemoryError"), spare_mib
    assert run(80).startswith("(3000, 3000, 3)")


@pytest.mark.timeout(240)  # images of all formats are encoded, and each is decoded twice in a process of its own
def test_the_estimate_is_above_the_peak_and_within_reason(tmp_path: Path) -> None:
    """Each in a process forked for it, so that none finds memory that another has taken before."""
    names = ("baseline.jpg", "progressive.jpg", "cmyk.jpg", "exif6.jpg", "rgb.png", "alpha.png", "exif6.png")
    names += ("interlaced.png", "rgb.bmp", "rgb.gif", "rgb.tiff", "lzw.tiff", "deep.tiff")
    suffixes = ("webp", "avif", "jp2", "j2k", "pgm", "ppm", "pbm", "pam", "pfm", "hdr", "ras")
    kinds = write_kinds(tmp_path / "large", (700, 900), lambda name: name in names or name.endswith(suffixes))
    write_kinds(tmp_path / "small", (40, 50))
    script = textwrap.dedent("""
        import os, sys, cv2
        from prefetchd.data.images.decode import *
        from prefetchd.data.images.working_memory import decode_working_bytes
        from prefetchd.data.files import FileBuffer, read_file
        cv2.setNumThreads(0)
        silence_decoders()
        def status(key):
            return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
        for path, color in [(path, color) for path in sys.argv[1:] for color in ("rgb", "gray")]:
            if child := os.fork():
                assert os.waitpid(child, 0)[1] == 0, path
                continue
            data = bytes(read_file(path, FileBuffer()))
            header = identify(data)
            small = open(path.replace("/large/", "/small/"), "rb").read()
            decode_image(small, identify(small), color=color, reduction=1)  # what a codec takes once is not the image's
            open("/proc/self/clear_refs", "w").write("5")
            before = status("VmRSS")
            decode_image(data, header, color=color, reduction=1)
            peak = status("VmHWM") - before
            estimate = decode_working_bytes(header, len(data), color=color, reduced=1)
            print(path, color, peak, estimate, flush=True)
            os._exit(0)
    """)
    names += tuple(name for name in kinds if name.endswith(suffixes))
    done = subprocess.run(
        [sys.executable, "-c", script, *(str(kinds[name]) for name in names)],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(names)
    for line in lines:
        path, _, *numbers = line.split()
        peak, estimate = map(int, numbers)
        assert estimate >= peak > 0, line
        if not path.endswith("tiff"):
            assert estimate <= 2.5 * peak + (10 << 20), line


def test_the_estimate_counts_what_costs() -> None:
    def of(header: ImageHeader, reduced: int = 1, color: Color = "rgb") -> int:
        return decode_working_bytes(header, 0, color=color, reduced=reduced)

    plain = ImageHeader("jpeg", 4000, 3000, 3)
    progressive = ImageHeader("jpeg", 4000, 3000, 3, progressive=True)
    assert of(plain) >= 2 * plain.pixels * 3
    assert of(plain, 8) < of(plain, 2) < of(plain)
    assert of(plain, color="gray") < of(plain)
    assert of(progressive, 8) >= 2 * 3 * plain.pixels  # a reduction spares no coefficient
    assert decode_working_bytes(plain, 5_000_000, color="rgb", reduced=1) - of(plain) == 5_000_000
