"""Batches of several sizes through daemons: each image as a loader of its bucket's size alone delivers it."""

from __future__ import annotations

import os
import signal
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import prefetchd
from prefetchd.errors import ConfigError, SampleError
from tests.detection import paint
from tests.images import exif, photograph, write_jpeg
from tests.process.commands import run_command
from tests.process.test_cache import rows_of

SIZES = ["48x48", "36x64", "64x36"]
QUICK: dict[str, Any] = {"batch_size": 4, "num_workers": 2, "memory_budget": "220MiB", "seed": 5}
# Sizes (height, width), of all aspects, also far from any bucket's.
SHAPES = [(60, 60), (90, 160), (160, 90), (50, 52), (20, 300), (400, 21), (100, 75), (75, 100), (5, 5)]


def size_of(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


@pytest.fixture(scope="module")
def aspects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 40 images of all aspects; the last four are stored on their side, and their EXIF data turns them."""
    folder = tmp_path_factory.mktemp("aspects")
    lines = []
    for number in range(36):
        path = folder / f"{number}.{'png' if number % 7 == 3 else 'jpg'}"
        height, width = SHAPES[number % len(SHAPES)]
        if path.suffix == ".png":
            cv2.imwrite(str(path), photograph(height, width, number))
        else:
            write_jpeg(path, (height, width), number)
        lines.append(f"{path.name} {number % 3}\n")
    for number in range(36, 40):
        path = folder / f"{number}.{'jpg' if number % 2 else 'webp'}"
        turned = Image.fromarray(photograph(90, 160, number))
        turned.save(path, exif=exif(6), quality=90)
        lines.append(f"{path.name} 9\n")
    (folder / "list.txt").write_text("".join(lines))
    return folder / "list.txt"


def leaves(batch: Any) -> list[Any]:
    return [leaf for value in batch for leaf in (value if isinstance(value, tuple) else (value,))]


def expected(source: object, sizes: Iterable[str], **options: Any) -> dict[str, dict[int, list[bytes]]]:
    """Return the rows of every sample as loaders of each size alone deliver them, by size and sample."""
    found: dict[str, dict[int, list[bytes]]] = {}
    for size in sizes:
        with prefetchd.batches(source, **{**QUICK, **options, "image_size": size, "shuffle": False}) as loader:
            found[size] = {
                number: [leaf[row].tobytes() for leaf in leaves(batch)]
                for batch in loader
                for row, number in enumerate(batch.sample_ids.tolist())
            }
    return found


def check_epoch(loader: prefetchd.Loader, rows: dict[str, dict[int, list[bytes]]], n: int) -> list[list[int]]:
    """Check every batch of an epoch against `rows`; return the samples of each."""
    batches = []
    for batch in loader:
        arrays = leaves(batch)
        sides = arrays[0].shape[1:3] if arrays[0].shape[-1] <= 4 else arrays[0].shape[2:4]
        size = "{}x{}".format(*sides)
        for row, number in enumerate(batch.sample_ids.tolist()):
            assert [leaf[row].tobytes() for leaf in arrays] == rows[size][number], (size, number)
        batches.append(batch.sample_ids.tolist())
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    return batches


FLOATS = {"dtype": "float32", "scale": 1 / 255, "layout": "nchw", "augment": "random_resized_crop, hflip, rotate"}


@pytest.mark.parametrize("options", [{}, {"resize": "crop", "augment": "hflip, color_jitter"}, FLOATS], ids=str)
def test_each_image_is_as_a_loader_of_that_size_delivers_it(aspects, options):
    rows = expected(aspects, SIZES, **options)
    with prefetchd.batches(aspects, image_size=SIZES, shuffle=True, epochs=1, **QUICK, **options) as loader:
        assert loader.layout == loader.layouts[0], "the first of those that take the most"
        assert len(loader.layouts) == 3
        batches = check_epoch(loader, rows, 40)
        with prefetchd.batches(
            aspects, image_size=SIZES, shuffle=True, **{**QUICK, **options, "num_workers": 1}
        ) as one:
            assert [batch.sample_ids.tolist() for batch in one] == batches


def test_exif_decides_and_upright_images_are_tall(aspects):
    with prefetchd.batches(aspects, image_size=SIZES, where="label=9", **QUICK) as loader:
        shapes = {batch.x.shape[1:3] for batch in loader}
    assert shapes == {(64, 36)}, "stored as 90 x 160, shown as 160 x 90"


def test_any_batch_at_once_and_several_loaders_of_one_daemon(serve, aspects):
    daemon = serve(
        aspects, "--image-size", ",".join(SIZES), "--shuffle", "--batch-size", 4, "--num-workers", 2,
        "--memory-budget", "300MiB", "--seed", 5,
    )  # fmt: skip
    with prefetchd.batches(epochs=2) as one, prefetchd.batches(epochs=2, writable=True) as other:
        found = []
        for batch, again in zip(one, other, strict=True):
            assert (batch.epoch, batch.index, batch.x.shape) == (again.epoch, again.index, again.x.shape)
            assert batch.x.tobytes() == again.x.tobytes()
            again.x[:] = 0
            found.append((batch.epoch, batch.index, batch.x.copy(), batch.sample_ids.tolist()))
        for epoch, index, x, ids in found[::5]:
            single = one.batch_at(epoch, index)
            assert single.x.tobytes() == x.tobytes()
            assert single.sample_ids.tolist() == ids
    ranks = [prefetchd.batches(rank=rank, world_size=3) for rank in range(3)]
    by_rank = [[batch for batch in loader if not batch.repeated] for loader in ranks]
    assert sorted(i for rank in by_rank for batch in rank for i in batch.sample_ids.tolist()) == list(range(40))
    del by_rank, batch
    for loader in ranks:
        loader.close()
    report = daemon.status()["datasets"][0]
    assert sum(each["samples"] for each in report["buckets"]["buckets"]) == 40
    assert report["buckets"]["lost"]["share"] < report["buckets"]["lost"]["share_without_buckets"]
    status = run_command("status")
    assert "48x48: " in status.stdout
    assert "without buckets" in status.stdout
    assert "buckets: 48x48: " in daemon.log


def test_a_loop_resumes_at_the_exact_batch_and_another_batch_size_is_refused(aspects):
    options: dict[str, Any] = {**QUICK, "image_size": SIZES, "shuffle": True, "epochs": 2}
    with prefetchd.batches(aspects, **options) as loader:
        whole = [(batch.x.tobytes(), batch.sample_ids.tolist()) for batch in loader]
    with prefetchd.batches(aspects, **options) as loader:
        states = [loader.state_dict() for _ in loader]
        n = len(loader)
    for at in (0, n - 2, n - 1, n + 3):
        with prefetchd.batches(aspects, **options) as loader:
            loader.load_state_dict(states[at])
            assert loader.peek().x.tobytes() == whole[at + 1][0]
            assert [(batch.x.tobytes(), batch.sample_ids.tolist()) for batch in loader] == whole[at + 1 :]
    with prefetchd.batches(aspects, **{**options, "batch_size": 3}) as loader:
        with pytest.raises(ConfigError, match="within an epoch of batches of 4, and with buckets those of 3"):
            loader.load_state_dict(states[0])
        loader.load_state_dict(states[n - 1])  # the end of an epoch
        assert next(iter(loader)).epoch == 1
    options["image_size"] = SIZES[:2]
    with prefetchd.batches(aspects, **options) as loader, pytest.raises(ConfigError, match="bucket_sizes was"):
        loader.load_state_dict(states[0])


@pytest.mark.parametrize(
    "options", [{}, {"augment": "hflip", "dtype": "float32"}, {"cache_image_size": "80x80", "augment": "rotate"}],
    ids=["straight", "changed", "fitted"],
)  # fmt: skip
def test_a_cache_changes_no_byte_and_keeps_the_sizes(aspects, tmp_path, options):
    given: dict[str, Any] = {**QUICK, "image_size": SIZES, "shuffle": True, **options}
    cached = {**given, "cache": tmp_path / "cache"}

    def epochs(options: dict[str, Any]) -> list[tuple]:
        with prefetchd.batches(aspects, epochs=2, **options) as loader:
            return [(batch.x.shape, batch.x.tobytes(), batch.y.tolist()) for batch in loader]

    plain = epochs(given)
    assert epochs(cached) == plain
    assert 40 <= rows_of(tmp_path / "cache") <= 48, "readers of two epochs may decode a sample twice"
    assert (tmp_path / "cache" / "sizes.bin").stat().st_mode & 0o777 == 0o600
    assert epochs(cached) == plain
    told = run_command("cache", "info", tmp_path / "cache").stdout
    assert ("bucket_sizes=48x48,36x64,64x36" in told) == ("cache_image_size" not in options)
    run_command("cache", "clear", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_file_that_changes_after_the_header_pass_is_not_kept_for_its_next_bucket(tmp_path):
    go = tmp_path / "go"
    (tmp_path / "bucket_waits.py").write_text(
        "import os, time\n\n\ndef wait(image, rng):\n"
        f"    while (image == 7).all() and not os.path.exists({str(go)!r}):\n        time.sleep(0.01)\n"
        "    return image\n"
    )
    cv2.imwrite(str(tmp_path / "0.png"), photograph(90, 160, 0))
    cv2.imwrite(str(tmp_path / "1.png"), np.full((90, 160, 3), 7, np.uint8))
    cv2.imwrite(str(tmp_path / "2.png"), photograph(90, 160, 2))
    (tmp_path / "list.txt").write_text("0.png 0\n1.png 1\n2.png 2\n")
    given: dict[str, Any] = {**QUICK, "batch_size": 1, "num_workers": 1, "image_size": SIZES}
    cached: dict[str, Any] = {**given, "cache": tmp_path / "cache"}
    waits = {"transform": "bucket_waits:wait", "python_path": [tmp_path]}
    with prefetchd.batches(tmp_path / "list.txt", **cached, **waits) as loader:
        cv2.imwrite(str(tmp_path / "2.png"), photograph(160, 90, 2))
        time.sleep(0.1)  # or it is too new to be kept
        go.touch()
        assert [batch.x.shape[1:3] for batch in loader] == 3 * [(36, 64)]
    assert rows_of(tmp_path / "cache") == 3
    for options in ({}, {"augment": "hflip"}):
        with prefetchd.batches(tmp_path / "list.txt", **given, **options) as loader:
            plain = [batch.x.copy() for batch in loader]
        assert plain[2].shape[1:3] == (64, 36)
        for _ in range(2):
            with prefetchd.batches(tmp_path / "list.txt", **cached, **options) as loader:
                assert all(np.array_equal(x, batch.x) for x, batch in zip(plain, loader, strict=True))


def test_headers_are_read_once_and_again_where_a_file_changed(tmp_path, serve):
    for number in range(6):
        write_jpeg(tmp_path / f"{number}.jpg", (60, 60), number)
    (tmp_path / "list.txt").write_text("".join(f"{number}.jpg 0\n" for number in range(6)))
    kept = tmp_path / "sizes"
    words = ("--image-size", ",".join(SIZES), "--bucket-file", kept, "--num-workers", 1, "--memory-budget", "200MiB")

    def logged(name: str) -> str:
        daemon = serve(tmp_path / "list.txt", *words, name=name)
        with prefetchd.batches(daemon=name) as loader:
            assert sum(len(batch.y) for batch in loader) == 6
        return daemon.log

    for path in tmp_path.glob("*.jpg"):  # a file that was just written may be written to again at the same time
        os.utime(path)
    time.sleep(0.05)
    assert "read the headers of 6 of 6 images" in logged("one")
    assert "read the headers of 0 of 6 images" in logged("two")
    write_jpeg(tmp_path / "3.jpg", (90, 160), 9)
    log = logged("three")
    assert "read the headers of 1 of 6 images" in log
    assert "36x64: 1 samples in 1 batches" in log
    content = bytearray(kept.read_bytes())
    content[40] ^= 1
    kept.write_bytes(content)
    assert "read the headers of 6 of 6 images" in logged("four")


def test_a_substitute_has_the_shape_of_the_batch(tmp_path, aspects):
    lines = aspects.read_text().splitlines()
    bad = {1: b"", 2: b"\xff\xd8\xff no image", 4: (aspects.parent / "4.jpg").read_bytes()[:300]}
    for number, content in bad.items():
        (tmp_path / f"bad{number}.jpg").write_bytes(content)
        lines[number] = f"{tmp_path}/bad{number}.jpg {number}"
    for number in range(40):
        name, label = lines[number].split()
        lines[number] = f"{name if name.startswith('/') else aspects.parent / name} {label}"
    (tmp_path / "list.txt").write_text("\n".join(lines))
    options: dict[str, Any] = {**QUICK, "image_size": SIZES, "shuffle": True}
    rows = expected(tmp_path / "list.txt", SIZES, on_error="skip")
    with prefetchd.batches(tmp_path / "list.txt", on_error="substitute", **options) as loader:
        n_rows = 0
        for batch in loader:
            size = "{}x{}".format(*batch.x.shape[1:3])
            for row, number in enumerate(batch.sample_ids.tolist()):
                assert batch.x[row].tobytes() == rows[size][number][0]
            n_rows += len(batch.y)
        assert n_rows == 40
    with prefetchd.batches(tmp_path / "list.txt", on_error="skip", **options) as loader:
        seen = [number for batch in loader for number in batch.sample_ids.tolist()]
        assert sorted(seen) == sorted(set(range(40)) - set(bad))
    with prefetchd.batches(tmp_path / "list.txt", **options) as loader, pytest.raises(SampleError, match="bad"):
        list(loader)


def test_killed_readers_lose_no_sample(aspects):
    rows = expected(aspects, SIZES)
    with prefetchd.batches(aspects, image_size=SIZES, shuffle=True, epochs=3, **QUICK) as loader:
        for epoch in range(3):
            pids = [each["pid"] for each in loader.status()["readers"]]
            os.kill(pids[epoch % len(pids)], signal.SIGKILL)
            loader.set_epoch(epoch)
            check_epoch_of(loader, rows, epoch)


def check_epoch_of(loader: prefetchd.Loader, rows: dict[str, dict[int, list[bytes]]], epoch: int) -> None:
    seen = []
    for batch in loader:
        if batch.epoch != epoch:
            break
        size = "{}x{}".format(*batch.x.shape[1:3])
        assert [batch.x[row].tobytes() for row in range(len(batch.y))] == [
            rows[size][number][0] for number in batch.sample_ids.tolist()
        ]
        seen += batch.sample_ids.tolist()
    assert sorted(seen) == list(range(40))


BOXES = ["96x96", "64x128"]


def test_boxes_follow_their_images(tmp_path):
    painted = paint(tmp_path, 12)
    options: dict[str, Any] = {"target": "boxes", "augment": "random_resized_crop, hflip"}
    rows = expected(painted.coco(), BOXES, **options)
    with prefetchd.batches(painted.coco(), image_size=BOXES, shuffle=True, **QUICK, **options) as loader:
        check_epoch(loader, rows, 12)


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A list of images and masks."""
    lines = []
    for number in range(12):
        shape = SHAPES[number % 4]
        write_jpeg(tmp_path / f"{number}.jpg", shape, number)
        cv2.imwrite(str(tmp_path / f"{number}.png"), photograph(*shape, number)[..., 0] // 64)
        lines.append(f"{number}.jpg {number}.png\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "list.csv").write_text("a,b\n" + "".join(line.replace(" ", ",") for line in lines))
    return tmp_path / "list.txt"


def test_masks_follow_their_images(masked):
    options: dict[str, Any] = {"target": "mask", "augment": "affine, hflip", "resize": "pad"}
    rows = expected(masked, SIZES, **options)
    with prefetchd.batches(masked, image_size=SIZES, shuffle=True, **QUICK, **options) as loader:
        assert {tuple(each.shape for each in layout.fields) for layout in loader.layouts} == {
            ((*size_of(size), 3), size_of(size)) for size in SIZES
        }
        check_epoch(loader, rows, 12)


def test_fields_follow_the_first_image_unless_they_have_a_size(masked):
    masked = masked.with_suffix(".csv")
    fields = {"image": "image(column=a)", "mask": "mask(column=b)", "small": "image(column=a, size=16)"}
    options: dict[str, Any] = {"fields": fields, "augment": "random_resized_crop"}
    rows = expected(masked, SIZES, **options)
    with prefetchd.batches(masked, image_size=SIZES, shuffle=True, **QUICK, **options) as loader:
        assert {layout.fields[2].shape for layout in loader.layouts} == {(16, 16, 3)}
        check_epoch(loader, rows, 12)
    cached: dict[str, Any] = {"fields": {"image": "image(column=a)"}}
    rows = expected(masked, SIZES, **cached)
    for _ in range(2):
        cache = masked.parent / "cache"
        with prefetchd.batches(masked, image_size=SIZES, shuffle=True, cache=cache, **QUICK, **cached) as loader:
            check_epoch(loader, rows, 12)


def test_shards_and_users_functions_have_buckets_too(aspects, tmp_path):
    (tmp_path / "bucket_users.py").write_text("def flip(image, rng):\n    return image[:, ::-1]\n")
    options: dict[str, Any] = {"transform": "bucket_users:flip", "python_path": [tmp_path]}
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w") as tar:
        for number, line in enumerate(aspects.read_text().splitlines()):
            path = aspects.parent / line.split()[0]
            tar.add(path, f"{number:03}{path.suffix}")
    rows = expected(shard, SIZES, **options)
    for _ in range(2):
        with prefetchd.batches(
            shard, image_size=SIZES, shuffle=True, bucket_file=tmp_path / "kept", **QUICK, **options
        ) as loader:
            check_epoch(loader, rows, 40)


def test_small_buckets_are_told_with_drop_last(serve, aspects):
    daemon = serve(
        aspects, "--image-size", "48x48,36x64,3x64", "--batch-size", 8, "--drop-last", "--num-workers", 1,
        "--memory-budget", "200MiB",
    )  # fmt: skip
    with prefetchd.batches() as loader:
        assert {len(batch.y) for batch in loader} == {8}
    words = "8 samples are in no batch: the buckets 36x64 (4), 3x64 (4) have fewer than --batch-size 8, and --drop-last"
    assert words in daemon.log.replace("drop_last", "--drop-last")


def test_verify_and_preview_show_buckets(aspects, tmp_path):
    sizes = ",".join(SIZES)
    found = run_command("verify", aspects, "--image-size", sizes)
    assert "buckets     3; " in found.stdout
    sheet = run_command("preview", aspects, "--image-size", sizes, "-o", tmp_path / "sheet.png", "--samples", 6)
    assert sheet.returncode == 0, sheet.stderr
    assert np.asarray(Image.open(tmp_path / "sheet.png")).ndim == 3
