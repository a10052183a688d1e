"""What `gpu.py` measures: loaders that deliver batches on a device, and the step that they are measured before.

A contender is a context manager that gives a function, which gives the next epoch's batches: (rows, 3, 224, 224)
float16 on the device. On the processor each of them does the same as far as that can.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loaders import SIZE_PX, Data, load

import prefetchd.torch
from prefetchd.torch.decoding import find_decoder

ALONE = "the step without loading"
OURS = "prefetchd"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_QUEUED = 2  # steps that the processor is ahead of the device

Epochs = Callable[[], Iterator[torch.Tensor]]
Make = Callable[[], AbstractContextManager[Epochs]]


@dataclass(frozen=True)
class Job:
    """The data, and how it is loaded."""

    data: Data
    device: torch.device

    @classmethod
    def of(cls, manifest: Path, batch_size: int, workers: int, device: torch.device) -> Job:
        samples = [line.rsplit("\t", 1) for line in manifest.read_text().splitlines()]
        paths, labels = [path for path, _ in samples], [int(label) for _, label in samples]
        workers = workers or len(os.sched_getaffinity(0))
        return cls(Data(manifest, paths, labels, batch_size, workers, manifest.parent), device)

    @contextlib.contextmanager
    def one_batch_for_ever(self) -> Iterator[Epochs]:
        """One batch that stays on the device: what a step costs where nothing is loaded."""
        shape = (self.data.batch_size, 3, SIZE_PX, SIZE_PX)
        x = torch.zeros(shape, dtype=torch.float16, device=self.device).to(memory_format=torch.channels_last)

        def epoch() -> Iterator[torch.Tensor]:
            while True:
                yield x

        yield epoch


@contextlib.contextmanager
def prefetchd_loader(job: Job, **more: Any) -> Iterator[Epochs]:
    with prefetchd.torch.batches(
        job.data.manifest,
        batch_size=job.data.batch_size,
        image_size=SIZE_PX,
        shuffle=True,
        num_workers=job.data.workers,
        device=job.device,
        normalize="device",
        dtype="float16",
        scale=1 / 255,
        mean=MEAN,
        std=STD,
        **more,
    ) as loader:
        yield lambda: (batch.x for batch in loader)


@contextlib.contextmanager
def pinned_dataloader(job: Job) -> Iterator[Epochs]:
    """PyTorch's own way: workers that run cv2, a thread that pins, copies that do not block."""
    scale = (1 / 255 / torch.tensor(STD)).reshape(-1, 1, 1).to(job.device)
    shift = (torch.tensor(MEAN) / torch.tensor(STD)).reshape(-1, 1, 1).to(job.device)
    loader = torch.utils.data.DataLoader(
        load("torch_cv2").Photographs(job.data, load_image),  # type: ignore[attr-defined]  # that module has it
        batch_size=job.data.batch_size,
        shuffle=True,
        num_workers=job.data.workers,
        persistent_workers=True,
        pin_memory=job.device.type == "cuda",
    )

    def epoch() -> Iterator[torch.Tensor]:
        for x, _ in loader:
            moved = x.to(job.device, non_blocking=True).permute(0, 3, 1, 2)
            yield moved.float().mul_(scale).sub_(shift).half()

    yield epoch


def load_image(path: str) -> Any:
    """Decode as the loaders without a decoder of their own do; OpenCV with one thread in each worker."""
    import cv2
    from loaders import read_image

    cv2.setNumThreads(0)
    return read_image(path)


@contextlib.contextmanager
def dali(job: Job) -> Iterator[Epochs]:
    """DALI with its decoder for both ("mixed"), resized and normalised on the device."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    on_gpu = job.device.type == "cuda"
    number = (job.device.index or 0) if on_gpu else None

    @pipeline_def(batch_size=job.data.batch_size, num_threads=job.data.workers, device_id=number, seed=0)
    def pipeline() -> Any:
        content, _ = fn.readers.file(
            files=job.data.paths, random_shuffle=True, initial_fill=len(job.data.paths), name="files"
        )
        images = fn.decoders.image(content, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        images = fn.resize(images, resize_x=SIZE_PX, resize_y=SIZE_PX, interp_type=types.INTERP_LINEAR)
        values = {"mean": [255 * each for each in MEAN], "std": [255 * each for each in STD]}
        return fn.crop_mirror_normalize(images, dtype=types.FLOAT16, output_layout="CHW", **values)

    running = pipeline()
    running.build()
    batches = DALIGenericIterator([running], ["x"], reader_name="files", auto_reset=True)
    yield lambda: (each[0]["x"] for each in batches)


def contenders(job: Job) -> dict[str, Make]:
    """Return those that are installed, by the name of their row."""
    makers: dict[str, Make] = {
        OURS: lambda: prefetchd_loader(job),
        "PyTorch DataLoader, pinned": lambda: pinned_dataloader(job),
    }
    if not isinstance(find_decoder(job.device), str):
        most = max(map(os.path.getsize, set(job.data.paths)))
        makers["prefetchd, decoded on the device"] = lambda: prefetchd_loader(job, decode="device", encoded_bytes=most)
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        makers["DALI, mixed"] = lambda: dali(job)
    return makers


class Step:
    """A product of matrices of a set time on the device, and a sum over the batch."""

    def __init__(self, device: torch.device, wanted_ms: float, matrix: int) -> None:
        self._device = device
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._a = torch.randn(matrix, matrix, device=device, dtype=dtype)
        self._out = torch.empty_like(self._a)
        self._times = 1
        batch = torch.zeros(1, 3, 8, 8, dtype=torch.float16, device=device)
        for _ in range(3):  # the clock of the device rises with work
            one_s = self._time(batch)
            self._times = max(1, round(self._times * wanted_ms / 1e3 / one_s))
        self.takes_s = self._time(batch)

    def _time(self, batch: torch.Tensor, repeat: int = 5) -> float:
        self.wait()
        began_s = time.perf_counter()
        for _ in range(repeat):
            self.run(batch)
        self.wait()
        return max(1e-6, (time.perf_counter() - began_s) / repeat)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Queue one step on `x`."""
        for _ in range(self._times):
            torch.mm(self._a, self._a, out=self._out)
        return x.float().sum()

    def event(self) -> Any:
        """Return what can be waited for: the end of all that is queued."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(blocking=True)
        event.record()
        return event

    def wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _for_ever(next_epoch: Epochs) -> Generator[torch.Tensor, None, None]:
    while True:
        yield from next_epoch()


def measure_rate(make: Make, job: Job, seconds: float) -> float:
    """Return images a second that `make` delivers to a loop that sums each batch."""
    with make() as next_epoch:
        for x in next_epoch():  # an epoch that is not timed: processes start, slots are registered
            x.float().sum()
        n_images, began_s = 0, time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            for x in next_epoch():
                total = x.float().sum()
                n_images += len(x)
            float(total)  # waits for the device
        return n_images / (time.perf_counter() - began_s)


def measure_steps(make: Make, step: Step, seconds: float) -> float:
    """Return steps a second on the batches of `make`."""
    with make() as next_epoch:
        batches = _for_ever(next_epoch)
        for _ in range(5):
            step.run(next(batches))
        step.wait()
        queued: deque[Any] = deque()
        n_steps, began_s = 0, time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            step.run(next(batches))
            queued.append(step.event())
            if len(queued) > MAX_QUEUED and (oldest := queued.popleft()) is not None:
                oldest.synchronize()
            n_steps += 1
        step.wait()
        rate = n_steps / (time.perf_counter() - began_s)
        batches.close()
        return rate
