"""Augmentation, users' functions and masks through real daemons: the same bytes whoever reads, and clear refusals."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import prefetchd
from tests.conftest import DaemonProcess
from tests.images import photograph, write_jpeg
from tests.process.commands import refused_here, run_script

EVERYTHING = (
    "random_resized_crop, hflip, vflip(p=0.3), rotate, affine, color_jitter, rand_augment, trivial_augment_wide, "
    "grayscale, gaussian_blur, solarize(p=0.3), posterize, sharpness, auto_contrast, equalize, random_erasing"
)
OPTIONS: dict[str, Any] = {"batch_size": 8, "image_size": 32, "seed": 3}

FUNCTIONS = """
import os, time
import numpy as np

def shade(image, rng):
    return (image * rng.uniform(0.5, 1, 3)).astype(np.uint8)

def floats(image, rng):
    return image / np.float64(2)

def one_hot(label, rng):
    return np.eye(50, dtype=np.float32)[label]

def noisy(label, rng):
    print("a word of the user's")
    return label + rng.random()

def classes(mask, rng):
    return np.bincount(mask.reshape(-1), minlength=4)[:4]

def smaller(image, rng):
    return image[1:]

def as_float(image, rng):
    return image.astype(np.float32)

def none(image, rng):
    return None

def raises(image, rng):
    raise ValueError("always")

def leaves(image, rng):
    os._exit(7)

def crashes(image, rng):
    os.kill(os.getpid(), 11)

def hangs(image, rng):
    time.sleep(1000)

