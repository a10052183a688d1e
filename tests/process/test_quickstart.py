"""The Python blocks of docs/quickstart.md run as they stand there."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import pytest

from tests.images import write_two_classes

PAGE = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()
# Small batches and one epoch: a test has not the time of a training.
BLOCKS = [
    block.replace("batch_size=64", "batch_size=4").replace("range(10)", "range(1)")
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    if "prefetchd.batches()" not in block  # attaches to a daemon that `serve` started
]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the page names: 8 samples of two classes."""
    rows = write_two_classes(tmp_path / "photos", (120, 160))
    listed = "".join(f"{path} {label}\n" for path, label in rows)
    (tmp_path / "train.txt").write_text(listed)
    (tmp_path / "val.txt").write_text(listed)
    (tmp_path / "train.csv").write_text("path,label\n" + listed.replace(" ", ","))
    (tmp_path / "photos/dog/2.jpg").write_bytes((tmp_path / "photos/dog/1.jpg").read_bytes())
    (tmp_path / "photos/cat/1.jpg").write_bytes((tmp_path / "photos/cat/0.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_of_the_quickstart_runs(trained: Path) -> None:
    torch = pytest.importorskip("torch", exc_type=ImportError)
    pandas = pytest.importorskip("pandas", exc_type=ImportError)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 2))
    names: dict[str, Any] = {
        "torch": torch,
        "model": model,
        "criterion": torch.nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.01),
        "frame": pandas.read_csv("train.csv"),
    }
    assert len(BLOCKS) >= 6
    for block in BLOCKS:
        exec(compile(block, "docs/quickstart.md", "exec"), names)
    assert (trained / "checkpoint.pt").stat().st_size
    assert len(names["val"]) == 2
    names["train"].load_state_dict(torch.load("checkpoint.pt")["data"])
    assert next(iter(names["train"])).epoch == 1
    names.clear()
    gc.collect()
