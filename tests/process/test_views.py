"""Views through real daemons: decoded once, each as a loader of its own would deliver it, the same with any readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import prefetchd
from tests.conftest import DaemonProcess
from tests.images import photograph, write_jpeg
from tests.process.commands import run_command

EVERYTHING = "random_resized_crop, hflip, vflip, rotate, affine, color_jitter, grayscale(p=0.5), random_erasing"
OPTIONS: dict[str, Any] = {"batch_size": 4, "image_size": 32, "seed": 3, "num_workers": 2}
LIST = [{"size": 40, "count": 2, "scale": (0.4, 1)}, {"size": (16, 24), "count": 3, "scale": (0.05, 0.4)}]

FUNCTIONS = """
import numpy as np

def noise(image, rng):
    return rng.integers(0, 256, image.shape, np.uint8)
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    for number in range(8):
        assert cv2.imwrite(str(folder / f"{number}.png"), photograph(60, 80, number))
    (folder / "list.txt").write_text("".join(f"{number}.png {number}\n" for number in range(8)))
    return folder / "list.txt"


def all_fields(source: Path, *, epochs: int = 2, **options: Any) -> dict[str, NDArray[Any]]:
    with prefetchd.batches(source, epochs=epochs, **{**OPTIONS, **options}) as loader:
        batches = [{name: array.copy() for name, array in batch.items()} for batch in loader]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_view_0_is_what_comes_without_views_and_the_others_are_drawn_anew(manifest: Path, layout: str) -> None:
    plain = all_fields(manifest, augment=EVERYTHING, layout=layout, shuffle=True)
    found = all_fields(manifest, augment=EVERYTHING, layout=layout, shuffle=True, views=3)
    assert found["x"].shape == (16, 3, *plain["x"].shape[1:])
    np.testing.assert_array_equal(found["x"][:, 0], plain["x"])
    np.testing.assert_array_equal(found["y"], plain["y"])
    flat = found["x"].reshape(48, -1)
    assert len(np.unique(flat, axis=0)) == 48


def test_views_are_the_same_with_any_readers_and_in_any_number(manifest: Path) -> None:
    three = all_fields(manifest, augment=EVERYTHING, views=3)["x"]
    np.testing.assert_array_equal(all_fields(manifest, augment=EVERYTHING, views=3, num_workers=1)["x"], three)
    np.testing.assert_array_equal(all_fields(manifest, augment=EVERYTHING, views=2)["x"], three[:, :2])


def test_without_augmentation_all_views_are_the_image(manifest: Path) -> None:
    found = all_fields(manifest, views=2)["x"]
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    np.testing.assert_array_equal(found[:, 0], all_fields(manifest)["x"])


def test_a_list_gives_an_array_for_each_kind_of_view(manifest: Path) -> None:
    found = all_fields(manifest, augment="hflip, color_jitter", views=LIST, dtype="float32", scale=1 / 255)
    assert {name: array.shape[1:] for name, array in found.items()} == {
        "view0": (2, 40, 40, 3),
        "view1": (3, 16, 24, 3),
        "y": (),
    }
    # Its first view is that of a loader with this crop and size.
    crop = "random_resized_crop(scale=(0.4, 1)), hflip, color_jitter"
    plain = all_fields(manifest, augment=crop, image_size=40, dtype="float32", scale=1 / 255)
    np.testing.assert_array_equal(found["view0"][:, 0], plain["x"])
    # Views are numbered over all of the list: the third one is the first of the second kind.
    small = "random_resized_crop(scale=(0.05, 0.4)), hflip, color_jitter"
    alone = all_fields(manifest, augment=small, image_size=(16, 24), dtype="float32", scale=1 / 255, views=5)
    np.testing.assert_array_equal(found["view1"], alone["x"][:, 2:])


def test_one_kind_may_have_an_augmentation_of_its_own(manifest: Path) -> None:
    found = all_fields(manifest, augment="hflip(p=1)", views=[{}, {"augment": ""}, {"augment": "vflip(p=1)"}])
    still = found["view1"]
    np.testing.assert_array_equal(found["view0"], still[:, :, :, ::-1])
    np.testing.assert_array_equal(found["view2"], still[:, :, ::-1])