def words(label, rng):
    return "cat"
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module `users_functions`, which is the working directory."""
    folder = tmp_path / "users"
    folder.mkdir()
    (folder / "users_functions.py").write_text(FUNCTIONS)
    (folder / "queue.py").write_text("raise RuntimeError('a module of the standard library was shadowed')\n")
    monkeypatch.chdir(folder)
    return folder


def epochs(source: Path | None, n_epochs: int = 2, **options: Any) -> list[str]:
    """A checksum of x and y of each batch."""
    seen = []
    with prefetchd.batches(source, epochs=n_epochs, **options) as loader:
        for x, y in loader:
            seen.append(hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()[:12])
            del x, y
    return seen


def test_augmented_bytes_depend_on_seed_epoch_and_sample_alone(photographs: Path, serve: Callable[..., DaemonProcess]):
    """One reader or three, a second run, a daemon or a private one: the same; another epoch or seed: others."""
    one = epochs(photographs, num_workers=1, augment=EVERYTHING, **OPTIONS)
    assert len(set(one)) == len(one)
    assert epochs(photographs, num_workers=3, augment=EVERYTHING.split(", "), **OPTIONS) == one
    serve(
        f"same={photographs}", f"other={photographs}", "--batch-size", 8, "--image-size", 32, "--seed", 3,
        "--other.seed", 4, "--num-workers", 2, "--augment", EVERYTHING,
    )  # fmt: skip
    assert epochs(None, dataset="same") == one
    assert not set(epochs(None, dataset="other")) & set(one)
    with pytest.raises(prefetchd.ConfigError, match="augment"):
        prefetchd.batches(augment="hflip", dataset="same")
    prefetchd.batches(augment=EVERYTHING, dataset="same").close()


def test_order_of_samples_does_not_change_how_each_is_augmented(photographs: Path):
    pixels: list[dict[int, bytes]] = []
    for shuffle, batch_size in ((False, 8), (True, 5)):
        options = {**OPTIONS, "batch_size": batch_size, "shuffle": shuffle}
        with prefetchd.batches(photographs, augment=EVERYTHING, **options) as loader:
            pixels.append(
                {int(i): row.tobytes() for batch in loader for i, row in zip(batch.sample_ids, batch.x, strict=True)}
            )
    assert pixels[0] == pixels[1]


def test_augmented_image_is_what_opencv_makes_of_the_crop(tmp_path: Path, serve: Callable[..., DaemonProcess]):
    """Through the whole way, JPEG reduction included: the delivered flip is the flip of what is delivered without."""
    for number in range(6):
        write_jpeg(tmp_path / f"{number}.jpg", (300, 400), seed=number)
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(f"{number}.jpg {number}\n" for number in range(6)))
    sources, words = [], ["--batch-size", "6", "--image-size", "64", "--num-workers", "1"]
    for layout in ("nhwc", "nchw"):
        for dtype in ("uint8", "float32"):
            for name, augment in ((f"{layout}-{dtype}", ""), (f"{layout}-{dtype}-flipped", "hflip(p=1)")):
                sources.append(f"{name}={manifest}")
                words += [f"--{name}.layout", layout, f"--{name}.dtype", dtype]
                words += [f"--{name}.augment", augment] if augment else []
    serve(*sources, *words)

    def first(dataset: str) -> np.ndarray:
        with prefetchd.batches(dataset=dataset) as loader:
            return loader.peek().x

    for dtype in ("uint8", "float32"):
        assert np.array_equal(first(f"nhwc-{dtype}-flipped"), first(f"nhwc-{dtype}")[..., ::-1, :])
        assert np.array_equal(first(f"nchw-{dtype}-flipped"), first(f"nchw-{dtype}")[..., ::-1])


def test_pixels_are_changed_before_normalisation_and_erased_after_it(photographs: Path):
    """For every dtype and layout: the float rows are the values of the uint8 rows, but for the box, which holds 0."""
    spec = "rand_augment, gaussian_blur(kernel_size=5), solarize, equalize"
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    with prefetchd.batches(photographs, augment=spec, **OPTIONS) as loader:
        plain = [x.copy() for x, _ in loader]
    floats = {"dtype": "float32", "scale": 1 / 255, "mean": mean.tolist(), "std": std.tolist()}
    n_erased = n_samples = 0
    for layout in ("nhwc", "nchw"):
        options = {**OPTIONS, **floats, "layout": layout, "augment": spec + ", random_erasing(p=0.5)"}
        with prefetchd.batches(photographs, **options) as loader:
            for (x, _), pixels in zip(loader, plain, strict=True):
                rows = x if layout == "nhwc" else x.transpose(0, 2, 3, 1)
                erased = (rows == 0).all(axis=3)
                expected = np.where(erased[..., None], 0, (pixels / 255 - mean) / std)
                assert np.abs(rows - expected).max() < 1e-5
                n_erased += int(erased.any(axis=(1, 2)).sum())
                n_samples += len(rows)
                del x, rows
    assert 0.3 < n_erased / n_samples < 0.7


def test_random_erasing_is_the_same_whoever_reads(photographs: Path):
    options = {**OPTIONS, "dtype": "float16", "augment": "random_erasing(p=1, value='random')"}
    one = epochs(photographs, num_workers=1, **options)
    assert epochs(photographs, num_workers=3, **options) == one
    assert len(set(one)) == len(one)


def test_substitute_is_augmented_as_itself(tmp_path: Path):
    """A sample that stands in for a bad one draws its own numbers, so both rows of it are the same."""
    write_jpeg(tmp_path / "good.jpg", (60, 80))
    manifest = tmp_path / "list.txt"
    manifest.write_text("missing.jpg 0\ngood.jpg 1\n")
    options = {"batch_size": 2, "image_size": 32, "augment": EVERYTHING, "on_error": "substitute"}
    with prefetchd.batches(manifest, **options) as loader:
        batch = next(iter(loader))
        assert batch.sample_ids.tolist() == [1, 1]
        assert np.array_equal(batch.x[0], batch.x[1])
        del batch


def test_transform_runs_in_the_readers_the_same_whoever_reads(
    photographs: Path, users: Path, serve: Callable[..., DaemonProcess]
):
    options = {**OPTIONS, "transform": "users_functions:shade", "augment": "random_resized_crop"}
    one = epochs(photographs, num_workers=1, python_path=[users], **options)
    assert len(set(one)) == len(one)
    assert epochs(photographs, num_workers=3, python_path=str(users), **options) == one
    daemon = serve(
        photographs, "--batch-size", 8, "--image-size", 32, "--seed", 3, "--augment", "random_resized_crop",
        "--transform", "users_functions:shade",
    )  # fmt: skip
    assert epochs(None) == one
    assert "Traceback" not in daemon.log


def test_private_daemon_finds_the_module_beside_the_script(photographs: Path, users: Path):
    """A function object is named by its module; the readers look where the script does. Its prints break nothing."""
    code = f"""
