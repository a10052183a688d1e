"""Packed sequences through daemons: the same rows by every way to ask for them, in frameworks, and in the status."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd.errors import ConfigError
from tests.process.commands import refused_here, run_command

N, LENGTH, PAD = 1300, 64, 7
QUICK: dict[str, Any] = {"memory_budget": "192MiB", "batch_size": 4, "max_length": LENGTH, "pad_value": PAD}
PACKS = ("concat", "first_fit")

Rows = list[tuple[list[int], list[int], list[int]]]


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Documents of up to a row, empty ones among them, and the options that serve them."""
    rng = np.random.default_rng(11)
    lengths = rng.integers(0, LENGTH, N)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = rng.integers(10, 1000, offsets[-1]).astype(np.int32)
    np.save(tmp_path / "tokens.npy", tokens)
    np.save(tmp_path / "offsets.npy", offsets)
    return np.split(tokens, offsets[1:-1]), {"source": tmp_path / "tokens.npy", "offsets": tmp_path / "offsets.npy"}


def batch_rows(batch: Any) -> Rows:
    return [tuple(each[row].tolist() for each in batch) for row in range(len(batch.tokens))]  # type: ignore[misc]


def epoch_of(loader: prefetchd.Loader) -> Rows:
    return [row for batch in loader for row in batch_rows(batch)]


def check_epoch(rows: Rows, documents: list[np.ndarray]) -> list[int]:
    """Check that each document is there once, with all its tokens; return their order. The unit tests check theirs."""
    found: dict[int, list[int]] = {}
    for tokens, ids, positions in rows:
        for at, (token, number) in enumerate(zip(tokens, ids, strict=True)):
            begins = at == 0 or ids[at - 1] != number
            assert positions[at] == (0 if begins or number < 0 else positions[at - 1] + 1)
            if number < 0:
                assert token == PAD
            else:
                found.setdefault(number, []).append(token)
    assert {number for number, document in enumerate(documents) if len(document)} == found.keys()
    for number, tokens in found.items():
        assert sorted(tokens) == sorted(documents[number].tolist())  # rows of a long one come in any order
    return list(found)


