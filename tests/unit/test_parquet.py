"""Parquet files as records: tables in, samples or clear errors out."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.faults import SampleFault, UnreadableFile
from prefetchd.data.files import FileBuffer
from prefetchd.data.parquet import page_heads, row_group
from prefetchd.data.parquet import records as module
from prefetchd.data.parquet.library import PYARROW_BYTES, load_pyarrow
from prefetchd.data.parquet.records import ParquetRecords
from prefetchd.errors import ConfigError, ManifestError

pytest.importorskip("pyarrow")
pa, pq = load_pyarrow()


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before  # what an earlier test left may have closed


def table(folder: Path, columns: dict[str, Any], name: str = "a.parquet", **options: Any) -> str:
    path = str(folder / name)
    pq.write_table(pa.table(columns), path, **options)
    return path


def opened(source: object, **options: object) -> ParquetRecords:
    return ParquetRecords.open(make_config(source=str(source), **options))


def contents(records: ParquetRecords) -> list[tuple[bytes, object]]:
    buffer = FileBuffer()
    return [
        (bytes(records.read(sample, buffer, lambda _: None)), sample.label)
        for sample in records.samples(range(len(records)))
    ]


def read(source: object, **options: object) -> list[tuple[bytes, object]]:
    with opened(source, **options) as records:
        return contents(records)


def refusal(source: object, **options: object) -> str:
    with pytest.raises(ManifestError) as caught:
        opened(source, **options).close()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cannot ")
    assert ";" in message
    return message


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"image": [b"A", b"B"], "label": [3, -1]}, {}, [(b"A", 3), (b"B", -1)]),
        ({"image": [{"bytes": b"A", "path": "a.jpg"}], "label": [3]}, {}, [(b"A", 3)]),
        ({"id": [7], "x": [b"A"], "y": [0.5]}, {"x_column": "x", "y_column": "y"}, [(b"A", 0.5)]),
        ({"image": [b"A", b"B"], "label": ["dog", "cat"]}, {}, [(b"A", 1), (b"B", 0)]),
        ({"image": [b"A"], "target": [[1, 2, 3]]}, {}, [(b"A", (1, 2, 3))]),
        ({"image": [b"A"], "label": [True]}, {}, [(b"A", 1)]),
        ({"image": [b"A"], "a": [1], "b": [2.5]}, {"y_column": "a,b"}, [(b"A", (1.0, 2.5))]),
        ({"image": [b"A"]}, {}, [(b"A", None)]),
        ({"image": [b"A"], "__index_level_0__": [7]}, {}, [(b"A", None)]),
        ({"image": [b"A"], "label": [1]}, {"label_columns": 0}, [(b"A", None)]),
        ({"a": [{"b": {"c": b"A"}}], "l": [{"m": 4}]}, {"x_column": "a.b.c", "y_column": "l.m"}, [(b"A", 4)]),
        ({"image": pa.array([b"A"] * 3, pa.large_binary())}, {}, [(b"A", None)] * 3),
        ({"image": [b"A"], "label": pa.array(["x"]).dictionary_encode()}, {}, [(b"A", 0)]),
        ({"image": [b"A"], "label": pa.array([7], pa.uint8())}, {}, [(b"A", 7)]),
    ],
)
def test_images_in_a_column_come_with_their_labels(tmp_path: Path, columns, options, expected) -> None:
    """Columns named or found out; Hugging Face's structs; numbers, vectors, names, truth values."""
    assert read(table(tmp_path, columns), **options) == expected


