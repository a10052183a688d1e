"""The Python blocks of docs/order.md run as they stand there, on small data of every kind that they name."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from tests.images import write_two_classes
from tests.pages import steps_of
from tests.records import write_tar

N_SAMPLES = 8


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two class folders, lists of them, tar shards, and sequences of tokens."""
    rows = write_two_classes(tmp_path / "images", (64, 48), (48, 64), (48, 64))
    listed = "".join(f"{path} {label}\n" for path, label in rows)
    for name in ("images.txt", "photos.txt", "train.txt"):
        (tmp_path / name).write_text(listed)
    (tmp_path / "drawings").symlink_to(tmp_path / "images")
    (tmp_path / "photos.txt").write_text(re.sub(r"/(\w+)/(\S+) \d", r"/\1/\2 \1", listed))  # names, as the folders have
    for shard in range(2):
        members: list[tuple[str, Any]] = []
        for path, _ in rows[shard::2]:
            members += [(Path(path).name, (tmp_path / path).read_bytes()), (f"{Path(path).stem}.cls", str(shard))]
        write_tar(tmp_path / f"shards-{shard:03d}.tar", members)
    lengths = np.arange(N_SAMPLES) * 30 + 20
    np.save(tmp_path / "tokens.npy", np.arange(lengths.sum(), dtype=np.int32))
    np.save(tmp_path / "offsets.npy", np.concatenate(([0], np.cumsum(lengths))))
    np.save(tmp_path / "y.npy", np.arange(N_SAMPLES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_of_the_page_runs(here: Path) -> None:
    names: dict[str, Any] = {
        "prefetchd": prefetchd,
        "np": np,
        "scores": np.linspace(0, 1, N_SAMPLES),
        "difficulty": np.arange(N_SAMPLES)[::-1],
        "n": N_SAMPLES,
        "frame": {  # as a DataFrame: columns
            "path": [line.split()[0] for line in (here / "images.txt").read_text().splitlines()],
            "label": [number % 2 for number in range(N_SAMPLES)],
            "quality": np.linspace(0.1, 1, N_SAMPLES),
        },
        "is_hard": np.arange(N_SAMPLES) % 2 == 0,
        "model": lambda tokens, documents, positions: tokens,
    }
    steps = [step for step in steps_of("order.md") if step.kind == "python"]
    assert len(steps) >= 9
    for step in steps:
        code = step.text.replace("{000..099}", "{000..001}").replace("100_000", "4")
        code = code.replace("batch_size=4", "batch_size=4, image_size=32")
        if "image_size=[" in code or "tokens.npy" in code:
            code = code.replace(", image_size=32", "")
        exec(compile(code.replace("batch_size=16", "batch_size=1"), "docs/order.md", "exec"), names)
        for loader in [value for value in names.values() if isinstance(value, prefetchd.Loader)]:
            if "batch" not in code.split("=")[0]:
                assert loader.peek() is not None
            loader.close()
        names = {name: value for name, value in names.items() if not isinstance(value, prefetchd.Loader)}
    names.clear()
    gc.collect()
