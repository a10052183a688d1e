"""Megatron Energon, with the encoded files in tar shards."""

from __future__ import annotations

import contextlib
import io
import math
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    get_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.flavors import CrudeSample, ImageClassificationSample

from loaders import SIZE_PX, Data, Epochs

TITLE = "Energon"
PACKAGES = ("megatron-energon", "torch", "opencv-python-headless")
DETAIL = "tar shards that `energon prepare` indexed, cv2 in the cooker, a shuffle buffer of the whole set, two workers"
SHARDS = 8
PREPARE = ("--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "1")


@stateless
def _cook(sample: CrudeSample) -> ImageClassificationSample:
    image = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR_RGB)
    pixels = torch.from_numpy(cv2.resize(image, (SIZE_PX, SIZE_PX)))
    return ImageClassificationSample(**basic_sample_keys(sample), image=pixels, label=int(sample["cls"]))


class Decoding(DefaultTaskEncoder):  # type: ignore[misc]  # its package has no types
    """Decodes each sample by cv2."""

    decoder = None
    cookers = (Cooker(_cook),)


def _write_shards(data: Data, folder: Path) -> None:
    folder.mkdir()
    samples = list(enumerate(zip(data.paths, data.labels, strict=True)))
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard_{shard:03d}.tar", "w") as tar:
            for number, (path, label) in samples[shard::SHARDS]:
                for suffix, content in (("jpg", Path(path).read_bytes()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    energon = Path(sys.executable).with_name("energon")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    subprocess.run([energon, "prepare", *PREPARE, folder], check=True, **quiet)


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    folder = data.folder / "energon"
    if not folder.exists():
        _write_shards(data, folder)
    cv2.setNumThreads(0)
    dataset = get_train_dataset(
        folder,
        batch_size=data.batch_size,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=data.workers),
        task_encoder=Decoding(),
        shuffle_buffer_size=len(data.paths),
        max_samples_per_sequence=None,
        virtual_epoch_length=math.ceil(len(data.paths) / data.batch_size),
    )
    loader = get_loader(dataset)

    def next_epoch() -> Iterator[tuple[Any, Any]]:
        for batch in loader:
            yield batch.image, batch.label

    yield next_epoch
