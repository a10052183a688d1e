"""Subsets: the same samples in the daemon and in its readers, disjoint and complete, and refused in words."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.client.in_memory.numbers import take_in_numbers
from prefetchd.client.in_memory.recognize import take_in
from prefetchd.config.options import Config
from prefetchd.config.selection import canonical_split, canonical_where, parse_split, parse_where
from prefetchd.config.validate import make_config
from prefetchd.data.images.source import ImageSource
from prefetchd.data.order.plan import OrderPlan, attach_order, plan_order
from prefetchd.data.order.values import key_hashes
from prefetchd.data.registry import Source, open_source
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.sampling.order import Order
from prefetchd.sampling.places import Places
from prefetchd.sampling.sharding import Shard
from tests.images import write_jpeg
from tests.records import jpeg, write_tar

N = 60


def close(source: Source) -> None:
    (source.records if isinstance(source, ImageSource) else source).close()  # type: ignore[attr-defined]


def planned(source: Source, plan: OrderPlan, config: Config) -> list[int]:
    """Return the samples of an epoch in order, the same in the daemon as in a reader."""
    handle, fds = plan.handle()
    attached = attach_order(config, source.facts.n_samples, handle, [os.dup(fd) for fd in fds])
    found: list[int] = []
    for batch in range(plan.order.batches_per_epoch):
        ids = plan.order.sample_ids(0, batch, 0, plan.order.rows(0, batch)).tolist()
        assert attached.sample_ids(0, batch, 0, attached.rows(0, batch)).tolist() == ids
        found += ids
    if plan.columns is not None:
        plan.columns.close()
    return found


def chosen(path: Any, passed: Any = None, **options: Any) -> list[int]:
    """Return the samples that the options choose of a source, in a path or in memory."""
    if isinstance(path, str | Path):
        config = make_config(source=str(path), **options)
        source = open_source(config)
    else:
        config = make_config(source="memory", **options)
        source = open_source(config, table=take_in(path, config))
    try:
        return planned(source, plan_order(config, source, passed), config)
    finally:
        close(source)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    np.save(folder / "x.npy", np.arange(N * 2.0).reshape(N, 2))
    np.save(folder / "y.npy", np.arange(N) % 5)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same samples in each kind of source: class `i % 3`, the file called by its number."""
    folder = tmp_path_factory.mktemp("images")
    for name in "abc":
        (folder / "tree" / name).mkdir(parents=True)
    paths = [write_jpeg(folder / "tree" / "abc"[i % 3] / f"{i:03}.jpg", (8, 8), seed=i) for i in range(12)]
    (folder / "list.txt").write_text("".join(f"{path} {i % 3}\n" for i, path in enumerate(paths)))
    (folder / "list.csv").write_text(
        "path,label\n" + "".join(f"{path},{'abc'[i % 3]}\n" for i, path in enumerate(paths))
    )
    members = [
        (f"{i:03}.{end}", content) for i in range(12) for end, content in (("jpg", jpeg(i)), ("cls", str(i % 3)))
    ]
    write_tar(folder / "s.tar", members)
    return {
        "list": folder / "list.txt",
        "csv": folder / "list.csv",
        "tar": folder / "s.tar",
        "pairs": [(str(path), i % 3) for i, path in enumerate(paths)],
        "columns": {
            "path": [str(path) for path in paths],
            "label": [i % 3 for i in range(12)],
            "fold": [i % 4 for i in range(12)],
            "site": ["here" if i < 6 else "there, far" for i in range(12)],
        },
        "tree": folder / "tree",
    }


@pytest.mark.parametrize("kind", ["list", "csv", "tar", "pairs", "columns"])
def test_labels_choose_samples_of_each_kind_of_source(images, kind):
    wanted = ["b", "c"] if kind == "csv" else [1, 2]
    assert chosen(images[kind], where={"label": wanted}, batch_size=4) == [i for i in range(12) if i % 3]


def test_labels_choose_samples_of_a_directory(images):
    assert chosen(images["tree"], where={"label": "b"}, batch_size=3) == [4, 5, 6, 7]
    assert chosen(images["tree"], where="label=0,2", batch_size=3) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_named_column_of_numbers_or_text_chooses(images):
    columns = images["columns"]
    assert chosen(columns, where={"fold": 0}) == [0, 4, 8]
    assert chosen(columns, where={"fold": [0, 1], "label": 0}) == [0, 9]
    assert chosen(columns, where={"site": ["there, far"]}, x_column="path", y_column="label") == [6, 7, 8, 9, 10, 11]


def part(source: Any, split: str, **options: Any) -> list[int]:
    """Return the samples of a part of a split; none if it is refused: paths of few samples may leave it empty."""
    try:
        return chosen(source, **options, split=split)
    except ConfigError as error:
        if "no sample is left" in str(error):
            return []
        raise


