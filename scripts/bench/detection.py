"""Images with boxes for several trainers: one prefetchd daemon that decodes once, or a DataLoader each.

    python scripts/bench/detection.py [MANIFEST] [--trainers 2] [--rounds 3]

Every trainer is a process of its own. It takes batches of 16 images, 224x224, random resized crop and flip, with up to
8 made boxes each, and reads one byte of every page. All start together, after the first batch of each. The kinds take
turns; medians over the rounds.

  prefetchd     target="boxes", two readers, one daemon for all trainers: each image is decoded once an epoch
  DataLoader    PyTorch's, two workers for each trainer: cv2 decodes, torchvision's transforms.v2 move images and boxes

  images/s      of all trainers together, from the start to the end of the last; the best and the worst round

Without torchvision, or where it cannot be imported, only prefetchd is measured, and a line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import manifest_or_photographs, setting, table

BATCH, SIZE, N_BOXES = 16, 224, 8
CROP = (0.3, 1.0)


def write_annotations(manifest: Path, folder: Path) -> Path:
    """Write a COCO file of the manifest's images with made boxes; return its path."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, line in enumerate(manifest.read_text().splitlines()):
        path = str((manifest.parent / line.rpartition(" ")[0]).resolve())
        height, width = cv2.imread(path).shape[:2]
        images.append({"id": number, "file_name": path, "width": width, "height": height})
        for _ in range(int(rng.integers(1, N_BOXES + 1))):
            left, top = rng.uniform(0, 0.7, 2) * (width, height)
            box = [left, top, 0.3 * width, 0.3 * height]
            category = int(rng.integers(5))
            annotations.append({"id": len(annotations), "image_id": number, "category_id": category, "bbox": box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n, "name": f"{n}"} for n in range(5)],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def ours(source: str, epochs: int, name: str) -> Iterator[Any]:
    """Yield batches of the daemon `name`."""
    import prefetchd

    with prefetchd.batches(daemon=name, epochs=epochs) as loader:
        for x, y in loader:
            yield x, y["boxes"]


def theirs(source: str, epochs: int, name: str) -> Iterator[Any]:
    """Yield batches of a DataLoader."""
    import torch
    from torch.utils.data import DataLoader, Dataset
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    content = json.loads(Path(source).read_text())
    boxes: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
    labels: dict[int, list[int]] = {image["id"]: [] for image in content["images"]}
    for each in content["annotations"]:
        boxes[each["image_id"]].append(each["bbox"])
        labels[each["image_id"]].append(each["category_id"])
    change = v2.Compose(
        [
            v2.RandomResizedCrop((SIZE, SIZE), scale=CROP, antialias=False),
            v2.RandomHorizontalFlip(),
            v2.ConvertBoundingBoxFormat("XYXY"),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return len(content["images"])

        def __getitem__(self, number: int) -> Any:
            torch.set_num_threads(1)
            cv2.setNumThreads(0)
            image = content["images"][number]
            pixels = cv2.cvtColor(cv2.imread(image["file_name"]), cv2.COLOR_BGR2RGB)
            size = pixels.shape[:2]
            sample = {
                "x": tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)),
                "boxes": tv_tensors.BoundingBoxes(boxes[number], format="XYWH", canvas_size=size, dtype=torch.float32),
                "labels": torch.tensor(labels[number]),
            }
            changed = change(sample)
            return changed["x"], changed["boxes"], changed["labels"]

    def together(samples: list[Any]) -> Any:
        x, found, numbers = zip(*samples, strict=True)
        y = torch.zeros(len(samples), N_BOXES, 4)
        kinds = torch.full((len(samples), N_BOXES), -1)
        for row, (each, label) in enumerate(zip(found, numbers, strict=True)):
            y[row, : len(each)], kinds[row, : len(label)] = each, label
        return torch.stack(x), y, kinds

    loader = DataLoader(Images(), BATCH, shuffle=True, num_workers=2, collate_fn=together, persistent_workers=True)
    for _ in range(epochs):
        for x, y, _ in loader:
            yield x.numpy(), y.numpy()


KINDS = {"prefetchd": ours, "DataLoader": theirs}


def train(kind: str, source: str, epochs: int, name: str) -> None:
    """Be one trainer: take a batch, say so, wait for the start, take the rest, and say how many images there were."""
    batches = KINDS[kind](source, epochs, name)
    next(batches)
    print("ready", flush=True)
    sys.stdin.readline()
    n = 0
    for x, y in batches:
        n += len(x) + 0 * int(x.reshape(-1)[::4096].sum(dtype=np.int64) + y.sum())
    print(n, flush=True)


def measure(kind: str, source: str, epochs: int, n_trainers: int, name: str) -> float:
    """Return the images a second of all trainers together."""
    command = [sys.executable, __file__, "--trainer", kind, "--epochs", str(epochs), "--daemon", name, source]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    trainers = [subprocess.Popen(command, **pipes) for _ in range(n_trainers)]
    for trainer in trainers:
        if trainer.stdout.readline() != "ready\n":  # type: ignore[union-attr]
            raise SystemExit(f"a trainer of {kind} ended before its first batch")
    begin_s = time.perf_counter()
    for trainer in trainers:
        trainer.stdin.write("go\n")  # type: ignore[union-attr]
        trainer.stdin.flush()  # type: ignore[union-attr]
    n = sum(int(trainer.stdout.readline()) for trainer in trainers)  # type: ignore[union-attr]
    took_s = time.perf_counter() - begin_s
    for trainer in trainers:
        trainer.communicate()
    return n / took_s


def serve(source: str) -> tuple[subprocess.Popen[str], str]:
    """Start a daemon for one round; return it and its name."""
    name = f"bench-detection-{os.getpid()}"
    options = {
        "target": "boxes",
        "batch-size": BATCH,
        "image-size": SIZE,
        "num-workers": 2,
        "augment": f"random_resized_crop(scale={CROP}),hflip",
        "name": name,
    }
    flags = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    command = [sys.executable, "-m", "prefetchd", "serve", source, "--shuffle", *flags]
    return subprocess.Popen(command, text=True, stderr=subprocess.DEVNULL), name


def why_not() -> str:
    """Return why torchvision cannot be measured; empty if it can."""
    try:
        from torchvision.transforms import v2  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return f"torchvision cannot be imported here ({error}): only prefetchd is measured"
    return ""


def main() -> None:
    """Measure, or be a trainer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", nargs="?", type=Path)
    parser.add_argument("--trainers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--trainer", choices=list(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--daemon", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.trainer:
        train(given.trainer, str(given.manifest), given.epochs, given.daemon)
        return
    print(setting("prefetchd", "numpy", "opencv-python-headless", "torch", "torchvision"))
    missing = why_not()
    kinds = ["prefetchd"] if missing else list(KINDS)
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    with manifest_or_photographs(given.manifest) as manifest, tempfile.TemporaryDirectory() as folder:
        source = str(write_annotations(manifest, Path(folder)))
        for _ in range(given.rounds):
            for kind in kinds:
                daemon, name = serve(source) if kind == "prefetchd" else (None, "")
                try:
                    found[kind].append(measure(kind, source, given.epochs, given.trainers, name))
                finally:
                    if daemon is not None:
                        daemon.terminate()
                        daemon.wait()
    rows = [["loader", "images/s", "least", "most"]]
    for kind, rates in found.items():
        rows.append([kind, *(f"{rate:.0f}" for rate in (statistics.median(rates), min(rates), max(rates)))])
    print(table(rows))
    if missing:
        print(missing)


if __name__ == "__main__":
    main()