import prefetchd, users_functions
with prefetchd.batches({os.fspath(photographs)!r}, batch_size=50, image_size=16, transform=users_functions.shade,
                       target_transform=users_functions.noisy) as loader:
    for x, y in loader:
        assert y.dtype == "float64" and (y // 1 == range(50)).all() and (y % 1 > 0).any(), y
        print(loader.config["transform"])
"""
    (users / "queue.py").unlink()  # the script itself would import it
    result = run_script(users / "script.py", code)
    assert result.returncode == 0, result.stderr
    assert "users_functions:shade" in result.stdout  # the readers print into the same file: not of a whole line
    assert "a word of the user's" in result.stdout


def test_function_of_the_script_itself_is_refused_with_what_to_do(photographs: Path, users: Path):
    code = f"""
import prefetchd
def mine(image, rng):
    return image
try:
    prefetchd.batches({os.fspath(photographs)!r}, transform=mine)
except prefetchd.ConfigError as error:
    print(error)
"""
    result = run_script(users / "script.py", code)
    assert "pass 'module:mine'" in result.stdout, result.stderr


def test_float_transform_is_scaled_like_pixels(photographs: Path, users: Path):
    options = {**OPTIONS, "dtype": "float32", "scale": 2, "mean": (1, 2, 3), "std": 4, "layout": "nchw"}
    with prefetchd.batches(photographs, **options) as loader:
        plain = next(iter(loader)).x.copy()
    with prefetchd.batches(photographs, transform="users_functions:floats", python_path=[users], **options) as loader:
        halved = next(iter(loader)).x.copy()
    mean = np.array([1, 2, 3], np.float32).reshape(3, 1, 1)
    np.testing.assert_allclose(halved, ((plain * 4 + mean) / 2 - mean) / 4, atol=1e-4)


def test_target_transform_decides_y(photographs: Path, users: Path):
    options = {**OPTIONS, "target_transform": "users_functions:one_hot", "python_path": [users]}
    with prefetchd.batches(photographs, **options) as loader:
        for batch in loader:
            assert batch.y.dtype == np.float32
            assert np.array_equal(batch.y, np.eye(50)[batch.sample_ids])
            del batch


def test_edited_transform_is_another_content(photographs: Path, users: Path, serve: Callable[..., DaemonProcess]):
    """The digest follows the module's source, so that a run is not resumed with other pixels unnoticed."""
    digests = []
    for name, text in (("a", ""), ("b", ""), ("c", "\n# edited\n")):
        (users / "users_functions.py").write_text(FUNCTIONS + text)
        arguments = ("--batch-size", 8, "--image-size", 32, "--num-workers", 1, "--transform", "users_functions:shade")
        serve(photographs, *arguments, name=name)
        with prefetchd.batches(daemon=name) as loader:
            digests.append(loader.state_dict()["config_digest"])
    assert digests[0] == digests[1] != digests[2]


REFUSALS = [
    (["--transform", "nowhere_at_all:f"], "--transform nowhere_at_all:f: there is no module 'nowhere_at_all'"),
    (["--transform", "users_functions:absent"], "has no 'absent'"),
    (["--transform", "users_functions:smaller"], r"returned an array of \(31, 32, 3\) uint8.*must be.*\(32, 32, 3\)"),
    (["--transform", "users_functions:as_float"], "float32.*dtype.*float32.* takes"),
    (["--transform", "users_functions:none"], "it returned None"),
    (
        ["--transform", "users_functions:raises"],
        r"--transform users_functions:raises: it raised ValueError: always \(users_functions.py line \d+, in raises\), "
        r"and raised on every sample tried \(8\)",
    ),
    (["--transform", "users_functions:leaves"], r"dry run with one sample ended by itself \(exit status 7"),
    (["--transform", "users_functions:crashes"], r"killed by SIGSEGV"),
    (["--transform", "users_functions:hangs", "--reader-timeout", "2"], "has not ended within 2 s"),
    (["--target-transform", "users_functions:words"], "--target-transform users_functions:words: it returned"),
    (["--transform", "not a name"], "package.module:name"),
    (["--augment", "hflop"], "did you mean hflip"),
    (["--target", "mask"], "there is no mask"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSALS, ids=[" ".join(case[0][1::2]) for case in REFUSALS])
def test_what_cannot_work_is_refused_at_start_in_one_line(
    photographs: Path, users: Path, arguments: list[str], words: str
):
    line = refused_here("serve", photographs, "--image-size", 32, "--num-workers", 1, *arguments)
    assert re.search(words, line), line


def test_batches_raises_what_serve_says(photographs: Path, users: Path):
    with pytest.raises(prefetchd.ConfigError, match=r"it raised ValueError: always"):
        prefetchd.batches(photographs, image_size=32, transform="users_functions:raises", python_path=[users])


def test_killed_daemon_takes_a_hanging_dry_run_with_it(photographs: Path, users: Path, tmp_path: Path):
    import psutil

    from tests.conftest import wait_until
    from tests.process.commands import ended, tree

    command = [sys.executable, "-m", "prefetchd", "serve", photographs, "--transform", "users_functions:hangs"]
    process = subprocess.Popen([*map(str, command), "--name", "hung"], stderr=subprocess.DEVNULL)

    def dry_run_runs() -> list[psutil.Process]:
        return [p for p in psutil.Process(process.pid).children() if "prefetchd.reader.dry_run" in p.cmdline()]

    wait_until(dry_run_runs, "the dry run runs")
    everyone = tree(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: ended(everyone), "all have ended")
    wait_until(lambda: not list(Path(os.environ["XDG_RUNTIME_DIR"]).rglob("*.*")), "the files are gone")


# --- masks


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """A manifest of 12 PNG images and masks: a pixel of class c is 50 c in the image and the index c in the mask."""
    from PIL import Image

    folder = tmp_path / "masks"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(12):
        blocks = rng.integers(1, 4, (5, 6)).astype(np.uint8)
        classes = cv2.resize(blocks, (90, 75), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / f"{number}.png"), np.repeat(classes[..., None] * 50, 3, axis=2))
        mask = Image.new("P", (90, 75))
        mask.putdata(classes.reshape(-1).tolist())
        mask.putpalette([7 * n % 256 for n in range(768)])
        mask.save(folder / f"mask {number}.png")
        lines.append(f'{number}.png "mask {number}.png"\n')
    manifest = folder / "list.txt"
    manifest.write_text("".join(lines))
    return manifest


def test_masks_are_the_indices_at_the_places_of_their_image(masks: Path, serve: Callable[..., DaemonProcess]):
    words = ["--batch-size", 4, "--image-size", "48x40", "--interpolation", "nearest", "--num-workers", 2]
    words += ["--target", "mask", "--mask-border", 9]
    names = []
    for resize in ("stretch", "crop", "pad"):
        for augment in ("", "random_resized_crop, hflip, vflip, rotate"):
            names.append(f"{resize}-augmented" if augment else resize)
            words += [f"--{names[-1]}.resize", resize]
            words += [f"--{names[-1]}.augment", augment] if augment else []
    serve(*(f"{name}={masks}" for name in names), *words)
    for name in names:
        check_masks(name)


def check_masks(dataset: str) -> None:
    with prefetchd.batches(dataset=dataset, epochs=2) as loader:
        for x, y in loader:
            assert (y.shape, y.dtype) == ((4, 48, 40), np.uint8)
            assert set(np.unique(y)) <= {1, 2, 3, 9}
            outside = y == 9
            # Two ways of rounding: `nearest` of OpenCV for the image, by the pixels' centres for the mask.
            assert (x[..., 0][~outside] != y[~outside] * 50).mean() < 0.12
            assert (x[..., 0][outside] == 0).mean() > 0.9 if outside.any() else True
            del x, y, outside


def test_masks_follow_what_policies_move_and_nothing_that_changes_pixels(masks: Path):
    options = {"batch_size": 12, "image_size": (48, 40), "target": "mask", "mask_border": 9}

    def placed(augment: str) -> np.ndarray:
        with prefetchd.batches(masks, augment=augment, **options) as loader:
            return next(iter(loader)).y.copy()

    plain = placed("")
    changes = "color_jitter, grayscale, gaussian_blur, solarize, posterize, sharpness, auto_contrast, equalize"
    assert np.array_equal(placed(changes + ", random_erasing(p=1)"), plain)
    for policy in ("rand_augment(num_ops=3)", "trivial_augment_wide"):
        moved = placed(policy)
        assert set(np.unique(moved)) <= {1, 2, 3, 9}
        n_moved = int((moved != plain).any(axis=(1, 2)).sum())
        assert 0 < n_moved < 12


def test_masks_of_16_bits_and_tables_and_target_transform(masks: Path, users: Path):
    folder = masks.parent
    for number in range(12):
        classes = cv2.imread(str(folder / f"{number}.png"), 0) // 50
        cv2.imwrite(str(folder / f"deep{number}.png"), classes.astype(np.uint16) * 1000)
        cv2.imwrite(str(folder / f"flat{number}.png"), classes)
    table = folder / "list.csv"
    table.write_text("image,mask\n" + "".join(f"{n}.png,deep{n}.png\n" for n in range(12)))
    options = {"target": "mask", "batch_size": 12, "image_size": 40}
    with prefetchd.batches(table, **options) as loader:
        y = next(iter(loader)).y
        assert y.dtype == np.uint16
        assert set(np.unique(y)) == {1000, 2000, 3000}
        del y
    plain = folder / "flat.txt"
    plain.write_text("".join(f"{n}.png flat{n}.png\n" for n in range(12)))
    function = {"target_transform": "users_functions:classes", "python_path": [users]}
    with prefetchd.batches(plain, **function, **options) as loader:
        y = next(iter(loader)).y
        assert (y.shape, y.dtype) == ((12, 4), np.int64)
        assert (y.sum(axis=1) == 1600).all()
        del y


def test_bad_masks_are_bad_samples_that_name_mask_and_reason(masks: Path, serve: Callable[..., DaemonProcess]):
    folder = masks.parent
    cv2.imwrite(str(folder / "mask 3.png"), np.ones((75, 60), np.uint8))
    cv2.imwrite(str(folder / "mask 4.png"), photograph(75, 90))
    (folder / "mask 5.png").unlink()
    cv2.imwrite(str(folder / "mask 6.png"), np.ones((75, 90), np.uint16))
    cv2.imwrite(str(folder / "mask 7.png"), np.ones((150, 180), np.uint8))
    daemon = serve(masks, "--target", "mask", "--on-error", "skip", "--batch-size", 12, "--image-size", 32)
    with prefetchd.batches() as loader:
        ids = next(iter(loader)).sample_ids.tolist()
    assert ids == [0, 1, 2, 7, 8, 9, 10, 11]
    for number, words in (
        (3, "mask 3.png: it is 60x75 and the image 90x75"),
        (4, "in colour"),
        (5, "mask 5.png: No such file"),
        (6, "16 bits, and the first mask had 8"),
    ):
        assert re.search(f"bad sample {number}: .*{words}", daemon.log), daemon.log


def test_a_first_mask_that_is_not_there_is_named(masks: Path):
    lost = masks.parent / "lost.txt"
    lost.write_text('0.png "lost 0.png"\n')
    line = refused_here("serve", lost, "--target", "mask")
    assert re.search(r"cannot try .*0\.png\): its mask .*lost 0\.png: No such file or directory.*; check paths", line)


def test_manifest_line_without_a_mask_is_refused_with_its_number(masks: Path):
    folder = masks.parent
    wrong = folder / "wrong.txt"
    wrong.write_text('0.png "mask 0.png"\n1.png\n2.png 7\n')
    line = refused_here("serve", wrong, "--target", "mask")
    assert "line 2 of" in line
    assert "; line 3: " in line
    assert "directory names classes" in refused_here("serve", folder, "--target", "mask")
    three = folder / "three.csv"
    three.write_text("image,mask,split\n0.png,mask 0.png,train\n1.png,mask 1.png,val\n")
    assert "--y-column" in refused_here("serve", three, "--target", "mask")


@pytest.mark.timeout(400)  # importing the library takes seconds, in the dry run and in each reader
def test_albumentations_pipeline_runs_the_same_whoever_reads(masks: Path, users: Path, monkeypatch: pytest.MonkeyPatch):
    """The real library, where it is installed: by name, seeded a sample, with the mask turned as its image."""
    if importlib.util.find_spec("albumentations") is None:
        pytest.skip("albumentations is not installed")
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    (users / "pipelines.py").write_text(
        "import albumentations as A\nturn = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])\n"
    )
    options = {"batch_size": 4, "image_size": (75, 90), "target": "mask", "transform": "pipelines:turn"}
    seen = []
    for readers in (1, 2):
        with prefetchd.batches(masks, epochs=2, num_workers=readers, python_path=[users], **options) as loader:
            for x, y in loader:
                assert np.array_equal(x[..., 0], y * 50)
                seen.append(x.tobytes())
                del x, y
    assert seen[:6] == seen[6:]
    assert seen[:3] != seen[3:6]
