"""`prefetchd preview`, as a user types it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import prefetchd
from tests.images import write_jpeg
from tests.process.commands import refused, refused_here, run_command, run_here

QUICK = ("--num-workers", "1", "--image-size", "96")


@pytest.fixture
def solid(tmp_path):
    """Twelve images, the first ten of plain colours of their own, then one that is missing and one more."""
    lines = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        if number != 10:
            assert cv2.imwrite(str(path), np.full((120, 120, 3), (20 * number, 255 - 20 * number, 40), np.uint8))
        lines.append(f"{path.name} {'cat' if number % 3 else 'dog'}\n")
    manifest = tmp_path / "solid.txt"
    manifest.write_text("".join(lines))
    return manifest


def area_of(sheet, number: int) -> int:
    return int((sheet == (20 * number, 255 - 20 * number, 40)).all(axis=-1).sum())


def test_the_sheet_shows_each_sample_as_it_is_delivered_with_normalisation_undone(solid, tmp_path):
    sheet_path = tmp_path / "sheet.png"
    result = run_command(
        "preview", solid, *QUICK, "-o", sheet_path, "--shuffle", "--batch-size", "5", "--drop-last",
        "--dtype", "float32", "--scale", "1/255", "--mean", "0.5", "--std", "0.25", "--layout", "nchw",
    )  # fmt: skip
    assert result.returncode == 0, result
    assert "10.png: No such file" in result.stdout
    assert [line.split()[:2] for line in result.stdout.splitlines() if "█" in line] == [["cat", "8"], ["dog", "4"]]
    sheet = cv2.imread(str(sheet_path))
    assert [area_of(sheet, number) for number in range(12) if number != 10] == [96 * 96] * 11


def test_a_few_samples_are_spread_over_the_whole_set(solid, tmp_path):
    result = run_here("preview", solid, *QUICK, "-o", tmp_path / "s.png", "--samples", "3")
    assert result.returncode == 0, result
    sheet = cv2.imread(str(tmp_path / "s.png"))
    assert [number for number in range(12) if area_of(sheet, number)] == [0, 4, 8]


def test_augmented_shows_the_epochs_of_a_sample_side_by_side(tmp_path):
    write_jpeg(tmp_path / "a.jpg", (120, 160))
    (tmp_path / "m.txt").write_text("a.jpg 1\n")
    outputs = []
    for name, augment in (
        ("plain.png", ()),
        ("turned.png", ("--augment", "rotate(degrees=45), rand_augment, random_erasing(p=1)")),
    ):
        result = run_here("preview", tmp_path / "m.txt", *QUICK, *augment, "-o", tmp_path / name, "--augmented", "3")
        assert result.returncode == 0, result
        sheet = cv2.imread(str(tmp_path / name))
        outputs.append([sheet[28:124, 8 + 104 * column : 104 + 104 * column].tobytes() for column in range(3)])
    assert len(set(outputs[0])) == 1
    assert len(set(outputs[1])) == 3


def test_what_cannot_be_previewed_is_refused_in_one_line(solid, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    assert "arrays, not images" in refused_here("preview", tmp_path / "x.npy")
    assert "--samples" in refused_here("preview", solid, "--samples", "0")
    assert "ends with" in refused_here("preview", solid, "-o", tmp_path / "sheet.txt")
    assert "cannot write" in refused("preview", solid, *QUICK, "-o", tmp_path / "no" / "sheet.png")


@pytest.mark.parametrize(("words", "daemon"), [((), "default"), (("--name", "served"), "served")])
def test_without_a_manifest_the_batches_of_a_running_daemon_are_pointed_to(words, daemon, tmp_path):
    said = refused_here("preview", *words, "-o", tmp_path / "s.png")
    assert "no manifest was given; name a list, a folder or other data, or give --batch B, and --epoch E, for" in said
    assert f"running daemon {daemon!r}" in said


def test_a_sheet_too_large_for_its_format_is_refused(solid, tmp_path):
    manifest = tmp_path / "many.txt"
    manifest.write_text(f"{solid.read_text().splitlines()[0]}\n" * 700)
    line = refused_here("preview", manifest, "-o", tmp_path / "s.webp", "--samples", 700)
    assert "is too large for that format; name a .png" in line


def test_batch_by_number_is_the_one_that_trainers_get(solid, tmp_path, serve):
    words = ("--batch-size", "4", "--shuffle", "--seed", "5", "--on-error", "skip")
    serve(solid, *QUICK, *words, name="served")
    with prefetchd.batches(daemon="served") as loader:
        expected = [loader.batch_at(3, index).sample_ids.tolist() for index in range(3)]
    assert sorted(number for ids in expected for number in ids) == [n for n in range(12) if n != 10]
    shown = []
    for index in range(3):
        private, running = tmp_path / "private.png", tmp_path / "running.png"
        result = run_command("preview", solid, *QUICK, *words, "--epoch", "3", "--batch", index, "-o", private)
        assert result.returncode == 0, result
        assert f"batch {index} of epoch 3, {len(expected[index])} samples" in result.stdout
        result = run_command("preview", "--name", "served", "--epoch", "3", "--batch", index, "-o", running)
        assert result.returncode == 0, result
        sheet = cv2.imread(str(private))
        assert np.array_equal(sheet, cv2.imread(str(running)))
        shown.append([number for number in range(12) if area_of(sheet, number)])
    assert shown == [sorted(ids) for ids in expected]


def test_batch_that_does_not_exist_or_has_no_pictures_is_refused(solid, tmp_path):
    words = ("preview", solid, *QUICK, "-o", tmp_path / "s.png")
    said = refused(*words, "--batch-size", "4", "--batch", "3")
    assert "--batch 3: it must be a whole number from 0 to 2 (an epoch has 3 batches)" in said
    assert "leave one out" in refused_here(*words, "--batch", "0", "--augmented", "3")
    assert "names a data set of a running daemon" in refused_here(*words, "--batch", "0", "--dataset", "x")
    assert "without --batch" in refused_here(*words, "--dataset", "x")
    assert "none is running" in refused_here("preview", "--batch", "0", "--name", "nobody", "-o", tmp_path / "s.png")
    np.save(tmp_path / "rows.npy", np.zeros((8, 4), np.float32))
    assert "arrays, not images" in refused("preview", tmp_path / "rows.npy", "--batch", "0", "-o", tmp_path / "s.png")