@pytest.mark.parametrize(
    ("columns", "options", "likely"),
    [
        ({"img": [b"A"], "fine_label": [3], "coarse_label": [1]}, {}, "fine_label"),
        ({"image": [{"bytes": b"A"}], "id": [3], "breed": ["pug"]}, {}, "breed"),
        ({"image": [b"A"], "id": [3]}, {}, "id"),
        ({"path": ["a.jpg"], "kind": ["pug"]}, {}, "kind"),
        ({"a": [{"b": b"A"}], "kind": ["pug"]}, {"x_column": "a.b"}, "kind"),
    ],
)
def test_a_label_under_an_unknown_name_is_refused(tmp_path: Path, columns, options, likely) -> None:
    """It would be left out in silence, and y be the row's number."""
    source = table(tmp_path, columns)
    message = refusal(source, **options)
    assert message.startswith("cannot tell which of the columns of"), message
    assert f"give y_column='{likely}', label_columns=0 for no labels" in message, message
    with opened(source, label_columns=0, **options) as records:
        assert records.samples([0])[0].label is None
    with opened(source, y_column=likely, **options) as records:
        assert records.samples([0])[0].label is not None


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_any_row_is_found_in_any_order(tmp_path: Path, compression: str, dictionary: bool) -> None:
    """Row groups of uneven length, several files, images given more than once."""
    images = [b"%d" % (number % 40) * (1 + number % 40) for number in range(205)]
    for file in range(2):
        table(
            tmp_path, {"image": images, "label": [file * 205 + number for number in range(205)]}, f"{file}.parquet",
            row_group_size=50, compression=compression, use_dictionary=dictionary,
        )  # fmt: skip
    with opened(tmp_path) as records:
        facts, fds = records.handle()
        attached = ParquetRecords.attach(
            msgspec.msgpack.decode(msgspec.msgpack.encode(facts)), [os.dup(fd) for fd in fds]
        )
    buffer = FileBuffer()
    for number in (409, 0, 204, 205, 17, 333, 18):
        (sample,) = attached.samples([number])
        assert sample.label == number
        assert bytes(attached.read(sample, buffer, lambda _: None)) == images[number % 205]
    assert attached.where(attached.samples([256])[0]) == "1.parquet row group 1 row 1"
    attached.close()


@pytest.mark.parametrize("as_absolute", [True, False])
def test_structs_whose_bytes_are_all_null_are_read_by_their_paths(tmp_path: Path, as_absolute: bool) -> None:
    """As Hugging Face writes images that it was told not to embed."""
    for name in "ABC":
        (tmp_path / name).write_bytes(name.encode())
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": None, "path": str(tmp_path / name) if as_absolute else name} for name in "ABC"]
    source = table(tmp_path, {"image": pa.array(rows, kind), "label": [1, 2, 3]}, row_group_size=2)
    assert read(source) == [(b"A", 1), (b"B", 2), (b"C", 3)]
    rows[1] = {"bytes": b"B", "path": None}
    source = table(tmp_path, {"image": pa.array(rows, kind), "label": [1, 2, 3]}, row_group_size=2)
    with opened(source) as records, pytest.raises(UnreadableFile, match="the image is null"):
        records.read(records.samples([0])[0], FileBuffer(), lambda _: None)


def test_paths_are_files_relative_to_the_files_folder_or_the_root(tmp_path: Path) -> None:
    """As in a manifest; nothing of pyarrow is needed in readers."""
    (tmp_path / "data").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"A")
    (tmp_path / "data" / "b \u732b.jpg").write_bytes(b"B")
    source = table(tmp_path / "data", {"path": ["../a.jpg", "b \u732b.jpg"], "label": ["x", "y"]})
    assert read(source) == [(b"A", 0), (b"B", 1)]
    with opened(source) as records:
        assert records.reader_bytes == 0
        assert records.where(records.samples([1])[0]) == f"a.parquet row 1: {tmp_path}/data/b \u732b.jpg"
    with opened(source, root=str(tmp_path)) as records:
        assert records.samples([0])[0].path == f"{tmp_path}/../a.jpg"


