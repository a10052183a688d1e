"""Folders of fields, COCO files and YOLO folders in a store of objects: the same batches as from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from prefetchd.errors import ConfigError, ManifestError
from tests.process.test_stores import assert_equal, batches
from tests.records import jpeg
from tests.servers.web import WebServer

pytest.importorskip("obstore")

SAMPLES = 20
BOXES = {"image": "image(column=path)", "boxes": "boxes(labels=labels)"}
PAIRS = {"image": "image(column=images)", "mask": "mask(column=masks)", "text": "text(column=captions, max_bytes=64)"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "a folder for each field": ("pairs", {"fields": PAIRS}),
    "below a slash": ("pairs/", {"fields": {"image": "image(column=images/a)", "mask": "mask(column=masks/a)"}}),
    "YOLO": ("yolo", {"fields": BOXES}),
    "YOLO of a split": ("yolo/images/train/", {"fields": BOXES}),
    "COCO": ("coco.json", {"fields": BOXES}),
    "COCO with images elsewhere": ("lists/coco.json", {"fields": BOXES, "root": "pairs/images"}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bucket `data`."""
    home = tmp_path_factory.mktemp("served")
    bucket = home / "data"
    names = [f"{'ab'[number % 2]}/{number} 100%" for number in range(SAMPLES)]
    for number, name in enumerate(names):
        for folder in ("images", "masks", "captions"):
            (bucket / "pairs" / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / "pairs" / "images" / f"{name}.jpg").write_bytes(jpeg(number))
        cv2.imwrite(str(bucket / "pairs" / "masks" / f"{name}.png"), np.full((40, 56), number, np.uint8))
        (bucket / "pairs" / "captions" / f"{name}.txt").write_text(f"caption {number}")
    (bucket / "pairs" / "images" / "a" / ".hidden.jpg").write_text("no image")
    (bucket / "pairs" / "images" / "a" / "notes.md").write_text("no image")
    images = [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate(names)]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [1, 2, 3, 4 + number]} for number in range(SAMPLES)
    ]
    write_yolo(bucket / "yolo")
    (bucket / "lists").mkdir()
    for path, start in (("lists/coco.json", ""), ("coco.json", "pairs/images/")):
        listed = [{**image, "file_name": f"{start}{image['file_name']}"} for image in images]
        coco = {"images": listed, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        (bucket / path).write_text(json.dumps(coco))
    return home


def write_yolo(folder: Path) -> None:
    """A split of images, every fifth of which has no label file, and classes."""
    for number in range(SAMPLES):
        for kind in ("images", "labels"):
            (folder / kind / "train" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "images" / "train" / "ab"[number % 2] / f"{number}.jpg").write_bytes(jpeg(number))
        if number % 5:
            lines = "".join(f"{each} 0.5 0.5 0.{each + 1} 0.{number % 9 + 1}\n" for each in range(number % 3))
            (folder / "labels" / "train" / "ab"[number % 2] / f"{number}.txt").write_text(lines)
    (folder / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("server", ["web", "moto"])
def test_batches_are_those_of_the_files(
    kind: str, server: str, home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in request.getfixturevalue(server).environment.items():
        monkeypatch.setenv(name, value)
    assert_equal(batches_of(kind, "s3://data"), batches_of(kind, str(home / "data")))


def batches_of(kind: str, start: str) -> list[Any]:
    source, options = KINDS[kind]
    root = {"root": f"{start}/{options['root']}"} if "root" in options else {}
    return batches(f"{start}/{source}", **{**options, **root})


def test_images_elsewhere_than_a_coco_file_are_objects(store: WebServer, home: Path) -> None:
    source = str(home / "data" / "lists" / "coco.json")
    found, wanted = (
        batches(source, root=f"{start}/pairs/images", fields=BOXES) for start in ("s3://data", str(home / "data"))
    )
    assert_equal(found, wanted)


def test_what_a_listing_told_is_not_asked_for_in_a_later_run(store: WebServer, home: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"fields": PAIRS, "keep": str(tmp_path)}
    expected = batches("s3://data/pairs", **options)
    store.forget()
    assert_equal(batches("s3://data/pairs", **options), expected)
    assert store.requests().of(".jpg") <= 8  # those that are looked at as it is opened
    assert store.requests().of(".png") <= 8


def test_what_cannot_be_opened_is_said_in_a_line(store: WebServer, home: Path) -> None:
    def refusal(source: str, fields: dict[str, str], **options: Any) -> str:
        with pytest.raises((ManifestError, ConfigError)) as caught:
            batches(source, fields=fields, **options)
        message = str(caught.value)
        assert "\n" not in message
        return message

    assert "has nothing below such a prefix" in refusal("s3://data/pairs", {"image": "image(column=none)"})
    assert "has nothing below such a prefix" in refusal("s3://data/none", PAIRS)
    lacking = {"image": "image(column=images)", "mask": "mask(column=masks/a)"}
    assert "20 of 20 samples of images have no file in masks/a" in refusal("s3://data/pairs", lacking)
    assert "there is no such object" in refusal("s3://data/none.json", BOXES)
    assert "it concerns lists of paths only" in refusal("s3://data/pairs", PAIRS, root="s3://data")
    label = home / "data" / "yolo" / "labels" / "train" / "b" / "1.txt"
    before = label.read_text()
    label.write_text("2 0.5 0.5 0.1 0.1\n")
    try:
        assert "line 1 of train/b/1.txt in s3://data/yolo: it has the class 2" in refusal("s3://data/yolo", BOXES)
    finally:
        label.write_text(before)
