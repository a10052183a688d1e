"""Boxes and keypoints from every kind of source through a daemon and its readers."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import prefetchd
from prefetchd import Field
from tests.detection import CLASSES, Painted, paint
from tests.images import exif

OPTIONS: dict[str, Any] = {"batch_size": 4, "image_size": 96, "num_workers": 1, "target": "boxes"}


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Painted:
    return paint(tmp_path_factory.mktemp("painted"))


def batches(source: object, **options: Any) -> list[Any]:
    with prefetchd.batches(source, **{**OPTIONS, **options}) as loader:  # type: ignore[arg-type]
        return [batch.copy() for batch in loader]


def targets(found: list[Any]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch.y[name] for batch in found]) for name in found[0].y._fields}


def assert_on_pixels(found: list[Any], tolerance: float = 1.05) -> int:
    """Each box is as large as the white pixels around its centre; return how many there were."""
    count = 0
    for batch in found:
        for image, boxes, n in zip(batch.x, batch.y["boxes"], batch.y["count"], strict=True):
            labels = cv2.connectedComponentsWithStats((image[..., 0] > 150).astype(np.uint8))[1:3]
            for left, top, right, bottom in boxes[:n]:
                number = labels[0][int((top + bottom) / 2), int((left + right) / 2)]
                assert number
                x, y, across, down, _ = labels[1][number]
                np.testing.assert_allclose((left, top, right, bottom), (x, y, x + across, y + down), atol=tolerance)
                count += 1
    return count


def test_the_same_boxes_from_every_source(painted, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    with prefetchd.batches(painted.coco(), **OPTIONS) as loader:
        assert loader.classes == CLASSES
        coco = [batch.copy() for batch in loader]
    assert assert_on_pixels(coco) == sum(map(len, painted.boxes))
    expected = targets(coco)
    assert expected["boxes"].shape == (10, 3, 4)
    assert expected["boxes"].dtype == np.float32
    assert expected["labels"].dtype == expected["count"].dtype == np.int64
    assert expected["count"].tolist() == [n % 4 for n in range(10)]
    for number, objects in enumerate(painted.boxes):
        assert expected["labels"][number].tolist() == [label for _, label in objects] + [-1] * (3 - len(objects))
        assert not expected["boxes"][number, len(objects) :].any()

    paths, encoded = tmp_path / "paths.parquet", tmp_path / "encoded.parquet"
    rows = painted.rows()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), paths, row_group_size=3)
    for row in rows:
        row["image"] = (painted.folder / row.pop("path")).read_bytes()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), encoded, row_group_size=4)
    xywh = {"source_box_format": "xywh"}
    for found in (
        batches(painted.yolo(tmp_path / "yolo")),
        batches(painted.jsonl(), **xywh),
        batches(paths, root=painted.folder, **xywh),
        batches(encoded, **xywh),
    ):
        for name, values in targets(found).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-4, err_msg=name)
        for one, other in zip(found, coco, strict=True):
            np.testing.assert_array_equal(one.x, other.x)


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "crop"},
        {"resize": "pad"},
        {"augment": "hflip, vflip"},
        {"augment": "random_resized_crop(scale=(0.3, 1)), hflip", "image_size": (80, 120)},
    ],
    ids=["crop", "pad", "flips", "random_crop"],
)
def test_boxes_are_where_the_pixels_are(painted, options):
    assert assert_on_pixels(batches(painted.coco(), epochs=3, min_visible=0.3, **options), 1.5) >= 20


def test_turned_boxes_hold_their_pixels(painted):
    for batch in batches(painted.coco(), augment="rotate(degrees=30), affine(shear=5)", epochs=2, resize="pad"):
        for image, boxes, n in zip(batch.x, batch.y["boxes"], batch.y["count"], strict=True):
            left = (image[..., 0] > 200).astype(np.uint8)
            for box in boxes[:n].round().astype(int):
                left[max(0, box[1] - 1) : box[3] + 1, max(0, box[0] - 1) : box[2] + 1] = 0
            assert left.sum() == 0


BACK = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}  # fmt: skip


def test_images_that_exif_turns(tmp_path):
    """Boxes are of the upright image; of the stored one if that is the stated size."""
    upright = np.full((80, 120), 60, np.uint8)
    upright[10:30, 50:110] = 255
    rows = []
    for orientation, back in BACK.items():
        stored = Image.fromarray(upright) if back is None else Image.fromarray(upright).transpose(back)
        name = f"{orientation}.png"
        stored.save(tmp_path / name, exif=exif(orientation))
        row = {"path": name, "boxes": [[50, 10, 60, 20]], "labels": [orientation]}
        rows += [row, {**row, "width": 120, "height": 80}]
        if orientation >= 5:
            down, across = np.nonzero(np.asarray(stored) == 255)
            box = [int(across.min()), int(down.min()), int(np.ptp(across)) + 1, int(np.ptp(down)) + 1]
            rows.append({**row, "boxes": [box], "width": stored.width, "height": stored.height})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = batches(tmp_path / "a.jsonl", source_box_format="xywh", image_size=(80, 120))
    assert assert_on_pixels(found, 0.01) == 20
    assert targets(found)["labels"][:, 0].tolist() == [row["labels"][0] for row in rows]


def test_formats_and_limits(painted):
    source = painted.coco()
    corners = targets(batches(source))["boxes"]
    expected = np.concatenate([(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], -1) / 96
    found = targets(batches(source, box_format="cxcywh_normalized"))["boxes"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    one = targets(batches(source, max_boxes=1))
    assert one["boxes"].shape == (10, 1, 4)
    assert one["count"].tolist() == [min(1, n % 4) for n in range(10)]
    np.testing.assert_array_equal(one["boxes"][:, 0], corners[:, 0])
    crop = {"augment": "random_resized_crop(scale=(0.1, 0.2))", "epochs": 4, "max_boxes": 7}
    some, whole = (targets(batches(source, min_visible=least, **crop)) for least in (0, 1))
    assert some["count"].sum() > whole["count"].sum() > 0
    assert some["labels"].shape == (40, 7)


def test_a_sample_with_bad_boxes_is_named_and_follows_the_policy(painted):
    content = json.loads(painted.coco().read_text())
    content["annotations"][0]["bbox"] = [5, 5, -3, 10]
    content["images"][5]["width"] += 7
    content["annotations"][7]["bbox"] = [5000, 5, 30, 10]
    source = painted.folder / "bad.json"
    source.write_text(json.dumps(content))
    bad = sorted({number for number, each in enumerate(content["images"]) if each["id"] in (2, 6)} | {
        content["annotations"][7]["image_id"] - 1
    })  # fmt: skip
    with pytest.raises(
        prefetchd.SampleError, match=r"001\.png\): annotation 100 is \(5, 5, -3, 10\) \(xywh\), with a neg"
    ):
        batches(source)
    with prefetchd.batches(source, **OPTIONS, on_error="skip") as loader:
        kept = np.concatenate([batch.sample_ids for batch in loader])
        reasons = sorted(each["reason"] for each in loader.status()["bad"])
    assert sorted(set(range(10)) - set(kept.tolist())) == bad
    assert any("annotation 107 is from (5000, 5) to (5030, 15), outside its image" in reason for reason in reasons)
    assert any("its annotations are of an image of" in reason for reason in reasons)
    replaced = batches(source, on_error="substitute")
    assert sum(len(batch.x) for batch in replaced) == 10
    source.unlink()


def test_resume_goes_on_at_the_exact_batch_and_knows_the_boxes(painted):
    options = {**OPTIONS, "shuffle": True, "augment": "random_resized_crop, hflip", "epochs": 1}
    source = painted.coco()
    with prefetchd.batches(source, **options) as loader:
        taken = iter(loader)
        next(taken)
        state = loader.state_dict()
        expected = [batch.copy() for batch in taken]
    with prefetchd.batches(source, **options) as loader:
        loader.load_state_dict(state)
        found = [batch.copy() for batch in loader]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.y["boxes"], other.y["boxes"])
    content = json.loads(source.read_text())
    content["annotations"][0]["bbox"][0] += 1
    source.write_text(json.dumps(content))
    with prefetchd.batches(source, **options) as loader, pytest.raises(prefetchd.PrefetchdError, match="state"):
        loader.load_state_dict(state)
    painted.coco()


def test_keypoints_move_with_their_pixels(tmp_path):
    annotations, images = [], []
    for number in range(6):
        image = np.full((90 + 6 * number, 120), 40, np.uint8)
        points = [[20 + 9 * number, 30], [70, 60], [0, 0]]
        for x, y in points[:2]:
            image[y - 3 : y + 4, x - 3 : x + 4] = 255
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        images.append({"id": number, "file_name": f"{number}.png", "height": image.shape[0], "width": 120})
        flat = [value for point, seen in zip(points, (2, 1, 0), strict=True) for value in (*point, seen)]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "keypoints": flat})
    annotations.append({**annotations[0], "id": 9, "keypoints": [1, 1, 2, 2, 2, 2, 500, 500, 2]})
    source = tmp_path / "person_keypoints.json"
    source.write_text(json.dumps({"images": images, "annotations": annotations}))
    found = batches(source, target="keypoints", image_size=(120, 160), augment="hflip, vflip", epochs=3)
    assert found[0].y.keys() == ("keypoints", "visibility", "count")
    for batch in found:
        assert batch.y["keypoints"].shape == (len(batch.x), 6, 2)
        for image, points, seen, number in zip(
            batch.x, batch.y["keypoints"], batch.y["visibility"], batch.sample_ids, strict=True
        ):
            assert seen.tolist() == ([2, 1, 0, 2, 2, 0] if number == 0 else [2, 1, 0, 0, 0, 0])
            assert not points[seen == 0].any()
            for x, y in points[:2]:
                part = image[round(float(y)) - 1 : round(float(y)) + 2, round(float(x)) - 1 : round(float(x)) + 2]
                assert part.min() > 200
        assert batch.y["count"].tolist() == [6 if number == 0 else 3 for number in batch.sample_ids]


def test_a_confidence_in_place_of_a_visibility_is_a_bad_sample(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    source = tmp_path / "list.jsonl"
    source.write_text(json.dumps({"path": "a.png", "keypoints": [[[1, 2, 2], [3, 4, 1]], [[1, 2, 0.97], [3, 4, 2]]]}))
    with pytest.raises(
        prefetchd.SampleError, match=r"object 1 has a keypoint of visibility 0\.97, which must be 0, 1 or 2"
    ):
        batches(source, target="keypoints", image_size=20)


def test_tables_in_memory_and_arrow_files(painted, tmp_path):
    pa = pytest.importorskip("pyarrow")
    expected = targets(batches(painted.coco()))
    rows = painted.rows()
    numbers = [[CLASSES.index(label) for label in row["labels"]] for row in rows]
    table = {
        "path": [str(painted.folder / row["path"]) for row in rows],
        "boxes": [row["boxes"] for row in rows],
        "labels": numbers,
    }
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        arrow = pa.table(table)
        with pa.ipc.new_file(sink, arrow.schema) as writer:
            writer.write_table(arrow)
    for source in (table, tmp_path / "a.arrow"):
        for name, values in targets(batches(source, source_box_format="xywh")).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-4, err_msg=name)


def test_torch_gets_a_tree_of_tensors(painted):
    torch = pytest.importorskip("torch")
    import prefetchd.torch

    with prefetchd.torch.batches(painted.coco(), **OPTIONS) as loader:
        for x, y in loader:
            assert x.shape == (len(x), 3, 96, 96)
            assert y["boxes"].shape == (len(x), 3, 4)
            assert y["boxes"].dtype == torch.float32
            assert torch.utils._pytree.tree_map(lambda leaf: len(leaf), y).count == len(x)
        del x, y


def test_jax_sees_the_leaves(painted):
    found = batches(painted.coco())[0]
    jax = pytest.importorskip("jax")
    shapes = [leaf.shape for leaf in jax.tree.leaves(found)]
    assert shapes == [(4, 96, 96, 3), (4, 3, 4), (4, 3), (4,)]
    assert jax.tree.map(lambda leaf: leaf[:1], found).y.boxes.shape == (1, 3, 4)


def test_tensorflow_gets_the_structure(painted):
    pytest.importorskip("tensorflow")
    import prefetchd.tensorflow

    with prefetchd.batches(painted.coco(), **OPTIONS, on_hold="copy") as loader:
        found = [(x.numpy(), y["boxes"].numpy()) for x, y in prefetchd.tensorflow.dataset(loader)]
    expected = batches(painted.coco())
    for (x, boxes), batch in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, batch.x)
        np.testing.assert_array_equal(boxes, batch.y["boxes"])


def batch_holds(batch: Any) -> bool:
    """Whether the fields `image` and `objects` of a batch belong together."""
    assert set(batch.keys()) == {"image", "objects"}
    for image, boxes, count in zip(batch.image, batch.objects.boxes, batch.objects["count"], strict=True):
        left = (image[..., 0] > 200).astype(np.uint8)
        for box in boxes[:count].round().astype(int):
            left[max(0, box[1] - 1) : box[3] + 1, max(0, box[0] - 1) : box[2] + 1] = 0
        assert left.sum() == 0
    return bool(batch.objects["count"].sum() > 0)


def test_fields_of_boxes_are_the_target_beside_others(painted, tmp_path):
    expected = targets(batches(painted.coco(), box_format="cxcywh", augment="hflip, rotate"))
    rows = [{**row, "kinds": [CLASSES.index(label) for label in row["labels"]]} for row in painted.rows()]
    (painted.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "objects": Field("boxes", "boxes", labels="labels", box_format="cxcywh"),
        "image": Field("image", "path"),
        "small": Field("image", "path", size=32),
    }
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), painted.folder / "rows.parquet")
    painted.shard(tmp_path / "rows.tar")
    of_rows = {**fields, "objects": Field("boxes", "boxes", labels="kinds", box_format="cxcywh")}
    in_shards = {
        "objects": Field("boxes", "json:boxes", labels="json:labels", box_format="cxcywh"),
        "image": Field("image", "png"),
    }
    options = {"target": None, "augment": "hflip, rotate"}
    table = {
        "path": [str(painted.folder / row["path"]) for row in rows],
        "boxes": [row["boxes"] for row in rows],
        "kinds": [row["kinds"] for row in rows],
    }
    for source, given, more in (
        (table, of_rows, {"source_box_format": "xywh"}),
        (painted.coco(), fields, {}),
        (painted.yolo(tmp_path / "yolo"), fields, {}),
        (painted.folder / "rows.jsonl", of_rows, {"source_box_format": "xywh"}),
        (painted.folder / "rows.parquet", of_rows, {"source_box_format": "xywh"}),
        (painted.folder / "rows.jsonl", fields, {"source_box_format": "xywh"}),  # labels by name
        (painted.folder / "rows.parquet", fields, {"source_box_format": "xywh"}),
        (tmp_path / "rows.tar", in_shards, {"source_box_format": "xywh"}),
    ):
        with prefetchd.batches(source, **{**OPTIONS, **options, **more}, fields=given) as loader:
            found = [batch.copy() for batch in loader]
            assert loader.classes == (None if given is of_rows else CLASSES)
        for name, values in expected.items():
            got = np.concatenate([batch.objects[name] for batch in found])
            np.testing.assert_allclose(got, values, atol=1e-3, err_msg=name)


def test_fields_of_keypoints(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.png"), np.full((50, 100, 3), 90, np.uint8))
    rows = [{"path": "a.png", "points": points} for points in ([[10, 20], [90, 40]], [], [[0, 0]])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"image": Field("image", "path"), "marks": Field("keypoints", "points", max_boxes=3)}
    options = {**OPTIONS, "target": None, "image_size": (50, 100), "augment": "hflip(p=1)"}
    with prefetchd.batches(tmp_path / "a.jsonl", **options, fields=fields) as loader:
        batch = next(iter(loader)).copy()
    assert batch.marks.keypoints.tolist() == [[[89, 20], [9, 40], [0, 0]], [[0, 0]] * 3, [[99, 0], [0, 0], [0, 0]]]
    assert batch.marks.visibility.tolist() == [[2, 2, 0], [0, 0, 0], [2, 0, 0]]
    assert batch.marks["count"].tolist() == [2, 0, 1]


def test_columns_of_numbers_are_one_object_a_row(painted):
    with open(painted.folder / "one.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "kind", "x", "y", "w", "h"])
        for number, objects in enumerate(painted.boxes):
            rows.writerows([f"{number:03}.png", CLASSES[label], *box] for box, label in objects[:1])
    fields = {
        "image": Field("image", "path"),
        "objects": Field("boxes", "x,y,w,h", labels="kind", source_box_format="xywh"),
        "corner": Field("keypoints", "x,y"),
    }
    options = {**OPTIONS, "target": None, "fields": fields}
    expected = targets(batches(painted.coco(), max_boxes=1))
    there = expected["count"] == 1
    with prefetchd.batches(painted.folder / "one.csv", **options) as loader:
        found = [batch.copy() for batch in loader]
        assert loader.classes == tuple(sorted({CLASSES[objects[0][1]] for objects in painted.boxes if objects}))
        names = np.array(loader.classes)
    boxes = np.concatenate([batch.objects.boxes for batch in found])
    np.testing.assert_allclose(boxes, expected["boxes"][there], atol=1e-3)
    labels = np.concatenate([batch.objects.labels for batch in found])
    assert names[labels].tolist() == np.array(CLASSES)[expected["labels"][there]].tolist()
    corners = np.concatenate([batch.corner.keypoints for batch in found])
    np.testing.assert_allclose(corners, boxes[..., :2], atol=0.5)  # centres of pixels, and their outer corners


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (Field("boxes", "labels", source_box_format="xyxy"), "holds strings; write lists as JSON lines or Parquet"),
        (Field("boxes", "x,y,x,y", labels="path", source_box_format="xyxy"), "it must have one class for each row"),
        (Field("boxes", "x,y,x,y", labels="kind", source_box_format="xyxy"), "has the label -1"),
        (Field("boxes", "x,y,x,y", labels="part", source_box_format="xyxy"), "it must have one class for each row"),
    ],
    ids=["text", "paths", "negative", "fractions"],
)
def test_columns_that_are_no_objects_are_refused(painted, field, words):
    (painted.folder / "odd.csv").write_text("path,labels,x,y,kind,part\n000.png,[1],1,2,-1,0.5\n")
    options = {**OPTIONS, "target": None, "fields": {"image": Field("image", "path"), "objects": field}}
    with pytest.raises(prefetchd.PrefetchdError, match=re.escape(words)):
        prefetchd.batches(painted.folder / "odd.csv", **options)


def test_examples_of_the_page_run(tmp_path, monkeypatch):
    """Each block of Python in docs/detection.md, one after the other, on data of the names that it uses."""
    page = (Path(__file__).parents[2] / "docs" / "detection.md").read_text()
    painted = paint(tmp_path / "images", 12)
    painted.coco().rename(tmp_path / "annotations.json")
    painted.yolo(tmp_path / "yolo")
    rows = [{**row, "path": f"images/{row['path']}"} for row in painted.rows()]
    for row in rows:
        row["boxes"] = [[left, top, left + across, top + down] for left, top, across, down in row["boxes"]]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = json.loads((tmp_path / "annotations.json").read_text())
    for annotation in content["annotations"]:
        left, top, across, down = annotation["bbox"]
        annotation["keypoints"] = [left, top, 2, left + across, top, 1, left, top + down, 2]
    (tmp_path / "person_keypoints.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pytest.importorskip("albumentations")
    for name, code in re.findall(r"```python title=\"(.*?)\"\n(.*?)```", page, re.DOTALL):
        (tmp_path / name).write_text(code)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
        names.pop("loader").close()
    assert batch_holds(names["batch"])
    assert names["people"].shape == (4, 3, 3, 2)
    assert len(names["targets"]) == 4


def test_preview_draws_boxes_and_counts_objects(painted, tmp_path):
    """A box of its class's colour goes around the white pixels, whatever the format that is delivered."""
    from tests.process.commands import run_command

    sheets = []
    for number, format_ in enumerate(("xyxy", "cxcywh_normalized")):
        sheet = tmp_path / f"{number}.png"
        result = run_command(
            "preview", painted.coco(), "--target", "boxes", "--box-format", format_, "--image-size", "160",
            "--num-workers", "1", "--samples", "10", "-o", sheet,
        )  # fmt: skip
        assert result.returncode == 0, result
        sheets.append(cv2.imread(str(sheet)))
    np.testing.assert_array_equal(*sheets)
    total = [sum(label == number for objects in painted.boxes for _, label in objects) for number in range(3)]
    counted = dict(line.split()[:2] for line in result.stdout.splitlines() if "█" in line)
    assert {name: int(count) for name, count in counted.items()} == dict(zip(CLASSES, total, strict=True))
    coloured = np.ptp(sheets[0][:400].astype(int), axis=2) > 100
    assert coloured.sum() > 13 * 2 * (20 + 40)