def test_class_names_of_hugging_face_are_taken_over(tmp_path: Path) -> None:
    """Their numbers stay as they are."""
    described = '{"info": {"features": {"label": {"names": ["zoo", "ant"], "_type": "ClassLabel"}}}}'
    columns = pa.table({"image": [b"A"], "label": [1]}).replace_schema_metadata({"huggingface": described})
    pq.write_table(columns, tmp_path / "a.parquet")
    with opened(tmp_path / "a.parquet") as records:
        assert records.classes == ("zoo", "ant")
        assert records.samples([0])[0].label == 1


@pytest.mark.parametrize(
    ("columns", "options", "what"),
    [
        ({"image": [b"A", b"B"], "label": [1, None]}, {}, "row 1: its label is null"),
        ({"image": [b"A", b"B"], "label": [[1], [1, 2]]}, {}, "row 1: its label has 2 numbers, and the first has 1"),
        ({"image": [b"A"], "label": [float("nan")]}, {}, "row 0: its label nan"),
        (
            {"image": [b"A"], "label": pa.array([2**63], pa.uint64())},
            {},
            "row 0: its label 9223372036854775808 does not fit",
        ),
        ({"image": [b"A"], "label": [{"a": 1}]}, {}, "row 0: its label is an object"),
        ({"image": [b"A"], "label": [b"x"]}, {}, "row 0: its label is of the type bytes"),
        ({"image": [b"A"], "label": [1]}, {"y_column": "z"}, "y_column='z'.*image .binary., label .int64."),
        ({"a": [b"A"]}, {}, "none of its columns .a. has a name that images have.*give x_column"),
        ({"image": [1.5]}, {"x_column": "image"}, "'image' holds double"),
        ({"image": [b"A"]}, {"label_columns": 2}, "label_columns=2"),
        ({"path": ["a", None]}, {}, "row 1 has no path"),
        ({"image": pa.array([], pa.binary())}, {}, "no rows"),
    ],
)
def test_a_row_or_a_column_that_does_not_fit_is_refused(tmp_path: Path, columns, options, what) -> None:
    """With its number, or what there is."""
    import re

    message = refusal(table(tmp_path, columns), **options)
    assert re.search(what, message), message


def test_files_must_be_parquet_and_of_one_kind(tmp_path: Path) -> None:
    """Whole, not empty, and with the same columns."""
    path = tmp_path / "b.parquet"
    for content in (b"", b"hello" * 100, Path(table(tmp_path, {"image": [b"A"]})).read_bytes()[:-50]):
        path.write_bytes(content)
        assert "b.parquet" in refusal(path)
    table(tmp_path, {"other": [b"A"]}, "b.parquet")
    assert "b.parquet" in refusal(tmp_path)
    table(tmp_path, {"image": ["a.jpg"]}, "b.parquet")
    assert "b.parquet has string in the column 'image', and the first file encoded images" in refusal(tmp_path)
    assert "no file" in refusal(tmp_path / "*.x.parquet")
    assert "No such file" in refusal(tmp_path / "none.parquet")
    os.mkfifo(tmp_path / "fifo.parquet")
    assert "it is a FIFO" in refusal(tmp_path / "fifo.parquet")


def test_null_empty_and_damaged_images_are_faults_of_their_sample(tmp_path: Path) -> None:
    """The rows around them are good, where the format lets them."""
    source = table(tmp_path, {"image": [b"A", None, b"", b"D"], "label": [1, 2, 3, 4]})
    with opened(source) as records:
        samples = records.samples(range(4))
        for number, what in ((1, "null"), (2, "empty")):
            with pytest.raises(UnreadableFile, match=what):
                records.read(samples[number], FileBuffer(), lambda _: None)
        assert bytes(records.read(samples[3], FileBuffer(), lambda _: None)) == b"D"
    structs = pa.array([{"bytes": b"A"}, None], pa.struct({"bytes": pa.binary()}))
    with opened(table(tmp_path, {"image": structs})) as records, pytest.raises(UnreadableFile, match="null"):
        records.read(records.samples([1])[0], FileBuffer(), lambda _: None)
    path = Path(table(tmp_path, {"image": [os.urandom(5000), b"B"]}, compression="zstd"))
    content = bytearray(path.read_bytes())
    content[4:3000] = bytes(2996)
    path.write_bytes(content)
    with opened(path) as records, pytest.raises(SampleFault, match="row group 0 cannot be read"):
        records.read(records.samples([0])[0], FileBuffer(), lambda _: None)