@pytest.mark.parametrize("kind", ["list", "csv", "tar", "pairs", "columns", "tree"])
def test_a_split_and_the_rest_are_disjoint_and_complete(images, kind):
    parts = [part(images[kind], split) for split in ("0-45%", "45-70%", "70-100%")]
    assert sorted(itertools.chain(*parts)) == list(range(12))


@given(cuts=st.lists(st.decimals(0, 100, places=3), min_size=1, max_size=5, unique=True))
def test_parts_of_a_split_touch_and_never_overlap(cuts):
    edges = sorted({0, 100, *cuts})
    parts = [parse_split(canonical_split(f"{low:f}-{high:f}%")) for low, high in itertools.pairwise(edges)]  # type: ignore[str-bytes-safe]
    assert parts[0][0] == 0
    assert parts[-1][1] == 2**64
    assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))


FIELDS: dict[str, Any] = {"fields": {"path": {"kind": "image"}, "label": {"kind": "label"}}}


def chosen_by_label_and_parts(source: Any, options: dict[str, Any]) -> list[int]:
    """Return the samples of label 1; those of two parts of a split are all of them, each once."""
    ids = sorted(part(source, "0-50%", **options) + part(source, "50-100%", **options))
    assert len(ids) in (9, 10, 12)
    assert ids == list(range(len(ids)))
    return chosen(source, **options, where="label=1")


