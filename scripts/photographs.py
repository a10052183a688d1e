"""JPEG photographs made in code: for the demo and the benchmarks where no manifest is given.

Their spectrum falls as 1/f and their colours vary more slowly than their brightness, as in photographs, and the files
are about as large as those of ImageNet (110 KB), so that decoding them costs what it costs in life. The label of a
photograph is the name of its tint, which shows at a glance that images and labels belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

TINTS_BGR = {
    "amber": (30, 130, 215),
    "blue": (205, 110, 50),
    "green": (70, 160, 60),
    "grey": (125, 125, 125),
    "pink": (160, 100, 225),
    "red": (45, 50, 190),
    "teal": (150, 150, 25),
    "violet": (175, 60, 115),
}
_DONE = "complete.txt"
_VERSION = "1"


def _plane(rng: np.random.Generator, height: int, width: int, slope: float) -> NDArray[np.float32]:
    """Return (height, width) noise of mean 0 and deviation 1 whose amplitude falls as frequency ** -slope."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32)) * frequency**-slope
    plane = np.fft.irfft2(spectrum, s=(height, width))
    return (plane / plane.std()).astype(np.float32)


def photograph(height: int, width: int, tint: str, seed: int) -> NDArray[np.uint8]:
    """Return (height, width, 3) BGR pixels, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    light = _plane(rng, height, width, slope=1.0)
    pixels = np.empty((height, width, 3), np.float32)
    for channel, mean in enumerate(TINTS_BGR[tint]):
        colour = _plane(rng, height // 4, width // 4, slope=1.3)
        pixels[:, :, channel] = mean + 48 * light + 14 * cv2.resize(colour, (width, height))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def make_photographs(
    folder: Path, n_images: int = 256, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write photographs of 300 to 600 px into `folder`, unless they are there; return their manifest."""
    manifest, done = folder / "manifest.txt", folder / _DONE
    if done.exists() and manifest.exists() and done.read_text() == f"{_VERSION} {n_images}\n":
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    rng = np.random.default_rng(0)
    tints = sorted(TINTS_BGR)
    lines = []
    for number in range(n_images):
        tint = tints[int(rng.integers(len(tints)))]
        long_px, short_px = int(rng.integers(460, 601)), int(rng.integers(300, 461))
        height, width = (short_px, long_px) if rng.random() < 0.7 else (long_px, short_px)
        path = folder / f"photo-{number:04d}.jpg"
        pixels = photograph(height, width, tint, seed=number)
        if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"cannot write {path}: is the disk full?")
        lines.append(f"{path.name} {tint}\n")
        progress(number + 1, n_images)
    manifest.write_text("".join(lines))
    done.write_text(f"{_VERSION} {n_images}\n")
    return manifest
