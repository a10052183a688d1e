"""What a loader shows of itself: its `repr`, a notebook's view of it, a progress bar, figures and lines."""

from __future__ import annotations

import contextlib
import html
import io
import logging
import os
import re
import time
from types import SimpleNamespace

import pytest

import prefetchd
from prefetchd.client import description, notebook
from prefetchd.client.meter import LoaderStats
from tests.images import write_jpeg

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture
def named(tmp_path):
    """A list whose classes have names that are HTML, and are long."""
    rows = ["path,label"]
    for number in range(6):
        write_jpeg(tmp_path / f"{number}.jpg", (40, 60), seed=number)
        label = HOSTILE if number % 2 else "c" * 300
        rows.append(f'{number}.jpg,"{label}"'.replace('="alert(1)"', "=alert(1)"))
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "train.csv"


def test_repr_says_what_the_loader_is_in_words(named):
    with prefetchd.batches(named, batch_size=2, image_size=32, shuffle=True, seed=7, rank=1, world_size=3) as loader:
        shown = repr(loader)
        for words in (
            "data: 'train.csv'; samples: 6; batches: 1 an epoch, of 2",
            "arrays: x (2, 32, 32, 3) uint8, y (2,) int64",
            "order: shuffled, seed 7",
            "rank: rank 1 of 3",
            "daemon: private (pid ",
            "next: epoch 0, batch 0",
        ):
            assert words in shown
    assert "next: closed" in repr(loader)


def test_notebook_shows_pictures_and_escapes_what_comes_from_the_data(named):
    with prefetchd.batches(named, batch_size=4, image_size=32) as loader:
        batches = iter(loader)
        assert next(batches).index == 0
        shown = loader._repr_html_()
        assert "number 1 of epoch 0" in shown
        assert shown.count("<img ") == shown.count("data:image/jpeg;base64,") == 2
        assert "<img src=x" not in shown
        assert html.escape("<img src=x") in shown
        assert "ccc..." in shown
        assert next(batches).index == 1, "the loop is where it was"
        assert loader.stats().batches == 2
        batches.close()


def test_names_that_are_no_unicode_are_shown_in_printable_words(tmp_path):
    data = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.makedirs(os.path.join(data, b"\xff"))
    write_jpeg(tmp_path / "a.jpg", (40, 60))
    os.rename(tmp_path / "a.jpg", os.path.join(data, b"\xff", b"a.jpg"))
    with prefetchd.batches(os.fsdecode(data), batch_size=1, image_size=32) as loader:
        assert "data: 'caf\\udce9'; " in repr(loader)
        shown = loader._repr_html_()
    assert "\\udcff" in shown
    shown.encode()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://ann:pw@store.example/a/train.txt?sig=secret", "train.txt?..."),
        ("/data/two\nlines.txt", "two\\nlines.txt"),
        ("/data/train/", "train"),
    ],
)
def test_data_has_a_name_on_one_line_and_without_secrets(source, shown):
    info = SimpleNamespace(config={"source": source, "num_workers": 1}, dataset="", versions={}, name="n")
    assert description.source_name(info) == shown
    advice = description.adviser(info, is_private=True)(LoaderStats(1, 1, 30.0, 20.0))
    assert "secret" not in advice
    assert "pw" not in advice
    assert "\n" not in advice


def test_notebook_shows_the_facts_where_the_next_batch_cannot_be_shown(named, tmp_path, monkeypatch):
    with prefetchd.batches(named, batch_size=4, image_size=32) as loader:
        monkeypatch.setattr(notebook, "PATIENCE_S", 0.05)
        facts = loader._facts()
        slow = notebook.loader_html("slow", facts, loader, lambda: time.sleep(0.3))  # type: ignore[arg-type,func-returns-value]
        assert "was not here within 0.05 s" in slow
        monkeypatch.setattr(notebook, "PATIENCE_S", 3.0)

        def fails() -> prefetchd.Batch:
            raise RuntimeError("<b>")

        assert "no pictures of the next batch: &lt;b&gt;" in notebook.loader_html("x", facts, loader, fails)
        time.sleep(0.4)  # the slow thread ends
    assert "closed" in loader._repr_html_()
    bad = tmp_path / "bad.txt"
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    bad.write_text("bad.jpg 0\n")
    with prefetchd.batches(bad, batch_size=1) as loader:
        shown = loader._repr_html_()
    assert "bad.jpg" in shown
    assert "<img" not in shown


def test_notebook_shows_the_values_of_arrays(tmp_path):
    np = pytest.importorskip("numpy")
    np.save(tmp_path / "x.npy", np.arange(24, dtype=np.float32).reshape(8, 3))
    with prefetchd.batches(tmp_path / "x.npy", batch_size=4) as loader:
        shown = loader._repr_html_()
    assert "first samples: x [[0.0, 1.0, 2.0]]" in shown
    assert "x (4, 3) float32" in shown