def test_parquet_is_chosen_too(images, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {"image": [jpeg(i) for i in range(9)], "label": [i % 3 for i in range(9)]}
    pq.write_table(pa.table(table), tmp_path / "images.parquet", row_group_size=4)
    pq.write_table(pa.table({"path": images["columns"]["path"], "label": [0, 1] * 6}), tmp_path / "paths.parquet")
    assert chosen_by_label_and_parts(tmp_path / "images.parquet", {}) == [1, 4, 7]
    assert chosen_by_label_and_parts(tmp_path / "paths.parquet", {}) == [1, 3, 5, 7, 9, 11]
    assert chosen_by_label_and_parts(tmp_path / "paths.parquet", FIELDS) == [1, 3, 5, 7, 9, 11]


def test_fields_boxes_and_sequences_are_chosen_too(images, tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(30))
    np.save(tmp_path / "offsets.npy", np.arange(0, 31, 3))
    np.save(tmp_path / "y.npy", np.arange(10) % 2)
    sequences = {"offsets": tmp_path / "offsets.npy", "labels": tmp_path / "y.npy"}
    assert chosen_by_label_and_parts(images["columns"], FIELDS) == [1, 4, 7, 10]
    assert chosen_by_label_and_parts(tmp_path / "tokens.npy", sequences) == [1, 3, 5, 7, 9]
    boxes = {"path": images["columns"]["path"], "boxes": [[[0.0, 0.0, 4.0, 4.0]]] * 12, "labels": [[1]] * 12}
    assert chosen(boxes, target="boxes", source_box_format="xyxy", limit=3) == [0, 1, 2]
    with pytest.raises(ConfigError, match="samples have no labels here"):
        chosen(boxes, target="boxes", source_box_format="xyxy", where="label=1")


def test_a_split_has_its_share_of_many_samples(rows, tmp_path):
    np.save(tmp_path / "many.npy", np.zeros((20_000, 1), np.uint8))
    kept = len(chosen(tmp_path / "many.npy", split="0-90%", batch_size=1000))
    assert abs(kept - 18_000) < 5 * (20_000 * 0.9 * 0.1) ** 0.5


def test_a_sample_never_changes_sides_as_the_set_grows(tmp_path):
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    write_jpeg(tmp_path / "0.jpg", (8, 8))
    names = [f"{i}.jpg {i % 2}\n" for i in range(200)]
    small.write_text("".join(names[:100]))
    large.write_text("".join(sorted(names, key=lambda line: line[::-1])))

    def side(path: Path) -> set[str]:
        lines = path.read_text().splitlines()
        return {lines[i] for i in chosen(path, split="0-50%")}

    few, many = side(small), side(large)
    assert few == many & set(small.read_text().splitlines())
    assert 20 < len(few) < 80


def write_shard(folder: Path, name: str, kind: str) -> None:
    """Write 40 samples as a shard of tar or Parquet."""
    if kind == "tar":
        members = [(f"{i:03}.{end}", content) for i in range(40) for end, content in (("jpg", jpeg(i)), ("cls", "1"))]
        write_tar(folder / f"{name}.tar", members)
        return
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {"jpg": [jpeg(i) for i in range(40)], "cls": [1] * 40}
    boxes = {"boxes": [[[0.0, 0.0, 4.0, 4.0]]] * 40, "labels": [[1]] * 40}
    pq.write_table(pa.table(table | boxes), folder / f"{name}.parquet", row_group_size=7)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_sample_of_a_shard_never_changes_sides_with_fields_or_without(tmp_path, kind):
    write_shard(tmp_path, "b", kind)
    columns = {"x_column": "jpg", "y_column": "cls"}
    with_fields = {"fields": {"image": "image(jpg)", "label": "label(cls)"}}
    of_objects = {"x_column": "jpg", "target": "boxes", "source_box_format": "xyxy"}
    ways = [columns, with_fields, *([of_objects] if kind == "parquet" else [])]
    before = [chosen(tmp_path / f"*.{kind}", split="0-50%", **options) for options in ways]
    write_shard(tmp_path, "a", kind)
    after = [chosen(tmp_path / f"*.{kind}", split="0-50%", **options) for options in ways]
    assert 8 < len(before[0]) < 32
    for small, large in zip(before, after, strict=True):
        assert small == before[0]
        assert [i - 40 for i in large if i >= 40] == small


def test_a_split_does_not_depend_on_where_the_list_lies(tmp_path):
    (tmp_path / "other").mkdir()
    parts = []
    for folder in (tmp_path, tmp_path / "other"):
        write_jpeg(folder / "0.jpg", (8, 8))
        (folder / "list.txt").write_text("".join(f"{i}.jpg 0\n" for i in range(50)))
        parts.append(chosen(folder / "list.txt", split="0-50%"))
    assert parts[0] == parts[1]


def test_keys_are_hashed_to_numbers_all_over(images):
    for kind in ("list", "tar", "pairs", "tree"):
        config = make_config(source=str(images[kind]) if kind != "pairs" else "memory")
        source = open_source(config, table=take_in(images[kind], config) if kind == "pairs" else None)
        hashes = key_hashes(source)
        close(source)
        assert len(set(hashes.tolist())) == 12
        assert hashes.max() > 2**62


@given(
    ids=st.lists(st.integers(0, N - 1), min_size=1, unique=True),
    batch_size=st.integers(1, 70),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    world_size=st.integers(1, 4),
    epoch=st.integers(0, 1000),
)
def test_ranks_together_see_each_sample_of_a_subset_once(ids, batch_size, shuffle, drop_last, world_size, epoch):
    places = Places(np.array(sorted(ids), np.uint32))
    order = Order(len(ids), batch_size, drop_last, shuffle, 5, places)
    seen: list[int] = []
    for rank in range(world_size):
        shard = Shard(order.batches_per_epoch, rank, world_size)
        for step in range(shard.steps()) if order.batches_per_epoch else ():
            batch, repeated = shard.batch(step)
            if not repeated:
                seen += order.sample_ids(epoch, batch, 0, order.rows(epoch, batch)).tolist()
    assert len(seen) == len(set(seen)) == (len(ids) // batch_size * batch_size if drop_last else len(ids))
    assert set(seen) <= set(ids)
    assert order.sample_ids(epoch, 0, 0, 0).dtype == np.int64


def test_a_substitute_is_of_the_subset():
    order = Order(3, 2, False, False, 0, Places(np.array([2, 5, 9], np.uint32)))
    following = order.following(5)
    assert [next(following) for _ in range(4)] == [9, 2, 5, 9]
    plain = Order(3, 2, False, False, 0).following(2)
    assert [next(plain) for _ in range(4)] == [0, 1, 2, 0]


def test_a_file_or_an_array_or_a_true_for_each_names_the_samples(rows, tmp_path):
    np.save(tmp_path / "ids.npy", np.array([9, 3, 30], np.int16))
    np.save(tmp_path / "mask.npy", np.arange(N) % 20 == 7)
    assert chosen(rows / "x.npy", subset=tmp_path / "ids.npy") == [3, 9, 30]
    assert chosen(rows / "x.npy", subset=str(tmp_path / "mask.npy")) == [7, 27, 47]
    assert chosen(rows / "x.npy", {"subset": take_in_numbers("subset", [4, 2])}, subset="<2 numbers>") == [2, 4]


def test_options_choose_one_after_another(rows):
    options = {"labels": rows / "y.npy", "where": "label=1,3", "limit": 6}
    assert chosen(rows / "x.npy", **options) == [1, 3, 6, 8, 11, 13]
    part = chosen(rows / "x.npy", **options, split="0-50%")
    assert len(part) == 6
    assert set(part) < set(chosen(rows / "x.npy", split="0-50%", batch_size=N))
    assert chosen(rows / "x.npy", limit=1000) == list(range(N))


def test_it_is_logged_how_many_samples_of_each_class_are_served(rows, caplog):
    caplog.set_level("INFO", "prefetchd")
    chosen(rows / "x.npy", labels=rows / "y.npy", where="label=1,3", limit=5)
    assert "5 of 60 samples are served (where=label=1,3, limit=5); by class: 1: 3, 3: 2" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "label=9"}, "no sample is left"),
        ({"where": "label=cat"}, "'cat' is not a number"),
        ({"where": "fold=1"}, "of this source only the labels are known by name, as 'label'"),
        ({"split": "0-0.00001%"}, "no sample is left"),
        ({"split": "90%"}, "a part of 0 to 100 %"),
        ({"split": "60-40%"}, "a part of 0 to 100 %"),
        ({"split": "0-101%"}, "a part of 0 to 100 %"),
        ({"where": "label"}, "values by column"),
        ({"where": {"label": []}}, "values by column"),
        ({"where": ["label=1", "label=2"]}, "values by column"),
        ({"limit": 0}, "limit"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(rows, options, message):
    with pytest.raises(ConfigError, match=message):
        chosen(rows / "x.npy", labels=rows / "y.npy", **options)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 60], "cannot use subset=<numbers>: it names the sample 60, and there are 60"),
        ([-1, 3], "names the sample -1"),
        ([3, 3, 4], "1 of its 3 numbers are there already"),
        ([0.5], "its dtype is float64"),
        ([True, False], "2 values, true or false, for 60 samples"),
    ],
)
def test_a_subset_that_names_other_samples_is_refused(rows, ids, message):
    with pytest.raises(ConfigError, match=message):
        chosen(rows / "x.npy", {"subset": take_in_numbers("subset", ids)}, subset="<numbers>")