def test_what_a_row_group_takes_is_planned_or_reserved(tmp_path: Path, monkeypatch, caplog) -> None:
    """A group that may be kept is part of a reader's share; of a larger one a block is, and its pages are reserved."""
    asked: list[int] = []
    images = [os.urandom(100_000) for _ in range(20)]
    source = table(tmp_path, {"image": images}, row_group_size=10)
    with opened(source, shuffle=True) as records:
        assert PYARROW_BYTES + 3_000_000 < records.reader_bytes < PYARROW_BYTES + 3_100_000
        assert [content for content, _ in contents(records)] == images
        records.read(records.samples([3])[0], FileBuffer(), asked.append)
    assert not asked
    assert not caplog.records
    monkeypatch.setattr(module, "KEPT_BYTES", 500_000)
    with opened(source) as records:
        assert records.reader_bytes == PYARROW_BYTES + module.BLOCK_BYTES
        view = records.read(records.samples([13])[0], FileBuffer(), asked.append)
        assert view == images[13]
        assert records._kept is not None
        assert records._kept[1].capacity_bytes <= module.BLOCK_BYTES
    assert asked[0] > 1_000_000
    assert "row groups of" in caplog.text
    assert "row_group_size" in caplog.text


def repeated(times: int, sizes: tuple[int, ...] = (50_000, 60_000, 70_000)) -> list[bytes]:
    return [os.urandom(n_bytes) for n_bytes in sizes] * times


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="dictionary"),
        pytest.param({"data_page_version": "2.0", "compression": "zstd"}, id="pages of version 2"),
        pytest.param({"use_dictionary": False}, id="plain"),
        pytest.param({"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}}, id="shared starts"),
        pytest.param({"dictionary_pagesize_limit": 100_000, "write_batch_size": 2}, id="dictionary given up half-way"),
    ],
)
def test_rows_that_repeat_an_image_are_all_served(tmp_path: Path, options: dict[str, Any]) -> None:
    """The file has each image once, and so has the reader: what it decodes at a time stays small."""
    images = repeated(200)
    source = table(tmp_path, {"image": images, "label": list(range(len(images)))}, **options)
    with opened(source) as records:
        planned = records.reader_bytes - PYARROW_BYTES
        assert [(bytes(view), label) for view, label in contents(records)] == list(
            zip(images, range(len(images)), strict=True)
        )
        if records._kept is not None:
            assert records._kept[1].capacity_bytes <= planned


def test_an_image_far_larger_than_the_others_is_decoded_by_itself(tmp_path: Path) -> None:
    """The mean size says nothing of it: batches of the first size would hold it a thousand times."""
    images = [bytes([number]) * 10 for number in range(200)] + [os.urandom(300_000)] * 300
    with opened(table(tmp_path, {"image": images})) as records:
        fd = records._files.descriptor(0)
        metadata = pq.read_metadata(f"/proc/self/fd/{fd}")
        column = row_group.describe_column(fd, metadata, 0, "image")
        assert column.may_repeat
        before = pa.total_allocated_bytes()
        taken = []
        add = row_group.RowBlock.add

        def watched(rows: row_group.RowBlock, image: Any) -> bool:
            taken.append(pa.total_allocated_bytes() - before)
            return add(rows, image)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(row_group.RowBlock, "add", watched)
            assert [content for content, _ in contents(records)] == images
        assert column.n_batch * 300_000 > 20 << 20  # what a batch could have held
        assert max(taken) < 10 << 20


