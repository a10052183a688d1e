"""Space and speed of what a cache keeps: the originals, raw rows, and rows of JPEG, side by side.

    python scripts/bench/cache_formats.py [MANIFEST] [--originals 375x500] [--sizes 256,352] [--quality 90]

One process and thread; no daemon. KiB and processor time an image until its pixels can be cropped, medians of
interleaved rounds. Files and rows are in the page cache.

  originals   read and decoded at full size, as random crops need them
  raw S       a row of cache_image_size S is read
  jpeg S      the same row of JPEG is read and decoded
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import manifest_or_photographs, setting, table

from prefetchd.config.validate import make_config
from prefetchd.data.images import decode
from prefetchd.data.images.cacheable import KeptImages


class Rows:
    """Rows of one size and format in a file."""

    def __init__(self, folder: Path, images: list[Any], size: int, cache_format: str, quality: int) -> None:
        config = make_config(source="x", cache_image_size=size, cache_format=cache_format, **(
            {"cache_quality": quality} if cache_format == "jpeg" else {}
        ))  # fmt: skip
        self.kept = KeptImages(config)
        self.places = []
        path = folder / f"{cache_format}-{size}.rows"
        with path.open("wb") as file:
            for image in images:
                row = self.kept.row(self.kept.make(image))
                self.places.append((file.tell(), row.shape))
                file.write(np.ascontiguousarray(row))
        self.n_bytes = path.stat().st_size
        self.fd = os.open(path, os.O_RDONLY)

    def load(self) -> None:
        for at, shape in self.places:
            row = np.empty(shape, np.uint8)
            os.preadv(self.fd, [memoryview(row).cast("B")], at)
            assert self.kept.pixels(row) is not None


def read_original(path: Path) -> Any:
    data = np.fromfile(path, np.uint8)
    return decode.decode_image(data, decode.identify(data), color="rgb", reduction=1)


def resized(paths: list[Path], folder: Path, height: int, width: int) -> list[Path]:
    """Write each image with these sides; return the new paths."""
    found = []
    for number, path in enumerate(paths):
        found.append(folder / f"{number}.jpg")
        image = cv2.resize(cv2.imread(str(path)), (width, height), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(found[-1]), image, (cv2.IMWRITE_JPEG_QUALITY, 95))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path, help="`path label` a line; photographs are made without")
    parser.add_argument(
        "--originals", metavar="HxW", help="resize the originals to this first, quality 95 (as they are)"
    )
    parser.add_argument("--sizes", default="256,352", help="values of cache_image_size (256,352)")
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(0)
    print(setting("prefetchd", "numpy", "opencv-python-headless"), flush=True)
    with (
        manifest_or_photographs(options.manifest) as manifest,
        tempfile.TemporaryDirectory(prefix="prefetchd-bench-") as name,
    ):
        lines = manifest.read_text().splitlines()[: options.images]
        paths = [manifest.parent / line.rsplit(" ", 1)[0] for line in lines]
        if options.originals:
            paths = resized(paths, Path(name), *map(int, options.originals.split("x")))
        images = [read_original(path) for path in paths]

        def originals() -> None:
            for path in paths:
                read_original(path)

        ways: dict[str, tuple[int, Callable[[], None]]] = {
            "originals": (sum(path.stat().st_size for path in paths), originals)
        }
        for size in map(int, options.sizes.split(",")):
            for cache_format in ("raw", "jpeg"):
                rows = Rows(Path(name), images, size, cache_format, options.quality)
                ways[f"{cache_format} {size}"] = rows.n_bytes, rows.load
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, (_, load) in ways.items():
                begin_s = time.process_time()
                load()
                found[way].append((time.process_time() - begin_s) / len(paths))
    height, width = (statistics.median(image.shape[axis] for image in images) for axis in (0, 1))
    print(f"{len(paths)} images, median {height:.0f} x {width:.0f}, JPEG quality {options.quality}\n")
    result = [["", "KiB/image", "us/image", "speed"]]
    for way, (n_bytes, _) in ways.items():
        ratio = statistics.median(a / b for a, b in zip(found["originals"], found[way], strict=True))
        us = statistics.median(found[way]) * 1e6
        result.append([way, f"{n_bytes / len(paths) / 1024:.1f}", f"{us:.0f}", f"{ratio:.1f}"])
    print(table(result))


if __name__ == "__main__":
    main()
