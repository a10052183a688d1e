"""One measurement of one loader over an object store: started by `stores.py`, answers with a line of JSON.

    python scripts/bench/measure_stores.py ARM SOURCE [--workers 2] [--batch-size 64] [--epochs 1] [--folder DIR]

ARM is how images come; SOURCE is what it reads. It runs in any interpreter that has the arm's library, and imports
nothing else. The endpoint and the keys are in the environment (`AWS_ENDPOINT_URL`, ...). `make_mds` and `make_litdata`
write the formats of two of the loaders, by their own libraries.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE_PX = 224
WARM_BATCHES = 4  # before the clock: processes start, and the first reads are in flight

Batches = Iterator[Any]

_declared: list[Any] = []


def decoded(encoded: Any) -> Any:
    """Return the image, (224, 224, 3) RGB, as the other arms make it."""
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(cv2.resize(pixels, (SIZE_PX, SIZE_PX)), cv2.COLOR_BGR2RGB)


@contextlib.contextmanager
def ours(source: str, options: argparse.Namespace) -> Iterator[Batches]:
    import prefetchd

    more = {} if options.index is None else {"index": options.index}
    with prefetchd.batches(
        source,
        batch_size=options.batch_size,
        image_size=SIZE_PX,
        shuffle=True,
        num_workers=options.workers,
        epochs=options.epochs,
        timeout=120,
        **more,
    ) as loader:
        yield iter(loader)


def _torch_batches(dataset: Any, options: argparse.Namespace, loader_class: Any = None, **more: Any) -> Batches:
    import torch.utils.data

    loader = (loader_class or torch.utils.data.DataLoader)(
        dataset,
        batch_size=options.batch_size,
        num_workers=options.workers,
        worker_init_fn=lambda _: cv2.setNumThreads(0),
        multiprocessing_context="fork",
        **more,
    )
    for _ in range(options.epochs):
        yield from loader


class Listed:
    """A data set whose `__getitem__` fetches an object; each worker has a client of its own."""

    def __init__(self, source: str, connect: Callable[[], Callable[[str, str], bytes]]) -> None:
        self._connect = connect
        self._fetch: Callable[[str, str], bytes] | None = None
        self._bucket, _, key = source.removeprefix("s3://").partition("/")
        folder = key.rpartition("/")[0]
        lines = connect()(self._bucket, key).decode().splitlines()
        self._keys = [f"{folder}/{line.rpartition(' ')[0]}" for line in lines]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> Any:
        if self._fetch is None:
            self._fetch = self._connect()
        return decoded(self._fetch(self._bucket, self._keys[number])), number


def _boto3() -> Callable[[str, str], bytes]:
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    return lambda bucket, key: client.get_object(Bucket=bucket, Key=key)["Body"].read()


def _s3fs() -> Callable[[str, str], bytes]:
    import s3fs

    store = s3fs.S3FileSystem(client_kwargs={"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}, skip_instance_cache=True)
    return lambda bucket, key: store.cat_file(f"{bucket}/{key}")


@contextlib.contextmanager
def boto3_getitem(source: str, options: argparse.Namespace) -> Iterator[Batches]:
    yield _torch_batches(Listed(source, _boto3), options, shuffle=True)


@contextlib.contextmanager
def s3fs_getitem(source: str, options: argparse.Namespace) -> Iterator[Batches]:
    import fsspec.asyn

    data = Listed(source, _s3fs)
    fsspec.asyn.iothread[0], fsspec.asyn.loop[0] = None, None  # or the workers, forked, would wait for its thread
    yield _torch_batches(data, options, shuffle=True)


def _declare_operators() -> None:
    """Declare what importing torchvision looks for, and no loader calls, where it was built for another torch."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)  # it lives as long as its object
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # it is there
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@contextlib.contextmanager
def mosaicml(source: str, options: argparse.Namespace) -> Iterator[Batches]:
    _declare_operators()
    from streaming import StreamingDataset

    class Photographs(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, number: Any) -> Any:
            found = super().__getitem__(number)
            return decoded(found["image"]), found["label"]

    data = Photographs(
        remote=source, local=f"{options.folder}/mds", shuffle=True, batch_size=options.batch_size, num_canonical_nodes=1
    )
    yield _torch_batches(data, options)


