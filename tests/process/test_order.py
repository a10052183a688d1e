"""Chosen samples through a daemon: the same by every way to start one, resumed, substituted, and refused in words."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd.errors import ConfigError
from tests.process.commands import refused_here, run_command

QUICK: dict[str, Any] = {"image_size": 16, "num_workers": 1, "memory_budget": "192MiB"}


def ids_of(loader: prefetchd.Loader) -> list[int]:
    return [number for batch in loader for number in batch.sample_ids.tolist()]


def test_a_served_subset_is_what_a_private_daemon_delivers(serve, photographs, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(3, 40, 2))
    daemon = serve(
        photographs, "--subset", tmp_path / "ids.npy", "--split", "0-70%", "--shuffle", "--batch-size", 4,
        "--image-size", 16, "--num-workers", 2, "--memory-budget", "192MiB",
    )  # fmt: skip
    options: dict[str, Any] = {"split": "0-70%", "shuffle": True, "batch_size": 4, **QUICK}
    with prefetchd.batches() as served:
        ids = ids_of(served)
        assert served.n_samples == len(ids) == len(set(ids))
        assert set(ids) < set(range(3, 40, 2))
        assert daemon.status()["datasets"][0]["n_samples"] == len(ids)
    assert f"{len(ids)} of 50 samples are served" in daemon.log
    with prefetchd.batches(photographs, subset=np.arange(3, 40, 2), **options) as private:
        assert ids_of(private) == ids
    with prefetchd.batches(photographs, subset=list(range(3, 40, 2)), share=True, **options) as shared:
        assert ids_of(shared) == ids
    ranks = [prefetchd.batches(rank=rank, world_size=2) for rank in range(2)]
    seen = [
        number for loader in ranks for batch in loader if not batch.repeated for number in batch.sample_ids.tolist()
    ]
    for loader in ranks:
        loader.close()
    assert sorted(seen) == sorted(ids)


def test_a_table_file_names_where_and_the_rest(photographs, tmp_path):
    (tmp_path / "train.toml").write_text(
        f'source = "{photographs}"\nsplit = "0-60%"\nlimit = 9\n[where]\nlabel = [0, 1]\n'
    )
    with prefetchd.batches(config=tmp_path / "train.toml", **QUICK) as loader:
        batches = [(batch.sample_ids.tolist(), batch.y.tolist()) for batch in loader]
    labels = [label for _, each in batches for label in each]
    assert len(labels) == loader.n_samples <= 9
    assert set(labels) <= {0, 1}


def test_a_state_of_other_samples_is_refused_with_what_differs(photographs):
    options: dict[str, Any] = {"batch_size": 4, "shuffle": True, **QUICK}
    with prefetchd.batches(photographs, subset=range(20), **options) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with prefetchd.batches(photographs, subset=range(20), **options) as loader:
        loader.load_state_dict(state)
        assert len(ids_of(loader)) == 16
    for other, message in (
        ({"subset": range(21)}, "subset was '20 ids .* and is '21 ids"),
        ({"split": "0-50%"}, "split was None and is '0-50%'"),
        ({}, "subset was '20 ids .* and is None"),
    ):
        with prefetchd.batches(photographs, **other, **options) as loader, pytest.raises(ConfigError, match=message):
            loader.load_state_dict(state)


def test_a_substitute_is_one_of_the_chosen(photographs, tmp_path):
    lines = photographs.read_text().splitlines()
    lines[4] = "missing.jpg 0"
    manifest = photographs.parent / "with_a_bad_one.txt"
    manifest.write_text("\n".join(lines))
    with prefetchd.batches(manifest, subset=[2, 4, 30], on_error="substitute", **QUICK) as loader:
        assert ids_of(loader) == [2, 30, 30]
    with prefetchd.batches(manifest, subset=[2, 4], on_error="substitute", **QUICK) as loader:
        assert ids_of(loader) == [2, 2]
    with prefetchd.batches(manifest, subset=[2, 4, 30], on_error="skip", **QUICK) as loader:
        assert ids_of(loader) == [2, 30]


def test_a_daemon_that_is_started_again_has_the_array_still(photographs):
    with prefetchd.batches(photographs, subset=[9, 1, 5], batch_size=1, epochs=2, reconnect=True, **QUICK) as loader:
        batches = iter(loader)
        seen = [int(next(batches).sample_ids[0])]
        os.kill(loader.status()["pid"], signal.SIGKILL)
        seen += [int(batch.sample_ids[0]) for batch in batches]
    assert seen == [1, 5, 9] * 2


def test_verify_and_preview_look_at_the_chosen_alone(photographs, tmp_path):
    report = run_command("verify", photographs, "--limit", 7, "--num-workers", 1).stdout
    assert "7 samples of" in report
    np.save(tmp_path / "ids.npy", [3, 3, 9])
    drawn = ("--shuffle-block", 2, "--order", tmp_path / "ids.npy")
    assert "2 samples of" in run_command("verify", photographs, *drawn, "--num-workers", 1).stdout
    weights = ("--weights", "balanced", "--epoch-samples", 500)
    assert "50 samples of" in run_command("verify", photographs, *weights, "--num-workers", 1).stdout
    assert "cannot open" in refused_here("verify", photographs, "--weights", tmp_path / "none.npy")
    np.save(tmp_path / "w.npy", np.ones(49))
    assert "it has 49 weights for 50 samples" in refused_here("verify", photographs, "--weights", tmp_path / "w.npy")
    sheet = ("-o", tmp_path / "other.png", "--num-workers", 1)
    assert "3 samples" in run_command("preview", photographs, *drawn, *sheet).stdout
    build = ("cache", "build", photographs, "--cache", tmp_path / "cache", "--num-workers", 1, *weights)
    assert "50 of 50 samples" in run_command(*build).stderr
    assert "with limit" in refused_here("verify", photographs, "--limit", 7, "--write-clean", tmp_path / "clean.txt")
    drawn = run_command("preview", photographs, "--where", "label=1", "-o", tmp_path / "sheet.png", "--num-workers", 1)
    assert "samples" in drawn.stdout
    assert (tmp_path / "sheet.png").exists()


def test_a_wrong_choice_is_one_line_in_flags(photographs, tmp_path):
    assert "cannot use --split 90%: it must be a part" in refused_here("serve", photographs, "--split", "90%")
    assert refused_here("serve", photographs, "--where", "label=77").endswith(
        "no sample is left of 50; choose other values"
    )
    with pytest.raises(ConfigError, match="the daemon's configuration decides"):
        prefetchd.batches(subset=[1, 2])
    with pytest.raises(ConfigError, match="cannot use subset: it is an array of the shape"):
        prefetchd.batches(photographs, subset=[[1, 2]])


def test_an_own_order_comes_as_it_is_and_is_resumed(photographs, tmp_path):
    ids = [7, 7, 3, 49, 0, 12, 7]
    np.save(tmp_path / "ids.npy", ids)
    with prefetchd.batches(photographs, order=ids, batch_size=2, **QUICK) as loader:
        batches = iter(loader)
        first = next(batches).sample_ids.tolist()
        state = loader.state_dict()
        assert first + [i for batch in batches for i in batch.sample_ids.tolist()] == ids
    with prefetchd.batches(photographs, order=tmp_path / "ids.npy", batch_size=2, **QUICK) as loader:
        loader.load_state_dict(state)
        assert ids_of(loader) == ids[2:]
    other = prefetchd.batches(photographs, order=ids[::-1], batch_size=2, **QUICK)
    with other, pytest.raises(ConfigError, match=r"order was '7 ids .* and is '7 ids"):
        other.load_state_dict(state)


def test_all_ranks_share_one_draw_by_weight(serve, photographs, tmp_path):
    np.save(tmp_path / "w.npy", np.arange(50) % 2)
    serve(
        photographs, "--weights", tmp_path / "w.npy", "--epoch-samples", 60, "--batch-size", 7, "--image-size", 16,
        "--num-workers", 2, "--memory-budget", "192MiB",
    )  # fmt: skip
    options: dict[str, Any] = {"batch_size": 7, "epoch_samples": 60, **QUICK}
    with prefetchd.batches(photographs, weights=np.arange(50) % 2, epochs=2, **options) as loader:
        both = ids_of(loader)
        assert loader.n_samples == 60
        assert len(loader) == 9
        alone = loader.batch_at(1, 5).sample_ids.tolist()
    assert both[:60] != both[60:]
    assert alone == both[95:102]
    assert {number % 2 for number in both} == {1}
    by_batch: dict[int, list[int]] = {}
    for rank in range(3):
        with prefetchd.batches(rank=rank, world_size=3) as part:
            by_batch |= {batch.index: batch.sample_ids.tolist() for batch in part}
    assert [number for index in sorted(by_batch) for number in by_batch[index]] == both[:60]


def test_blocks_are_shuffled_and_resumed(serve, photographs):
    options: dict[str, Any] = {"batch_size": 4, "epochs": 2, **QUICK}
    with prefetchd.batches(photographs, shuffle="blocks", shuffle_block=2, **options) as loader:
        batches = iter(loader)
        ids = [next(batches).sample_ids.tolist() for _ in range(5)]
        state = loader.state_dict()
        ids += [batch.sample_ids.tolist() for batch in batches]
    flat = [number for batch in ids for number in batch]
    assert sorted(flat[:50]) == sorted(flat[50:]) == list(range(50))
    assert flat[:50] != flat[50:]
    # A window has 16 blocks of two, so the first 32 samples are whole blocks.
    blocks = {number // 2 for number in flat[:32]}
    assert sorted(flat[:32]) == sorted(2 * block + row for block in blocks for row in (0, 1))
    other = prefetchd.batches(photographs, shuffle=True, **options)
    with other, pytest.raises(ConfigError, match="shuffle_block was 2 and is None"):
        other.load_state_dict(state)
    serve(photographs, "--shuffle-block", 2, "--batch-size", 4, "--image-size", 16, "--num-workers", 1)
    with prefetchd.batches(epochs=2) as loader:
        loader.load_state_dict(state)
        assert [batch.sample_ids.tolist() for batch in loader] == ids[5:]


def test_rows_of_arrays_are_chosen(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.arange(40.0).reshape(20, 2))
    np.save(tmp_path / "y.npy", np.arange(20) % 4)
    options: dict[str, Any] = {"batch_size": 3, "num_workers": 1, "labels": tmp_path / "y.npy"}
    with prefetchd.batches(tmp_path / "x.npy", where={"label": 2}, shuffle=True, **options) as loader:
        rows = {(int(x[0]) // 2, int(y)) for batch in loader for x, y in zip(batch.x, batch.y, strict=True)}
    assert rows == {(2, 2), (6, 2), (10, 2), (14, 2), (18, 2)}


def test_draws_without_replacement_are_shared_and_resumed(serve, photographs, tmp_path):
    np.save(tmp_path / "w.npy", np.arange(50) % 5)
    weights = ("--weights", tmp_path / "w.npy", "--no-replace", "--epoch-samples", 30)
    serve(photographs, *weights, "--batch-size", 7, "--image-size", 16, "--num-workers", 2, "--memory-budget", "256MiB")
    options: dict[str, Any] = {"batch_size": 7, "epoch_samples": 30, **QUICK, "memory_budget": "256MiB"}
    with prefetchd.batches(photographs, weights=np.arange(50) % 5, replace=False, epochs=2, **options) as loader:
        batches = iter(loader)
        both = [next(batches).sample_ids.tolist() for _ in range(3)]
        state = loader.state_dict()
        both += [batch.sample_ids.tolist() for batch in batches]
        assert loader.batch_at(1, 2).sample_ids.tolist() == both[7]
    epochs = [[number for batch in both[first : first + 5] for number in batch] for first in (0, 5)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 30
        assert all(number % 5 for number in epoch)
    assert epochs[0] != epochs[1]
    by_batch: dict[int, list[int]] = {}
    for rank in range(3):
        with prefetchd.batches(rank=rank, world_size=3) as part:
            by_batch |= {batch.index: batch.sample_ids.tolist() for batch in part}
    assert [by_batch[index] for index in sorted(by_batch)] == both[:5]
    with prefetchd.batches(epochs=2) as served:
        served.load_state_dict(state)
        assert [batch.sample_ids.tolist() for batch in served] == both[3:]
    other = prefetchd.batches(photographs, weights=np.arange(50) % 5, **options)
    with other, pytest.raises(ConfigError, match="replace was False and is True"):
        other.load_state_dict(state)
    assert "50 samples of" in run_command("verify", photographs, *weights, "--num-workers", 1).stdout
    sheet = ("-o", tmp_path / "sheet.png", "--num-workers", 1)
    assert "of 30 samples" in run_command("preview", photographs, *weights, *sheet).stdout
    build = ("cache", "build", photographs, "--cache", tmp_path / "cache", "--num-workers", 1, *weights)
    assert "50 of 50 samples" in run_command(*build).stderr
