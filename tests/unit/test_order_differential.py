"""Every option of the order, together, for every kind of data, against a few lines of numpy."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from prefetchd.client.in_memory.numbers import take_in_numbers
from prefetchd.errors import ConfigError
from prefetchd.sampling.permutation import Permutation
from tests.images import write_jpeg
from tests.records import jpeg, write_tar
from tests.unit.test_order_plan import chosen

N = 24
LABELS = [number * 7 % 4 for number in range(N)]
KINDS = ("list", "csv", "jsonl", "tree", "tar", "pairs", "columns", "rows", "memory", "sequences", "coco")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, dict[str, Any], list[int] | None]]:
    """The samples in each kind: the source, the options that it needs, and the label of each sample."""
    folder = tmp_path_factory.mktemp("data")
    paths = [write_jpeg(folder / f"{i:03}.jpg", (8, 8), seed=i) for i in range(N)]
    rows = list(zip(map(str, paths), LABELS, strict=True))
    (folder / "l.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    (folder / "l.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    (folder / "l.jsonl").write_text("".join(json.dumps({"path": p, "label": y}) + "\n" for p, y in rows))
    for i, label in enumerate(LABELS):
        (folder / "tree" / f"class{label}").mkdir(parents=True, exist_ok=True)
        write_jpeg(folder / "tree" / f"class{label}" / f"{i:03}.jpg", (8, 8), seed=i)
    members = [
        (f"{i:03}.{end}", what) for i, y in enumerate(LABELS) for end, what in (("jpg", jpeg(i)), ("cls", str(y)))
    ]
    np.save(folder / "x.npy", np.arange(N * 2.0).reshape(N, 2))
    np.save(folder / "y.npy", LABELS)
    np.save(folder / "tokens.npy", np.arange(2 * N))
    np.save(folder / "offsets.npy", np.arange(N + 1) * 2)
    with_labels = {"labels": folder / "y.npy"}
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0} for i in range(N)
    ]
    images = [{"id": i, "file_name": path.name, "width": 8, "height": 8} for i, path in enumerate(paths)]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (folder / "coco.json").write_text(json.dumps(coco))
    return {
        "list": (folder / "l.txt", {}, LABELS),
        "csv": (folder / "l.csv", {}, LABELS),
        "jsonl": (folder / "l.jsonl", {}, LABELS),
        "tree": (folder / "tree", {}, sorted(LABELS)),
        "tar": (write_tar(folder / "s.tar", members), {}, LABELS),
        "pairs": (rows, {}, LABELS),
        "columns": ({"path": [path for path, _ in rows], "label": LABELS}, {}, LABELS),
        "rows": (folder / "x.npy", with_labels, LABELS),
        "memory": ((np.arange(N * 2.0).reshape(N, 2), np.array(LABELS)), {}, LABELS),
        "sequences": (
            folder / "tokens.npy",
            {**with_labels, "offsets": folder / "offsets.npy", "max_length": 2},
            LABELS,
        ),
        "coco": (folder / "coco.json", {"target": "boxes", "root": folder}, None),
    }


def reference(labels: Any, options: dict[str, Any], inside: set[int]) -> list[int]:
    """Return the samples of epoch 0."""
    ids = np.arange(N)
    if "subset" in options:
        ids = np.sort(options["subset"])
    if "order" in options:
        ids = np.array(options["order"])
    if "where" in options:
        ids = ids[np.isin(np.array(labels)[ids], options["where"]["label"])]
    if "split" in options:
        ids = ids[[number in inside for number in ids.tolist()]]
    ids = ids[: options.get("limit")]
    if options.get("shuffle") and len(ids):
        ids = ids[Permutation(len(ids), options["seed"], 0)(np.arange(len(ids)))]
    size = options["batch_size"]
    return ids[: len(ids) // size * size if options.get("drop_last") else None].tolist()  # type: ignore[no-any-return]


def draw_options(rng: random.Random, labels: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"batch_size": rng.choice([1, 3, 5]), "seed": rng.randrange(9)}
    choice = rng.randrange(3)
    if choice == 1:
        options["subset"] = rng.sample(range(N), rng.randint(1, N))
    elif choice == 2:
        options["order"] = [rng.randrange(N) for _ in range(rng.randint(1, 2 * N))]
    if labels is not None and rng.random() < 0.5:
        options["where"] = {"label": rng.sample(range(4), rng.randint(1, 3))}
    for name, value in (("split", "0-60%"), ("limit", rng.randint(1, N)), ("shuffle", True), ("drop_last", True)):
        if rng.random() < 0.4:
            options[name] = value
    return options


def numbers_of(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is passed in memory, and the options with its name in its place."""
    passed = {name: take_in_numbers(name, options[name]) for name in ("subset", "order", "weights") if name in options}
    return passed, {**options, **{name: f"<{len(options[name])} numbers>" for name in passed}}


@pytest.mark.parametrize("kind", KINDS)
def test_options_together_are_those_of_numpy(data, kind):
    source, needed, labels = data[kind]
    split = {"split": "0-60%", "batch_size": 1}
    inside = set(chosen(source, **needed, **split))
    outside = set(chosen(source, **needed, **{**split, "split": "60-100%"}))
    assert not inside & outside
    assert inside | outside == set(range(N))
    rng = random.Random(kind)
    for _ in range(25):
        options = draw_options(rng, labels)
        wanted = reference(labels, options, inside)
        passed, given = numbers_of(options)
        try:
            found, refused = chosen(source, passed, **needed, **given), ""
        except ConfigError as error:
            found, refused = [], str(error)
        assert found == wanted, options
        if refused:
            assert "no sample is left" in refused, options
            assert not reference(labels, {**options, "drop_last": False}, inside), options


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "coco"])
def test_draws_are_of_what_the_other_options_leave(data, kind):
    source, needed, labels = data[kind]
    rng = random.Random(kind)
    for _ in range(8):
        options = {**draw_options(rng, labels), "weights": [rng.choice([0.0, 1.0, 5.0]) for _ in range(N)]}
        options = {name: value for name, value in options.items() if name not in ("shuffle", "drop_last", "split")}
        left = [number for number in reference(labels, options, set()) if options["weights"][number]]
        for replace in (True, False):
            passed, given = numbers_of(options)
            try:
                found, refused = chosen(source, passed, **needed, **given, replace=replace), ""
            except ConfigError as error:
                found, refused = [], str(error)
            if "no sample is left" in refused:  # before the weights were asked for
                passed["weights"].close()
            assert not refused or "no sample is left" in refused or "add up to 0" in refused
            assert len(found) == len(left)
            assert set(found) <= set(left)
            if not replace:
                assert sorted(found) == sorted(left)


@pytest.mark.parametrize(
    ("name", "values"),
    [("order", [N]), ("order", [-1]), ("order", [0.5]), ("subset", [3, 3]), ("subset", [True]), ("weights", [1.0])],
)
@pytest.mark.parametrize("kind", ["list", "tar", "columns", "rows", "sequences"])
def test_numbers_of_other_samples_are_refused(data, kind, name, values):
    source, needed, _ = data[kind]
    passed, given = numbers_of({name: values})
    with pytest.raises(ConfigError, match=f"cannot use {name}="):
        chosen(source, passed, **needed, **given)