@pytest.mark.parametrize("options", [{"views": 2, "augment": "hflip, color_jitter"}, {"views": LIST}])
def test_a_cache_keeps_the_image_once_and_changes_no_view(
    manifest: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    if options["views"] is LIST:
        options = {**options, "cache_image_size": 50}
    plain = all_fields(manifest, **options)
    for epochs in (1, 2):
        # One reader: two that decode an image in two epochs, of which the second is ahead, would keep it twice.
        cached = all_fields(manifest, epochs=epochs, cache=tmp_path / "cache", **options, num_workers=1)
        for name, array in cached.items():
            np.testing.assert_array_equal(array, plain[name][: len(array)])
    with prefetchd.batches(manifest, cache=tmp_path / "cache", **OPTIONS, **options) as loader:
        list(loader)
        assert loader.status()["datasets"][0]["cache"]["rows"] == 8


def test_a_users_function_runs_for_each_view_with_numbers_of_its_own(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "view_functions.py").write_text(FUNCTIONS)
    given = {"transform": "view_functions:noise", "python_path": str(tmp_path)}
    plain = all_fields(manifest, **given)["x"]
    found = all_fields(manifest, views=2, **given)["x"]
    np.testing.assert_array_equal(found[:, 0], plain)
    assert not (found[:, 0] == found[:, 1]).all(axis=(1, 2, 3)).any()


def test_large_jpegs_are_decoded_as_far_as_the_most_demanding_view_needs(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "a.jpg", (800, 1200))
    (tmp_path / "list.txt").write_text("a.jpg 0\n")
    small, large = {"size": 50}, {"size": 400}
    alone = all_fields(tmp_path / "list.txt", views=[large])["view0"]
    both = all_fields(tmp_path / "list.txt", views=[small, large])
    np.testing.assert_array_equal(both["view1"], alone)
    exact = cv2.resize(cv2.imread(str(tmp_path / "a.jpg")), (50, 50))[..., ::-1]
    assert np.abs(both["view0"][0, 0].astype(int) - exact).mean() < 12


def test_views_are_served_and_previewed_from_the_command_line(manifest: Path, tmp_path: Path, serve: Any) -> None:
    words = ["--image-size", 32, "--seed", 3, "--views", "view(size=40, count=2, scale=(0.4, 1)), view(size=16)"]
    daemon: DaemonProcess = serve(manifest, *words, "--batch-size", 4, name="views")
    with prefetchd.batches(daemon="views") as loader:
        shapes = {each.name: each.shape for each in loader.layout.fields}
        batch = next(iter(loader))
        assert batch.view0.shape == (4, 2, 40, 40, 3)
    assert shapes == {"view0": (2, 40, 40, 3), "view1": (1, 16, 16, 3), "y": ()}
    assert daemon.process.poll() is None
    for views in ("2", words[-1]):
        sheet = tmp_path / "sheet.png"
        result = run_command("preview", manifest, "-o", sheet, "--image-size=32", f"--views={views}", "--augment=hflip")
        assert result.returncode == 0, result.stderr
        assert cv2.imread(str(sheet)).std() > 10


def test_a_list_in_memory_has_views_too(manifest: Path) -> None:
    folder = manifest.parent
    rows = [(str(folder / f"{number}.png"), number) for number in range(8)]
    for views in (2, LIST):
        given = all_fields(manifest, views=views, augment=EVERYTHING)
        for name, array in all_fields(rows, views=views, augment=EVERYTHING).items():  # type: ignore[arg-type]
            np.testing.assert_array_equal(array, given[name])


def test_views_of_samples_with_fields_are_refused(manifest: Path) -> None:
    with pytest.raises(prefetchd.ConfigError, match="cannot use views together with fields; give two loaders"):
        prefetchd.batches(manifest, views=2, fields={"image": prefetchd.Field("image", column=0)}, **OPTIONS)


@pytest.mark.parametrize("views", [2, LIST])
def test_tensors_have_their_channels_before_rows_and_columns(manifest: Path, views: Any) -> None:
    pytest.importorskip("torch")
    import prefetchd.torch

    arrays = all_fields(manifest, epochs=1, views=views, augment=EVERYTHING)
    with prefetchd.torch.batches(manifest, views=views, augment=EVERYTHING, **OPTIONS) as loader:
        tensors = [{name: tensor.clone() for name, tensor in batch.items()} for batch in loader]
    for name, array in arrays.items():
        found = np.concatenate([batch[name].numpy() for batch in tensors])
        np.testing.assert_array_equal(found, np.moveaxis(array, -1, -3) if name != "y" else array)


@pytest.mark.parametrize("transform", [None, "view_pipelines:pipeline"])
def test_each_mask_has_the_geometry_of_its_view(tmp_path: Path, transform: str | None) -> None:
    if transform is not None:
        pytest.importorskip("albumentations")
        (tmp_path / "view_pipelines.py").write_text(
            "import albumentations as A\npipeline = A.Compose([A.HorizontalFlip(p=0.5)])\n"
        )
    for number in range(4):
        classes = np.random.default_rng(number).integers(0, 4, (6, 8), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
        assert cv2.imwrite(str(tmp_path / f"{number}.mask.png"), classes)
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), np.dstack([classes * 60] * 3))
    (tmp_path / "list.txt").write_text("".join(f"{number}.png {number}.mask.png\n" for number in range(4)))
    given: dict[str, Any] = {"target": "mask", "interpolation": "nearest", "transform": transform}
    given |= {"augment": "random_resized_crop, hflip, vflip, rotate", "python_path": str(tmp_path)}
    plain = all_fields(tmp_path / "list.txt", **given)
    found = all_fields(tmp_path / "list.txt", views=3, **given)
    assert found["y"].shape == (8, 3, 32, 32)
    np.testing.assert_array_equal(found["y"][:, 0], plain["y"])
    # Grey levels are the classes, but for the rims of what was enlarged or turned.
    same = found["x"][..., 0] // 60 == found["y"]
    assert same.mean(axis=(2, 3)).min() > 0.85
    assert len(np.unique(found["y"].reshape(24, -1), axis=0)) == 24