@pytest.mark.parametrize("nested", [False, True])
def test_a_column_of_the_dictionary_type_is_images(tmp_path: Path, nested: bool) -> None:
    """As a pandas category is; pyarrow then decodes the whole dictionary for each batch."""
    images: list[bytes | None] = [*repeated(20), None]
    column = pa.array(images, pa.binary()).dictionary_encode()
    if nested:
        column = pa.StructArray.from_arrays([column, pa.nulls(len(column), pa.string())], ["bytes", "path"])
    with opened(table(tmp_path, {"image": column})) as records:
        samples = records.samples(range(len(images)))
        for image, sample in zip(images[:-1], samples, strict=False):
            assert bytes(records.read(sample, FileBuffer(), lambda _: None)) == image
        with pytest.raises(UnreadableFile, match="null"):
            records.read(samples[-1], FileBuffer(), lambda _: None)
        assert records.reader_bytes > PYARROW_BYTES + 5 * 180_000


def test_images_larger_than_the_file_says_are_read_in_blocks(tmp_path: Path) -> None:
    """Where they share their starts: the plan has no more memory than the file says."""
    start = os.urandom(100_000)
    images = [start + b"%03d" % number for number in range(40)]
    source = table(tmp_path, {"image": images}, use_dictionary=False, column_encoding={"image": "DELTA_BYTE_ARRAY"})
    asked: list[int] = []
    with opened(source) as records:
        planned = records.reader_bytes - PYARROW_BYTES
        assert planned < 1_000_000
        for sample, image in zip(records.samples(range(40)), images, strict=True):
            assert bytes(records.read(sample, FileBuffer(), asked.append)) == image
            assert records._kept is None or records._kept[1].capacity_bytes <= planned
    assert not asked


@pytest.mark.parametrize("distinct", [30, 600])
def test_a_row_group_that_is_larger_than_all_that_is_kept_is_read_in_blocks(
    tmp_path: Path, monkeypatch, distinct: int
) -> None:
    """In any order, with null rows, and images larger than a block; one pass where distinct images fit in a block."""
    monkeypatch.setattr(module, "KEPT_BYTES", 500_000)
    monkeypatch.setattr(module, "BLOCK_BYTES", 200_000)
    images: list[bytes | None] = [os.urandom(5_000 + number) for number in range(distinct)] * (600 // distinct)
    if distinct == 600:
        images[17] = images[599] = None
        images[18], images[301] = os.urandom(300_000), os.urandom(250_000)
    passes = []
    read_rows = module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda *given: passes.append(given) or read_rows(*given))
    asked: list[int] = []
    source = table(tmp_path, {"image": images}, use_dictionary=False, data_page_size=50_000, write_batch_size=8)
    with opened(source) as records:
        assert records.reader_bytes == PYARROW_BYTES + 200_000
        buffer = FileBuffer(1000)
        in_order = -1
        for turn, number in enumerate([*range(600), 301, 17, 18, 300, 302, 599, 5]):
            if turn == 600:
                in_order = len(passes)
            (sample,) = records.samples([number])
            if images[number] is None:
                with pytest.raises(UnreadableFile, match="null"):
                    records.read(sample, buffer, asked.append)
            else:
                assert bytes(records.read(sample, buffer, asked.append)) == images[number]
        assert records._kept is not None
    assert in_order == 1 if distinct == 30 else 12 < in_order < 40
    assert 0 < max(asked) < 8 << 20  # pages, and not the row group


def test_a_page_that_claims_more_than_its_column_is_damaged(tmp_path: Path) -> None:
    """A fault of the samples, and no lack of memory."""
    path = Path(table(tmp_path, {"image": [os.urandom(2_200_000)]}, compression="none"))
    content = bytearray(path.read_bytes())
    assert content[4:7] == b"\x15\x04\x15"  # a dictionary's page; then its size, in four bytes
    content[7:11] = b"\xfe\xff\xff\x7f"
    path.write_bytes(content)
    with (
        opened(path) as records,
        pytest.raises(SampleFault, match="row group 0 cannot be read: a page claims 134217727"),
    ):
        records.read(records.samples([0])[0], FileBuffer(), lambda _: None)


