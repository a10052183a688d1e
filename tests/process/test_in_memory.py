"""Sources in memory, through a daemon: the batches that a list file gives, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd.ipc import messages
from tests.process.commands import run_command

OPTIONS: dict[str, Any] = {"batch_size": 8, "image_size": 16, "num_workers": 1, "memory_budget": "200MiB"}


def content_of(batches: Any) -> list[tuple[bytes, list[Any], list[int]]]:
    return [(batch.x.tobytes(), batch.y.tolist(), batch.sample_ids.tolist()) for batch in batches]


def read(source: Any, **options: Any) -> list[tuple[bytes, list[Any], list[int]]]:
    with prefetchd.batches(source, **{**OPTIONS, **options}) as loader:
        return content_of(loader)


@pytest.fixture(scope="module")
def pairs(photographs: Path) -> list[tuple[str, int]]:
    lines = [line.rsplit(" ", 1) for line in photographs.read_text().splitlines()]
    return [(path, int(label)) for path, label in lines]


@pytest.fixture(scope="module")
def columns(pairs) -> dict[str, list[Any]]:
    return {"path": [path for path, _ in pairs], "label": [label for _, label in pairs]}


@pytest.fixture(scope="module")
def images(photographs: Path, pairs) -> list[bytes]:
    return [(photographs.parent / path).read_bytes() for path, _ in pairs]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_list_gives_the_batches_that_a_list_file_gives(photographs, pairs, columns, images, shuffle):
    """Also a dictionary of columns, and encoded images: same samples, same order, same bytes."""
    expected = read(photographs, shuffle=shuffle)
    root = photographs.parent
    assert read(pairs, root=root, shuffle=shuffle) == expected
    assert read(columns, root=root, shuffle=shuffle) == expected
    assert read(list(zip(images, columns["label"], strict=True)), shuffle=shuffle) == expected


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_table_gives_the_batches_that_a_list_file_gives(photographs, columns, library):
    module = pytest.importorskip(library)
    table = module.table(columns) if library == "pyarrow" else module.DataFrame(columns)
    assert read(table, root=photographs.parent) == read(photographs)


def test_relative_paths_start_where_the_call_was_made(photographs, pairs, monkeypatch, tmp_path):
    expected = read(photographs)
    monkeypatch.chdir(photographs.parent)
    with prefetchd.batches(pairs, **OPTIONS, reconnect=True) as loader:
        monkeypatch.chdir(tmp_path)
        loop = iter(loader)
        first = content_of([next(loop)])
        os.kill(loader.status()["pid"], signal.SIGKILL)  # the next daemon starts in another folder
        assert first + content_of(loop) == expected


def test_names_of_classes_come_with_the_loader(photographs, pairs):
    named = [(photographs.parent / path, ("cat", "ant", "dog")[label % 3]) for path, label in pairs]
    with prefetchd.batches(named, **OPTIONS) as loader:
        assert loader.classes == ("ant", "cat", "dog")
        assert [label for batch in loader for label in batch.y.tolist()] == [(1, 0, 2)[n % 3] for n in range(50)]
        assert loader.config["source"] == "<list of 50 pairs>"
        assert loader.status()["datasets"][0]["source"] == "<list of 50 pairs>"


def test_a_dataset_is_served_from_its_mapped_files_and_from_its_folder(photographs, columns, images, tmp_path):
    datasets = pytest.importorskip("datasets")
    names = [f"class {number:02d}" for number in range(50)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": columns["label"]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    expected = read(photographs)
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    for source in (made, saved, str(tmp_path / "saved")):
        with prefetchd.batches(source, **OPTIONS) as loader:
            assert loader.classes == tuple(names)
            assert content_of(loader) == expected
    mixed = saved.shuffle(seed=2)
    labels = [label for _, y, _ in read(mixed) for label in y]
    assert labels == mixed["label"][:]
    assert labels != columns["label"]
    table_bytes = []
    for source in (made, saved):
        with prefetchd.batches(source, **OPTIONS) as loader:
            table_bytes.append(loader.status()["memory"]["source_bytes"])
    assert table_bytes[0] - table_bytes[1] > sum(map(len, images)) / 2  # the mapped one was not copied
    result = run_command("verify", tmp_path / "saved", "--image-size", "16")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "50" in result.stdout


def test_fields_come_from_tables_and_arrow_files(photographs, columns, images, tmp_path):
    """Also from a shuffled data set; a state fits wherever the trainer stands."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "y": datasets.Value("int64"), "note": datasets.Value("string")}
    )
    rows = {"img": [{"bytes": image, "path": None} for image in images], "y": columns["label"], "note": columns["path"]}
    made = datasets.Dataset.from_dict({**rows}, features=features)
    made.save_to_disk(str(tmp_path / "saved"))
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    fields = {"image": prefetchd.Field("image", "img"), "note": prefetchd.Field("text"), "y": prefetchd.Field("label")}
    expected = [batch.x for batch in prefetchd.batches(photographs, **OPTIONS)]
    for source in (made, saved, str(tmp_path / "saved"), made.to_pandas().to_dict("list")):
        if isinstance(source, dict):
            source["img"] = images
        with prefetchd.batches(source, fields=fields, **OPTIONS) as loader:
            for batch, x in zip(loader, expected, strict=True):
                np.testing.assert_array_equal(batch.image, x)
                assert batch.y.tolist() == batch.sample_ids.tolist()
                assert batch.strings("note") == [columns["path"][row] for row in batch.sample_ids]
    with prefetchd.batches(saved.select([7, 3]), fields=fields, **OPTIONS) as loader:
        assert next(iter(loader)).y.tolist() == [7, 3]