@contextlib.contextmanager
def litdata(source: str, options: argparse.Namespace) -> Iterator[Batches]:
    import litdata as library
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the store here is without TLS

    class Photographs(library.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, number: Any) -> Any:
            found = super().__getitem__(number)
            return decoded(found["image"]), found["label"]

    data = Photographs(
        source,
        cache_dir=f"{options.folder}/litdata",
        shuffle=True,
        storage_options={
            "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
            "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        },
    )
    yield _torch_batches(data, options, library.StreamingDataLoader)


ARMS = {
    "ours": ours,
    "boto3_getitem": boto3_getitem,
    "s3fs_getitem": s3fs_getitem,
    "mosaicml": mosaicml,
    "litdata": litdata,
}


def samples_in(source: str) -> list[dict[str, Any]]:
    """Return the encoded samples of the manifest at `source`."""
    folder = Path(source).parent
    pairs = (line.rpartition(" ") for line in Path(source).read_text().splitlines())
    return [{"image": (folder / path).read_bytes(), "label": int(label)} for path, _, label in pairs]


def make_mds(source: str, options: argparse.Namespace) -> None:
    _declare_operators()
    from streaming import MDSWriter

    with MDSWriter(out=options.folder, columns={"image": "bytes", "label": "int"}, size_limit=1 << 25) as writer:
        for sample in samples_in(source):
            writer.write(sample)


def make_litdata(source: str, options: argparse.Namespace) -> None:
    import litdata as library

    samples = samples_in(source)
    library.optimize(
        lambda number: samples[number],
        list(range(len(samples))),
        options.folder,
        chunk_bytes=1 << 25,
        num_workers=1,
        start_method="fork",
    )


def processor_s(pid: int | str = "self") -> float:
    """Return the processor time of a process and of those below it that run, in seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # it has ended
        return 0.0
    own_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own_s + sum(processor_s(child) for some in children for child in some)


def measure(batches: Batches, n_warm: int) -> dict[str, float]:
    """Return images a second and processor time an image after the first batches, and how long the first took."""
    begun_s = time.perf_counter()
    n_images, n_before, started_s, before_s, first_s, used_s = 0, 0, 0.0, 0.0, 0.0, 0.0
    for number, (x, _) in enumerate(batches):
        np.asarray(x).reshape(-1).view(np.uint8)[::4096].sum(dtype=np.int64)
        if number == 0:
            first_s = time.perf_counter() - begun_s
        if started_s:
            n_images += len(x)
            used_s = processor_s() - before_s  # here, as the last workers end with the loop
        else:
            n_before += len(x)
            if number + 1 == n_warm:
                started_s, before_s = time.perf_counter(), processor_s()
    if not n_images:
        raise SystemExit(f"cannot measure: more than {n_warm} batches are needed; raise --repeat")
    return {
        "images_per_s": n_images / (time.perf_counter() - started_s),
        "first_s": first_s,
        "loader_s": used_s / n_images,
        "n_images": n_before + n_images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=(*ARMS, "make_mds", "make_litdata"))
    parser.add_argument("source")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--warm", type=int, default=WARM_BATCHES, help="batches before the clock (4)")
    parser.add_argument("--folder", help="an empty folder for what the loader keeps")
    parser.add_argument("--index", help="index of tar shards")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print
    if options.arm in ARMS:
        with ARMS[options.arm](options.source, options) as batches:
            answers.write(json.dumps(measure(batches, options.warm)) + "\n")
    else:
        {"make_mds": make_mds, "make_litdata": make_litdata}[options.arm](options.source, options)
        answers.write("{}\n")
    answers.flush()
    sys.stderr.flush()


if __name__ == "__main__":
    main()