def test_a_subset_that_is_no_list_of_numbers_is_refused(rows, tmp_path):
    np.save(tmp_path / "square.npy", np.zeros((3, 3), int))
    with pytest.raises(ConfigError, match=r"has the shape \(3, 3\)"):
        chosen(rows / "x.npy", subset=tmp_path / "square.npy")
    with pytest.raises(ManifestError, match=r"nothing\.npy"):
        chosen(rows / "x.npy", subset=tmp_path / "nothing.npy")
    with pytest.raises(ConfigError, match="cannot use subset: it is empty; give at least one number"):
        take_in_numbers("subset", np.flatnonzero(np.zeros(3)))
    for wrong in ([[1], [2, 3]], ["a"], [], 5):
        with pytest.raises(ConfigError, match="cannot use subset"):
            take_in_numbers("subset", wrong)


def test_a_subset_is_a_file_of_this_machine(rows):
    with pytest.raises(ManifestError, match=r"s3://data/ids\.npy: .*it is read from this machine alone: download it"):
        chosen(rows / "x.npy", subset="s3://data/ids.npy")


def test_labels_that_are_no_single_number_are_refused(images, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    with pytest.raises(ConfigError, match="samples have no labels here"):
        chosen(tmp_path / "x.npy", where="label=1")
    with pytest.raises(ConfigError, match=r"labels of the shape \(2,\)"):
        chosen(tmp_path / "x.npy", labels=tmp_path / "x.npy", where="label=1")
    with pytest.raises(ConfigError, match="the table has 'path', 'label', 'fold', 'site'"):
        chosen(images["columns"], where="colour=1")


def test_where_has_one_form():
    assert canonical_where({"label": [1, 3], "fold": 0}) == ("label=1,3", "fold=0")
    assert canonical_where(["label=1,3", "fold=0"]) == ("label=1,3", "fold=0")
    assert canonical_where({"label": np.array([1, 1, 3])}) == canonical_where("label=1,3")
    assert canonical_where({"site": "a, b", "flag": True}) == ('site="a, b"', "flag=1")
    assert parse_where(canonical_where({"site": ["a, b", 'q"']})) == {"site": ["a, b", 'q"']}
    assert canonical_where(canonical_where({"x": 0.5})) == ("x=0.5",)


def test_the_digest_follows_what_is_chosen(rows):
    digests = set()
    options: list[dict[str, Any]] = [
        {}, {"subset": [1, 2]}, {"subset": [1, 3]}, {"limit": 2}, {"split": "0-50%"}, {"split": "50-100%"},
        {"where": "label=1"}, {"where": "label=2"},
    ]  # fmt: skip
    for each in options:
        passed = {name: take_in_numbers(name, ids) for name, ids in each.items() if name == "subset"}
        given = {name: "<numbers>" if name in passed else value for name, value in each.items()}
        config = make_config(source=str(rows / "x.npy"), labels=str(rows / "y.npy"), **given)
        source = open_source(config)
        plan = plan_order(config, source, passed)
        planned(source, plan, config)
        close(source)
        digests.add(config.digest(**plan.versions))
    assert len(digests) == len(options)
