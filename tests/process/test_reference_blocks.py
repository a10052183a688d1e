"""Python blocks of reference pages run as they stand: data, stores, memory, determinism, augmentation, frameworks.

Other pages have tests of their own: `test_pages.py` names them.
"""

from __future__ import annotations

import gc
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import prefetchd
from tests.images import write_two_classes
from tests.pages import DOCS, Step, steps_of
from tests.process.commands import finish, run_command, start_script
from tests.records import jpeg, write_tar
from tests.tiffs import encode_tiff

LONG_S = 280  # frameworks take a while to load on a machine that is busy with other tests
N_SAMPLES = 8


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `train.txt` and `val.txt`: 8 images of two classes."""
    rows = write_two_classes(tmp_path / "photos", (48, 64))
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).write_text("".join(f"{path} {label}\n" for path, label in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[prefetchd.Loader]]:
    """The loaders that a block makes."""
    loaders: list[prefetchd.Loader] = []
    batches = prefetchd.batches

    def make(*words: Any, **options: Any) -> prefetchd.Loader:
        loaders.append(batches(*words, **options))
        return loaders[-1]

    monkeypatch.setattr(prefetchd, "batches", make)
    yield loaders
    for loader in loaders:
        loader.close()
    sys.modules.pop("my_transforms", None)


def python_of(page: str) -> list[Step]:
    return [step for step in steps_of(page) if step.kind == "python"]


def run_block(step: Step, page: str, names: dict[str, Any], opened: list[prefetchd.Loader]) -> list[Any]:
    """Run a block; return the first batch of each loader that it made, in memory of its own; nothing stays open."""
    names["prefetchd"] = prefetchd
    exec(compile(step.text, str(DOCS / page), "exec"), names)
    first = []
    for loader in opened:
        batch = loader.batch_at(0, 0)
        first.append(type(batch)(*(np.array(each) for each in batch)))
        del batch
    for name in ("x", "y", "batch", "loader", "train", "val", "first", "second", "global_crops", "local_crops"):
        names.pop(name, None)
    gc.collect()
    while opened:
        opened.pop().close()
    return first


def listed(folder: Path, name: str, images: list[bytes], suffix: str) -> None:
    """Write images, and the list `name` of them with labels."""
    for number, image in enumerate(images):
        (folder / f"{name}{number}.{suffix}").write_bytes(image)
    (folder / name).write_text("".join(f"{name}{number}.{suffix} {number % 2}\n" for number in range(len(images))))


def encoded(pixels: Any) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


@pytest.mark.timeout(LONG_S)
def test_blocks_of_the_page_of_data_run(here: Path, serve, opened: list[prefetchd.Loader]) -> None:
    """Those on data in memory run in test_in_memory.py."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    text = (DOCS / "data.md").read_text().splitlines()
    in_memory = range(text.index("## Data that is already in memory"), text.index("## Arrays"))
    paths = [line.split()[0] for line in (here / "train.txt").read_text().splitlines()]
    (here / "boxes.csv").write_text(
        "id,file,left,top\n" + "".join(f"{n},{path},0.{n},0.5\n" for n, path in enumerate(paths))
    )
    (here / "chest.csv").write_text(
        "path,finding\n" + "".join(f"{path},{('Mass|Nodule', 'Mass')[n % 2]}\n" for n, path in enumerate(paths))
    )
    (here / "chexpert.csv").write_text(
        "Path,Edema,Fracture\n" + "".join(f"{path},{n % 2},{('', 1)[n % 2]}\n" for n, path in enumerate(paths))
    )
    sixteen = np.random.default_rng(0).integers(0, 60_000, (N_SAMPLES, 48, 64, 13)).astype(np.uint16)
    listed(here, "depth.txt", [encoded(pixels[..., 0]) for pixels in sixteen], "png")
    listed(here, "xray.txt", [encoded(pixels[..., :3]) for pixels in sixteen], "png")
    listed(here, "rgba.txt", [encoded((pixels[..., :4] >> 8).astype(np.uint8)) for pixels in sixteen], "png")
    listed(here, "tiles.txt", [encode_tiff(pixels) for pixels in sixteen], "tif")
    np.save("x.npy", np.arange(640 * 80, dtype=np.int32).reshape(640, 80))
    np.save("y.npy", np.arange(640))
    names: dict[str, Any] = {
        "json": json, "io": io, "tarfile": tarfile, "np": np, "pyarrow": pyarrow, "MEANS": 0.5, "STDS": 0.25,
        "jpegs": [jpeg(number) for number in range(30)], "labels": list(range(30)),
        "sequences": [list(range(n + 1)) for n in range(40)],
    }  # fmt: skip
    served = False
    results: dict[str, list[Any]] = {}
    for step in python_of("data.md"):
        if step.line in in_memory:
            continue
        in_a_list = "for key, image" not in step.text
        names["samples"] = (
            [(path, n % 2) for n, path in enumerate(paths)] if in_a_list else [(f"{n}", jpeg(n), n) for n in range(4)]
        )
        if 'dataset="val"' in step.text and not served:
            serve("train=train.txt", "val=val.txt", "--batch-size", 4, "--val.batch-size", 2)
            served = True
        results[step.text.strip()] = run_block(step, "data.md", names, opened)
    batches = [batch for found in results.values() for batch in found]
    assert len(results) == 11
    kinds = [(batch.x.shape[1:], str(batch.x.dtype)) for batch in batches]
    assert kinds == [
        ((224, 224, 3), "uint8"), ((224, 224, 3), "uint8"), ((224, 224, 3), "uint8"),
        ((80,), "int32"), ((80,), "int32"),
        ((224, 224, 1), "uint16"), ((224, 224, 4), "uint8"), ((224, 224, 13), "float32"), ((224, 224, 1), "uint16"),
        ((224, 224, 3), "uint8"), ((224, 224, 3), "uint8"),
    ]  # fmt: skip
    assert batches[0].y.shape == (N_SAMPLES, 2)
    assert batches[1].y.tolist()[:2] == [[1, 1], [1, 0]]
    assert batches[2].y.tolist()[:2] == [[0, -1], [1, 1]]
    for made, n_samples in (("train.jsonl", N_SAMPLES), ("shard-000.tar", 4), ("train-000.parquet", 30)):
        with prefetchd.batches(made, image_size=32, batch_size=4) as loader:
            assert loader.n_samples == n_samples


