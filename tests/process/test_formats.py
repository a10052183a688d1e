"""Every format through a daemon and its readers: OpenCV's pixels, and headers that claim too much as bad samples."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import prefetchd
from tests.images import claims, photograph, write_kinds
from tests.records import write_tar

OPTIONS: dict[str, Any] = {"batch_size": 4, "image_size": 32, "num_workers": 1, "on_error": "skip"}


def test_every_format_is_delivered_as_cv2_reads_and_resizes_it(tmp_path: Path) -> None:
    kinds = write_kinds(tmp_path / "kinds")
    del kinds["exif6.tiff"]  # cv2.imread refuses it
    del kinds["grey.pfm"]  # and gives this one without colours
    (tmp_path / "list.txt").write_text("".join(f"{path} {n}\n" for n, path in enumerate(kinds.values())))
    options = {**OPTIONS, "color": "bgr", "shrink_on_load": False, "on_error": "raise", "max_image_pixels": 60 * 83}
    delivered = 0
    with prefetchd.batches(str(tmp_path / "list.txt"), **options) as loader:
        for x, y in loader:
            for image, label in zip(x, y, strict=True):
                name, path = list(kinds.items())[label]
                assert np.array_equal(image, cv2.resize(cv2.imread(str(path)), (32, 32))), name
                delivered += 1
    assert delivered == len(kinds)


@pytest.fixture(scope="module")
def mixed() -> list[bytes]:
    """A good image, then a claim, and so on; the good ones have the even numbers."""
    good = cv2.imencode(".png", photograph(40, 40))[1].tobytes()
    return [data for claim in claims().values() for data in (good, claim)]


def as_files(folder: Path, images: list[bytes]) -> str:
    for number, data in enumerate(images):
        (folder / f"{number:02d}.png").write_bytes(data)
    lines = (json.dumps({"image": f"{number:02d}.png", "label": number}) + "\n" for number in range(len(images)))
    (folder / "list.jsonl").write_text("".join(lines))
    return str(folder / "list.jsonl")


def as_tar(folder: Path, images: list[bytes]) -> str:
    members = [member for n, data in enumerate(images) for member in ((f"{n:02d}.png", data), (f"{n:02d}.cls", str(n)))]
    return write_tar(folder / "shard.tar", members)


def as_parquet(folder: Path, images: list[bytes]) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"image": images, "label": list(range(len(images)))})
    parquet.write_table(table, folder / "table.parquet")
    return str(folder / "table.parquet")


@pytest.mark.parametrize("written", [as_files, as_tar, as_parquet])
@pytest.mark.parametrize("budget", ["200MiB", "auto"])
def test_a_claim_of_gigabytes_is_a_bad_sample_whatever_the_budget(
    tmp_path: Path, mixed: list[bytes], written: Any, budget: str
) -> None:
    source = written(tmp_path, mixed)
    with prefetchd.batches(source, memory_budget=budget, **OPTIONS) as loader:
        delivered = [int(label) for _, y in loader for label in y]
        bad = {sample["sample_id"]: sample["reason"] for sample in loader.status()["bad"]}
    assert delivered == list(range(0, len(mixed), 2))
    assert sorted(bad) == list(range(1, len(mixed), 2))
    assert sum("bytes for each of max_image_pixels" in reason for reason in bad.values()) == len(claims())


def test_a_decode_within_the_limit_that_a_stated_budget_cannot_hold_names_its_line(tmp_path: Path) -> None:
    image = struct.pack("<IiiHHIIiiII", 40, 15000, 15000, 1, 8, 1, 0, 0, 0, 0, 0)  # in runs, and ends at once
    (tmp_path / "runs.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 56, 0, 0, 54) + image + b"\0\1")
    (tmp_path / "good.png").write_bytes(cv2.imencode(".png", photograph(40, 40))[1].tobytes())
    (tmp_path / "list.txt").write_text("good.png 0\nruns.bmp 1\ngood.png 2\n")
    with (
        prefetchd.batches(str(tmp_path / "list.txt"), memory_budget="200MiB", **OPTIONS) as loader,
        pytest.raises(prefetchd.BudgetError, match=r"list\.txt line 2: .*runs\.bmp.*1\.3 GiB"),
    ):
        list(loader)
