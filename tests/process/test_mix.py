"""Mixtures through daemons: sources of all kinds, ranks, states, bad samples, and labels that mean the same."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import prefetchd
from prefetchd.errors import ConfigError, ManifestError, SampleError
from tests.process.commands import refused_here, run_command
from tests.records import write_tar

QUICK: dict[str, Any] = {"image_size": 8, "num_workers": 1, "memory_budget": "192MiB", "batch_size": 5}


def png(value: int) -> bytes:
    """Return an image whose pixels all have this value."""
    return cv2.imencode(".png", np.full((8, 8, 3), value, np.uint8))[1].tobytes()


def write_list(folder: Path, name: str, first: int, labels: list[str]) -> Path:
    """Write images with the values `first` onwards, one for each label, and a list of them."""
    (folder / name).mkdir()
    lines = []
    for number, label in enumerate(labels):
        (folder / name / f"{number}.png").write_bytes(png(first + number))
        lines.append(f"{name}/{number}.png {label}\n")
    path = folder / f"{name}.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture
def lists(tmp_path) -> tuple[Path, Path]:
    """Two lists whose classes are not the same: a number would mean another class in each."""
    return (
        write_list(tmp_path, "a", 0, [("cat", "dog")[number % 2] for number in range(10)]),
        write_list(tmp_path, "b", 100, ["emu", "cat", "bee", "emu"]),
    )


def seen(loader: prefetchd.Loader) -> list[tuple[int, int, int]]:
    """Return (source, first pixel, label) of each row."""
    return [
        (int(source), int(x[0, 0, 0]), int(y))
        for batch in loader
        for source, x, y in zip(batch.source, batch.x, batch.y, strict=True)
    ]


def test_rows_are_of_their_sources_and_labels_mean_the_same(lists, serve, tmp_path):
    mix = {str(lists[0]): 0.7, str(lists[1]): 0.3}
    with prefetchd.batches(mix=mix, shuffle=True, epochs=3, **QUICK) as loader:
        assert loader.sources == tuple(map(str, lists))
        assert loader.classes == ("bee", "cat", "dog", "emu")
        rows = seen(loader)
        assert loader.n_samples == 14
        (data,) = loader.status()["datasets"]
        assert [(each["samples"], each["epoch_samples"]) for each in data["mix"]] == [(10, 10), (4, 4)]
    names = {value: ("cat", "dog")[value % 2] for value in range(10)} | dict(
        zip(range(100, 104), ("emu", "cat", "bee", "emu"), strict=True)
    )
    for source, value, label in rows:
        assert source == value // 100
        assert loader.classes[label] == names[value]
    for first in range(0, 42, 14):
        assert sorted(value for _, value, _ in rows[first : first + 14]) == [*range(10), *range(100, 104)]
    daemon = serve(
        "--mix", f"{lists[0]}=0.7", "--mix", f"{lists[1]}=0.3", "--shuffle", "--batch-size", 5, "--image-size", 8,
        "--num-workers", 2, "--memory-budget", "192MiB",
    )  # fmt: skip
    with prefetchd.batches(epochs=3) as served:
        assert seen(served) == rows
    assert "an epoch mixes 14 samples: " in daemon.log
    assert f"{lists[1]}: 4 samples, 28.57%, 4 an epoch" in run_command("status").stdout
    assert "70% (10 of 10 samples)" in daemon.log
    ranks = [prefetchd.batches(rank=rank, world_size=2) for rank in range(2)]
    batches = [[batch.sample_ids.tolist() for batch in loader if not batch.repeated] for loader in ranks]
    for loader in ranks:
        loader.close()
    assert sorted(itertools.chain(*batches[0], *batches[1])) == list(range(14))
    with prefetchd.batches(mix=mix, daemon="default"):
        pass
    with pytest.raises(ConfigError, match="cannot attach with mix="):
        prefetchd.batches(mix={str(lists[0]): 0.5, str(lists[1]): 0.5}, daemon="default")


def test_a_file_and_a_shared_daemon_serve_the_same(lists, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"shuffle": True, "epoch_samples": 23, **QUICK}
    with prefetchd.batches(mix={"a.txt": 3, "b.txt": 1}, **options) as loader:
        assert loader.sources == ("a.txt", "b.txt")
        rows = seen(loader)
    assert len(rows) == 23
    (tmp_path / "train.toml").write_text('[mix]\n"a.txt" = 3\n"b.txt" = 1\n')
    with prefetchd.batches(config=tmp_path / "train.toml", **options) as loader:
        assert seen(loader) == rows
    with prefetchd.batches(mix=["a.txt=3", "b.txt=1"], share=True, **options) as loader:
        assert seen(loader) == rows


def test_a_state_goes_on_at_any_batch_and_another_mix_is_refused(lists, tmp_path):
    a, b = map(str, lists)
    options: dict[str, Any] = {"shuffle": "blocks", "shuffle_block": 2, **QUICK}
    with prefetchd.batches(mix={a: 0.5, b: 0.5}, epochs=4, **options) as loader:
        batches = iter(loader)
        taken = list(itertools.islice(batches, 3))
        assert taken[-1].epoch == 1
        state = loader.state_dict()
        rest = [batch.sample_ids.tolist() for batch in batches]
    json.dumps(state)
    with prefetchd.batches(mix={a: 1, b: 1}, epochs=4, **options) as loader:  # the same ratio
        loader.load_state_dict(state)
        assert [batch.sample_ids.tolist() for batch in loader] == rest
    other = str(write_list(tmp_path, "c", 50, ["emu", "cat", "bee", "cat"]))
    for changed, message in (
        ({"mix": {a: 0.6, b: 0.4}}, "mix was '1:1' and is '3:2'"),
        ({"mix": {a: 1, b: 1}, "stop": "last"}, "stop was first and is last"),
        ({"mix": {a: 1, other: 1}}, "mix_source_1 was"),
    ):
        with prefetchd.batches(**changed, **options) as loader, pytest.raises(ConfigError, match=message):
            loader.load_state_dict(state)


def test_all_kinds_of_images_mix(lists, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    names = ("cat", "dog")
    for number in range(4):
        (tmp_path / "folder" / names[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / names[number % 2] / f"{number}.png").write_bytes(png(20 + number))
    tar = write_tar(
        tmp_path / "shard.tar",
        [
            (f"{number}.{kind}", content)
            for number in range(4)
            for kind, content in (("png", png(40 + number)), ("cls", names[number % 2]))
        ],
    )
    table = pyarrow.table({"image": [png(60 + n) for n in range(4)], "label": [names[n % 2] for n in range(4)]})
    pyarrow.parquet.write_table(table, tmp_path / "part.parquet")
    memory = [(str(tmp_path / "a" / f"{number}.png"), names[number % 2]) for number in range(4)]
    sources = [lists[0], tmp_path / "folder", tar, tmp_path / "part.parquet", memory]
    with prefetchd.batches(mix=[(source, 1) for source in sources], epochs=2, shuffle=True, **QUICK) as loader:
        assert loader.sources[-1] == "<list of 4 pairs>"
        rows = seen(loader)
        assert loader.classes == names
    assert len(rows) == 42
    for source, value, label in rows:
        assert source in ((0, 4) if value < 20 else (value // 20,))
        assert label == value % 2
    assert [sum(source == number for source, _, _ in rows) for number in range(5)] == [10, 8, 8, 8, 8]


def test_arrays_mix_in_files_and_in_memory(tmp_path):
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(10))
    other = x + 100, np.arange(100, 110)
    mix = [(tmp_path / "a.npz", 3), (other, 1)]
    with prefetchd.batches(mix=mix, batch_size=8, num_workers=1, shuffle=True, stop="last") as loader:
        rows = [row for batch in loader for row in zip(batch.source, batch.x, batch.y, strict=True)]
    assert len(rows) >= 37
    for source, row, label in rows:
        assert source == label // 100
        assert row.tolist() == [2 * (label % 100) + 100 * source, 2 * (label % 100) + 1 + 100 * source]
    assert {int(label) for source, _, label in rows if source} == set(range(100, 110))
    with pytest.raises(ConfigError, match="cannot tell what the 10 numbers beside source 0 of the mix are"):
        prefetchd.batches(mix=[(x, list(range(10))), (x, list(range(10)))])
    without = [((x,), 1), ((x + 100,), 1)]
    with prefetchd.batches(mix=without, batch_size=4, num_workers=1) as loader:
        for batch in loader:
            assert batch.y.tolist() == batch.sample_ids.tolist()
    with pytest.raises(ManifestError, match="the one has no labels, and the other has"):
        prefetchd.batches(mix=[((x,), 1), (other, 1)])
    with pytest.raises(ConfigError, match=r"x is float32\[3\] in the one, and x is float32\[2\] in the other"):
        prefetchd.batches(mix=[(other, 1), ((np.zeros((4, 3), np.float32), np.arange(4)), 1)])


def test_tables_with_fields_mix_their_classes(lists, tmp_path):
    for name, rows in (("one", ["a/0.png,cat,1", "a/1.png,dog,2"]), ("two", ["b/0.png,emu,3", "b/1.png,cat,4"])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,kind,weight", *rows]))
    fields = {"image": "image(column=path)", "kind": "label", "weight": "array"}
    mix = {str(tmp_path / "one.csv"): 1, str(tmp_path / "two.csv"): 1}
    with prefetchd.batches(mix=mix, fields=fields, **QUICK) as loader:
        (batch,) = loader
        assert [loader.classes[number] for number in batch.kind] == ["cat", "emu", "dog", "cat"]
        assert batch.weight.tolist() == [1, 3, 2, 4]
        assert batch.image[:, 0, 0, 0].tolist() == [0, 100, 1, 101]
    with prefetchd.batches(mix=mix, fields=fields, where={"weight": [1, 4]}, **QUICK) as loader:
        (batch,) = loader
        assert batch.weight.tolist() == [1, 4]
        assert batch.sample_ids.tolist() == [0, 3]


def test_labels_that_cannot_mean_the_same_are_refused(lists, tmp_path):
    numbers = write_list(tmp_path, "n", 0, ["0", "1"])
    with pytest.raises(ManifestError, match="labels are numbers in the one, and names of classes in the other"):
        prefetchd.batches(mix={str(lists[0]): 1, str(numbers): 1}, **QUICK)
    with pytest.raises(ManifestError, match="target_transform would see the number of its own source"):
        prefetchd.batches(
            mix={str(lists[0]): 1, str(lists[1]): 1}, target_transform="tests.process.test_mix:doubled", **QUICK
        )
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}/0.png\n{name}/1.png\n")
    with pytest.raises(ConfigError, match="would see the number of a sample in its own source"):
        prefetchd.batches(
            mix={str(path): 1 for path in lists}, target_transform="tests.process.test_mix:doubled", **QUICK
        )
    vectors = [write_list(tmp_path, name, 0, labels) for name, labels in (("v", ["x|y", "x"]), ("w", ["x|z", "z"]))]
    with pytest.raises(ManifestError, match="they are not one class a sample"):
        prefetchd.batches(mix={str(path): 1 for path in vectors}, label_separator="|", **QUICK)
    with pytest.raises(ConfigError, match=r"y is float32\[\] in the one, and y is int64\[\] in the other"):
        prefetchd.batches(mix={str(numbers): 1, str(write_list(tmp_path, "f", 0, ["0.5", "1"])): 1}, **QUICK)


def doubled(label: Any, rng: np.random.Generator) -> Any:
    """Stand for a function that sees labels."""
    return 2 * label


def test_where_and_split_hold_for_each_source(lists):
    mix = {str(path): 1 for path in lists}
    with prefetchd.batches(mix=mix, where={"label": "cat"}, stop="last", **QUICK) as loader:
        rows = seen(loader)
        assert {value for _, value, _ in rows} == {0, 2, 4, 6, 8, 101}
        assert {loader.classes[label] for _, _, label in rows} == {"cat"}
    both = [
        {number for batch in loader for number in batch.sample_ids.tolist()}
        for split in ("0-50%", "50-100%")
        for loader in [prefetchd.batches(mix=mix, split=split, stop="last", **QUICK)]
    ]
    assert not both[0] & both[1]
    assert both[0] | both[1] == set(range(14))
    with pytest.raises(ConfigError, match=r"cannot mix .*a\.txt: where and split leave none of its samples"):
        prefetchd.batches(mix=mix, where={"label": "emu"}, **QUICK)


def test_a_bad_sample_is_substituted_from_its_own_source(lists, tmp_path):
    (tmp_path / "b" / "2.png").write_bytes(b"no image")
    mix = {str(path): 1 for path in lists}
    with prefetchd.batches(mix=mix, on_error="substitute", **QUICK) as loader:
        rows = seen(loader)
        assert [value for source, value, _ in rows if source] == [100, 101, 103, 103]
        (bad,) = loader.status()["bad"]
        assert "b/2.png" in bad["where"]
        assert bad["sample_id"] == 12
        assert [loader.classes[label] for source, _, label in rows if source] == ["emu", "cat", "emu", "emu"]
    with prefetchd.batches(mix=mix, on_error="skip", **QUICK) as loader:
        assert [value for source, value, _ in seen(loader) if source] == [100, 101, 103]
    with prefetchd.batches(mix=mix, **QUICK) as loader, pytest.raises(SampleError, match=r"b/2\.png"):
        seen(loader)


def test_shares_by_epoch_and_by_size(lists):
    a, b = map(str, lists)
    with prefetchd.batches(mix={a: [1, 0.5], b: [0, 0.5]}, epochs=3, **QUICK) as loader:
        assert len(loader) == 2
        counts = {epoch: [0, 0] for epoch in range(3)}
        for batch in loader:
            for source in batch.source.tolist():
                counts[batch.epoch][source] += 1
        assert [sum(each) for each in counts.values()] == [loader.n_samples] * 3
        assert counts[0][1] == 0
        assert abs(counts[1][0] - counts[1][1]) <= 1
    with prefetchd.batches(mix=[a, b], epoch_samples=14, **QUICK) as loader:
        assert sum(int((batch.source == 0).sum()) for batch in loader) == 10
    with prefetchd.batches(mix=[a, b], mix_temperature=1e6, epoch_samples=14, **QUICK) as loader:
        assert sum(int((batch.source == 0).sum()) for batch in loader) == 7


def test_a_cache_keeps_the_rows_of_every_source(lists, tmp_path):
    mix = {str(path): 1 for path in lists}
    options = {"cache": str(tmp_path / "cache"), "stop": "last", **QUICK}
    build = [part for path in lists for part in ("--mix", f"{path}=1")]
    common = ("--image-size", 8, "--num-workers", 1, "--memory-budget", "192MiB")
    built = run_command("cache", "build", *build, "--cache", tmp_path / "cache", *common)
    assert built.returncode == 0, built.stderr
    assert "14 rows written: done" in built.stderr
    with prefetchd.batches(mix=mix, **options) as cached, prefetchd.batches(mix=mix, stop="last", **QUICK) as plain:
        assert seen(cached) == seen(plain)
        cache = cached.status()["datasets"][0]["cache"]
        assert cache["misses"] == 0
        assert cache["hits"] >= 14


def test_commands_take_a_mix(lists, tmp_path):
    mix = [part for path in lists for part in ("--mix", f"{path}=1")]
    common = ("--image-size", 8, "--num-workers", 1)
    report = run_command("verify", *mix, "--json", *common)
    assert [each["n_samples"] for each in json.loads(report.stdout)["sources"]] == [10, 4]
    assert report.returncode == 0
    assert "4 samples of" in run_command("verify", *mix, *common).stdout
    assert "cannot use --write-clean with" in refused_here("verify", *mix, "--write-clean", tmp_path / "clean.txt")
    assert "cannot verify a mix with" in refused_here("verify", *mix, "--where", "label=cat")
    sheet = run_command("preview", *mix, "-o", tmp_path / "sheet.png", *common)
    assert "9 of 9 samples" in sheet.stdout
    assert re.search(r"cat +4 ", sheet.stdout)
    assert (tmp_path / "sheet.png").exists()
    tuned = run_command("tune", *mix, "--seconds", 0.2, "--plot", "", *common)
    assert f"prefetchd serve --image-size=8x8 --mix={lists[0]}=1 --mix={lists[1]}=1" in tuned.stdout, tuned.stderr


def test_torch_batches_have_sources(lists):
    pytest.importorskip("torch")
    import prefetchd.torch

    mix = {str(path): 1 for path in lists}
    with prefetchd.torch.batches(mix=mix, **QUICK) as loader:
        assert loader.sources == tuple(map(str, lists))
        first = next(iter(loader))
        assert first.source.tolist() == (first.x[:, 0, 0, 0].numpy() >= 100).tolist()