def test_blocks_of_the_page_of_stores_run(
    here: Path, opened: list[prefetchd.Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    from tests.servers.web import WebServer

    home = here / "stored" / "bucket"
    home.mkdir(parents=True)
    (here / "photos").rename(home / "train")
    lists = here / "stored" / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text((here / "train.txt").read_text().replace("photos/", "../bucket/train/"))
    (home / "images").symlink_to(home / "train")
    (here / "train.csv").write_text(
        "path,label\n" + (here / "train.txt").read_text().replace("photos/", "").replace(" ", ",")
    )
    for shard in range(2):
        write_tar(home / f"train-{shard:03d}.tar", [("0.cls", "1"), ("0.jpg", jpeg(shard))])
    with WebServer(home.parent) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        result = run_command("index", "s3://bucket/train-{000..001}.tar", "-o", "train.idx")
        assert result.returncode == 0, result.stderr
        (step,) = python_of("stores.md")
        text = step.text.replace("https://example.org", server.url).replace("{000..099}", "{000..001}")
        found = run_block(Step("python", text), "stores.md", {}, opened)
    assert [len(batch.x) for batch in found] == [N_SAMPLES, N_SAMPLES, N_SAMPLES, 2]


def test_blocks_of_the_page_of_memory_change_running_daemons(here: Path, serve, opened: list[prefetchd.Loader]) -> None:
    for name in ("default", "val"):
        serve("train.txt", "--num-workers", 1, "--batch-size", 4, name=name)
    (step,) = python_of("memory-budget.md")
    run_block(step, "memory-budget.md", {}, opened)
    with prefetchd.batches() as loader:
        assert loader.status()["memory"]["budget_bytes"] == 1 << 30


def test_blocks_of_the_page_of_determinism_run(
    here: Path, serve, opened: list[prefetchd.Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", exc_type=ImportError)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    serve("train.txt", "--batch-size", 1)
    ranks, resuming = python_of("determinism.md")
    all_of_them, third = run_block(ranks, "determinism.md", {}, opened)
    assert (all_of_them.y.tolist(), third.y.tolist()) != ([], [])
    loader = prefetchd.batches("train.txt", batch_size=1, rank=0, world_size=1)
    for batch in loader:
        if batch.index == 4:
            break
    del batch
    names = {"torch": torch, "loader": loader, "model": torch.nn.Linear(2, 2), "path": here / "checkpoint.pt"}
    exec(compile(resuming.text, "determinism.md", "exec"), names)
    assert names.pop("y").tolist() == [1], "the last of the epoch"
    names.clear()
    assert loader.state_dict()["epoch"] == 1


def test_blocks_of_the_page_of_augmentation_run(here: Path, opened: list[prefetchd.Loader]) -> None:
    """The recipes, and those that mix batches, run in test_recipes.py."""
    text = (DOCS / "augmentation.md").read_text().splitlines()
    elsewhere = range(text.index("## Recipes"), text.index("## MixUp and CutMix") + 80)
    seen: list[Any] = []
    names: dict[str, Any] = {"train": lambda x, y: seen.append(x.shape)}
    masks = [encoded(np.full((48, 64), number, np.uint8)) for number in range(N_SAMPLES)]
    for number, mask in enumerate(masks):
        (here / f"{number}.png").write_bytes(mask)
    paths = [line.split()[0] for line in (here / "train.txt").read_text().splitlines()]
    (here / "list.txt").write_text("".join(f"{path} {number}.png\n" for number, path in enumerate(paths)))
    shapes = []
    for step in steps_of("augmentation.md"):
        if step.line in elsewhere and "my_transforms" not in step.text:
            continue
        if "# my_transforms.py" in step.text:
            if "albumentations" not in step.text:
                Path("my_transforms.py").write_text(step.text)
        elif step.kind == "python":
            shapes += [
                tuple(each.shape for each in batch) for batch in run_block(step, "augmentation.md", names, opened)
            ]
    assert seen
    assert [each[0] for each in shapes] == [
        (4, 224, 224, 3), (8, 2, 224, 224, 3), (8, 2, 224, 224, 3), (8, 224, 224, 3), (8, 224, 224, 3),
    ]  # fmt: skip
    assert [each[1] for each in shapes[-2:]] == [(8, 10), (8, 224, 224)]


# What a reader of docs/frameworks.md has, by a word of the block: each runs in a process of its own.
HAVE_KERAS = """
import os
os.environ["KERAS_BACKEND"] = "{backend}"
import keras
model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
"""
FRAMEWORKS = {
    'device="cuda", rank="env"': ("torch", ""),
    'decode="device"': ("torch", ""),
    "def on_load_checkpoint": ("", "import prefetchd\n"),
    "prefetchd.keras.dataset": ("keras torch", HAVE_KERAS.format(backend="torch")),
    "model.fit(iter(loader)": ("keras torch", HAVE_KERAS.format(backend="torch") + "import prefetchd\n"),
    "jax.device_put": ("jax", "step, parameters = lambda parameters, x, y: (parameters, x.mean()), 0\n"),
    "prefetchd.tensorflow": (
        "keras tensorflow",
        HAVE_KERAS.format(backend="tensorflow") + "import prefetchd\n",
    ),
    "SGDClassifier": ("sklearn", ""),
}


@pytest.mark.timeout(LONG_S + 20)
@pytest.mark.parametrize("words", FRAMEWORKS)
def test_block_of_the_page_of_frameworks_runs(words: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules, before = FRAMEWORKS[words]
    for module in modules.split():
        pytest.importorskip(module, exc_type=ImportError)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if "rank=" in words:  # as torchrun has it for the only process
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
    (step,) = [step for step in python_of("frameworks.md") if words in step.text]
    text = re.sub("batch_size=(256|8)", "batch_size=4", step.text).replace('device="cuda", ', 'device="cpu", ')
    text = text.replace("classes=range(1)", "classes=range(10)")  # which `steps_of` takes for a number of epochs
    result = finish(start_script(here / "block.py", before + text.lstrip("\n")), LONG_S)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ("is left to the readers" in result.stderr) == ("decode=" in words), result.stderr


def test_every_block_of_the_page_of_frameworks_is_run() -> None:
    texts = [step.text for step in python_of("frameworks.md")]
    assert [sum(words in text for words in FRAMEWORKS) for text in texts] == [1] * len(FRAMEWORKS)


def test_every_page_with_python_is_run_by_some_test() -> None:
    """By its name, in a test of processes."""
    folder = Path(__file__).parent
    tests = "".join(path.read_text() for path in folder.glob("test_*.py"))
    pages = [path for path in DOCS.rglob("*.md") if "```python" in path.read_text()]
    assert len(pages) > 25
    assert [page.name for page in pages if f'{page.name}"' not in tests] == []