def test_arrays_in_memory_are_rows(tmp_path):
    x, y = np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20, dtype=np.int16)[::-1]
    with prefetchd.batches((x, y), batch_size=6, shuffle=True, seed=3, num_workers=1) as loader:
        for batch in loader:
            np.testing.assert_array_equal(batch.x, x[batch.sample_ids])
            np.testing.assert_array_equal(batch.y, y[batch.sample_ids])
            assert batch.y.dtype == np.int16
    np.save(tmp_path / "x.npy", x)
    with (
        prefetchd.batches(x, batch_size=6, num_workers=1) as loader,
        prefetchd.batches(tmp_path / "x.npy", batch_size=6, num_workers=1) as from_file,
    ):
        assert content_of(loader) == content_of(from_file)
    with pytest.raises(prefetchd.ConfigError, match="cannot use image_size with <arrays of 20 rows>"):
        prefetchd.batches((x, y), image_size=32)


def test_a_class_folder_of_torchvision_gives_what_its_directory_gives(images, tmp_path):
    for number, image in enumerate(images[:12]):
        folder = tmp_path / "data" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(image)
    try:
        from torchvision.datasets import ImageFolder
    except (ImportError, RuntimeError) as error:  # a build that does not fit the installed PyTorch raises either
        pytest.skip(f"torchvision: {error}")
    with prefetchd.batches(ImageFolder(str(tmp_path / "data")), **OPTIONS) as loader:
        assert loader.classes == ("cat", "dog")
        assert content_of(loader) == read(tmp_path / "data")


# --- states, other loaders, lost daemons


def test_a_state_fits_the_same_list_alone(photographs, pairs):
    options = {**OPTIONS, "root": photographs.parent, "shuffle": True}
    with prefetchd.batches(pairs, **options) as loader:
        loop = iter(loader)
        next(loop)
        state = loader.state_dict()
        rest = content_of(loop)
    with prefetchd.batches(list(pairs), **options) as loader:
        loader.load_state_dict(state)
        assert content_of(loader) == rest
    other = [*pairs[:-1], (pairs[-1][0], 7)]
    refused = pytest.raises(prefetchd.ManifestError, match=r"cannot go on: .*from other data")
    with prefetchd.batches(other, **options) as loader, refused:
        loader.load_state_dict(state)


def test_loaders_of_equal_lists_share_a_daemon_and_others_have_their_own(photographs, pairs):
    options = {**OPTIONS, "root": photographs.parent, "share": True}
    with prefetchd.batches(pairs, **options) as one, prefetchd.batches(list(pairs), **options) as same:
        assert one.status()["pid"] == same.status()["pid"]
        assert content_of(one) == content_of(same)
        with prefetchd.batches(pairs[::-1], **options) as other:
            assert other.status()["pid"] != one.status()["pid"]
            assert [label for batch in other for label in batch.y.tolist()] == list(range(50))[::-1]


def test_a_private_daemon_that_is_started_again_gets_the_list_again(photographs, pairs):
    source = list(pairs)
    with prefetchd.batches(source, **OPTIONS, root=photographs.parent, reconnect=True, epochs=3) as loader:
        source.clear()  # the loader has what it needs
        loop = iter(loader)
        seen = content_of([next(loop) for _ in range(9)])
        first = loader.status()["pid"]
        os.kill(first, signal.SIGKILL)
        seen += content_of(loop)
        assert loader.status()["pid"] != first
    assert seen == 3 * read(photographs)


def test_a_shared_daemon_that_is_started_again_gets_the_list_again(photographs, pairs):
    options = {**OPTIONS, "root": photographs.parent, "share": True, "reconnect": True, "epochs": 2}
    with prefetchd.batches(pairs, **options) as loader:
        loop = iter(loader)
        seen = content_of([next(loop) for _ in range(3)])
        os.kill(loader.status()["pid"], signal.SIGKILL)
        seen += content_of(loop)
    assert seen == 2 * read(photographs)


