"""The batch inspector beside real daemons: batches, pictures, places of samples, search, thumbnails, and refusals."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import cv2
import numpy as np
import pytest

import prefetchd
from prefetchd import Field
from prefetchd.client.single import read_single
from prefetchd.config.validate import make_config
from prefetchd.dashboard.samples import Samples
from prefetchd.errors import ConfigError
from tests.conftest import wait_until
from tests.dashboard import ask, dashboard, get, wait_for_report
from tests.detection import CLASSES, paint
from tests.process.commands import large_ring

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

NAMES = ("a <img src=x onerror=alert(1)>.png", "b & c.png", "größe.png", 'q"uote.png')


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Twelve plain images of their own colours, of two classes; some have names that a page must not read as HTML."""
    lines = []
    for number in range(12):
        name = NAMES[number] if number < len(NAMES) else f"plain-{number}.png"
        assert cv2.imwrite(str(tmp_path / name), np.full((32, 48, 3), (20 * number, 255 - 20 * number, 40), np.uint8))
        lines.append(json.dumps({"path": name, "label": "<b>cat</b>" if number % 3 else "dog"}))
    manifest = tmp_path / "colours.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


WORDS = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1", "--shuffle", "--seed", "7")


class Page:
    """Asks about one daemon."""

    def __init__(self, address: str, daemon: str) -> None:
        self.address, self.daemon = address, daemon

    def ask(self, path: str, **parameters: Any) -> Any:
        return ask(self.address, f"/api/{path}?{urlencode({'daemon': self.daemon, **parameters})}")

    def picture(self, path: str, **parameters: Any) -> np.ndarray:
        url = f"/api/{path}?{urlencode({'daemon': self.daemon, **parameters})}"
        status, headers, body = get(self.address, url)
        assert (status, headers["content-type"]) == (200, "image/png"), body
        return cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)


def test_any_batch_is_shown_with_its_pictures_labels_and_places(serve, colours):
    serve(colours, *WORDS, "--dtype", "float32", "--scale", "1/255", name="seen")
    with prefetchd.batches(daemon="seen") as loader, dashboard("seen") as address:
        wait_for_report(address, "seen")
        page = Page(address, "seen")
        for epoch, index in ((0, 0), (5, 2)):
            expected = loader.batch_at(epoch, index)
            found = page.ask("batch", epoch=epoch, batch=index)
            assert (found["epoch"], found["batch"], found["n_rows"], found["paths_why"]) == (epoch, index, 4, "")
            ids = [row["sample_id"] for row in found["rows"]]
            assert ids == expected.sample_ids.tolist()
            for row in found["rows"]:
                number = row["sample_id"]
                assert row["words"] == [{"name": "label", "text": "<b>cat</b>" if number % 3 else "dog"}]
                assert row["where"].endswith(NAMES[number] if number < len(NAMES) else f"plain-{number}.png")
                pixels = page.picture("picture", epoch=epoch, batch=index, row=row["row"], name="x", held=found["held"])
                assert (pixels == (20 * number, 255 - 20 * number, 40)).all()
            again = page.picture("picture", epoch=epoch, batch=index, row=0, name="x")
            assert (again == (20 * ids[0], 255 - 20 * ids[0], 40)).all()
        places = page.ask("places", sample=3, epoch=2, epochs=4)
        assert [each["epoch"] for each in places["epochs"]] == [2, 3, 4, 5]
        for each in places["epochs"]:
            (place,) = each["places"]
            assert loader.batch_at(each["epoch"], place["batch"]).sample_ids[place["row"]] == 3
        assert places["where"].endswith(NAMES[3])