@pytest.mark.parametrize(
    "options",
    [
        {"views": 2},
        {"color": "gray"},
        {"dtype": "float32", "scale": 1 / 255, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "layout": "nchw"},
        {"fields": {"picture": prefetchd.Field("image", "path"), "label": prefetchd.Field("label")}},
        {"augment": "random_resized_crop, hflip", "memory_budget": "256MiB", "cache_image_size": 64},
    ],
)
def test_notebook_shows_pictures_of_all_kinds_of_images(named, options):
    with prefetchd.batches(named, batch_size=3, image_size=32, **options) as loader:
        shown = loader._repr_html_()
    assert shown.count("<img ") == 3, re.sub('base64,[^"]*', "", shown)


def test_stats_count_what_the_loops_were_given(named):
    with prefetchd.batches(named, batch_size=4, image_size=32) as loader:
        assert loader.stats() == prefetchd.LoaderStats(0, 0, 0.0, 0.0)
        for _ in loader:
            pass
        first = loader.stats()
        assert (first.batches, first.samples) == (2, 6)
        assert 0 < first.waited_s <= first.elapsed_s
        loader.peek()
        assert loader.stats() == first
        for _ in loader:
            pass
        assert (loader.stats() - first).samples == 6


def test_stats_go_on_with_another_daemon(serve, photographs):
    serve(photographs, "--batch-size", 4, "--image-size", 32, name="first").stop()
    daemon = serve(photographs, "--batch-size", 4, "--image-size", 32, name="again")
    with prefetchd.batches(daemon="again", reconnect=True) as loader:
        batches = iter(loader)
        next(batches)
        daemon.stop()
        serve(photographs, "--batch-size", 4, "--image-size", 32, name="again")
        n_batches = 1 + sum(1 for _ in batches)
        assert loader.stats().batches == n_batches == len(loader)


def test_lines_of_an_epoch_are_written_if_asked(named, capfd, caplog):
    with prefetchd.batches(named, batch_size=2, image_size=32, log_every=2) as loader:
        for _ in loader:
            pass
    lines = [line for line in capfd.readouterr().err.splitlines() if "train.csv" in line]
    assert len(lines) == 2
    assert "epoch 0, batch 2 of 3: " in lines[0]
    assert "epoch 0: 6 images in 3 batches" in lines[1]
    with (
        caplog.at_level(logging.INFO, "prefetchd"),
        prefetchd.batches(named, batch_size=2, image_size=32, log_every="epoch", epochs=2) as loader,
    ):
        for _ in loader:
            pass
    assert [record.message[:19] for record in caplog.records if "images in" in record.message] == [
        "train.csv: epoch 0:", "train.csv: epoch 1:",
    ]  # fmt: skip
    assert "train.csv" not in capfd.readouterr().err


@pytest.mark.parametrize("is_closed", [False, True])
def test_lines_that_cannot_be_written_end_no_loop(named, monkeypatch, is_closed):
    stderr = open("/dev/full", "w")  # noqa: SIM115 - closed below: its contents cannot be written
    if is_closed:
        with contextlib.suppress(OSError):
            stderr.close()
    with prefetchd.batches(named, batch_size=2, image_size=32, log_every=1) as loader, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stderr)
        assert len(list(loader)) == 3
    with contextlib.suppress(OSError):
        stderr.close()


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "batch", 1 << 40])
def test_log_every_that_is_no_number_of_batches_is_refused(named, value):
    with pytest.raises(prefetchd.ConfigError, match="cannot use log_every="):
        prefetchd.batches(named, log_every=value)


def test_progress_bar_knows_the_length(named):
    tqdm = pytest.importorskip("tqdm")
    with prefetchd.batches(named, batch_size=2, image_size=32) as loader:
        bar = tqdm.tqdm(loader, disable=True)
        assert bar.total == 3
        written = io.StringIO()
        assert sum(1 for _ in tqdm.tqdm(loader, file=written)) == 3
        assert "3/3" in written.getvalue()


def test_loaders_of_frameworks_show_the_same(named):
    pytest.importorskip("torch", exc_type=ImportError)
    with prefetchd.torch.batches(named, batch_size=2, image_size=32) as loader:
        batches = iter(loader)
        next(batches)
        assert "device: cpu" in repr(loader)
        assert "next: epoch 0, batch 1" in repr(loader)
        assert "number 1 of epoch 0" in loader._repr_html_()
        assert next(batches).index == 1
        batches.close()
        assert loader.stats().samples == 4
    pytest.importorskip("keras", exc_type=ImportError)
    dataset = prefetchd.keras.dataset(named, batch_size=2, image_size=32)
    assert "samples: 6" in repr(dataset)
    assert "<img " in dataset._repr_html_()
    assert dataset.stats().batches == 0
    dataset.close()
