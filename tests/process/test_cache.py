"""The cache of decoded samples with real processes: the same bytes as without, whatever happens to its files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import prefetchd
from tests.conftest import DaemonProcess, wait_until
from tests.images import write_jpeg
from tests.process.commands import refused, refused_here, run_command, run_here, run_script
from tests.records import Content, jpeg, write_tar

Serve = Callable[..., DaemonProcess]
OPTIONS = {"batch_size": 8, "image_size": 32, "num_workers": 2, "memory_budget": "160MiB", "shuffle": True}
N = 50  # photographs


def content(source: object, *, epochs: int = 2, **options: object) -> list[tuple]:
    """Every batch of a private daemon: pixels, labels and ids as bytes."""
    with prefetchd.batches(source, epochs=epochs, **{**OPTIONS, **options}) as loader:
        return [(batch.x.tobytes(), batch.y.tobytes(), batch.sample_ids.tolist()) for batch in loader]


def rows_of(cache: Path) -> int:
    """How many rows `cache info` counts, over all pipelines."""
    result = run_here("cache", "info", cache, "--json")
    assert result.returncode == 0, result.stderr
    return sum(kept["rows"] for kept in json.loads(result.stdout))


def served(serve: Serve, manifest: Path, cache: Path, name: str, *options: object, epochs: int = 2) -> tuple:
    """Content of a named daemon with a cache, and what its status says of the cache."""
    words = ["--batch-size", 8, "--image-size", 32, "--num-workers", 2, "--shuffle", "--cache", cache]
    daemon = serve(manifest, *words, *options, name=name)
    with prefetchd.batches(daemon=name, epochs=epochs) as loader:
        found = [(batch.x.tobytes(), batch.y.tobytes(), batch.sample_ids.tolist()) for batch in loader]
    return found, daemon.status()["datasets"][0]["cache"], daemon


@pytest.fixture(scope="module")
def uncached(photographs: Path) -> list[tuple]:
    """Two epochs of the photographs without a cache."""
    return content(photographs)


# Data sets of one daemon, and their options.
PIPELINES = {
    "plain": {},
    "planar-floats": {
        "dtype": "float32", "scale": "1/255", "mean": "0.4,0.5,0.6", "layout": "nchw", "resize": "pad"
    },
    "jitter": {"color": "gray", "augment": "hflip, color_jitter(brightness=0.4)", "resize": "crop"},
    "crops": {"augment": "random_resized_crop, rotate(degrees=9), hflip", "cache-image-size": "64"},
    "fitted": {"cache-image-size": "40x80", "dtype": "float16"},
    "jpeg": {"augment": "random_resized_crop", "cache-image-size": "64", "cache-format": "jpeg"},
    "jpeg-gray": {"cache-image-size": "48", "cache-format": "jpeg", "cache-quality": "70", "color": "gray"},
}  # fmt: skip


def contents(serve: Serve, name: str, sources: dict[str, Path], flags: dict[str, dict[str, str]]) -> dict[str, list]:
    """What the data sets of one daemon deliver in two epochs, by their names."""
    words = [f"--{dataset}.{option}={value}" for dataset, options in flags.items() for option, value in options.items()]
    words += ["--batch-size=8", "--image-size=32", "--num-workers=2", "--shuffle"]
    daemon = serve(*(f"{dataset}={source}" for dataset, source in sources.items()), *words, name=name)
    found = {}
    for dataset in sources:
        with prefetchd.batches(daemon=name, dataset=dataset, epochs=2) as loader:
            found[dataset] = list(map(plain, loader))
    daemon.stop()
    return found


def test_batches_are_the_same_without_a_cache_while_it_fills_and_from_it(
    serve: Serve, photographs: Path, uncached: list[tuple], tmp_path: Path
) -> None:
    sources = dict.fromkeys(PIPELINES, photographs)
    expected = contents(serve, "without", sources, PIPELINES)
    assert expected["plain"] == uncached
    assert len({found[0][0] for found in expected.values()}) == len(PIPELINES)
    caching = {name: {**options, "cache": str(tmp_path / name)} for name, options in PIPELINES.items()}
    assert contents(serve, "filling", sources, caching) == expected
    for name in PIPELINES:
        assert rows_of(tmp_path / name) >= N
    assert contents(serve, "from-it", sources, caching) == expected


def test_status_counts_and_a_second_run_decodes_nothing(
    serve: Serve, photographs: Path, uncached: list[tuple], tmp_path: Path
) -> None:
    expected = uncached
    found, first, daemon = served(serve, photographs, tmp_path / "cache", "one")
    assert found == expected
    daemon.stop()
    assert first["misses"] >= N
    assert first["rows"] == first["rows_written"]
    found, second, daemon = served(serve, photographs, tmp_path / "cache", "two")
    assert found == expected
    assert (second["misses"], second["rows_written"], second["stopped"]) == (0, 0, None)
    memory = daemon.status()["memory"]
    assert memory["max_footprint_bytes"] <= memory["budget_bytes"]
    assert memory["source_bytes"] < 1 << 20  # the cache's own tables are files
    assert second["hits"] >= 2 * N
    text = run_command("status", "two").stdout
    assert "100%" in text


def test_a_changed_file_is_decoded_again_though_its_times_were_preserved(tmp_path: Path) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text("".join(f"{write_jpeg(tmp_path / f'{n}.jpg', seed=n).name} {n}\n" for n in range(12)))
    old = [os.utime(tmp_path / f"{n}.jpg", (1e9, 1e9)) for n in range(12)]
    assert len(old) == 12
    wait_until(
        # More where both readers decoded one at a time: epochs are made ahead.
        lambda: content(manifest, cache=tmp_path / "cache", epochs=1) and rows_of(tmp_path / "cache") >= 12,
        "all are kept",
    )
    before = os.stat(tmp_path / "3.jpg")
    other = write_jpeg(tmp_path / "other.jpg", seed=99).read_bytes()
    size = max(before.st_size, len(other))
    (tmp_path / "3.jpg").write_bytes(other + bytes(size - len(other)))
    os.utime(tmp_path / "3.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    expected = content(manifest, epochs=1)
    assert content(manifest, cache=tmp_path / "cache", epochs=1) == expected


def damage_rows(folder: Path) -> None:
    for path in folder.glob("*.rows"):
        data = bytearray(path.read_bytes())
        data[::1000] = bytes(byte ^ 0x55 for byte in data[::1000])
        path.write_bytes(data)


def damage_indexes(folder: Path) -> None:
    for path in folder.glob("*.index"):
        data = bytearray(path.read_bytes())
        data[33::70] = bytes(byte ^ 0xFF for byte in data[33::70])
        path.write_bytes(data)


def cut_all(folder: Path) -> None:
    for path in [*folder.glob("*.rows"), *folder.glob("*.index")]:
        os.truncate(path, path.stat().st_size * 2 // 3 + 1)


def lose_rows(folder: Path) -> None:
    for path in folder.glob("*.rows"):
        path.unlink()


def swap_indexes(folder: Path) -> None:
    one, *others = sorted(folder.glob("*.index"))
    for other in others:
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)


DAMAGES = {
    "rows": damage_rows, "indexes": damage_indexes, "cut": cut_all, "lost": lose_rows, "swapped": swap_indexes
}  # fmt: skip


def test_a_damaged_cache_changes_no_batch(
    serve: Serve, photographs: Path, uncached: list[tuple], tmp_path: Path
) -> None:
    """Each damage in a cache of its own, of one data set among several."""
    filled = tmp_path / "filled"
    assert content(photographs, cache=filled, epochs=1) == uncached[: len(uncached) // 2]
    assert rows_of(filled) >= N
    flags = {}
    for name, damage in DAMAGES.items():
        cache = tmp_path / name
        shutil.copytree(filled, cache)
        (folder,) = (path for path in cache.iterdir() if path.is_dir())
        damage(folder)
        flags[name] = {"cache": str(cache)}
    found = contents(serve, "damaged", dict.fromkeys(DAMAGES, photographs), flags)
    assert found == dict.fromkeys(DAMAGES, uncached)


def test_a_damaged_cache_of_jpeg_rows_changes_no_batch(serve: Serve, photographs: Path, tmp_path: Path) -> None:
    options = {"cache_image_size": 48, "cache_format": "jpeg"}
    expected = content(photographs, **options)
    filled = tmp_path / "filled"
    assert content(photographs, cache=filled, **options) == expected
    flags = {}
    for name, damage in DAMAGES.items():
        cache = tmp_path / name
        shutil.copytree(filled, cache)
        (folder,) = (path for path in cache.iterdir() if path.is_dir())
        damage(folder)
        flags[name] = {"cache": str(cache), "cache-image-size": "48", "cache-format": "jpeg"}
    found = contents(serve, "damaged-jpeg", dict.fromkeys(DAMAGES, photographs), flags)
    assert found == dict.fromkeys(DAMAGES, expected)


def test_killed_in_mid_fill_it_goes_on_where_it_was(
    serve: Serve, photographs: Path, uncached: list[tuple], tmp_path: Path
) -> None:
    """Readers first, then the daemon with all of them: what is there is right, and the rest is decoded."""
    cache = tmp_path / "cache"
    expected = uncached
    daemon = serve(photographs, "--batch-size", 2, "--image-size", 32, "--shuffle", "--cache", cache, name="one")
    with prefetchd.batches(daemon="one", epochs=None) as loader:
        batches = iter(loader)
        for _ in range(4):
            next(batches)
            for pid in daemon.reader_pids():
                with contextlib.suppress(ProcessLookupError):  # the daemon may not have seen the last one's end yet
                    os.kill(pid, signal.SIGKILL)
        daemon.process.kill()
        daemon.process.wait()
    wait_until(lambda: not list(Path(os.environ["XDG_RUNTIME_DIR"]).rglob("*.sock*")), "the fork server has cleaned up")
    assert rows_of(cache) > 0
    assert content(photographs, cache=cache) == expected
    found, report, _ = served(serve, photographs, cache, "two")
    assert found == expected
    assert report["misses"] == 0


def test_two_daemons_fill_one_cache(serve: Serve, photographs: Path, uncached: list[tuple], tmp_path: Path) -> None:
    expected = uncached
    words = ["--batch-size", 8, "--image-size", 32, "--num-workers", 1, "--shuffle", "--cache", tmp_path / "cache"]
    for name in ("one", "two"):
        serve(photographs, *words, name=name, ready=False)
    with prefetchd.batches(daemon="one", epochs=2) as one, prefetchd.batches(daemon="two", epochs=2) as two:
        pairs = list(zip(map(plain, one), map(plain, two), strict=True))
    assert [pair[0] for pair in pairs] == expected
    assert [pair[1] for pair in pairs] == expected
    _, report, _ = served(serve, photographs, tmp_path / "cache", "three")
    assert report["misses"] == 0


def plain(batch: prefetchd.Batch) -> tuple:
    return batch.x.tobytes(), batch.y.tobytes(), batch.sample_ids.tolist()


def test_a_file_system_that_takes_no_more_stops_filling_with_one_warning(photographs: Path, tmp_path: Path) -> None:
    """Files may have 64 KiB here, some 21 rows: every batch is right, and the rows that fitted are used."""
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
import prefetchd, hashlib
digest = hashlib.sha256()
options = {OPTIONS!r}
options["cache"] = {os.fspath(tmp_path / "cache")!r}
with prefetchd.batches({os.fspath(photographs)!r}, epochs=3, **options) as loader:
    for batch in loader:
        digest.update(batch.x.tobytes() + batch.y.tobytes())
print(digest.hexdigest())
"""
    result = run_script(tmp_path / "script.py", code)
    assert result.returncode == 0, result.stderr
    expected = hashlib.sha256(b"".join(x + y for x, y, _ in content(photographs, epochs=3))).hexdigest()
    assert result.stdout.strip() == expected
    assert result.stderr.count("is not filled any further: it cannot be written to (File too large)") == 1, (
        result.stderr
    )
    assert 0 < rows_of(tmp_path / "cache") < N


