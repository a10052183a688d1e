"""The batch inspector in a real browser: pictures, labels, boxes, the same sample over epochs, search, hostile text."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

import prefetchd
from tests.browser.conftest import contrast_problems, fits
from tests.dashboard import dashboard, wait_for_report
from tests.detection import paint

LABEL = "<img src=x onerror=alert(1)>"
NAMES = ("<script>alert(2)</script>.png", "a' onload='alert(3).png", "größe &amp; <b>.png")
WORDS = ("--batch-size", "4", "--image-size", "24", "--num-workers", "1", "--shuffle", "--seed", "3")


@pytest.fixture
def hostile(tmp_path):
    """Twelve plain images, some with names and all with labels that must not be read as HTML."""
    lines = []
    for number in range(12):
        name = NAMES[number] if number < len(NAMES) else f"plain-{number}.png"
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        cv2.imwrite(str(tmp_path / "image.png"), np.full((32, 48, 3), (20 * number, 255 - 20 * number, 40), np.uint8))
        (tmp_path / "image.png").rename(tmp_path / name)
        lines.append(json.dumps({"path": name, "label": LABEL if number % 3 else "<b>dog</b>"}))
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def pictures_are_there(page, count: int) -> None:
    page.wait_for_function(
        "n => { const all = [...document.querySelectorAll('#place-rows img')];"
        " return all.length === n && all.every((image) => image.complete && image.naturalWidth); }",
        arg=count,
    )


@pytest.mark.parametrize("size", ["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_batch_is_one_link_with_its_pictures_and_labels(serve, hostile, open_page, size, scheme):
    serve(hostile, *WORDS, name="train")
    with prefetchd.batches(daemon="train") as loader, dashboard("train") as address:
        ids = loader.batch_at(3, 1).sample_ids.tolist()
        wait_for_report(address, "train")
        page = open_page(f"{address}batch/-/3/1?daemon=train", size, scheme)
        pictures_are_there(page, 4)
        assert page.locator("h1").text_content() == "Batch 1 of epoch 3"
        labels = page.locator("#place-rows .word").all_text_contents()
        assert labels == [LABEL if number % 3 else "<b>dog</b>" for number in ids]
        assert page.locator("#place-rows .origin a").all_text_contents() == [f"sample {number}" for number in ids]
        assert page.locator("#place-rows b, #place-rows script").count() == 0
        assert fits(page)
        assert contrast_problems(page) == []
        assert all(page.locator("#place-rows img").nth(n).get_attribute("alt") for n in range(4))
        page.click("#next")
        page.wait_for_selector("h1 >> text=Batch 2 of epoch 3")
        page.go_back()
        page.wait_for_selector("h1 >> text=Batch 1 of epoch 3")
        page.fill("#epoch", "7")
        page.fill("#batch", "0")
        page.keyboard.press("Enter")
        page.wait_for_selector("h1 >> text=Batch 0 of epoch 7")
        assert "/batch/-/7/0" in page.url


def test_sample_is_shown_over_epochs_and_found_by_its_path(serve, hostile, open_page):
    serve(hostile, *WORDS, name="train")
    with prefetchd.batches(daemon="train") as loader, dashboard("train") as address:
        wait_for_report(address, "train")
        page = open_page(f"{address}batch?daemon=train", "phone")
        pictures_are_there(page, 4)
        page.fill("#search", "<script>")
        page.click("#find")
        page.wait_for_selector("text=Sample 0 over epochs")
        page.wait_for_function("() => document.querySelectorAll('#place-sample img').length === 6")
        assert page.evaluate("document.activeElement.id") == "sample-title"
        assert NAMES[0] in page.locator("#place-sample .path").first.text_content()
        for epoch, text in enumerate(page.locator("#place-sample .origin").all_text_contents()):
            assert 0 in loader.batch_at(epoch, int(text.removeprefix("batch "))).sample_ids
        assert fits(page)
        assert "sample=0" in page.url
        page.reload()
        page.wait_for_selector("text=Sample 0 over epochs")
        page.click("text=Close")
        page.wait_for_selector("text=Sample 0 over epochs", state="detached")
        page.fill("#search", "plain-1")
        page.keyboard.press("Enter")
        page.wait_for_selector(".found >> text=sample 11")
        page.fill("#search", "nowhere at all")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=No sample has that in its path.")


def test_boxes_are_drawn_over_the_pictures_and_can_be_hidden(serve, tmp_path, open_page):
    painted = paint(tmp_path)
    serve(painted.coco(), "--target", "boxes", "--batch-size", "4", "--image-size", "96", "--num-workers", "1")
    with dashboard() as address:
        wait_for_report(address)
        page = open_page(f"{address}batch/-/0/0?daemon=default")
        pictures_are_there(page, 4)
        assert page.locator(".marks rect").count() == sum(map(len, painted.boxes[:4]))
        assert page.locator(".marks rect").first.is_visible()
        page.click("#marks")
        assert not page.locator(".marks rect").first.is_visible()


def test_what_cannot_be_shown_is_said(serve, hostile, open_page):
    daemon = serve(hostile, *WORDS, name="train")
    with dashboard("train") as address:
        wait_for_report(address, "train")
        page = open_page(f"{address}batch/-/0/99?daemon=train")
        page.wait_for_selector("text=This batch cannot be shown.")
        page.wait_for_selector("text=whole number from 0 to 2")
        assert contrast_problems(page) == []
        daemon.stop()
        page = open_page(f"{address}batch/-/0/0?daemon=train", "phone")
        page.wait_for_selector("text=The daemon train does not run now.")
        assert fits(page)
        serve(hostile, *WORDS, name="train")
        pictures_are_there(page, 4)


def test_large_batch_is_shown_in_parts(serve, photographs, open_page):
    serve(photographs, "--batch-size", "50", "--image-size", "16", "--num-workers", "1")
    with dashboard() as address:
        wait_for_report(address)
        page = open_page(f"{address}batch/-/0/0?daemon=default")
        page.wait_for_selector("text=Show more (2 left)")
        assert page.locator("#place-rows .sample").count() == 48
        page.click("#more")
        page.wait_for_function("() => document.querySelectorAll('#place-rows .sample').length === 50")
        assert page.locator("#more").count() == 0
