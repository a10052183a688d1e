"""Lists and class prefixes whose images are objects of a store: the same batches as from files, and faults."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest

import prefetchd
from prefetchd.errors import ConfigError, ManifestError, SampleError
from tests.process.commands import run_command
from tests.process.test_stores import FAULTS, assert_equal, batches, damage
from tests.records import jpeg
from tests.servers import azure
from tests.servers.nginx import MISSING, Nginx
from tests.servers.web import WebFault, WebServer

pytest.importorskip("obstore")

CLASSES, IMAGES = 3, 10
# Names that a URL has to escape, or that look like something else in one.
NAMES = ("plain", "with space", "per%20cent", "grün", "a+b", "k=v&w", "q?x", "h#x", "100%")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bucket `data`: class folders with odd names, masks, and lists of them of all kinds."""
    home = tmp_path_factory.mktemp("served")
    bucket = home / "data"
    rows = []
    for label in range(CLASSES):
        for number in range(IMAGES):
            path = f"train/class {label}/{NAMES[number % len(NAMES)]} {number}.jpg"
            (bucket / path).parent.mkdir(parents=True, exist_ok=True)
            (bucket / path).write_bytes(jpeg(label * IMAGES + number))
            mask = f"masks/{label}-{number}.png"
            (bucket / mask).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(bucket / mask), np.full((40, 56), label * IMAGES + number, np.uint8))
            rows.append((path, label, mask))
    (bucket / "train" / "class 0" / "notes.txt").write_text("no image")
    (bucket / "list.txt").write_text("".join(f"{path} {label}\n" for path, label, _ in rows))
    (bucket / "list.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label, _ in rows))
    lines = "".join(f'{{"path": "{path}", "label": "class {label}"}}\n' for path, label, _ in rows)
    (bucket / "list.jsonl").write_text(lines)
    table = "".join(f"{path},{mask},{label}\n" for path, label, mask in rows)
    (bucket / "fields.csv").write_text("image,mask,label\n" + table)
    lines = [{"image": path, "mask": mask, "label": f"class {label}"} for path, label, mask in rows]
    (bucket / "fields.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (bucket / "masks.csv").write_text("".join(f"{path},{mask}\n" for path, _, mask in rows))
    return home


FIELDS = {"image": "image", "mask": "mask", "label": "label"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("list.txt", {}),
    "csv": ("list.csv", {}),
    "json lines": ("list.jsonl", {"y_column": "label"}),
    "masks": ("masks.csv", {"target": "mask"}),
    "fields of csv": ("fields.csv", {"fields": FIELDS}),
    "fields of json lines": ("fields.jsonl", {"fields": FIELDS}),
    "class prefixes": ("train/", {}),
    "prefix without labels": ("train", {"label_columns": 0}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("server", ["web", "moto"])
def test_batches_are_those_of_the_files(
    kind: str, server: str, home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in request.getfixturevalue(server).environment.items():
        monkeypatch.setenv(name, value)
    source, options = KINDS[kind]
    assert_equal(batches(f"s3://data/{source}", **options), batches(str(home / "data" / source), **options))


def urls_of(list_file: Path, prefix: str, target: Path, *, query: str = "") -> Path:
    """Write the list again with a URL in each line."""
    is_web = prefix.startswith(("http", "."))
    lines = [line.rpartition(" ") for line in list_file.read_text().splitlines()]
    target.write_text(
        "".join(f"{prefix}/{quote(path) if is_web else path}{query} {label}\n" for path, _, label in lines)
    )
    return target


def test_lines_and_roots_may_be_urls(store: WebServer, home: Path, tmp_path: Path) -> None:
    bucket = home / "data"
    expected = batches(str(bucket / "list.txt"))
    copy = tmp_path / "copy.txt"
    copy.write_bytes((bucket / "list.txt").read_bytes())
    assert_equal(batches(str(copy), root="s3://data"), expected)
    assert_equal(batches("s3://data/list.txt", root=str(bucket)), expected)
    for prefix, query in (("s3://data", ""), (f"{store.url}/data", ""), (f"{store.url}/data", "?signature=x")):
        listed = urls_of(bucket / "list.txt", prefix, tmp_path / "urls.txt", query=query)
        assert_equal(batches(str(listed)), expected)


def test_the_user_of_a_url_reads_the_list_and_its_relative_lines(store: WebServer, home: Path) -> None:
    bucket = home / "data"
    named = bucket / "named.txt"
    urls_of(bucket / "list.txt", ".", named)
    store.set_faults(WebFault("user", method=""))
    address = store.url.replace("://", "://user:word@")
    try:
        assert_equal(batches(f"{address}/data/named.txt"), batches(str(bucket / "list.txt")))
        with pytest.raises(ManifestError) as caught:
            batches(f"{address.replace('word', 'secret')}/data/named.txt")
    finally:
        named.unlink()
    assert "the store forbids to read it; check the URL and the credentials" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_commands_show_no_signature_and_measure_alone_what_the_others_cannot_read(
    store: WebServer, home: Path, tmp_path: Path
) -> None:
    signed = f"{store.url}/data/list.jsonl?signature=x"
    quick = ("--y-column", "label", "--image-size", "16", "--batch-size", "4", "--num-workers", "1")
    shown = run_command("preview", signed, *quick, "-o", tmp_path / "sheet.png")
    assert shown.returncode == 0, shown
    assert "list.jsonl?...: " in shown.stdout
    measured = run_command("bench", signed, *quick, "--rounds", "1", "--seconds", "0.2")
    assert measured.returncode == 0, measured
    assert "which read files of this machine only" in measured.stdout
    assert "signature" not in shown.stdout + shown.stderr + measured.stdout + measured.stderr


def test_parquet_and_memory_name_objects(store: WebServer, home: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    bucket = home / "data"
    lines = [line.rpartition(" ") for line in (bucket / "list.txt").read_text().splitlines()]
    paths, labels = [path for path, _, _ in lines], [int(label) for _, _, label in lines]
    expected = batches(str(bucket / "list.txt"))
    for name, start, options in (("paths", "", {"root": "s3://data"}), ("urls", "s3://data/", {})):
        named = [start + path for path in paths]
        pq.write_table(pa.table({"image": named, "label": labels}), tmp_path / f"{name}.parquet")
        assert_equal(batches(str(tmp_path / f"{name}.parquet"), **options), expected)
        assert_equal(batches((named, labels), **options), expected)  # type: ignore[arg-type]
    (bucket / "paths.parquet").write_bytes((tmp_path / "paths.parquet").read_bytes())
    assert_equal(batches("s3://data/paths.parquet"), expected)
    masks = [f"masks/{place // IMAGES}-{place % IMAGES}.png" for place in range(len(paths))]
    expected = batches((paths, masks), root=str(bucket), target="mask")  # type: ignore[arg-type]
    assert_equal(batches((paths, masks), root="s3://data", target="mask"), expected)  # type: ignore[arg-type]


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "it is there")
def test_a_web_server_over_tls_serves_lists_with_relative_lines(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are escaped as URLs are: in lines below a URL too."""
    bucket = home / "data"
    with Nginx(home) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_path))
        for folder in (bucket, tmp_path):
            urls_of(bucket / "list.txt", f"{server.url}/data", folder / "web.txt")
        expected = batches(str(bucket / "list.txt"))
        assert_equal(batches(str(tmp_path / "web.txt")), expected)
        assert_equal(batches(f"{server.url}/data/web.txt"), expected)
        relative = bucket / "relative.txt"
        relative.write_text((tmp_path / "web.txt").read_text().replace(f"{server.url}/data/", ""))
        assert_equal(batches(f"{server.url}/data/relative.txt"), expected)
        with pytest.raises(ManifestError, match="a web server tells no names"):
            batches(f"{server.url}/data/train-*.tar")


@pytest.mark.skipif(bool(azure.MISSING), reason=azure.MISSING or "it is there")
def test_azure_serves_lists_and_class_prefixes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with azure.Azurite() as server:
        server.fill("data", home / "data")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for source in ("list.txt", "train/"):
            assert_equal(batches(f"az://data/{source}"), batches(str(home / "data" / source)))


def test_reads_overlap_from_the_first_sample(store: WebServer) -> None:
    store.set_delay(0.05)
    batches("s3://data/list.txt", num_workers=1)
    assert store.requests().most_at_once >= 16


def objects(store: WebServer) -> int:
    """Requests for images."""
    return store.requests().of("/data/train/")


@pytest.mark.parametrize("source", ["list.txt", "train/"])
def test_what_is_kept_is_not_downloaded_again(source: str, store: WebServer, home: Path, tmp_path: Path) -> None:
    expected = batches(str(home / "data" / source))
    options = {"keep": tmp_path / "kept"}
    assert_equal(batches(f"s3://data/{source}", **options), expected)
    assert objects(store) >= CLASSES * IMAGES
    store.forget()
    assert_equal(batches(f"s3://data/{source}", **options), expected)
    # Once each; the look at some as the list is opened, which takes a body each; and whether there is an index.json.
    assert objects(store) <= (9 if source == "train/" else 8 + 2 * CLASSES * IMAGES)
    assert store.requests().sent_bytes < 50_000
    entries = sorted(path for path in (tmp_path / "kept").glob("??/*") if path.is_file())
    assert len(entries) >= CLASSES * IMAGES
    for number, path in enumerate(entries):
        damage(path) if number % 2 else path.write_bytes(b"")
    store.forget()
    assert_equal(batches(f"s3://data/{source}", **options), expected)
    assert objects(store) >= CLASSES * IMAGES
    assert all(path.stat().st_size for path in entries)


@pytest.mark.parametrize("kind", ["text", "class prefixes", "fields of json lines"])
def test_decoded_images_are_kept_as_those_of_files(kind: str, store: WebServer, home: Path, tmp_path: Path) -> None:
    source, options = KINDS[kind]
    options = {"cache_image_size": 32, "augment": "random_resized_crop", **options}
    expected = batches(str(home / "data" / source), **options)
    for run in range(3):
        store.forget()
        assert_equal(batches(f"s3://data/{source}", cache=tmp_path / "cache", **options), expected)
        if run and "fields" not in kind:  # the list or the listing, and the look at some
            assert store.requests().sent_bytes < 50_000
    with prefetchd.batches(
        f"s3://data/{source}", batch_size=16, image_size=24, cache=tmp_path / "cache", timeout=60, **options
    ) as loader:
        list(loader)
        assert loader.status()["datasets"][0]["cache"]["misses"] == 0


def test_an_object_that_was_replaced_between_runs_is_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "served" / "b"
    bucket.mkdir(parents=True)
    (bucket / "list.txt").write_text("0.jpg\n1.jpg\n")
    with WebServer(bucket.parent) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for seed in (1, 2, 1):
            for number in range(2):
                (bucket / f"{number}.jpg").write_bytes(jpeg(seed + number))
            expected = batches(str(bucket / "list.txt"))
            assert_equal(batches("s3://b/list.txt", keep=tmp_path / "kept"), expected)
            assert_equal(batches("s3://b/list.txt", cache=tmp_path / "cache"), expected)


@pytest.mark.parametrize("fault", [name for name in FAULTS if "range" not in name])
@pytest.mark.parametrize("kind", ["text", "masks"])
def test_faults_that_pass_change_no_batch(fault: str, kind: str, store: WebServer, home: Path) -> None:
    source, options = KINDS[kind]
    options = {"on_error": "skip", "epochs": 1, **options}
    with prefetchd.batches(
        f"s3://data/{source}", batch_size=16, image_size=24, shuffle=True, num_workers=2, timeout=60, **options
    ) as loader:
        store.set_faults(*FAULTS[fault])
        found = [[np.array(batch.x), np.array(batch.y)] for batch in loader]
        assert loader.status()["bad_samples"] == 0
    assert_equal(found, batches(str(home / "data" / source), **options))


def test_faults_that_last_are_raised_under_any_policy(store: WebServer) -> None:
    with prefetchd.batches(
        "s3://data/list.txt", batch_size=4, image_size=24, reader_timeout=1, timeout=110, on_error="skip", num_workers=1
    ) as loader:
        store.set_faults(WebFault("status"))
        with pytest.raises(SampleError, match="503"):
            list(itertools.chain.from_iterable(itertools.repeat(loader, 100)))


def test_missing_empty_and_forbidden_objects_are_bad_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket = tmp_path / "b"
    bucket.mkdir()
    for number in range(8):
        (bucket / f"{number}.jpg").write_bytes(jpeg(number))
    (bucket / "3.jpg").unlink()
    (bucket / "4.jpg").write_bytes(b"")
    (bucket / "6.jpg").write_bytes(b"no image")
    (bucket / "list.txt").write_text("".join(f"{number}.jpg {number}\n" for number in range(8)) + "a//b.jpg 8\n")
    with WebServer(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.set_faults(WebFault("status", path="*/5.jpg", code=403, name="AccessDenied"))
        found = batches("s3://b/list.txt", on_error="skip", epochs=1, shuffle=False)
        assert found[0][1].tolist() == [0, 1, 2, 7]
        with prefetchd.batches("s3://b/list.txt", on_error="skip", batch_size=16, timeout=60) as loader:
            list(loader)
            assert loader.status()["bad_samples"] == 5
    log = capfd.readouterr().err
    for path, reason in (("3", "there is no such object"), ("4", "the object is empty"), ("5", "the store forbids")):
        assert any(f"s3://b/{path}.jpg" in line and reason in line for line in log.splitlines()), log
    assert "a part of it is empty" in log


@pytest.mark.parametrize("change", ["replaced", "removed", "forbidden"])
@pytest.mark.parametrize("source", ["list.txt", "train/"])
def test_an_object_that_changes_in_a_run_ends_the_loop_in_words(
    source: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "b"
    for number in range(8):
        path = bucket / "train" / f"class {number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    paths = sorted(bucket.rglob("*.jpg"))
    (bucket / "list.txt").write_text("".join(f"{path.relative_to(bucket)} 0\n" for path in paths))
    with WebServer(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with prefetchd.batches(
            f"s3://b/{source}", batch_size=4, image_size=24, epochs=None, on_error="skip", timeout=60
        ) as loader:
            loop = iter(loader)
            for _ in range(4):
                next(loop)
            if change == "replaced":
                os.utime(paths[3], ns=(1, 1))
            elif change == "removed":
                paths[3].unlink()
            else:
                server.set_faults(WebFault("status", path=f"*/{paths[3].name}", code=403))
            with pytest.raises(ManifestError, match=r"it was replaced while in use|any more, while in use"):
                for _ in loop:
                    pass


def test_what_cannot_be_opened_is_said_in_a_line(store: WebServer, home: Path, tmp_path: Path) -> None:
    def refusal(source: str, **options: Any) -> str:
        with pytest.raises((ManifestError, ConfigError)) as caught:
            batches(source, **options)
        message = str(caught.value)
        assert "\n" not in message
        return message

    copy = tmp_path / "copy.txt"
    copy.write_bytes((home / "data" / "list.txt").read_bytes())
    assert "no object of this name, and none below it" in refusal("s3://data/none.txt")
    assert "no object of this name, and none below it" in refusal("s3://data/none/")
    assert "there is no such bucket" in refusal("s3://none/train/")
    assert "none of 8 samples looked at is readable" in refusal(str(copy), root="s3://data/none")
    assert "is an image" in refusal("s3://data/train/class 0/plain 0.jpg")
    assert "a part of it is empty (//)" in refusal("s3://data//train/")
    boxes = tmp_path / "boxes.jsonl"
    boxes.write_text('{"path": "s3://data/a.jpg", "boxes": [[1, 2, 3, 4]], "labels": [0]}\n')
    wanted = {"target": "boxes", "source_box_format": "xywh"}
    assert "give fields, whose images may be objects" in refusal(str(boxes), **wanted)
    assert "give a list on a disk and fields" in refusal(str(boxes), root="s3://data", **wanted)
    assert "no class prefixes" in refusal("s3://data/masks/", label_columns=1)
    assert "there is no such object" in refusal(f"{store.url}/data/none.txt")
    assert "signature=" not in refusal(f"{store.url}/data/none.txt?signature=x")


def test_nothing_of_stores_is_loaded_where_no_url_is_used(home: Path) -> None:
    """Neither in the daemon's process nor in a reader's: both are done by one process here."""
    code = """
import sys, threading, os
from prefetchd.config.validate import make_config
from prefetchd.data.registry import attach_source, open_source
import numpy as np
config = make_config(source=sys.argv[1], image_size=8)
source = open_source(config)
handle, fds = source.handle()
reader = attach_source(config, handle, [os.dup(fd) for fd in fds])
x, y = np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64)
assert not reader.fill(0, np.arange(4), range(4), (x, y), lambda n: None)
loaded = {name for name in sys.modules if name.startswith(("obstore", "prefetchd.data.stores."))}
print(sorted(loaded), threading.active_count())
"""
    for source in ("list.txt", "list.jsonl", "train"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(home / "data" / source)], capture_output=True, text=True, check=True
        )
        assert done.stdout == "['prefetchd.data.stores.urls'] 1\n"