def test_tar_shards_are_cached_by_shard_and_place(tmp_path: Path) -> None:
    members: list[tuple[str, Content]] = []
    for number in range(16):
        members += [(f"n{number}.cls", str(number)), (f"n{number}.jpg", jpeg(number))]
    write_tar(tmp_path / "shard.tar", members)
    os.utime(tmp_path / "shard.tar", (1e9, 1e9))
    expected = content(tmp_path / "shard.tar")
    assert content(tmp_path / "shard.tar", cache=tmp_path / "cache") == expected
    assert content(tmp_path / "shard.tar", cache=tmp_path / "cache") == expected
    assert rows_of(tmp_path / "cache") >= 16  # one that two readers decode at a time is kept twice


def test_build_fills_all_and_goes_on_after_an_interruption(serve: Serve, photographs: Path, tmp_path: Path) -> None:
    """Also for a pipeline with augmentation and functions, whose code a build never runs."""
    cache = tmp_path / "cache"
    options = ["--image-size", 32, "--cache", cache, "--augment", "hflip", "--dtype", "float32"]
    command = [sys.executable, "-m", "prefetchd", "cache", "build", *map(str, [photographs, *options])]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(path.stat().st_size for path in cache.glob("*/*.index")), "a row is written")
    process.kill()
    process.communicate()
    result = run_command("cache", "build", photographs, *options, "--transform", "no_such_module:function")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"{N:,} of {N:,} samples, ")
    assert result.stderr.rstrip().endswith(" rows written: done")
    assert N <= rows_of(cache) <= N + 64
    daemon = serve(photographs, *options)
    with prefetchd.batches() as loader:
        assert sum(len(x) for x, _ in loader) == N
    assert daemon.status()["datasets"][0]["cache"]["misses"] == 0
    assert "in use" in run_command("cache", "info", cache).stdout
    assert "stop the daemon first" in refused("cache", "clear", cache)
    daemon.stop()
    result = run_command("cache", "build", photographs, *options, "--cache-size", "1KiB", "--color", "gray")
    assert result.returncode == 1
    assert "0 rows written: not all are kept, its size limit of 1.0 KiB is reached; raise --cache-size" in result.stderr
    old = run_command("cache", "clear", cache, "--unused-days", 1)
    assert old.stdout == "removed 0 pipelines, 0 B\n"
    assert run_command("cache", "clear", cache).stdout.startswith("removed 2 pipelines, ")
    assert not cache.exists()