def test_classes_whose_names_are_no_unicode_are_shown(serve, tmp_path):
    for folder in (b"caf\xe9", b"tea"):
        path = os.path.join(os.fsencode(tmp_path), b"data", folder)
        os.makedirs(path)
        with open(os.path.join(path, b"\xff.png"), "wb") as file:
            file.write(cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    serve(tmp_path / "data", "--batch-size", "2", "--image-size", "16", "--num-workers", "1", name="seen")
    with dashboard("seen") as address:
        wait_for_report(address, "seen")
        page = Page(address, "seen")
        found = page.ask("batch", epoch=0, batch=0)
        assert [row["words"] for row in found["rows"]] == [
            [{"name": "label", "text": "caf\\udce9"}],
            [{"name": "label", "text": "tea"}],
        ]
        assert all(row["where"].endswith("\\udcff.png") for row in found["rows"])
        balance = page.ask("data")["balance"]
        assert balance["classes"] == [{"name": "caf\\udce9", "count": 1}, {"name": "tea", "count": 1}]


def test_search_finds_samples_by_path_and_by_number(serve, colours):
    serve(colours, *WORDS, name="seen")
    with dashboard("seen") as address:
        wait_for_report(address, "seen")
        page = Page(address, "seen")
        found = page.ask("search", text="plain-1")
        assert [each["sample_id"] for each in found["samples"]] == [10, 11]
        assert (found["looked_at"], found["n_samples"], found["more"]) == (12, 12, False)
        for number, name in enumerate(NAMES):
            assert [each["sample_id"] for each in page.ask("search", text=name)["samples"]] == [number]
        assert [each["sample_id"] for each in page.ask("search", text="7")["samples"]] == [7]
        assert page.ask("search", text="nowhere")["samples"] == []
        assert "there are 12, numbered from 0" in page.ask("search", text="12")["error"]
        assert "search for nothing" in page.ask("search", text=" ")["error"]


@pytest.mark.parametrize(
    ("path", "parameters", "why"),
    [
        ("batch", {"epoch": 0, "batch": 3}, "whole number from 0 to 2"),
        ("batch", {"epoch": 1 << 60, "batch": 0}, "epoch"),
        ("batch", {"epoch": 0}, "batch=None"),
        ("batch", {"epoch": "x", "batch": 0}, "whole number"),
        ("batch", {"epoch": 0, "batch": 0, "dataset": "other"}, "other"),
        ("picture", {"epoch": 0, "batch": 0, "row": 20, "name": "x"}, "no such picture"),
        ("picture", {"epoch": 0, "batch": 0, "row": 0, "name": "../x"}, "no such picture"),
        ("places", {"sample": 50}, "numbered from 0"),
        ("places", {"sample": 0, "epochs": 1000}, "is the most"),
        ("thumbnail", {"sample": 99}, "numbered from 0"),
        ("search", {"text": "x" * 5000}, "too long"),
    ],
)
def test_what_does_not_exist_is_said_in_words(serve_module, photographs, path, parameters, why):
    serve_module(photographs, *WORDS[2:], "--batch-size", "20", name="asked")
    with dashboard("asked") as address:
        wait_for_report(address, "asked")
        assert why in Page(address, "asked").ask(path, **parameters)["error"]


def test_running_loops_go_on_undisturbed_in_the_smallest_ring(serve, photographs):
    daemon = serve(photographs, *large_ring(3))
    with prefetchd.batches(epochs=2) as loader, dashboard() as address:
        wait_for_report(address)
        page = Page(address, "default")
        seen = []
        for batch in loader:
            seen.append((batch.epoch, batch.index))
            if batch.index % 6 == 2:
                assert page.ask("batch", epoch=9, batch=12)["n_rows"] == 2
        assert seen == [(epoch, index) for epoch in range(2) for index in range(13)]
        assert daemon.status()["memory"]["max_footprint_bytes"] <= daemon.status()["memory"]["budget_bytes"]
        wait_until(lambda: len(daemon.status()["consumers"]) == 1, "only the loop is attached")


@pytest.mark.filterwarnings("ignore:waiting for a slot")
def test_batch_is_shown_beside_a_loop_that_holds_all_it_may_and_waits(serve, photographs):
    serve(photographs, *large_ring(3))
    with prefetchd.batches(epochs=2, hold_timeout=60) as loader, dashboard() as address:
        wait_for_report(address)
        loop = iter(loader)
        held = [next(loop), next(loop)]
        waiting = threading.Thread(target=lambda: held.append(next(loop)))
        waiting.start()
        try:
            assert Page(address, "default").ask("batch", epoch=9, batch=0)["n_rows"] == 4
        finally:
            held.clear()
            waiting.join(60)
        assert [batch.index for batch in held] == [2]
        held.clear()
        loop.close()


def test_thumbnails_of_bad_samples_are_drawn_where_their_files_can_be_decoded(serve, tmp_path, photographs):
    good = (photographs.parent / photographs.read_text().splitlines()[0].rsplit(" ", 1)[0]).read_bytes()
    (tmp_path / "good.jpg").write_bytes(good)
    (tmp_path / "cut.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "none.jpg").write_bytes(b"<html>no image")
    (tmp_path / "list.txt").write_text("good.jpg 0\ncut.jpg 1\nnone.jpg 2\nmissing.jpg 3\n")
    serve(
        tmp_path / "list.txt",
        "--batch-size",
        "2",
        "--image-size",
        "16",
        "--num-workers",
        "1",
        "--on-error",
        "skip",
        "--max-image-pixels",
        "5000",
    )  # so the good file is a bad sample too
    with dashboard() as address:
        wait_for_report(address)
        page = Page(address, "default")
        assert max(page.picture("thumbnail", sample=0).shape) == 120
        assert "cannot draw a thumbnail" in page.ask("thumbnail", sample=1)["error"]
        assert "cannot draw a thumbnail: not an image" in page.ask("thumbnail", sample=2)["error"]
        assert "No such file" in page.ask("thumbnail", sample=3)["error"]


def test_data_that_changed_since_the_daemon_opened_it_has_batches_but_no_paths(serve, colours):
    serve(colours, *WORDS, name="seen")
    with dashboard("seen") as address:
        wait_for_report(address, "seen")
        lines = colours.read_text().splitlines()
        colours.write_text("\n".join(lines[1:]) + "\n")
        page = Page(address, "seen")
        found = page.ask("batch", epoch=0, batch=0)
        said = str(found)  # readers notice it too, within their checks; until then the batch is shown
        assert "no longer what the daemon opened" in said or "changed" in said


def test_private_daemon_of_a_loader_in_memory_is_shown_without_paths(colours):
    x = np.arange(12 * 8 * 8 * 3, dtype=np.uint8).reshape(12, 8, 8, 3)
    with prefetchd.batches({"x": x, "y": np.arange(12)}, batch_size=4, num_workers=1) as loader, dashboard() as address:
        pid = loader.status()["pid"]
        wait_for_report(address, f"pid-{pid}")
        page = Page(address, f"pid-{pid}")
        found = page.ask("batch", epoch=0, batch=1)
        assert [row["sample_id"] for row in found["rows"]] == [4, 5, 6, 7]
        assert found["paths_why"]
        assert (page.picture("picture", epoch=0, batch=1, row=2, name="x") == x[6][..., ::-1]).all()
        assert [row["words"] for row in found["rows"]] == [[{"name": "y", "text": str(n)}] for n in range(4, 8)]


def samples_of(daemon: str, names: dict[str, tuple[str, ...]] | None = None) -> Samples:
    batch, served = read_single(daemon, None, 0, 0, name="test")
    config = make_config(**served.info.config)
    return Samples(batch, config, served.classes, names or {}, is_images="decoder" in served.info.versions)


def test_boxes_are_marks_with_the_names_of_their_classes(serve, tmp_path):
    painted = paint(tmp_path)
    serve(painted.coco(), "--target", "boxes", "--batch-size", "4", "--image-size", "96", "--num-workers", "1")
    samples = samples_of("default")
    for row in range(4):
        found = samples.describe(row)
        assert len(found["marks"]["boxes"]) == len(painted.boxes[row])
        assert found["words"] == [{"name": "boxes", "text": str(len(painted.boxes[row]))}]
        pixels = samples.picture(row, "x")
        for (left, top, right, bottom, label, name), (_, expected) in zip(
            found["marks"]["boxes"], painted.boxes[row], strict=True
        ):
            assert (label, name) == (expected, CLASSES[expected])
            middle = pixels[int((top + bottom) / 2 * 96), int((left + right) / 2 * 96)]
            assert (middle > 150).all()


def test_masks_and_fields_are_pictures_and_words(serve, tmp_path):
    for name in ("image", "depth", "mask"):
        (tmp_path / name).mkdir()
        for number in range(4):
            pixels = (
                np.full((20, 30), 40 * number + 20, np.uint8) if name != "mask" else np.full((20, 30), number, np.uint8)
            )
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), pixels)
    lines = [
        {
            **{name: f"{name}/{n}.png" for name in ("image", "depth", "mask")},
            "caption": f"<script>{n}</script>",
            "label": ("dog", "cat")[n % 2],
            "vector": [n, 2 * n, 0.5],
        }
        for n in range(4)
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {
        "image": Field("image"),
        "depth": Field("image", channels=1, dtype="float32"),
        "mask": Field("mask"),
        "caption": Field("text"),
        "label": Field("label"),
        "vector": Field("array"),
    }
    options: dict[str, Any] = {"fields": fields, "batch_size": 4, "image_size": (20, 30), "num_workers": 1}
    with prefetchd.batches(tmp_path / "list.jsonl", **options) as loader, dashboard() as address:
        key = f"pid-{loader.status()['pid']}"
        wait_for_report(address, key)
        page = Page(address, key)
        rows = page.ask("batch", epoch=0, batch=0)["rows"]
        for n, row in enumerate(rows):
            assert [(p["name"], p["kind"]) for p in row["pictures"]] == [
                ("image", "image"), ("depth", "image"), ("mask", "mask"),
            ]  # fmt: skip
            words = {word["name"]: word["text"] for word in row["words"]}
            assert words["caption"] == f"<script>{n}</script>"
            assert words["label"] == ("dog", "cat")[n % 2]
            assert words["vector"].startswith("3 float32: ")
            assert row["where"].endswith(f"image/{n}.png")
            picture = page.picture("picture", epoch=0, batch=0, row=n, name="image")
            assert (picture == 40 * n + 20).all()
        black = page.picture("picture", epoch=0, batch=0, row=0, name="mask")
        assert not black.any()
        assert page.picture("picture", epoch=0, batch=0, row=1, name="mask").any()


def test_numbers_without_pictures_are_shown_as_numbers(serve, tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(24, dtype=np.float32).reshape(6, 4))
    serve(tmp_path / "rows.npy", "--batch-size", "3", "--num-workers", "1")
    found = samples_of("default").describe(1)
    assert found["pictures"] == []
    assert found["words"][0] == {"name": "x", "text": "4 float32: 4 5 6 7"}
    with pytest.raises(ConfigError, match="no such picture"):
        samples_of("default").picture(0, "x")


def test_address_of_a_page_is_one_link(module_daemon):
    del module_daemon
    with dashboard() as address:
        for path in ("/batch", "/batch/-/3/1041", f"/batch/{quote('a b', safe='')}/0/0"):
            assert get(address, path)[0] == 200
        for path in ("/batch/-/x/0", "/batch/-/-1/0", "/batch/-/0"):
            assert get(address, path)[0] == 404
