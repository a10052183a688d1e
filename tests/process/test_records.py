"""Tar shards, JSONL and Parquet through a daemon and its readers: the same batches as from files."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import prefetchd
from tests.conftest import wait_until
from tests.records import Content, jpeg, write_tar

OPTIONS = {"batch_size": 4, "image_size": 16, "num_workers": 2, "memory_budget": "160MiB"}


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [jpeg(seed) for seed in range(18)]


def write_files(folder: Path, images: list[bytes], labels: list[str]) -> Path:
    folder.mkdir()
    lines = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"{number}.jpg").write_bytes(image)
        lines.append({"path": f"{number}.jpg", "label": label})
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "list.txt").write_text("".join(f"{line['path']} {line['label']}\n" for line in lines))
    return folder


def write_shards(folder: Path, images: list[bytes], labels: list[str]) -> Path:
    folder.mkdir()
    for shard in range(3):
        members: list[tuple[str, Content]] = []
        for number in range(shard * 6, shard * 6 + 6):
            members += [(f"n{number}.txt", labels[number]), (f"n{number}.jpg", images[number])]
        write_tar(folder / f"shard-{shard:03d}.tar", members)
    return folder


def batches(source: object, **options: object) -> list[tuple[np.ndarray, np.ndarray, list[int]]]:
    with prefetchd.batches(source, **{**OPTIONS, **options}) as loader:
        return [(batch.x.copy(), batch.y.copy(), batch.sample_ids.tolist()) for batch in loader]


def served(dataset: str) -> list[tuple[np.ndarray, np.ndarray, list[int]]]:
    with prefetchd.batches(dataset=dataset) as loader:
        return [(batch.x.copy(), batch.y.copy(), batch.sample_ids.tolist()) for batch in loader]


def assert_same(one: list, other: list) -> None:
    assert len(one) == len(other)
    for (x, y, ids), (x2, y2, ids2) in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)
        assert ids == ids2


@pytest.mark.parametrize("shuffle", [False, True])
def test_jsonl_and_tar_shards_give_the_batches_that_files_give(serve, tmp_path: Path, images, shuffle: bool) -> None:
    """Same images, same labels, same order: the same bytes."""
    labels = [("cat", "dog", "ant")[number % 3] for number in range(18)]
    files = write_files(tmp_path / "files", images, labels)
    shards = write_shards(tmp_path / "shards", images, labels)
    sources = [f"files={files / 'list.txt'}", f"jsonl={files / 'list.jsonl'}"]
    sources += [f"folder={shards}", f"braces={shards / 'shard-{000..002}.tar'}"]
    serve(
        *sources, "--folder.y-column", "txt", "--braces.y-column", "txt", "--batch-size", 4, "--image-size", 16,
        "--num-workers", 2, "--shuffle" if shuffle else "--no-shuffle",
    )  # fmt: skip
    expected = served("files")
    assert [len(ids) for _, _, ids in expected] == [4, 4, 4, 4, 2]
    for name in ("jsonl", "folder", "braces"):
        assert_same(served(name), expected)


def test_a_bad_member_is_raised_skipped_or_substituted_like_a_bad_file(serve, tmp_path: Path, images) -> None:
    """The report names shard, sample and member."""
    shard = tmp_path / "s-000.tar"
    members: list[tuple[str, Content]] = []
    for number in range(6):
        content = b"no image" if number == 2 else b"" if number == 4 else images[number]
        members += [(f"a/n{number}.jpg", content), (f"a/n{number}.cls", str(number))]
    write_tar(shard, members)
    daemon = serve(
        f"raising={shard}", f"skipping={shard}", f"substituting={shard}", "--skipping.on-error", "skip",
        "--substituting.on-error", "substitute", "--batch-size", 4, "--image-size", 16, "--num-workers", 1,
    )  # fmt: skip
    with pytest.raises(prefetchd.SampleError, match=r"s-000\.tar sample a/n2: n2\.jpg.*not an image"):
        served("raising")
    assert [ids for _, _, ids in served("skipping")] == [[0, 1, 3], [5]]
    substituted = served("substituting")
    assert [ids for _, _, ids in substituted] == [[0, 1, 3, 3], [5, 5]]
    assert substituted[1][1].tolist() == [5, 5]
    assert "s-000.tar sample a/n4: n4.jpg: the member is empty" in daemon.log


def test_a_shard_that_is_appended_to_while_it_is_served_ends_the_daemon(tmp_path: Path, images) -> None:
    """With a ManifestError, in whatever process it is noticed."""
    shard = tmp_path / "s.tar"
    write_tar(shard, [(f"{number}.jpg", image) for number, image in enumerate(images)])
    with prefetchd.batches(shard, **{**OPTIONS, "batch_size": 1}, epochs=None) as loader:
        running = iter(loader)
        next(running)
        with tarfile.open(shard, "a") as tar:
            tar.addfile(tarfile.TarInfo("new.jpg"))
        with pytest.raises(prefetchd.ManifestError, match=r"s\.tar.*start again"):
            for _ in running:
                pass


def write_parquet(folder: Path, images: list[bytes], labels: list[str], **options: object) -> Path:
    pytest.importorskip("pyarrow")
    from prefetchd.data.parquet.library import load_pyarrow

    pa, pq = load_pyarrow()
    folder.mkdir()
    structs = [{"bytes": image, "path": f"{number}.jpg"} for number, image in enumerate(images)]
    for part in range(2):
        rows = slice(part * 9, part * 9 + 9)
        table = pa.table({"image": structs[rows], "label": labels[rows]})
        pq.write_table(table, folder / f"train-{part:05d}-of-00002.parquet", row_group_size=4, **options)
    return folder


@pytest.mark.parametrize("shuffle", [False, True])
def test_parquet_gives_the_batches_that_files_give(tmp_path: Path, images, shuffle: bool) -> None:
    """Images in a column, in row groups and files that fit no batch."""
    labels = [("cat", "dog", "ant")[number % 3] for number in range(18)]
    expected = batches(write_files(tmp_path / "files", images, labels) / "list.txt", shuffle=shuffle)
    assert_same(batches(write_parquet(tmp_path / "parquet", images, labels), shuffle=shuffle), expected)


def test_bad_images_in_parquet_follow_the_policy(tmp_path: Path, images) -> None:
    """Null, and what is no image; the report names file, row group and row."""
    pytest.importorskip("pyarrow")
    content: list[bytes] = [b"no image" if number == 5 else image for number, image in enumerate(images)]
    folder = write_parquet(tmp_path / "parquet", content, [str(number) for number in range(18)])
    with pytest.raises(prefetchd.SampleError, match=r"train-00000-of-00002\.parquet row group 1 row 1"):
        batches(folder)
    assert [ids for _, _, ids in batches(folder, on_error="skip")][:2] == [[0, 1, 2, 3], [4, 6, 7]]


def test_readers_of_parquet_stay_within_what_is_planned_for_them(serve, tmp_path: Path) -> None:
    """pyarrow and a row group are part of a reader's share of the budget, and the footprint is under it."""
    pytest.importorskip("pyarrow")
    big = [jpeg(seed, (600, 800)) for seed in range(3)]
    folder = write_parquet(tmp_path / "parquet", [big[number % 3] for number in range(18)], ["x"] * 18)
    daemon = serve(folder, "--batch-size", 4, "--image-size", 64, "--num-workers", 2)
    with prefetchd.batches(epochs=3) as loader:
        assert sum(len(y) for _, y in loader) == 54
    memory = daemon.status()["memory"]
    assert memory["max_footprint_bytes"] <= memory["budget_bytes"]


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path: Path) -> None:
    """In one line, before anything else."""
    from tests.process.commands import finish, start_script

    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from prefetchd.cli.main import main\n"
        f"sys.exit(main(['serve', {str(tmp_path / 'a.parquet')!r}]))\n"
    )
    result = finish(start_script(tmp_path / "script.py", code))
    assert result.returncode in (1, 2)
    assert "pip install 'prefetchd[parquet]'" in result.stderr


def test_a_signal_ends_indexing(tmp_path: Path) -> None:
    """It may take minutes, and nothing serves the event loop meanwhile."""
    from tests.process.commands import ended, start_script, tree

    shard = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(1))])
    began = tmp_path / "began"
    code = f"""
import pathlib, sys
from prefetchd.cli.main import main
from prefetchd.data.tar.headers import TarHeaders

def walk(self, position):
    pathlib.Path({str(began)!r}).touch()
    while True:
        pass

TarHeaders.member = walk
sys.exit(main(["serve", {shard!r}, "--name", "indexing"]))
"""
    process = start_script(tmp_path / "script.py", code)
    wait_until(began.exists, "indexing began")
    processes = tree(process.pid)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors.splitlines()[-1].endswith("stopped before it served")
    assert "Traceback" not in errors
    wait_until(lambda: ended(processes), "its processes have ended")
