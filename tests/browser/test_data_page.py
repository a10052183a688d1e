"""The data browser in a real browser, with what a real verification found."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.browser.conftest import contrast_problems, fits
from tests.conftest import wait_until
from tests.dashboard import ask, dashboard, wait_for_report
from tests.process.commands import run_command

WORDS = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1", "--on-error", "skip")
CLASS = "<b>cat</b>"


@pytest.fixture
def mixed(tmp_path):
    """Ten images of two classes: two are equal and have different labels, one is no image, one is missing."""
    lines = []
    for number in range(10):
        name = f"{number}<i>.png" if number == 7 else f"{number}.png"
        if number != 9:
            assert cv2.imwrite(str(tmp_path / name), np.full((30, 40 + number, 3), 20 * number, np.uint8))
        lines.append(f"{name}\t{CLASS if number % 2 else 'dog'}\n")
    cv2.imwrite(str(tmp_path / "7<i>.png"), cv2.imread(str(tmp_path / "2.png")))
    (tmp_path / "5.png").write_bytes(b"<html>none")
    manifest = tmp_path / "list.tsv"
    manifest.write_text("path\tlabel\n" + "".join(lines))
    return manifest


@pytest.mark.parametrize("size", ["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_balance_is_there_at_once_and_findings_when_they_are_made(serve, mixed, tmp_path, open_page, size, scheme):
    serve(mixed, *WORDS, name="train")
    findings = tmp_path / "data.verify.json"
    with dashboard("train", "--findings", findings) as address:
        wait_for_report(address, "train")
        page = open_page(f"{address}data?daemon=train", size, scheme)
        page.wait_for_selector("text=2 classes, 5 samples each.")
        assert page.locator(".bars .name").all_text_contents() == [CLASS, "dog"] or CLASS in page.content()
        page.wait_for_selector("text=prefetchd verify")
        assert fits(page)
        result = run_command("verify", mixed, *WORDS, "--json")
        findings.write_text(result.stdout)
        page.reload()
        page.wait_for_selector("text=Broken files: 2")
        page.wait_for_selector("text=1 group of equal files")
        assert "7<i>.png" in page.locator(".group").text_content()
        page.wait_for_selector("text=Shorter side in pixels")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.group img')].every((image) => image.complete && image.naturalWidth)"
        )
        assert page.locator(".group img").count() == 2
        assert page.locator("#main b, #main i").count() == 0
        assert fits(page)
        assert contrast_problems(page) == []
        page.locator(".group a").first.click()
        page.wait_for_selector("text=Sample 2 over epochs")


def test_several_data_sets_are_chosen_and_arrays_have_no_sizes(serve, mixed, tmp_path, open_page):
    np.save(tmp_path / "rows.npy", np.zeros((8, 4), np.float32))
    serve(f"train={mixed}", f"rows={tmp_path / 'rows.npy'}", "--batch-size", "4", "--num-workers", "1",
          "--train.image-size", "16", name="both")  # fmt: skip
    with dashboard("both") as address:
        wait_for_report(address, "both")
        page = open_page(f"{address}data/train?daemon=both", "phone")
        page.wait_for_selector("text=2 classes")
        page.click("text=rows")
        page.wait_for_selector("text=This data set holds arrays.")
        assert fits(page)


def test_data_set_that_is_not_served_is_said(serve, mixed, open_page):
    serve(mixed, *WORDS, name="train")
    with dashboard("train") as address:
        wait_for_report(address, "train")
        wait_until(lambda: ask(address, "/api/data?daemon=train")["balance"] is not None, "the labels are counted")
        page = open_page(f"{address}data/other?daemon=train")
        page.wait_for_selector("text=This data set cannot be shown.")