def test_a_bad_sample_is_named_by_its_row(photographs, pairs, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    source = [*((photographs.parent / path, label) for path, label in pairs[:10]), (bad, 3), (b"no image", 4)]
    with pytest.raises(prefetchd.SampleError, match=r"<list of 11 pairs> row 10: .*bad\.jpg.*not an image"):
        read(source[:11])
    encoded = [(b"no image", 1), (photographs.parent.joinpath(pairs[0][0]).read_bytes(), 2)]
    with pytest.raises(prefetchd.SampleError, match=r"<list of 2 pairs> row 0.*not an image"):
        read(encoded)
    assert [y for _, y, _ in read(encoded, on_error="skip")] == [[2]]


def test_paths_that_are_not_there_are_refused_with_the_root_to_give(photographs, pairs, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        prefetchd.ManifestError, match=r"cannot serve <list of 50 pairs>: none of 8 samples .*give root"
    ):
        prefetchd.batches(pairs, **OPTIONS)


def test_a_list_counts_in_the_budget(photographs, pairs):
    with prefetchd.batches(pairs, **OPTIONS, root=photographs.parent) as loader:
        assert loader.status()["memory"]["source_bytes"] > 0
    large = np.zeros((1 << 16, 1 << 10), np.uint8)
    with pytest.raises(prefetchd.BudgetError, match=r"the daemon takes 1\d\d MiB"):
        prefetchd.batches(large, batch_size=2, num_workers=1, memory_budget="70MiB")


def test_a_list_is_refused_where_a_daemon_has_its_own_data(pairs):
    with pytest.raises(prefetchd.ConfigError, match="with daemon='x': a source starts a private daemon"):
        prefetchd.batches(pairs, daemon="x")
    with pytest.raises(prefetchd.ConfigError, match=r"cannot serve this set: it has no order"):
        prefetchd.batches({"a.jpg"})


def test_examples_of_the_page_run(photographs, tmp_path, monkeypatch):
    """Each block of Python in the section on data in memory, one after the other."""
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    section = page.partition("## Data that is already in memory")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").symlink_to(photographs.parent / f"photo {number:02d}.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"prefetchd": prefetchd, "numpy": np}
    for block in blocks:
        for library in ("pandas", "datasets"):
            if library in block:
                names[library] = pytest.importorskip(library)
        exec(block, names)
        with names.pop("loader") as loader:
            assert sum(len(batch.x) for batch in loader) in (2, 3, 100)


def test_images_in_memory_are_not_cached_and_files_are(photographs, pairs, images, tmp_path):
    with pytest.raises(prefetchd.ConfigError, match="cannot cache <list of 50 samples>"):
        prefetchd.batches(images, **OPTIONS, cache=tmp_path / "cache")
    expected = read(photographs)
    for _ in range(2):
        assert read(pairs, root=photographs.parent, cache=tmp_path / "cache") == expected


def test_adapters_take_what_is_in_memory(photographs, pairs):
    torch = pytest.importorskip("torch")
    import prefetchd.torch

    with prefetchd.torch.batches(pairs, **OPTIONS, root=photographs.parent) as loader:
        assert torch.cat([batch.y for batch in loader]).tolist() == list(range(50))


def test_a_table_that_makes_no_sense_ends_the_start_in_words(monkeypatch):
    """Nothing that a trainer sends is believed."""
    from prefetchd.columns.passed import PassedTable

    def lie(self: PassedTable) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "description": {**self.description, "bytes": 1 << 40}}

    monkeypatch.setattr(PassedTable, "to_wire", lie)
    with pytest.raises(prefetchd.ManifestError, match="cannot serve <arrays of 3 rows>: this is no table"):
        prefetchd.batches(np.zeros((3, 2)), num_workers=1)
    assert messages.Configure({}).tables == {}


def memfds() -> int:
    """Return how many descriptors of columns in memory this process has."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found += "prefetchd-columns" in os.readlink(f"/proc/self/fd/{fd}")
    return found


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (np.zeros((8, 4), np.float32), {"epochs": 0}),
        (np.zeros((8, 4), np.float32), {"log_every": -1}),
        (iter(()), {"subset": [0, 1]}),
        (None, {"mix": [(np.zeros((8, 4), np.float32), 1), (iter(()), 1)]}),
    ],
)
def test_a_loader_that_is_refused_leaves_no_copy_of_its_source(source, options):
    """The copy may be most of the machine's memory, and an error in a notebook would keep it to its end."""
    before = memfds()
    with pytest.raises(prefetchd.ConfigError):
        prefetchd.batches(source, **options)
    assert memfds() == before