@pytest.mark.parametrize("pack", PACKS)
def test_any_number_of_readers_and_ranks_and_any_place_give_the_same_rows(corpus, pack):
    documents, files = corpus
    options = {**files, **QUICK, "pack": pack, "shuffle": True, "seed": 3}
    with prefetchd.batches(num_workers=1, epochs=3, **options) as loader:
        n = len(loader)
        batches = [batch_rows(batch) for batch in loader]
        assert len(batches) == 3 * n
        states = loader.state_dict()
    epochs = [[row for batch in batches[at : at + n] for row in batch] for at in range(0, 3 * n, n)]
    orders = [check_epoch(rows, documents) for rows in epochs]
    assert orders[0] != orders[1] != orders[2]
    assert states["epoch"] == 3

    with prefetchd.batches(num_workers=3, epochs=2, **options) as loader:
        assert batch_rows(loader.batch_at(2, 5)) == batches[2 * n + 5]
        seen = []
        for number, batch in enumerate(loader):
            seen.append(batch_rows(batch))
            assert len(set(batch.sample_ids.tolist())) == len(batch.tokens)
            if number == n + 3:
                state = json.loads(json.dumps(loader.state_dict()))
                break
        assert seen == batches[: n + 4]
    with prefetchd.batches(num_workers=2, epochs=2, **options) as loader:
        loader.load_state_dict(state)
        assert [batch_rows(batch) for batch in loader] == batches[n + 4 : 2 * n]
    with prefetchd.batches(num_workers=1, epochs=2, **{**options, "batch_size": 6}) as loader:
        loader.load_state_dict(state)
        assert epoch_of(loader) == [row for batch in batches[n + 4 : 2 * n] for row in batch]

    ranks = [prefetchd.batches(num_workers=2, rank=rank, world_size=2, share=True, **options) for rank in range(2)]
    shares = [[batch_rows(batch) for batch in loader if not batch.repeated] for loader in ranks]
    for loader in ranks:
        loader.close()
    together = [shares[number % 2][number // 2] for number in range(n)]
    assert together == batches[:n]


def test_a_daemon_says_the_padding_and_a_state_of_other_rows_is_refused(serve, corpus, tmp_path):
    documents, files = corpus
    daemon = serve(
        files["source"], "--offsets", files["offsets"], "--pack", "first_fit", "--max-length", LENGTH, "--pad-value",
        PAD, "--batch-size", 4, "--memory-budget", "192MiB", "--num-workers", 1,
    )  # fmt: skip
    with prefetchd.batches(pack="first_fit") as loader:
        rows = epoch_of(loader)
        state = loader.state_dict()
        assert loader.n_samples == len(rows)
    check_epoch(rows, documents)
    padding = np.mean([token_id < 0 for _, ids, _ in rows for token_id in ids])
    assert f"packed into {len(rows)} rows of {LENGTH}: {100 * padding:.2f}% is padding" in daemon.log
    assert daemon.status()["datasets"][0]["padding"] == pytest.approx(padding)
    assert f"packed rows: {100 * padding:.2f}% of their tokens are padding" in run_command("status").stdout
    (tmp_path / "pack.toml").write_text(
        f'source = "tokens.npy"\noffsets = "offsets.npy"\npack = "concat"\nmax-length = {LENGTH}\npad-value = {PAD}\n'
    )
    more = {"batch_size": 4, "memory_budget": "192MiB", "num_workers": 1}
    with prefetchd.batches(config=tmp_path / "pack.toml", **more) as loader:
        stream = [token for tokens, ids, _ in epoch_of(loader) for token, number in zip(tokens, ids, strict=True)
                  if number >= 0]  # fmt: skip
        assert stream == np.concatenate(documents).tolist()
        with pytest.raises(ConfigError, match="pack was first_fit and is concat"):
            loader.load_state_dict(state)


def test_refusals_come_in_words_of_the_command_line(corpus):
    _, files = corpus
    words = refused_here("serve", files["source"], "--offsets", files["offsets"], "--pack", "concat")
    assert words.endswith("give it, such as --max-length 2048")


@pytest.mark.parametrize("framework", ["torch", "jax", "tensorflow"])
def test_frameworks_get_the_fields(corpus, framework):
    pytest.importorskip(framework)
    _, files = corpus
    options = {**files, **QUICK, "pack": "concat", "num_workers": 1}
    opens = importlib.import_module("prefetchd.torch").batches if framework == "torch" else prefetchd.batches
    with prefetchd.batches(**options) as loader:
        wanted = loader.peek().copy()
    with opens(**options) as loader:
        found = FIRST[framework](loader)
        assert list(found) == ["tokens", "document_ids", "positions"]
        for name, values in found.items():
            np.testing.assert_array_equal(np.asarray(values), wanted[name])
            assert str(values.dtype).endswith("int32")


def _of_torch(loader: Any) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in next(iter(loader)).items()}


def _of_jax(loader: prefetchd.Loader) -> dict[str, Any]:
    import jax

    return dict(jax.device_put(loader.peek()).items())


def _of_tensorflow(loader: prefetchd.Loader) -> dict[str, Any]:
    import prefetchd.tensorflow as adapter

    return {name: tensor.numpy() for name, tensor in next(iter(adapter.dataset(loader))).items()}


FIRST = {"torch": _of_torch, "jax": _of_jax, "tensorflow": _of_tensorflow}


def test_keras_gets_the_fields_that_are_named(corpus):
    pytest.importorskip("keras")
    import prefetchd.keras as adapter

    _, files = corpus
    data = adapter.dataset(files["source"], x=("tokens", "positions"), y="document_ids", offsets=files["offsets"],
                           pack="concat", num_workers=1, **QUICK)  # fmt: skip
    x, y = data[0]
    data.loader.close()
    assert list(x) == ["tokens", "positions"]
    assert x["tokens"].shape == x["positions"].shape == y.shape == (4, LENGTH)
