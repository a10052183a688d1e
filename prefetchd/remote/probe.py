"""The probe: checksums of synthetic images that go through every decoder, interpolation and kernel of the pipeline.

    child process prefetchd.remote.probe      prints {"name": "checksum", ...} as JSON

Two machines whose checksums are the same make the same bytes of the same sample. Libraries choose their code by the
processor's instructions, so the same versions are not enough. Bridge and agent each run it once, in a process of its
own: neither keeps the memory of the decoder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from prefetchd._version import __version__
from prefetchd.config.augment import AUGMENTATIONS
from prefetchd.config.options import Interpolation, Resize
from prefetchd.config.validate import make_config
from prefetchd.errors import PrefetchdError
from prefetchd.ipc.process import child_command, child_environment

if TYPE_CHECKING:
    from types import FrameType

    import numpy as np
    from numpy.typing import NDArray

_N_IMAGES = 4
_PROBE_S = 120.0
_END_S = 2.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DTYPES: dict[str, dict[str, Any]] = {
    "uint8": {},
    "float32": {"dtype": "float32", "scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "float16": {"dtype": "float16", "layout": "nchw"},
    "gray": {"color": "gray"},
    "bgr": {"color": "bgr"},
    "exact": {"shrink_on_load": False, "image_size": 24},
    "shrunk": {"image_size": 24},
}


def marks() -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions that decide bytes, and the probe's checksums, both by name.

    Raises:
        PrefetchdError: if the probe does not end well.
    """
    environment = child_environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", OPENCV_LOG_LEVEL="OFF")
    with subprocess.Popen(
        child_command("prefetchd.remote.probe"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=_PROBE_S)
        except BaseException as error:  # Ctrl-C too: it is asked to end, as it has a folder to remove
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise PrefetchdError(f"cannot probe this machine's decoder: no result within {_PROBE_S:g} s") from None
    if process.returncode:
        last = (err.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise PrefetchdError(f"cannot probe this machine's decoder: {last}; check its installation of OpenCV")
    return versions(), json.loads(out)


def versions() -> dict[str, str]:
    """Return the versions that decide bytes, by name."""
    from importlib.metadata import version

    return {
        "prefetchd": f"{__version__} ({_code_digest()})",
        "numpy": version("numpy"),
        "opencv": version("opencv-python-headless"),
        "Python": platform.python_version().rpartition(".")[0],
    }


def _code_digest() -> str:
    """Return a digest of the package's own code: two machines may have one version number and other code."""
    root = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=4)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Return the names under which two such tables differ, those that one lacks included, in order."""
    return [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]


def _images(folder: Path) -> tuple[Path, Path]:
    """Write images, which arithmetic alone decides, and two lists: of those with 8 bits, and of those with 16."""
    import cv2
    import numpy as np

    lines, deep = [], []
    for number, suffix in enumerate((".jpg", ".png", ".webp", ".jpg")):
        height, width = 120 + 7 * number, 150 - 5 * number
        rows, columns = np.mgrid[0:height, 0:width].astype(np.int64)
        noise = np.random.Generator(np.random.PCG64(number)).integers(0, 32, (height, width, 3))
        waves = np.stack([(rows * (3 + k) + columns * (5 - k)) % 224 for k in range(3)], -1)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90] if suffix == ".jpg" else []
        cv2.imwrite(str(folder / f"{number}{suffix}"), (waves + noise).astype(np.uint8), quality)
        lines.append(f"{number}{suffix} {number}\n")
        cv2.imwrite(str(folder / f"deep{number}.png"), ((waves + noise) * 256 + columns[..., None]).astype(np.uint16))
        deep.append(f"deep{number}.png {number}\n")
    paths = folder / "probe.txt", folder / "deep.txt"
    for path, each in zip(paths, (lines, deep), strict=True):
        path.write_text("".join(each))
    return paths


def _cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for interpolation in get_args(Interpolation):
        for resize in get_args(Resize):
            yield f"{interpolation} {resize}", {"interpolation": interpolation, "resize": resize}
        yield f"{interpolation} turned", {"interpolation": interpolation, "augment": "rotate, random_resized_crop"}
    for augmentation, parameters in AUGMENTATIONS.items():
        yield augmentation, {"augment": f"{augmentation}(p=1)" if "p" in parameters else augmentation}
    yield from _DTYPES.items()


def _deep_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cases of images with 16 bits, whose numbers are kept."""
    for interpolation in get_args(Interpolation):
        for dtype in ("uint16", "float32"):
            given = {"color": "unchanged", "channels": 3, "dtype": dtype, "interpolation": interpolation}
            yield f"{interpolation} of 16 bits as {dtype}", given
            yield f"{interpolation} of 16 bits as {dtype}, turned", {**given, "augment": "rotate, random_resized_crop"}


def run() -> dict[str, str]:
    """Return the checksum of each case, by name."""
    with tempfile.TemporaryDirectory(prefix="prefetchd-probe-") as folder:
        plain, deep = _images(Path(folder))
        cases = [*((plain, *case) for case in _cases()), *((deep, *case) for case in _deep_cases())]
        return {name: f"{_checksum(path, options):016x}" for path, name, options in cases}


def _checksum(path: Path, options: dict[str, Any]) -> int:
    import numpy as np

    from prefetchd.data.registry import attach_source, open_source
    from prefetchd.remote.travel import bytes_of
    from prefetchd.remote.wire import checksum
    from prefetchd.ring.layout import BatchLayout

    config = make_config(**{"source": str(path), "image_size": 48, "batch_size": _N_IMAGES, "seed": 7, **options})
    opened = open_source(config)
    handle, fds = opened.handle()
    source = attach_source(config, handle, fds)
    layout = BatchLayout(_N_IMAGES, opened.facts.fields)
    root: NDArray[np.uint8] = np.zeros(layout.slot_bytes, np.uint8)
    rows = range(_N_IMAGES)
    faults = source.fill(1, np.arange(_N_IMAGES), rows, layout.arrays(root, _N_IMAGES), lambda n_bytes: None)
    if faults:
        raise PrefetchdError(f"the probe image {faults[0].where}: {faults[0].reason}")
    return checksum([bytes_of(root)])


def _end(number: int, frame: FrameType | None) -> None:
    """End, and remove the folder; a second signal must not interrupt that."""
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main(argv: list[str]) -> int:
    """Print the checksums."""
    assert not argv
    for number in _ENDING:
        signal.signal(number, _end)
    try:
        found = run()
    except PrefetchdError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)
