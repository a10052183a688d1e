"""What decoding costs, and what it keeps: each way from JPEG bytes to 224 x 224 RGB, in turn, round after round.

    python scripts/bench/decode.py MANIFEST [--images 250] [--rounds 10]

One process, no reading of files. Processor time an image, and its ratio to prefetchd's own way, medians over rounds;
PSNR against a full decode resized by area. simplejpeg's rows need it installed (`pip install simplejpeg`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from prefetchd.data.images import decode
from prefetchd.data.images.headers.header import ImageHeader

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import setting, table

SIDE = 224
ROW = np.empty((SIDE, SIDE, 3), np.uint8)


def full(data: bytes) -> None:
    cv2.resize(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), (SIDE, SIDE), dst=ROW)


def reduction_of(header: ImageHeader) -> int:
    return decode.choose_reduction(header, SIDE, SIDE, "stretch")


def ours(data: bytes) -> None:
    header = decode.identify(data)
    cv2.resize(decode.decode_image(data, header, color="rgb", reduction=reduction_of(header)), (SIDE, SIDE), dst=ROW)


def upper_rows(share: float) -> Callable[[bytes], None]:
    """Our way for a crop whose bottom lies at `share` of the height."""

    def way(data: bytes) -> None:
        writable = np.frombuffer(bytearray(data), np.uint8)
        header = decode.identify(writable)
        n_rows = decode.rows_to_decode(header, 1, int(share * header.height_px))
        image = decode.decode_image(writable, header, color="rgb", reduction=1, n_rows=n_rows)
        cv2.resize(image, (SIDE, SIDE), dst=ROW)

    return way


def by_simplejpeg(fast_dct: bool, fast_upsample: bool, buffer: np.ndarray) -> Callable[[bytes], None]:
    import simplejpeg

    def way(data: bytes) -> None:
        header = decode.identify(data)
        by = reduction_of(header)
        least = -(-header.height_px // by), -(-header.width_px // by)
        image = simplejpeg.decode_jpeg(data, "RGB", fast_dct, fast_upsample, *least, by, buffer=buffer)
        cv2.resize(image, (SIDE, SIDE), dst=ROW)

    return way


def psnr(pixels: np.ndarray, expected: np.ndarray) -> float:
    error = float(np.mean((pixels.astype(np.float64) - expected) ** 2))
    return 10 * np.log10(255**2 / error) if error else 99.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    cv2.setNumThreads(0)
    folder = given.manifest.parent
    names = [line.split()[0] for line in given.manifest.read_text().splitlines()[: given.images]]
    images = [data for data in ((folder / name).read_bytes() for name in names) if data.startswith(b"\xff\xd8")]
    buffer = np.empty(3 * max(decode.identify(data).pixels for data in images), np.uint8)
    ways: dict[str, Callable[[bytes], None]] = {"prefetchd (cv2, reduced)": ours, "cv2, full size": full}
    try:
        ways["simplejpeg, reduced"] = by_simplejpeg(False, False, buffer)
        ways["  + fast upsampling"] = by_simplejpeg(False, True, buffer)
        ways["  + fast DCT too"] = by_simplejpeg(True, True, buffer)
    except ImportError:
        print("simplejpeg is not installed: its rows are left out", file=sys.stderr)
    ways |= {f"crop ends at {share:.0%} of the rows": upper_rows(share) for share in (1.0, 0.75, 0.5)}
    took: dict[str, list[float]] = {name: [] for name in ways}
    sys.stderr = os.fdopen(decode.detach_native_stderr(), "w", buffering=1)  # libjpeg tells of what follows the rows
    for _ in range(given.rounds):
        for name, way in ways.items():
            started_s = time.process_time()
            for data in images:
                way(data)
            took[name].append((time.process_time() - started_s) / len(images))
    quality: dict[str, list[float]] = {name: [] for name in ways}
    for data in images:
        whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        expected = cv2.resize(whole, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        for name, way in ways.items():
            way(data)
            quality[name].append(psnr(ROW, expected))
    print(setting("prefetchd", "numpy", "opencv-python-headless", "simplejpeg"))
    rows = [["way", "us an image", "speed", "PSNR, dB"]]
    ours_s = next(iter(took.values()))
    for name, seen in took.items():
        ratio = statistics.median(a / b for a, b in zip(ours_s, seen, strict=True))
        fidelity = "" if name.startswith("crop") else f"{statistics.mean(quality[name]):.1f}"
        rows.append([name, f"{statistics.median(seen) * 1e6:.0f}", f"{ratio:.2f}", fidelity])
    print(table(rows))


if __name__ == "__main__":
    main()
