"""Samples with fields, end to end: what a batch holds of each kind, and what is wrong is said of its field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import prefetchd
from prefetchd import Field
from prefetchd.client.batch import leaves_of
from tests.field_data import N_SAMPLES, QUICK, SIZE, caption, field_data, mask_of  # noqa: F401
from tests.images import photograph
from tests.process.commands import refused_here, run_command

ROOT = Path(prefetchd.__file__).parents[1]


FIELDS = {
    "image": Field("image", "path"),
    "depth": Field("image", channels=1, dtype="float32"),
    "mask": Field("mask"),
    "label": Field("label"),
    "caption": Field("text"),
    "beside": Field("text", ".txt", max_bytes=32),
    "score": Field("label"),
    "embedding": Field("array", shape=4, dtype="float32"),
    "raw": Field("bytes", "path", max_bytes=10_000),
    "angles": Field("label", "roll,pitch"),
}


def has_torchvision() -> bool:
    """Return whether it is installed and suits the PyTorch that is."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def check_contents(batch: prefetchd.Batch, data: Path) -> None:
    for row, number in enumerate(batch.sample_ids.tolist()):
        encoded = (data / f"pairs/images/{number:03d}.png").read_bytes()
        rgb = cv2.cvtColor(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(batch["image"][row], rgb)
        np.testing.assert_array_equal(batch.depth[row, ..., 0], photograph(*SIZE, 100 + number)[..., 0])
        np.testing.assert_array_equal(batch.mask[row], mask_of(number))
        assert batch.label[row] == 1 - number % 2  # cat, dog
        assert batch.strings("caption")[row] == caption(number)
        assert batch.strings("beside")[row] == f"beside {number}"
        assert batch.embedding[row].tolist() == [number] * 4
        assert batch.raw.bytes[row][: batch.raw.length[row]].tobytes() == encoded
        assert not batch.raw.bytes[row][batch.raw.length[row] :].any()
    assert batch.depth.dtype == batch.embedding.dtype == np.float32


def test_every_kind_holds_what_its_files_and_columns_hold(data: Path) -> None:
    with prefetchd.batches(data / "train.csv", fields=FIELDS, image_size=SIZE, shuffle=True, **QUICK) as loader:
        assert loader.classes == ("cat", "dog")
        assert loader.n_samples == N_SAMPLES
        seen = []
        for batch in loader:
            assert batch.keys() == tuple(FIELDS)
            check_contents(batch, data)
            assert batch.score.tolist() == [number / 2 for number in batch.sample_ids]
            assert batch.angles.tolist() == [[number, -number] for number in batch.sample_ids]
            seen += batch.sample_ids.tolist()
        assert sorted(seen) == list(range(N_SAMPLES))


def test_json_lines_give_the_same_and_lists_too(data: Path) -> None:
    fields = {**FIELDS, "vector": Field("array")}
    del fields["angles"]
    with prefetchd.batches(data / "train.jsonl", fields=fields, image_size=SIZE, **QUICK) as loader:
        for batch in loader:
            check_contents(batch, data)
            assert batch.vector.tolist() == [[number, 2 * number, 7] for number in batch.sample_ids]
            assert batch.vector.dtype == np.int64


def test_a_folder_for_each_field_gives_pairs(data: Path) -> None:
    fields = {
        "image": Field("image", "images"),
        "mask": Field("mask", "masks"),
        "caption": Field("text", "captions", max_bytes=40),
        "beside": Field("text", ".txt", max_bytes=40),
    }
    with prefetchd.batches(data / "pairs", fields=fields, image_size=SIZE, **QUICK) as loader:
        for batch in loader:
            assert batch.strings("caption") == [caption(number) for number in batch.sample_ids]
            assert batch.strings("beside") == [f"beside {number}" for number in batch.sample_ids]
            np.testing.assert_array_equal(batch.mask, [mask_of(number) for number in batch.sample_ids])


def test_images_and_masks_of_a_sample_get_one_geometry_and_epochs_another(data: Path) -> None:
    """A mask read as an image, without interpolation, is the mask; so is one of half the size."""
    fields = {
        "image": Field("image", "mask", channels=1, interpolation="nearest"),
        "mask": Field("mask"),
        "small": Field("mask", "mask", size=(20, 30)),
        "jittered": Field("image", "path"),
        "plain": Field("image", "path", jitter=False),
    }
    augment = "random_resized_crop(scale=(0.5, 1)), hflip, vflip, rotate(degrees=20), color_jitter"
    with prefetchd.batches(data / "train.csv", fields=fields, image_size=SIZE, augment=augment, **QUICK) as loader:
        batch, later = loader.batch_at(0, 0), loader.batch_at(1, 0)
    agree = batch.image[..., 0] == batch.mask
    assert agree.mean() > 0.97  # OpenCV's two kinds of nearest differ at the edges of areas
    assert (batch.mask[:, 1::2, 1::2] == batch.small).mean() > 0.9
    assert not np.array_equal(batch.mask, later.mask)
    assert not np.array_equal(batch.jittered, batch.plain)
    black = (batch.jittered == 0).all(axis=-1) == (batch.plain == 0).all(axis=-1)
    assert black.mean() > 0.95  # both lie where the same turn left them


def test_a_fault_names_its_field_and_the_others_go_on(data: Path, tmp_path: Path) -> None:
    lines = (data / "train.csv").read_text().splitlines()
    lines[3] = lines[3].replace("pairs/depth/002.png", "pairs/depth/none.png")
    (data / "bad.csv").write_text("\n".join(lines) + "\n")
    with (
        prefetchd.batches(data / "bad.csv", fields=FIELDS, image_size=SIZE, **QUICK) as loader,
        pytest.raises(prefetchd.SampleError, match=r"bad.csv line 4: .*002.png.*field depth: No such file"),
    ):
        list(loader)
    with prefetchd.batches(data / "bad.csv", fields=FIELDS, image_size=SIZE, on_error="skip", **QUICK) as loader:
        ids = [number for batch in loader for number in batch.sample_ids.tolist()]
        assert ids == [number for number in range(N_SAMPLES) if number != 2]
    (data / "bad.csv").unlink()


def test_a_longer_text_is_a_bad_sample_or_is_cut_at_a_character(data: Path) -> None:
    short = {"caption": Field("text", max_bytes=6, truncate=True)}
    with prefetchd.batches(data / "train.csv", fields=short, **QUICK) as loader:
        assert set(loader.batch_at(0, 0).strings("caption")) == {'a "gr'}  # the next character has two bytes
    strict = {"caption": Field("text", max_bytes=7)}
    with (
        prefetchd.batches(data / "train.csv", fields=strict, **QUICK) as loader,
        pytest.raises(prefetchd.SampleError, match=r"field caption: it has 1[45] bytes, more than max_bytes=7"),
    ):
        next(iter(loader))


def test_states_resume_and_are_of_their_fields(data: Path) -> None:
    options: dict[str, Any] = {"image_size": 16, "shuffle": True, "augment": "random_resized_crop", **QUICK}
    fields = {"image": Field("image", "path"), "label": Field("label")}
    with prefetchd.batches(data / "train.csv", fields=fields, **options) as loader:
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        next_ids = loader.peek().sample_ids.tolist()
        rest = [(batch.index, batch.sample_ids.tolist(), batch.image.copy()) for batch in batches]
        assert [(index, len(ids)) for index, ids, _ in rest] == [(1, 8), (2, 4)]
        assert rest[0][1] == next_ids
    with prefetchd.batches(data / "train.csv", fields=fields, **options) as loader:
        loader.load_state_dict(state)
        for batch, (index, ids, image) in zip(loader, rest, strict=True):
            assert (batch.index, batch.sample_ids.tolist()) == (index, ids)
            np.testing.assert_array_equal(batch.image, image)
    other = {**fields, "mask": Field("mask")}
    with (
        prefetchd.batches(data / "train.csv", fields=other, **options) as loader,
        pytest.raises(prefetchd.ConfigError, match="fields was"),
    ):
        loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": Field("image", "paht")}, "cannot find the column 'paht' in DATA/train.csv: did you mean 'path'"),
        ({"raw": Field("bytes", "path")}, "cannot serve the field raw: its values are files"),
        ({"a": Field("array", "embedding")}, "cannot serve the field a: its arrays are .npy files"),
        ({"caption": Field("text", ".txt", max_bytes=9)}, "the first image is no file of its own"),
        ({"l": Field("label", "roll", dtype="int8"), "m": Field("label", "score", dtype="int8")}, "give a dtype that"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(data: Path, fields: dict[str, Field], message: str) -> None:
    with pytest.raises(prefetchd.ConfigError, match=re.escape(message.replace("DATA", str(data)))):
        prefetchd.batches(data / "train.csv", fields=fields, **QUICK)


def test_command_line_names_fields_one_by_one(data: Path) -> None:
    message = refused_here("serve", data / "train.csv", "--field", "image=imag(column=path)")
    assert "cannot use the field image: the kind 'imag'" in message
    assert "did you mean 'image'?" in message
    message = refused_here("serve", data / "train.csv", "--field", "image=image(path)", "--target", "mask")
    assert "cannot use --target together with --field" in message


def test_examples_of_the_page_run(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("albumentations", exc_type=ImportError)
    monkeypatch.chdir(data)
    monkeypatch.syspath_prepend(tmp_path)
    text = (ROOT / "docs" / "fields.md").read_text()
    if not has_torchvision():
        text = text.replace(', "my_torch_transforms:augment"', ",")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    n_run = 0
    for block in blocks:
        if module := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / module[1]).write_text(block)
        else:
            exec(compile(block, "docs/fields.md", "exec"), {})
            n_run += 1
    assert n_run >= 8


def test_a_table_in_memory_has_fields_too(data: Path) -> None:
    columns = {
        "path": [str(data / f"pairs/images/{number:03d}.png") for number in range(N_SAMPLES)],
        "encoded": [(data / f"pairs/depth/{number:03d}.png").read_bytes() for number in range(N_SAMPLES)],
        "label": ["cat", "dog"] * (N_SAMPLES // 2),
        "vector": np.arange(3 * N_SAMPLES, dtype=np.float32).reshape(-1, 3),
        "caption": [caption(number) for number in range(N_SAMPLES)],
    }
    fields = {
        "image": Field("image", "path"),
        "depth": Field("image", "encoded", color="gray"),
        "label": Field("label"),
        "vector": Field("array", dtype="float64"),
        "caption": Field("text"),
    }
    with prefetchd.batches(columns, fields=fields, image_size=SIZE, **QUICK) as loader:
        assert loader.classes == ("cat", "dog")
        for batch in loader:
            for row, number in enumerate(batch.sample_ids.tolist()):
                np.testing.assert_array_equal(batch.depth[row, ..., 0], photograph(*SIZE, 100 + number)[..., 0])
                assert batch.label[row] == number % 2
                assert batch.vector[row].tolist() == [3 * number, 3 * number + 1, 3 * number + 2]
            assert batch.strings("caption") == [caption(number) for number in batch.sample_ids]
            assert batch.vector.dtype == np.float64


def test_image_fields_are_cached_and_the_batches_stay_the_same(data: Path, tmp_path: Path) -> None:
    fields = {"image": Field("image", "path"), "depth": Field("image", color="gray"), "mask": Field("mask")}
    options: dict[str, Any] = {
        "fields": fields, "image_size": 24, "cache_image_size": (30, 50), "shuffle": True,
        "augment": "random_resized_crop(scale=(0.5, 1)), hflip", **QUICK,
    }  # fmt: skip
    source = data / "train.csv"
    with prefetchd.batches(source, epochs=2, **options) as loader:
        plain = [[array.copy() for array in batch] for batch in loader]
    for _ in range(2):  # a second run finds what the first one kept
        with prefetchd.batches(source, epochs=2, cache=tmp_path / "cache", **options) as loader:
            for batch, arrays in zip(loader, plain, strict=True):
                for array, wanted in zip(batch, arrays, strict=True):
                    np.testing.assert_array_equal(array, wanted)
            cache = loader.status()["datasets"][0]["cache"]
    assert cache["misses"] == 0
    assert cache["hits"] >= 4 * N_SAMPLES  # two fields in two epochs
    assert cache["rows"] == 2 * N_SAMPLES
    del options["cache_image_size"], options["augment"]
    with pytest.raises(prefetchd.ConfigError, match="cannot cache the fields image, depth, mask at their delivered"):
        prefetchd.batches(source, cache=tmp_path / "cache", **options)


def test_verify_and_preview_go_over_fields(data: Path, tmp_path: Path) -> None:
    (data / "pairs/depth/bad.png").write_bytes((data / "pairs/depth/003.png").read_bytes()[:60])
    listed = (data / "train.csv").read_text().replace("pairs/depth/003.png", "pairs/depth/bad.png")
    (data / "damaged.csv").write_text(listed)
    fields = ["--field", "image=image(path)", "--field", "depth=image(color=gray)", "--field", "label=label"]
    result = run_command("verify", data / "damaged.csv", *fields, "--num-workers", 1, "--json")
    assert result.returncode == 1, result.stderr
    report = json.loads(result.stdout)
    assert [(bad["sample_id"], bad["line"]) for bad in report["bad"]] == [(3, 5)]
    assert report["bad"][0]["reason"].startswith("field depth: ")
    sheet = tmp_path / "sheet.png"
    result = run_command("preview", data / "train.csv", "-o", sheet, *fields, "--num-workers", 1, "--image-size", 32)
    assert result.returncode == 0, result.stderr
    drawn = cv2.imread(str(sheet))
    assert drawn is not None
    assert drawn.std() > 10


def test_large_images_of_several_fields_take_turns_within_the_budget(tmp_path: Path) -> None:
    """Each needs more than a reader's allowance: together they would take three times the largest."""
    lines = ["left,right,mask"]
    for number in range(3):
        for name in ("left", "right", "mask"):
            pixels = np.full((2500, 3000, 1 if name == "mask" else 3), 10 * number + len(name), np.uint8)
            cv2.imwrite(str(tmp_path / f"{name}{number}.png"), pixels)
        lines.append(",".join(f"{name}{number}.png" for name in ("left", "right", "mask")))
    (tmp_path / "large.csv").write_text("\n".join(lines) + "\n")
    fields = {"left": Field("image"), "right": Field("image"), "mask": Field("mask")}
    options: dict[str, Any] = {"image_size": 32, "num_workers": 1, "memory_budget": "160MiB", "batch_size": 3}
    with prefetchd.batches(tmp_path / "large.csv", fields=fields, **options) as loader:
        batch = next(iter(loader))
        for name in fields:
            assert batch[name].reshape(3, -1).mean(axis=1).tolist() == [len(name), 10 + len(name), 20 + len(name)]
        memory = loader.status()["memory"]
        del batch
    assert memory["max_footprint_bytes"] <= memory["budget_bytes"]


def test_resume_with_another_batch_size_slices_each_array_of_a_field(data):
    options = {**QUICK, "fields": FIELDS, "image_size": SIZE, "shuffle": True}
    with prefetchd.batches(data / "train.csv", **{**options, "batch_size": 1}) as loader:
        loop = iter(loader)
        next(loop)
        state = loader.state_dict()
        del loop
    with prefetchd.batches(data / "train.csv", **{**options, "batch_size": 2}) as loader:
        whole = loader.batch_at(0, 0)
        loader.load_state_dict(state)
        rest = next(iter(loader))
        assert rest.sample_ids.tolist() == whole.sample_ids[1:].tolist()
        assert rest.strings("caption") == whole.strings("caption")[1:]
        for ours, theirs in zip(leaves_of(rest), leaves_of(whole), strict=True):
            assert ours.tobytes() == theirs[1:].tobytes()
            assert not ours.flags.owndata
