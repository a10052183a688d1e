"""The pages that teach run as they stand there: every Python block, and every command."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.detection import paint
from tests.images import write_two_classes
from tests.pages import DOCS, NOT_RUN, Step, steps_of, unknown_lines
from tests.process.commands import finish, run_command, start_script
from tests.records import write_tar

# What each page needs beside prefetchd.
PAGES = {
    "../README.md": ("torch", "keras"),
    "index.md": (),
    "how-it-works.md": (),
    "watching.md": ("tqdm",),
    "tutorials/first-training.md": ("torch",),
    "tutorials/team.md": (),
    "tutorials/bucket.md": ("obstore",),
    "tutorials/machines.md": ("torch",),
    "tutorials/detection.md": ("torch",),
    "howto/resume.md": (),
    "howto/balance.md": (),
    "howto/containers.md": (),
    "howto/slow.md": ("torch",),
    "howto/transform.md": (),
    "howto/bad-batch.md": (),
    "coming-from/pytorch.md": ("torch",),
    "coming-from/keras.md": ("torch", "keras"),
    "coming-from/tf-data.md": ("tensorflow",),
    "coming-from/ffcv.md": ("torch",),
    "coming-from/webdataset.md": (),
    "coming-from/mosaicml.md": ("obstore",),
    "coming-from/dali.md": ("torch",),
    "coming-from/grain.md": (),
}
LONG_S = 280  # frameworks take a while to load on a machine that is busy with other tests
NOT_HERE = ("prefetchd dashboard",)  # needs an extra; tests of its own


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the pages name: 8 images of two classes, as lists and as a folder; annotations."""
    rows = write_two_classes(tmp_path / "photos", (48, 64))
    listed = "".join(f"{path} {label}\n" for path, label in rows)
    (tmp_path / "train.txt").write_text(listed)
    (tmp_path / "val.txt").write_text(listed)
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(f"{path[7:]},{path[7:10]}\n" for path, _ in rows))
    (tmp_path / "list.csv").write_text("path,label\n" + listed.replace(" ", ","))
    for shard in range(2):
        some = [path for path, label in rows if label == shard]
        members: list[tuple[str, Any]] = [(Path(path).name, (tmp_path / path).read_bytes()) for path in some]
        members += [(f"{Path(path).stem}.cls", str(shard)) for path in some]
        write_tar(tmp_path / f"shards-{shard:03d}.tar", sorted(members))
    (tmp_path / "images").mkdir()
    coco = paint(tmp_path / "images").coco()
    coco.rename(tmp_path / "annotations.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def bucket(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store of objects with a bucket `bucket`: the class folders below `train/`, and two shards."""
    from tests.servers.web import WebServer

    home = here / "stored" / "bucket"
    home.mkdir(parents=True)
    (here / "photos").rename(home / "train")
    for shard in here.glob("shards-*.tar"):
        shard.rename(home / shard.name)
    with WebServer(home.parent) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield home


# The model and the loss that a reader has. In a process of its own, for its own backend of Keras.
WITH_KERAS = """
import os
os.environ["KERAS_BACKEND"] = "torch"
import keras, torch
model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 2))
criterion = torch.nn.CrossEntropyLoss()
keras_model = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
keras_model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
"""

IN_A_PROCESS = {
    "../README.md": WITH_KERAS,
    "coming-from/keras.md": WITH_KERAS + "model = keras_model\n",
    "coming-from/tf-data.md": "",
}


def run(step: Step, names: dict[str, Any], page: str, serve: Callable[..., Any]) -> None:
    if step.kind == "python":
        exec(compile(step.text, str(DOCS / page), "exec"), names)
    elif step.kind == "file":
        Path(step.name).write_text(step.text)
    elif not step.text.startswith(NOT_HERE):
        words = step.words
        if words[0] == "serve":
            given = (
                words[words.index("--name") + 1] if "--name" in words else "train" if "--config" in words else "default"
            )
            serve(*words[1:], name=given)
            return
        if words[0] == "top" and "--once" not in words:
            assert "NAME" in run_command("top", "--help").stdout  # goes on until a key ends it
            return
        result = run_command(*words)
        assert result.returncode == 0, f"{page}, line {step.line}: {step.text}\n{result.stdout}{result.stderr}"


@pytest.mark.timeout(LONG_S + 20)
@pytest.mark.filterwarnings("ignore:os.fork")  # of JAX, if a block of another page has loaded it
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_runs(
    page: str, here: Path, serve, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in PAGES[page]:
        pytest.importorskip(needed, exc_type=ImportError)
    if "bucket" in page or "mosaicml" in page:
        request.getfixturevalue("bucket")
    if "machines" in page:  # as torchrun has it for the only process
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
    names: dict[str, Any] = {}
    steps = steps_of(page)
    assert any(step.kind == "python" for step in steps)
    for step in steps:
        if step.kind != "python" or page not in IN_A_PROCESS:
            run(step, names, page, serve)
    if page in IN_A_PROCESS:
        code = "\n".join(step.text for step in steps if step.kind == "python")
        result = finish(start_script(Path("of_the_page.py"), IN_A_PROCESS[page] + code), LONG_S)
        assert result.returncode == 0, result.stderr
    names.clear()
    for name in ("my_transforms", "detect"):
        sys.modules.pop(name, None)
    gc.collect()


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_page_are_run_or_known_not_to_be(page: str) -> None:
    assert unknown_lines(page) == []


def test_every_page_that_teaches_is_run() -> None:
    pages = {
        os.path.relpath(path, DOCS)
        for folder in ("tutorials", "howto", "coming-from")
        for path in (DOCS / folder).glob("*.md")
    }
    assert pages <= set(PAGES)
    assert NOT_RUN.match("pip install .")