def test_preview_draws_keypoints(tmp_path):
    from tests.process.commands import run_command

    assert cv2.imwrite(str(tmp_path / "a.png"), np.full((100, 100, 3), 90, np.uint8))
    (tmp_path / "a.jsonl").write_text(json.dumps({"path": "a.png", "keypoints": [[20, 30], [70, 80]]}))
    result = run_command(
        "preview", tmp_path / "a.jsonl", "--target", "keypoints", "--image-size", "100", "--num-workers", "1",
        "-o", tmp_path / "s.png",
    )  # fmt: skip
    assert result.returncode == 0, result
    coloured = np.ptp(cv2.imread(str(tmp_path / "s.png")).astype(int), axis=2) > 100
    rows, columns = np.nonzero(coloured[:160])
    assert np.ptp(rows) in range(48, 58)
    assert np.ptp(columns) in range(48, 58)


def test_preview_draws_fields_of_boxes_and_keypoints(tmp_path):
    from tests.process.commands import run_command

    assert cv2.imwrite(str(tmp_path / "a.png"), np.full((100, 100, 3), 90, np.uint8))
    row = {"path": "a.png", "points": [[50, 50]], "boxes": [[20, 20, 80, 90]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    result = run_command(
        "preview", tmp_path / "a.jsonl", "--field", "image=image(column=path)", "--field", "points=keypoints()",
        "--field", "boxes=boxes(source_box_format=xyxy)", "--image-size", "100", "--num-workers", "1",
        "-o", tmp_path / "s.png",
    )  # fmt: skip
    assert result.returncode == 0, result
    coloured = np.ptp(cv2.imread(str(tmp_path / "s.png")).astype(int), axis=2) > 100
    rows, columns = np.nonzero(coloured[:160])
    assert np.ptp(rows) in range(68, 71)
    assert np.ptp(columns) in range(58, 61)
    middle = coloured[rows.min() + 20 : rows.max() - 20, columns.min() + 20 : columns.max() - 20]
    assert 5 < middle.sum() < 40
