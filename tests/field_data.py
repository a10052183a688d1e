"""Samples with fields: images, masks, texts and numbers in a table, JSON lines and folders."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.images import photograph

N_SAMPLES = 20


SIZE = (40, 60)


QUICK = {"num_workers": 1, "memory_budget": "256MiB", "batch_size": 8}


def mask_of(number: int) -> np.ndarray:
    """Return large areas of class numbers."""
    return np.kron(np.random.default_rng(number).integers(0, 5, (4, 6)), np.ones((10, 10))).astype(np.uint8)


@pytest.fixture(scope="module", name="data")
def field_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `train.csv`, `train.jsonl` and `pairs/` over the same samples."""
    folder = tmp_path_factory.mktemp("fields")
    for name in ("images", "depth", "masks", "captions", "embeddings"):
        (folder / "pairs" / name).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number in range(N_SAMPLES):
        stem = f"{number:03d}"
        pairs = folder / "pairs"
        cv2.imwrite(str(pairs / "images" / f"{stem}.png"), photograph(*SIZE, number))
        cv2.imwrite(str(pairs / "depth" / f"{stem}.png"), photograph(*SIZE, 100 + number)[..., 0])
        cv2.imwrite(str(pairs / "masks" / f"{stem}.png"), mask_of(number))
        (pairs / "captions" / f"{stem}.txt").write_text(caption(number))
        (pairs / "images" / f"{stem}.txt").write_text(f"beside {number}")
        np.save(pairs / "embeddings" / f"{stem}.npy", np.full(4, number, np.float32))
        rows.append(
            {
                "path": f"pairs/images/{stem}.png",
                "depth": f"pairs/depth/{stem}.png",
                "mask": f"pairs/masks/{stem}.png",
                "embedding": f"pairs/embeddings/{stem}.npy",
                "label": ("dog", "cat")[number % 2],
                "caption": caption(number),
                "score": number / 2,
                "roll": number,
                "pitch": -number,
            }
        )
    with open(folder / "train.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = [json.dumps({**row, "vector": [number, 2 * number, 7]}) for number, row in enumerate(rows)]
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def caption(number: int) -> str:
    return f'a "größe", {number}'