def test_the_heads_of_pages_are_read(tmp_path: Path) -> None:
    """Sizes, and how many values a dictionary has; nothing is made of a head that is none, and no walk is endless."""
    images = repeated(3)
    source = table(tmp_path, {"image": images}, compression="none")
    column = pq.read_metadata(source).row_group(0).column(0)
    content = Path(source).read_bytes()
    start, n_bytes = column.dictionary_page_offset, column.total_compressed_size
    with open(source, "rb") as file:
        heads = page_heads.read_page_heads(file.fileno(), start, n_bytes)
        assert page_heads.read_page_heads(file.fileno(), 0, n_bytes) is None
        assert page_heads.read_page_heads(file.fileno(), len(content) - 3, n_bytes) is None
    assert heads is not None
    assert [head.n_dictionary for head in heads] == [3, None]
    assert heads[0].uncompressed_bytes == sum(map(len, images[:3])) + 3 * 4
    assert sum(head.head_bytes + head.compressed_bytes for head in heads) == n_bytes
    head = content[start : start + 64]
    for wrong in (b"", b"\0" * 64, b"\xff" * 64, head[:5], head[4:], b"\x1c" * 64):
        assert page_heads.page_head(wrong) is None
    for place in range(len(head)):
        for bit in range(8):
            found = page_heads.page_head(head[:place] + bytes([head[place] ^ 1 << bit]) + head[place + 1 :])
            assert found is None or found.head_bytes > 0 <= found.compressed_bytes


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """By readers and by the daemon."""
    source = table(tmp_path, {"image": [b"A"]})
    with opened(source) as records:
        table(tmp_path, {"image": [b"BB"]})
        with pytest.raises(ManifestError, match="start again"):
            records.check_unchanged()
        with pytest.raises(ManifestError, match="start again"):
            contents(records)


def test_without_pyarrow_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch) -> None:
    """Only for this source."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'prefetchd\[parquet\]'"):
        opened(tmp_path / "a.parquet")


def test_pyarrow_is_not_loaded_for_other_sources(tmp_path: Path) -> None:
    """It takes a quarter of a second and 10 MiB."""
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "a.txt").write_text("a.jpg 1\n")
    (tmp_path / "a.jpg").touch()
    code = (
        "import sys; from prefetchd.data.registry import open_source; "
        "from prefetchd.config.validate import make_config; "
        f"open_source(make_config(source={str(tmp_path / 'a.txt')!r})); print('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_reading_gives_memory_back(tmp_path: Path) -> None:
    """What pyarrow takes for a row group beyond the copy that is kept is gone afterwards; the peak is as planned."""
    images = [os.urandom(500_000) for _ in range(40)]
    source = table(tmp_path, {"image": images}, row_group_size=20)
    code = f"""
import numpy, cv2
from prefetchd.data.parquet.records import ParquetRecords
from prefetchd.config.validate import make_config
from prefetchd.data.files import FileBuffer
def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
before = status("RssAnon")
records = ParquetRecords.open(make_config(source={source!r}))
buffer = FileBuffer()
records.read(records.samples([39])[0], buffer, print)
open("/proc/self/clear_refs", "w").write("5")
resident = status("VmRSS")
for number in (0, 39, 1):
    records.read(records.samples([number])[0], buffer, print)
print(status("VmHWM") - resident, status("RssAnon") - before, records.reader_bytes)
"""
    env = {
        **os.environ,
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(8 << 20),
    }
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    peak, after, planned = map(int, out.split())
    assert after < PYARROW_BYTES + 10_100_000, out
    assert after + peak < planned + (8 << 20), out
