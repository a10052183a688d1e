"""The option `fields`, the tables behind it, and the class of a batch: all that needs no daemon."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from prefetchd.client.batch import Batch, batch_class, leaves_of
from prefetchd.config.datasets import read_config_file
from prefetchd.config.fields import Field, image_config, parse_fields
from prefetchd.config.validate import make_config
from prefetchd.data.faults import RefusedImage
from prefetchd.data.fields.parts import read_npy
from prefetchd.data.fields.source import FieldsSource
from prefetchd.data.registry import attach_source, open_source
from prefetchd.errors import ConfigError, ManifestError, PrefetchdError
from prefetchd.ring.layout import BatchLayout, FieldLayout, layout_from_wire, xy_fields

# --- the option


def texts(given: Any) -> tuple[str, ...]:
    return make_config(source="m", fields=given).fields


def test_all_spellings_of_one_field_are_one_text() -> None:
    wanted = ("depth=image(column='d.png', size=(4, 6), channels=1)",)
    spellings: list[Any] = [
        {"depth": Field("image", "d.png", size=(4, 6), channels=1)},
        {"depth": {"kind": "image", "column": "d.png", "size": "4x6", "channels": np.int64(1)}},
        {"depth": "image(d.png, channels=1, size=(4, 6))"},
        ["depth = image(column='d.png', channels=1, size='4x6')"],
        "depth=image(d.png,size=(4,6),channels=1)",
        wanted,
    ]
    assert {texts(each) for each in spellings} == {wanted}
    assert parse_fields(wanted)["depth"] == Field("image", "d.png", size=(4, 6), channels=1)
    assert parse_fields(texts({"depth": "image"}))["depth"].column == "depth"


def test_a_field_takes_what_programs_have_at_hand() -> None:
    """mypy checks this function too: the types that may be given are wider than those of the attributes."""
    assert Field("image", size=64) == Field("image", size="64") == Field("image", size=[64, 64])
    assert Field("array", shape=4, dtype=np.float32) == Field("array", shape=(4,), dtype="float32")
    assert Field("label", ("roll", "pitch")) == Field("label", "roll,pitch")
    assert Field("image", mean=[1, 2, 3], std=2, scale="1/255") == Field("image", mean=(1, 2, 3), std=2, scale=1 / 255)


def test_fields_are_part_of_the_digest_and_none_changes_none() -> None:
    plain, one = make_config(source="m"), make_config(source="m", fields={"a": "image"})
    assert make_config(source="m", fields={}).digest() == plain.digest() != one.digest()
    assert make_config(source="m", fields={"a": Field("image", "a")}).digest() == one.digest()
    assert make_config(**one.to_wire()) == one


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a": "imag"}, "the kind 'imag' of a field: there is none of that name; did you mean 'image'"),
        ({"a": "image(channels=0)"}, "channels=0 for a field of kind image: it must be a whole number from 1"),
        ({"a": "mask(channels=1)"}, "channels for a field of kind mask: it has size, dtype, border"),
        ({"a": "image(sise=3)"}, "there is no parameter 'sise'; did you mean size"),
        ({"a": "image(dtype=int3)"}, "it must be one of uint8, uint16"),
        ({"a": "image(open('x'))"}, "is no plain value"),
        ({"a": "image("}, "cannot be read; write NAME=KIND"),
        ({"a": 3}, "it is a int; give prefetchd.Field"),
        ({"a": {"column": "b"}}, "it has no kind; there are image, mask"),
        ({"class": "label"}, "cannot call a field 'class': it must be a name as in Python"),
        ({"_a": "label"}, "it begins with _"),
        ({"epoch": "label"}, "a batch has copy, epoch"),
        (["a=image", "a=mask"], "cannot use the field a twice"),
        (7, "cannot use int as fields"),
        ({"a": "image(std=0, dtype=float32)"}, "cannot use the field a: cannot use std"),
        ({f"f{number}": "label" for number in range(33)}, "cannot use 33 fields: 32 at most"),
    ],
)
def test_what_is_no_field_is_refused_in_words(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(source="m", fields=fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", [{"target": "mask"}, {"x_column": "a"}, {"views": 2}, {"label_columns": 0}])
def test_options_of_a_sample_without_fields_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"cannot use {next(iter(option))} together with fields"):
        make_config(source="m", fields={"a": "image"}, **option)


def test_an_image_has_the_options_of_its_data_set_but_for_its_own() -> None:
    config = make_config(
        source="m", fields={"a": "image"}, dtype="float32", scale=1 / 255, mean=[0.5], std=[0.2], image_size=8,
        augment=["hflip", "color_jitter"],
    )  # fmt: skip
    photograph = image_config(config, Field("image", size=(4, 6)))
    assert (photograph.image_size, photograph.scale, photograph.mean) == ((4, 6), 1 / 255, (0.5,))
    assert len(photograph.augment) == 2
    depth = image_config(config, Field("image", channels=1, dtype="uint16"))
    assert (depth.n_channels, depth.dtype, depth.scale, depth.mean, depth.std) == (1, "uint16", None, None, None)
    assert [text.partition("(")[0] for text in depth.augment] == ["hflip"]


def test_a_toml_file_has_a_table_for_each_field(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('source = "m"\n[fields.depth]\nkind = "image"\nmax-bytes = 1\n')
    common, tables = read_config_file(str(tmp_path / "a.toml"))
    assert tables == {}
    with pytest.raises(ConfigError, match="cannot use the field depth: max_bytes for a field of kind image"):
        make_config(**common)
    (tmp_path / "b.toml").write_text('[train]\nsource = "m"\n[train.fields]\ndepth = "image(channels=1)"\n')
    _, tables = read_config_file(str(tmp_path / "b.toml"))
    assert make_config(**tables["train"]).fields == ("depth=image(channels=1)",)


# --- batches


def made(*fields: FieldLayout) -> tuple[BatchLayout, Any]:
    layout = BatchLayout(3, fields)
    return layout, batch_class(layout).over(np.zeros(layout.slot_bytes, np.uint8), 3, layout)


TEXT = (FieldLayout("a", (2,), "float32"), FieldLayout("t.bytes", (4,), "uint8"), FieldLayout("t.length", (), "int64"))


def test_a_batch_reads_as_a_named_tuple_and_as_a_mapping() -> None:
    _, batch = made(*TEXT)
    batch.t.bytes[:] = np.frombuffer("éab".encode(), np.uint8)
    batch.t.length[:] = [4, 2, 0]
    assert batch.strings("t") == ["éab", "é", ""]
    assert batch["a"] is batch.a is batch[0]
    assert batch.keys() == batch._fields == ("a", "t")
    assert dict(batch).keys() == {"a", "t"}
    assert [name for name, _ in batch.items()] == ["a", "t"]
    assert "a" in batch
    assert "b" not in batch
    assert batch.get("b", 7) == 7
    assert (lambda **given: given)(**batch)["t"]["length"].tolist() == [4, 2, 0]
    assert len(leaves_of(batch)) == 3
    with pytest.raises(KeyError, match="there are a, t"):
        batch["b"]
    with pytest.raises(PrefetchdError, match="cannot read the field a as text"):
        batch.strings("a")
    again = pickle.loads(pickle.dumps(batch))
    assert again.t._fields == ("bytes", "length")
    assert isinstance(again, Batch)


def test_one_layout_has_one_class_and_the_short_form_stays_x_and_y() -> None:
    layout, batch = made(*TEXT)
    assert type(batch) is batch_class(layout_from_wire(layout.to_wire()))
    x, y = made(*xy_fields(((2,), "uint8")))[1]
    assert (x.shape, y.dtype) == ((3, 2), np.int64)


@pytest.mark.parametrize("fields", [[], [["a", [1], "object"]], [["a", [-1], "uint8"]], [["a", [], "uint8"]] * 2])
def test_layouts_that_make_no_sense_are_refused(fields: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"impossible|unknown"):
        layout_from_wire({"batch_size": 2, "fields": fields})


# --- sources


def opened(source: Path, **fields: str) -> FieldsSource:
    found = open_source(make_config(source=source, fields=fields))
    assert isinstance(found, FieldsSource)
    return found


def values_of(source: FieldsSource) -> list[tuple[Any, ...]]:
    records = source.records
    found = [sample.values for sample in records.samples(range(len(records)))]
    records.close()  # type: ignore[attr-defined]
    return [tuple(each.tolist() if isinstance(each, np.ndarray) else each for each in row) for row in found]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'n,t,skip\n1,"a,b",x\n2,é,y\n'),
        ("a.csv", "n;t;skip\n1;a,b;x\n2;é;y\n"),
        ("a.tsv", "\ufeffn\tt\n1\ta,b\n\n2\té\n"),
        ("a.jsonl", '{"n": 1, "t": "a,b", "u": [1]}\n\n{"n": 2, "t": "\\u00e9"}\n'),
    ],
)
def test_tables_give_the_columns_that_are_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    source = opened(tmp_path / name, n="label", t="text")
    assert [(each.name, each.shape, each.dtype) for each in source.facts.fields] == [
        ("n", (), "int64"), ("t.bytes", (3,), "uint8"), ("t.length", (), "int64"),
    ]  # fmt: skip
    assert values_of(source) == [(1, "a,b"), (2, "é")]


def test_files_beside_the_first_image_may_be_of_any_kind(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.mask.png", "a.txt", "a.npy"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.csv").write_text("path\na.jpg\n")
    beside = {"mask": "mask('.mask.png')", "caption": "text('.txt', max_bytes=9)"}
    source = opened(tmp_path / "a.csv", image="image(path)", **beside, vector="array('.npy', shape=3, dtype=uint8)")
    paths = [str(tmp_path / name) for name in ("a.jpg", "a.mask.png", "a.txt", "a.npy")]
    assert values_of(source) == [tuple(paths)]


def test_columns_by_number_need_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("5,dog\n6,cat\n")
    source = opened(tmp_path / "a.csv", n="label('0')", c="label('1')")
    assert source.facts.classes == ("cat", "dog")
    assert source.where(1) == f"{tmp_path}/a.csv line 2"
    assert values_of(source) == [(5, 1), (6, 0)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "n,t\n1,a\n2\n", "line 3 has 1 columns, and the first one 2"),
        ("a.csv", "n,t\n1,a\n,b\n", "has ''; complete the column"),
        ("a.csv", "", "it is empty"),
        ("a.csv", "n,t\n", "it has no samples"),
        ("a.csv", 'n,t\n1,"a\n', "line 2"),
        ("a.jsonl", '{"n": 1, "t": "a"}\n[1]\n', "line 2 is no JSON object"),
        ("a.jsonl", '{"n": 1, "t": "a"}\n{"n": 2}\n', "line 2 has no value for 't'"),
        ("a.jsonl", '{"n": 1, "t": "a"}\n{"n": "b", "t": "a"}\n', "the key 'n'"),
    ],
)
def test_what_a_table_lacks_is_refused_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=message):
        opened(tmp_path / name, n="label", t="text")


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for stem in "ab":
            cv2.imwrite(str(tmp_path / name / f"{stem}.png"), np.zeros((4, 4), np.uint8))
    fields = {"image": "image(images)", "mask": "mask(masks)"}
    with pytest.raises(ConfigError, match="has no such folder; there are images, masks"):
        opened(tmp_path, image="image(imgs)")
    (tmp_path / "masks/b.png").rename(tmp_path / "masks/c.png")
    with pytest.raises(ManifestError, match="1 of 2 samples of images have no file in masks, such as b"):
        opened(tmp_path, **fields)
    cv2.imwrite(str(tmp_path / "images/a.jpg"), np.zeros((4, 4), np.uint8))
    with pytest.raises(ManifestError, match=r"has two files for a: a\.jpg and a\.png"):
        opened(tmp_path, **fields)


def test_a_changed_list_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n\n1\n")
    source = opened(tmp_path / "a.csv", n="label")
    source.check_unchanged()
    (tmp_path / "a.csv").write_text("n\n11\n")
    with pytest.raises(ManifestError, match="written to, or replaced"):
        source.check_unchanged()
    source.records.close()  # type: ignore[attr-defined]


def test_reading_ahead_gives_the_same_for_every_field(tmp_path: Path) -> None:
    """Several files a sample: images, masks and encoded bytes, in one buffer after the other."""
    rng = np.random.default_rng(0)
    lines = ["image,mask,n"]
    for number in range(6):
        for name in ("image", "mask"):
            cv2.imwrite(str(tmp_path / f"{name}{number}.png"), rng.integers(0, 256, (9, 7), np.uint8))
        lines.append(f"image{number}.png,mask{number}.png,{number}")
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    fields = {"image": "image", "raw": "bytes(image, max_bytes=2000)", "mask": "mask", "n": "label"}
    config = make_config(source=tmp_path / "a.csv", fields=fields, image_size=4, augment="hflip")
    source = open_source(config)
    assert isinstance(source, FieldsSource)
    layout = BatchLayout(6, source.facts.fields)
    results = []
    for is_slow in (False, True):
        handle, fds = source.handle()
        reader = attach_source(config, handle, [os.dup(fd) for fd in fds])
        assert isinstance(reader, FieldsSource)
        reader._ahead._is_on = is_slow
        reader.expect(range(6))
        arrays = layout.arrays(np.zeros(layout.slot_bytes, np.uint8), 6)
        assert reader.fill(0, np.arange(6), range(6), arrays, lambda n_bytes: None) == []
        results.append(arrays)
        reader.records.close()  # type: ignore[attr-defined]
    source.records.close()  # type: ignore[attr-defined]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert results[0][1][:, :4].tobytes() == b"\x89PNG" * 6


def test_npy_files_are_read_by_their_header_and_never_unpickled(tmp_path: Path) -> None:
    def encoded(array: np.ndarray[Any, Any], **options: Any) -> memoryview:
        np.save(tmp_path / "a.npy", array, **options)
        return memoryview((tmp_path / "a.npy").read_bytes())

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for each in (array, np.asfortranarray(array)):
        np.testing.assert_array_equal(read_npy(encoded(each), (2, 3), np.dtype("float64")), array)
    bad = [
        encoded(array.T), encoded(array.astype(complex)), encoded(np.array([[{}] * 3] * 2), allow_pickle=True),
        encoded(array)[:90], memoryview(b"nothing"),
    ]  # fmt: skip
    for data in bad:
        with pytest.raises(RefusedImage, match=r"it is (an array of|no .npy file)"):
            read_npy(data, (2, 3), np.dtype("float32"))
