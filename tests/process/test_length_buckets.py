"""Sequences in buckets by length: each padded as a loader of its bucket's length alone pads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd.errors import ConfigError
from tests.process.commands import run_command

BUCKETS = [4, 16, 48]
QUICK: dict[str, Any] = {"batch_size": 8, "num_workers": 1, "memory_budget": "160MiB"}
N = 200


@pytest.fixture
def ragged(tmp_path: Path) -> dict[str, Any]:
    """Sequences of 0 to 60 tokens, most of them short, and labels."""
    rng = np.random.default_rng(3)
    lengths = np.minimum(rng.geometric(0.1, N) - 1, 60)
    lengths[:3] = 0, 60, 48
    np.save(tmp_path / "tokens.npy", rng.integers(1, 99, lengths.sum()).astype(np.int32))
    np.save(tmp_path / "offsets.npy", np.concatenate(([0], np.cumsum(lengths))))
    np.save(tmp_path / "labels.npy", np.arange(N) % 7)
    np.save(tmp_path / "lengths.npy", lengths)
    return {"source": tmp_path / "tokens.npy", "offsets": tmp_path / "offsets.npy", "labels": tmp_path / "labels.npy"}


def lengths_of(ragged: dict[str, Any]) -> np.ndarray:
    lengths: np.ndarray = np.load(ragged["source"].parent / "lengths.npy")
    return lengths


@pytest.mark.parametrize("options", [{}, {"lengths": "x", "padding": "post"}, {"lengths": "y", "truncating": "post"}])
def test_each_sequence_is_as_a_loader_of_that_length_delivers_it(ragged, options):
    given = {**ragged, **QUICK, **options}
    rows: dict[int, Any] = {}
    for length in BUCKETS:
        with prefetchd.batches(max_length=length, **given) as loader:
            rows[length] = {
                number: (batch.x[row].tolist(), np.atleast_1d(batch.y[row]).tolist())
                for batch in loader
                for row, number in enumerate(batch.sample_ids.tolist())
            }
    lengths, seen = lengths_of(ragged), []
    with prefetchd.batches(length_buckets=BUCKETS, shuffle=True, epochs=2, **given) as loader:
        assert [layout.fields[0].shape[0] - ("x" in options.values()) for layout in loader.layouts] == BUCKETS
        for batch in loader:
            width = batch.x.shape[1] - (options.get("lengths") == "x")
            for row, number in enumerate(batch.sample_ids.tolist()):
                assert width == next(each for each in BUCKETS if each >= min(lengths[number], 48))
                assert batch.x[row].tolist() == rows[width][number][0]
                assert np.atleast_1d(batch.y[row]).tolist() == rows[width][number][1]
            seen += batch.sample_ids.tolist()
            if batch.index % 5 == 0:
                assert loader.batch_at(batch.epoch, batch.index).x.tobytes() == batch.x.tobytes()
    assert sorted(seen[:N]) == sorted(seen[N:]) == list(range(N))
    assert seen[:N] != seen[N:]


def test_the_padding_saved_is_told(ragged, serve):
    daemon = serve(
        ragged["source"], "--offsets", ragged["offsets"], "--length-buckets", "48,4,16", "--batch-size", 8,
        "--num-workers", 1, "--memory-budget", "160MiB",
    )  # fmt: skip
    kept = np.minimum(lengths_of(ragged), 48)
    padded = np.array([next(each for each in BUCKETS if each >= n) for n in kept])
    (data,) = daemon.status()["datasets"]
    assert [each["name"] for each in data["buckets"]["buckets"]] == ["4", "16", "48"]
    lost = data["buckets"]["lost"]
    assert lost["share"] == pytest.approx(1 - kept.sum() / padded.sum(), abs=1e-6)
    assert lost["share_without_buckets"] == pytest.approx(1 - kept.sum() / (48 * N), abs=1e-6)
    n_cut = int((lengths_of(ragged) > 48).sum())
    assert f"{n_cut} of {N} sequences are longer than 48, and are cut" in daemon.log
    assert f"{100 * lost['share']:.1f}% padding" in run_command("status").stdout
    with prefetchd.batches() as loader:  # in the order of their first samples
        firsts = [batch.sample_ids[0] for batch in loader]
        assert firsts == sorted(firsts)


def test_choices_ranks_and_resuming(ragged):
    given: dict[str, Any] = {**ragged, **QUICK, "length_buckets": BUCKETS, "shuffle": True, "where": "label=1,2,3"}
    chosen = [number for number in range(N) if number % 7 in (1, 2, 3)]
    seen = []
    for rank in range(2):
        with prefetchd.batches(rank=rank, world_size=2, **given) as loader:
            assert loader.n_samples == len(chosen)
            seen += [i for batch in loader if not batch.repeated for i in batch.sample_ids.tolist()]
    assert sorted(seen) == chosen
    with prefetchd.batches(drop_last=True, limit=40, **given) as loader:
        batches = [(batch.x.shape, batch.x.tobytes()) for batch in loader]
        assert {shape[0] for shape, _ in batches} == {8}
    with prefetchd.batches(drop_last=True, limit=40, **given) as loader:
        next(iter(loader))
        state = loader.state_dict()
        loader.load_state_dict(state)
        assert [(batch.x.shape, batch.x.tobytes()) for batch in loader] == batches[1:]
    other = prefetchd.batches(drop_last=True, limit=41, **given)
    with other as loader, pytest.raises(ConfigError, match="limit was 40 and is 41"):
        loader.load_state_dict(state)


def test_torch_gets_the_shape_of_each_batch(ragged):
    torch = pytest.importorskip("torch")
    import prefetchd.torch

    with prefetchd.torch.batches(**ragged, **QUICK, length_buckets=BUCKETS, shuffle=True) as loader:
        shapes = set()
        for x, y in loader:
            assert x.dtype == torch.int32
            assert len(x) == len(y)
            shapes.add(x.shape[1])
        assert shapes == set(BUCKETS)
        assert loader.peek().x.shape[1] in BUCKETS
        assert [layout.fields[0].shape for layout in loader.layouts] == [(length,) for length in BUCKETS]
