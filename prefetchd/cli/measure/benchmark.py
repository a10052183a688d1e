"""A benchmark of loaders that take turns, A B C A B C: rate, first batch, handoff of a ready batch, footprint.

`bench` names the contenders. `take_turn` runs one for a few seconds, `summarise` makes the table, and `limit_of` names
what limits prefetchd.

Its peers are a hand-written generator and PyTorch's DataLoader. Both read the same files in the same order, with
`cv2.imread` and `cv2.resize`, and skip files that OpenCV does not read. They support list files and directories only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import psutil

from prefetchd.cli.measure.measure import Measured
from prefetchd.config.options import Config
from prefetchd.config.units import format_bytes
from prefetchd.ipc.process import memory_bytes
from prefetchd.sampling.order import Order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.records import Records


_WARM_UP_S = 0.3
_PART_S = 0.25
_HANDOFFS = 20
_PAUSE_S = (0.02, 0.25)  # the least and the most time that a batch gets to become ready
_BUSY = 0.6
_ON_CPU = 0.6
_WAITS = 0.1


@dataclass(slots=True)
class Figures:
    """The figures of one loader, one value per turn."""

    images_per_s: list[float] = field(default_factory=list)
    first_batch_s: list[float] = field(default_factory=list)
    footprint_bytes: list[int] = field(default_factory=list)
    handoff_s: list[float] = field(default_factory=list)


def take_turn(opens: Opens, figures: Figures, seconds: float, step_s: float = 0.0, *, prepares: bool = True) -> None:
    """Run one loader for `seconds`, and add its figures to `figures`.

    Args:
        opens: returns a context manager of endless batches.
        figures: added to.
        seconds: how long to take batches.
        step_s: how long the loop sleeps at each batch, in place of a model's step.
        prepares: whether the loader works ahead in other processes; otherwise there is no handoff and no footprint.
    """
    begun_s = time.perf_counter()
    with opens() as batches:
        touch(next(batches)[0])
        figures.first_batch_s.append(time.perf_counter() - begun_s)
        end_s = time.perf_counter() + _WARM_UP_S
        while time.perf_counter() < end_s:
            touch(next(batches)[0])
        n_images, footprint_bytes = 0, 0
        started_s = part_s = time.perf_counter()
        while (now_s := time.perf_counter()) - started_s < seconds:
            x = next(batches)[0]
            touch(x)
            n_images += n_rows(x)
            if step_s:
                time.sleep(step_s)
            if prepares and now_s - part_s > _PART_S:
                part_s = now_s
                footprint_bytes = max(footprint_bytes, children_bytes())
        rate = n_images / (time.perf_counter() - started_s)
        figures.images_per_s.append(rate)
        if prepares:
            figures.footprint_bytes.append(max(footprint_bytes, children_bytes()))
            figures.handoff_s += _handoffs(batches, 2 * n_rows(x) / max(rate, 1e-9))


def _handoffs(batches: Any, pause_s: float) -> list[float]:
    """Return the seconds that `next()` takes when the batch is ready."""
    pause_s = min(max(pause_s, _PAUSE_S[0]), _PAUSE_S[1])
    taken_s = []
    for _ in range(_HANDOFFS):
        time.sleep(pause_s)
        started_s = time.perf_counter()
        x = next(batches)[0]
        taken_s.append(time.perf_counter() - started_s)
        touch(x)
    return taken_s


def n_rows(x: Any) -> int:
    """Return how many rows a batch has, whose field `x` may be several arrays."""
    return len(x[0] if isinstance(x, tuple) else x)


def touch(x: Any) -> int:
    """Read a byte of every page, so that no loader gains by pages that are not mapped yet."""
    if isinstance(x, tuple):  # a field of several arrays
        return sum(map(touch, x))
    return int(np.asarray(x).reshape(-1).view(np.uint8)[::4096].sum(dtype=np.int64))


def summarise(rows: Mapping[str, Figures]) -> list[dict[str, Any]]:
    """Return the medians of each loader, and how many times slower than the first it is, turn by turn."""
    first = next(iter(rows.values()))
    return [
        {
            "loader": name,
            "images_per_s": statistics.median(figures.images_per_s),
            "times_slower": statistics.median(
                a / max(b, 1e-9) for a, b in zip(first.images_per_s, figures.images_per_s, strict=True)
            ),
            "first_batch_s": statistics.median(figures.first_batch_s),
            "handoff_p50_s": float(np.percentile(figures.handoff_s, 50)) if figures.handoff_s else None,
            "handoff_p99_s": float(np.percentile(figures.handoff_s, 99)) if figures.handoff_s else None,
            "footprint_bytes": max(figures.footprint_bytes) if figures.footprint_bytes else None,
        }
        for name, figures in rows.items()
    ]


def table(summary: Sequence[dict[str, Any]]) -> list[str]:
    """Return `summarise` as lines."""
    width = max(len(row["loader"]) for row in summary)
    lines = [
        f"{'loader':<{width}} {'images/s':>9} {'prefetchd is':>13} {'first batch':>11} {'ready p50':>10} "
        f"{'ready p99':>10} {'footprint':>10}"
    ]
    for number, row in enumerate(summary):
        versus = f"{row['times_slower']:.2f} times" if number else ""
        footprint = "-" if row["footprint_bytes"] is None else format_bytes(row["footprint_bytes"])
        lines.append(
            f"{row['loader']:<{width}} {row['images_per_s']:>9,.0f} {versus:>13} {row['first_batch_s']:>9.2f} s "
            f"{_ms(row['handoff_p50_s']):>10} {_ms(row['handoff_p99_s']):>10} {footprint:>10}"
        )
    return lines


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"


def limit_of(measured: Measured) -> tuple[str, str]:
    """Return what limits prefetchd (`consumer`, `decode`, `disk` or `daemon`), and a line that explains it."""
    waits, busy, on_cpu = measured.loader_bound, measured.readers_busy, measured.on_cpu
    if waits < _WAITS:
        return "consumer", f"the consumer: it waited for batches {waits:.0%} of the time; the loader keeps up"
    if busy < _BUSY:
        return "daemon", (
            f"neither decoding nor the consumer alone: readers were busy {busy:.0%} of the time and the loop waited "
            f"{waits:.0%}; try a larger --memory-budget or --batch-size"
        )
    if on_cpu < _ON_CPU:
        return "disk", (
            f"the disk, or other work on this machine: readers were busy {busy:.0%} of the time, and had a processor "
            f"for {on_cpu:.0%} of that"
        )
    return "decode", (
        f"decoding: readers were busy {busy:.0%} of the time, {on_cpu:.0%} of that on a processor, and the loop waited "
        f"{waits:.0%}; more cores, a smaller size or a cache would help (prefetchd tune says how much)"
    )


Batches = Iterator[tuple[Any, ...]]


def read_image(path: str, config: Config) -> NDArray[Any] | None:
    """Return the image as a simple script decodes it, or `None` if OpenCV does not read it."""
    if config.is_exact:
        flags = cv2.IMREAD_UNCHANGED
    else:
        flags = cv2.IMREAD_GRAYSCALE if config.color == "gray" else cv2.IMREAD_COLOR
        flags |= cv2.IMREAD_ANYDEPTH if config.dtype == "uint16" else 0
    image = cv2.imread(path, flags)
    if image is None or (image.size != image.shape[0] * image.shape[1] * config.n_channels):
        return None
    height, width = config.image_size
    image = cv2.resize(image, (width, height))
    if config.color == "rgb" and config.n_channels == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    image = image.reshape(height, width, config.n_channels)
    if config.layout == "nchw":
        image = np.moveaxis(image, -1, 0)
    return np.ascontiguousarray(image) if "int" in config.dtype else image.astype(config.dtype) / 255


class Files:
    """The samples of a list of files by number, as a `Dataset` of PyTorch has them.

    In place of a file that OpenCV does not read comes the next one.
    """

    def __init__(self, records: Records, config: Config) -> None:
        self.records = records
        self.config = config

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> tuple[NDArray[Any], int]:
        for step in range(len(self)):
            sample = self.records.samples([(number + step) % len(self)])[0]
            image = read_image(sample.path, self.config)
            if image is not None:
                return image, sample.label if isinstance(sample.label, int) else 0
        raise ValueError(f"cannot read a single image of {self.records.name}")


def sample_numbers(config: Config, n_samples: int) -> Iterator[int]:
    """Yield the numbers of the samples in the order in which prefetchd delivers them, epoch after epoch."""
    order = Order(
        n_samples, config.batch_size, False, config.shuffle, config.seed, shuffle_block=config.shuffle_block or 0
    )
    epoch = 0
    while True:
        for batch in range(order.batches_per_epoch):
            yield from order.sample_ids(epoch, batch, 0, order.rows(epoch, batch)).tolist()
        epoch += 1


@contextlib.contextmanager
def generator(files: Files) -> Iterator[Batches]:
    """Yield the batches of a hand-written generator: one process, no work ahead."""

    def batches() -> Batches:
        numbers = sample_numbers(files.config, len(files))
        while True:
            part = [files[next(numbers)] for _ in range(files.config.batch_size)]
            yield np.stack([x for x, _ in part]), np.array([y for _, y in part])

    yield batches()


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


@contextlib.contextmanager
def data_loader(files: Files, n_workers: int) -> Iterator[Batches]:
    """PyTorch's DataLoader, with as many workers as prefetchd has readers."""
    loader = importlib.import_module("torch.utils.data").DataLoader(
        files,
        batch_size=files.config.batch_size,
        sampler=_Sampler(files),
        num_workers=n_workers,
        worker_init_fn=_one_thread,
    )
    batches = iter(loader)
    try:
        yield batches
    finally:
        batches._shutdown_workers()  # otherwise they end only at the next garbage collection


class _Sampler:
    """An endless order for a DataLoader."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def __iter__(self) -> Iterator[int]:
        return sample_numbers(self._files.config, len(self._files))


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)


def children_bytes() -> int:
    """Return the memory of this process's children, and the shared memory that it maps itself, in bytes."""
    total = memory_bytes("self", "smaps_rollup", "Pss_Shmem")
    for child in psutil.Process().children(recursive=True):
        total += memory_bytes(child.pid, "smaps_rollup", "Pss_Anon", "Pss_Shmem", "SwapPss")
    return total


Opens = Callable[[], contextlib.AbstractContextManager[Batches]]
