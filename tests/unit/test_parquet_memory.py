"""What of a Parquet file is in memory: row groups, blocks, pages, images that repeat, and a plan that holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefetchd.data.faults import SampleFault, UnreadableFile
from prefetchd.data.files import FileBuffer
from prefetchd.data.parquet import page_heads, row_group
from prefetchd.data.parquet import records as module
from prefetchd.data.parquet.library import PYARROW_BYTES
from tests.parquet_files import contents, no_descriptor_is_left, opened, pa, pq, repeated, table  # noqa: F401


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
