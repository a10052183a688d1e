"""The loaders that `bench` compares prefetchd with: a hand-written generator and PyTorch's DataLoader.

Both read the same files in the same order, with `cv2.imread` and `cv2.resize`, and skip files that OpenCV does not
read. They support list files and directories only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import psutil

from prefetchd.config.options import Config
from prefetchd.ipc.process import memory_bytes
from prefetchd.sampling.order import Order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.records import Records

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
    order = Order(n_samples, config.batch_size, False, config.shuffle, config.seed)
    epoch = 0
    while True:
        for batch in range(order.batches_per_epoch):
            yield from order.sample_ids(epoch, batch, 0, order.rows(batch)).tolist()
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
