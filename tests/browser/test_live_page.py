"""The live page in a real browser: layout, updates, a daemon that ends and returns, many bad samples, hostile names."""

from __future__ import annotations

import json
import threading

import pytest

import prefetchd
from tests.browser.conftest import contrast_problems, fits
from tests.conftest import wait_until
from tests.dashboard import dashboard, get, wait_for_report

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")
HOSTILE = (
    "<script>alert(1)</script>.jpg",
    "<img src=x onerror=alert(2)>.jpg",
    '"><svg onload=alert(3)>.jpg',
    "javascript:alert(4)//.jpg",
    "{{7*7}}${alert(5)}`.jpg",
    "a" * 180 + ".jpg",
    "‮gpj.exe",
)


def loops(daemon: str, end: threading.Event, **options):
    """Train in a thread until `end`."""

    def train() -> None:
        with prefetchd.batches(daemon=daemon, epochs=None, **options) as loader:
            for _ in loader:
                if end.wait(0.01):
                    return

    thread = threading.Thread(target=train)
    thread.start()
    return thread


@pytest.mark.parametrize("size", ["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_can_be_read_and_has_its_landmarks(serve, photographs, open_page, size, scheme):
    serve(photographs, *QUICK, name="train")
    end = threading.Event()
    thread = loops("train", end, name="a-rather-long-name-of-a-script-that-trains.py")
    try:
        with dashboard("train") as address:
            wait_for_report(address, "train")
            page = open_page(address, size, scheme)
            page.wait_for_selector("text=a-rather-long-name")
            page.wait_for_selector("#card-speed svg")
            assert fits(page)
            assert contrast_problems(page) == []
            for role in ("banner", "navigation", "main"):
                assert page.get_by_role(role).count() >= 1, role
            assert page.get_by_role("heading", level=1).count() == 1
            assert page.get_by_role("img").count() >= 3
            assert all(
                box["height"] >= 32 for box in (each.bounding_box() for each in page.get_by_role("button").all()) if box
            )
    finally:
        end.set()
        thread.join()


def test_keyboard_reaches_everything_and_the_content_first(serve, photographs, open_page):
    serve(photographs, *QUICK, name="train")
    with dashboard("train") as address:
        wait_for_report(address, "train")
        page = open_page(address)
        page.wait_for_selector("#card-data li")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        seen = set()
        page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
        for _ in range(12):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert {"Live", "Batches", "daemon", "theme"} <= seen
        before = page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor")
        page.locator("#theme").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor") != before
        page.reload()
        assert page.locator("html").get_attribute("data-theme") == "dark"


def test_numbers_follow_the_trainers(serve, photographs, open_page):
    serve(photographs, *QUICK, name="train")
    with dashboard("train") as address:
        wait_for_report(address, "train")
        page = open_page(address)
        page.wait_for_selector("text=No trainer is attached.")
        end = threading.Event()
        thread = loops("train", end, name="mine.py")
        try:
            page.wait_for_selector("#card-consumers >> text=mine.py")
            page.wait_for_selector("#card-shares .parts")
            link = page.locator("#card-consumers a").first
            link.wait_for()
            first = link.text_content()
            page.wait_for_function(
                "before => document.querySelector('#card-consumers a')?.textContent !== before", arg=first
            )
        finally:
            end.set()
            thread.join()
        page.wait_for_selector("#card-consumers >> text=None is attached.")


def test_daemon_that_dies_is_said_to_be_gone_and_its_return_is_shown(serve, photographs, open_page):
    daemon = serve(photographs, *QUICK, name="train")
    with dashboard("train") as address:
        wait_for_report(address, "train")
        page = open_page(address)
        page.wait_for_selector(f"#facts >> text=pid {daemon.pid}")
        daemon.process.kill()
        daemon.process.wait()
        page.wait_for_selector("text=The daemon train is gone.")
        assert page.get_by_role("alert").count() == 1
        assert contrast_problems(page) == []
        assert page.locator("#card-data li").count() == 1  # what it did last stays
        again = serve(photographs, *QUICK, name="train")
        page.wait_for_selector(f"#facts >> text=pid {again.pid}")
        assert page.get_by_role("alert").count() == 0


def test_without_a_daemon_the_page_says_how_to_start_one_and_then_shows_it(serve, photographs, open_page):
    with dashboard("later") as address:
        page = open_page(address, "phone")
        page.wait_for_selector("text=No daemon called later is running.")
        page.wait_for_selector("text=prefetchd serve")
        assert fits(page)
        assert contrast_problems(page) == []
        serve(photographs, *QUICK, name="later")
        page.wait_for_selector("#card-ring .parts")


def test_dashboard_that_ends_is_said(serve, photographs, open_page):
    serve(photographs, *QUICK, name="train")
    with dashboard("train") as address:
        wait_for_report(address, "train")
        page = open_page(address)
        page.wait_for_selector("#card-ring .parts")
    page.wait_for_selector("text=The dashboard is gone.")


def test_several_daemons_can_be_chosen(serve, photographs, open_page):
    serve(photographs, *QUICK, name="one")
    serve(photographs, "--batch-size", "5", *QUICK[2:], name="two")
    with dashboard() as address:
        wait_for_report(address, "two")
        page = open_page(address)
        page.wait_for_selector("#card-data >> text=13 batches")
        page.select_option("#daemon", "two")
        page.wait_for_selector("#card-data >> text=10 batches")
        assert page.url.endswith("daemon=two")
        page.reload()
        page.wait_for_selector("#card-data >> text=10 batches")


def test_ten_thousand_bad_samples_are_paged(serve, tmp_path, photographs, open_page):
    good = photographs.parent / photographs.read_text().splitlines()[0].rsplit(" ", 1)[0]
    manifest = tmp_path / "bad.txt"
    # The first sample is good; a folder in place of a file is refused without a decode.
    manifest.write_text(f"{good} 0\n" + "".join(f"missing/{n}.jpg 0\n" for n in range(10_200)))
    serve(manifest, "--batch-size", "512", "--image-size", "8", "--num-workers", "2", "--on-error", "skip", name="bad")
    with prefetchd.batches(daemon="bad") as loader:
        assert sum(len(batch.y) for batch in loader) == 1
    with dashboard("bad") as address:
        wait_for_report(address, "bad")
        page = open_page(address, "phone")
        page.wait_for_selector("text=Bad samples: 10,200")
        assert page.locator(".bad li").count() == 10
        assert "the first 10,000 of 10,200" in page.locator(".pager").text_content()
        first = page.locator(".bad .path").first.text_content()
        page.click("#bad-next")
        page.wait_for_selector("text=11 to 20 of 10,000")
        assert page.locator(".bad .path").first.text_content() != first
        assert page.evaluate("document.activeElement.id") == "bad-next"
        page.click("#bad-last")
        page.wait_for_selector("text=9,991 to 10,000 of 10,000")
        assert page.locator("#bad-next").is_disabled()
        assert fits(page)
        page.click("#bad-first")
        page.wait_for_selector("text=1 to 10 of 10,000")
        assert page.locator(".bad .path").first.text_content() == first


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_hostile_names_are_text(serve, tmp_path, photographs, open_page, size):
    good = photographs.parent / photographs.read_text().splitlines()[0].rsplit(" ", 1)[0]
    manifest = tmp_path / "<b onclick=alert(9)>list.jsonl"
    lines = [{"path": str(name), "label": 0} for name in (good, *HOSTILE)]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    serve(manifest, *QUICK, "--on-error", "skip", name="hostile")
    with prefetchd.batches(daemon="hostile", name="<script>alert(6)</script>", epochs=None) as loader:
        loop = iter(loader)
        wait_until(lambda: next(loop).epoch >= 2, "all bad samples are found")
        with dashboard("hostile") as address:
            wait_for_report(address, "hostile")
            page = open_page(address, size)
            page.wait_for_selector(f"text=Bad samples: {len(HOSTILE)}")
            page.wait_for_selector("#card-consumers >> text=<script>alert(6)</script>")
            text = page.locator("#card-bad").text_content()
            for name in HOSTILE[:5]:
                assert name in text
            assert page.locator("#main script, #main svg[onload], #main img[onerror], #main b").count() == 0
            assert fits(page)
        loop.close()


def test_token_is_asked_for_and_the_page_of_a_wrong_one_says_so(serve, photographs, tmp_path, open_page):
    serve(photographs, *QUICK, name="train")
    token_file = tmp_path / "token"
    with dashboard("train", "--token-file", token_file) as address:
        page = open_page(address, "phone")
        page.fill("#token", "not the token, by any means")
        page.click("button[type=submit]")
        page.wait_for_selector("text=Wrong token")
        assert fits(page)
        assert contrast_problems(page) == []
        page.fill("#token", token_file.read_text().strip())
        page.click("button[type=submit]")
        page.wait_for_selector("#card-ring .parts")
        assert "token" not in page.url
        page.reload()
        page.wait_for_selector("#card-ring .parts")


def test_page_of_another_site_gets_nothing(serve, photographs, open_page, tmp_path):
    """Neither under a name of its own for this machine, nor by a request from its page."""
    serve(photographs, *QUICK, name="train")
    with dashboard("train") as address:
        wait_for_report(address, "train")
        assert get(address, "/", host="evil.example")[0] == 403
        page = open_page("about:blank")
        answers = []
        page.on("response", lambda answer: answers.append(answer.status))
        read = page.evaluate(
            """async (address) => {
                 try { await fetch(address + "api/live", {mode: "no-cors"}); return "an answer"; } catch {}
                 try { return await (await fetch(address + "api/live")).text(); } catch { return "nothing"; }
               }""",
            address,
        )
        assert read == "nothing"
        assert 200 not in answers