def test_build_whose_cache_is_removed_ends_with_the_reason(photographs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "prefetchd", "cache", "build", str(photographs), "--cache", str(cache)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(cache.glob("*/pipeline.json")), "the cache is opened")
    while process.poll() is None:
        shutil.rmtree(cache, ignore_errors=True)
    _, said = process.communicate()
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "No such file or directory" in said


def test_a_folder_whose_name_is_no_text_is_shown(photographs: Path, tmp_path: Path) -> None:
    cache = os.fsdecode(os.fsencode(tmp_path) + b"/c \xff")
    assert run_command("cache", "build", photographs, "--image-size", 32, "--cache", cache).returncode == 0
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "prefetchd", "cache", "info", cache]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"{tmp_path}/c \\udcff: 1 pipeline, ")


def test_what_makes_no_sense_is_refused_in_one_line(photographs: Path, tmp_path: Path) -> None:
    words = [photographs, "--cache", tmp_path / "cache"]
    assert "--cache-image-size" in refused_here("serve", *words, "--augment", "random_resized_crop")
    assert "give --cache DIR" in refused_here("cache", "build", photographs)
    assert "no cache of prefetchd's" in refused_here("cache", "clear", photographs.parent)
    (tmp_path / "file").write_text("")
    assert "cannot use the cache" in refused_here("serve", photographs, "--cache", tmp_path / "file")
    np.save(tmp_path / "x.npy", np.zeros((4, 4), np.float32))
    assert "cannot use --cache with" in refused_here("serve", tmp_path / "x.npy", "--cache", tmp_path / "cache")
