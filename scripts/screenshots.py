"""Pictures of the dashboard for the documentation: docs/images/*.png, of made data.

    scripts/screenshots [--output FOLDER]

It makes images with painted objects, serves them to two trainers, opens the pages in a headless Chromium and writes a
picture of each, below 150 KB. Needs the extra `browser`, and chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from photographs import TINTS_BGR, photograph
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PREFETCHD = [sys.executable, "-P", "-m", "prefetchd"]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
MOST_BYTES = 150_000
N_IMAGES = 96
TRAINER = """
import sys, time, prefetchd
name, delay_s = sys.argv[1], float(sys.argv[2])
with prefetchd.batches(daemon="train", epochs=None, name=name) as loader:
    for batch in loader:
        time.sleep(delay_s)
"""


def make_data(folder: Path) -> Path:
    """Write images with painted objects and COCO annotations; return those."""
    rng = np.random.default_rng(0)
    tints = list(TINTS_BGR)
    images, annotations = [], []
    for number in range(N_IMAGES):
        pixels = cv2.GaussianBlur(photograph(240, 240, tints[number % len(tints)], number), (0, 0), 12)
        for _ in range(1 + number % 3):
            shape = int(rng.integers(3))
            width, height = (int(side) for side in rng.integers(50, 100, 2))
            left, top = int(rng.integers(240 - width)), int(rng.integers(240 - height))
            colour = tuple(int(part) for part in rng.integers(120, 255, 3))
            draw(pixels, shape, (left, top, width, height), colour)
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": shape, "bbox": [left, top, width, height],
                 "iscrowd": 0}
            )  # fmt: skip
        cv2.imwrite(str(folder / f"{number:04}.jpg"), pixels)
        images.append({"id": number, "file_name": f"{number:04}.jpg", "height": 240, "width": 240})
    categories = [{"id": number, "name": name} for number, name in enumerate(("box", "disc", "kite"))]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    for number in (17, 41):  # what the page of bad samples shows
        (folder / f"{number:04}.jpg").write_bytes(b"<html>not found")
    return path


def draw(pixels: np.ndarray, shape: int, box: tuple[int, int, int, int], colour: tuple[int, ...]) -> None:
    left, top, width, height = box
    middle = left + width // 2, top + height // 2
    if shape == 0:
        cv2.rectangle(pixels, (left, top), (left + width - 1, top + height - 1), colour, -1)
    elif shape == 1:
        cv2.ellipse(pixels, middle, (width // 2, height // 2), 0, 0, 360, colour, -1, cv2.LINE_AA)
    else:
        corners = [(middle[0], top), (left + width, middle[1]), (middle[0], top + height), (left, middle[1])]
        cv2.fillPoly(pixels, [np.array(corners)], colour, cv2.LINE_AA)


@contextlib.contextmanager
def running(*command: str, environment: dict[str, str], ready: str = "") -> Iterator[str]:
    """Run a command beside; yield the line that says it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = ""
        while ready and not re.search(ready, line):
            line = process.stdout.readline()
            if not line:
                sys.exit(f"cannot make the pictures: {' '.join(command)} ended with {process.wait()}")
        yield line
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def save(page: Page, path: Path, height: int) -> None:
    """Write a picture of the page's upper part with few enough colours to be small."""
    width = page.viewport_size["width"] if page.viewport_size else 1280
    shot = page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": height}, full_page=True)
    pixels = cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR)
    path.parent.mkdir(parents=True, exist_ok=True)
    for factor in (1.0, 0.85, 0.7, 0.55):
        smaller = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        picture = Image.fromarray(smaller[..., ::-1].copy()).quantize(
            256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
        picture.save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            print(f"{path}: {path.stat().st_size:,} bytes")
            return
    sys.exit(f"cannot make {path} small enough")


def pictures_loaded(page: Page) -> None:
    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('#place-rows img')];"
        " return all.length && all.every((image) => image.complete && image.naturalWidth); }"
    )


def take(browser: Any, address: str, output: Path) -> None:
    """Write every picture."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.goto(f"{address}?daemon=train")
    page.wait_for_selector("#card-shares .parts")
    time.sleep(15)  # for a chart with something in it
    save(page, output / "dashboard-live.png", 880)
    page.emulate_media(color_scheme="dark")
    page.goto(f"{address}batch/-/3/5?daemon=train")
    pictures_loaded(page)
    save(page, output / "dashboard-batch.png", 700)
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", help="where they go (docs/images)")
    output = parser.parse_args().output.resolve()
    chromium = os.environ.get("PREFETCHD_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("cannot make the pictures: chromium is not installed; apt install chromium")
    with tempfile.TemporaryDirectory(prefix="prefetchd-pictures-") as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary) / "shapes"
        folder.mkdir()
        annotations = make_data(folder)
        run_directory = Path(temporary) / "run"
        run_directory.mkdir(mode=0o700)
        paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(run_directory), "PYTHONPATH": paths}
        serve = (
            *PREFETCHD, "serve", str(annotations), "--name", "train", "--target", "boxes", "--image-size", "224",
            "--batch-size", "12", "--shuffle", "--augment", "hflip", "--on-error", "skip", "--num-workers", "2",
            "--memory-budget", "160MiB",
        )  # fmt: skip
        stack.enter_context(running(*serve, environment=environment, ready="ready:"))
        for name, delay_s in (("detector.py", "0.05"), ("distilled.py", "0.06")):
            stack.enter_context(running(sys.executable, "-c", TRAINER, name, delay_s, environment=environment))
        line = stack.enter_context(
            running(*PREFETCHD, "dashboard", "train", "--port", "0", environment=environment, ready="dashboard:")
        )
        found = re.search(r"http://\S+", line)
        assert found is not None
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
            take(browser, found[0], output)
            browser.close()


if __name__ == "__main__":
    main()
