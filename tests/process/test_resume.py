"""A run that is cut anywhere and resumed sees what one that was not cut sees: the same bytes, nothing twice."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

import prefetchd
from prefetchd.sampling.order import Order
from tests.conftest import wait_until
from tests.faults.conftest import Content, content_of
from tests.process.commands import large_ring

OPTIONS = {"batch_size": 4, "image_size": 16, "shuffle": True, "seed": 3}

Load = Callable[..., prefetchd.Loader]


def load_private(manifest: Path, **more: object) -> prefetchd.Loader:
    return prefetchd.batches(manifest, **{**OPTIONS, "num_workers": 1, **more})


@pytest.fixture
def load(serve_module: Callable[..., object], photographs: Path) -> Load:
    """Make a loader of the daemon with that many readers."""
    words = ("--batch-size", 4, "--image-size", 16, "--shuffle", "--seed", 3)

    def attach(n_readers: int = 1, **more: object) -> prefetchd.Loader:
        name = f"readers-{n_readers}"
        serve_module(photographs, *words, "--num-workers", n_readers, name=name)
        return prefetchd.batches(daemon=name, **more)

    return attach


def cut(loader: prefetchd.Loader, n_batches: int) -> tuple[Content, dict]:
    """Take `n_batches`, then the state, through JSON."""
    loop = iter(loader)
    seen = [content_of([next(loop)])[0] for _ in range(n_batches)]
    return seen, json.loads(json.dumps(loader.state_dict()))


@pytest.fixture(scope="module")
def whole(photographs):
    """Three epochs that nothing disturbed."""
    with load_private(photographs, epochs=3) as loader:
        return content_of(loader)


@pytest.mark.parametrize("n_batches", [0, 1, 6, 12, 13, 14, 26, 38])
def test_run_cut_anywhere_goes_on_with_exactly_the_next_batch(load, whole, n_batches):
    """Also with other readers; 13 batches are an epoch."""
    with load(epochs=3) as loader:
        before, state = cut(loader, n_batches)
    with load(2, epochs=3) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert before + content_of(loader) == whole
        assert {epoch for epoch, *_ in content_of(iter(loader))} == {3, 4, 5}  # then the next iteration


def test_second_of_two_epochs_is_finished_and_no_more(load, whole):
    with load(epochs=2) as loader:
        _, state = cut(loader, 20)
    assert (state["epoch"], state["next_batch"]) == (1, 7)
    with load(epochs=2) as loader:
        loader.load_state_dict(state)
        assert content_of(loader) == whole[20:26]
        assert loader.state_dict()["epoch"] == 2


def test_state_at_the_end_of_an_epoch_is_the_start_of_the_next(load, whole):
    with load() as loader:
        assert content_of(loader) == whole[:13]
        state = loader.state_dict()
    assert (state["epoch"], state["next_batch"]) == (1, 0)
    with load() as loader:
        loader.load_state_dict(state)
        assert content_of(loader) == whole[13:26]


@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 1), (1, 4), (4, 2)])
def test_another_world_size_goes_on_in_the_same_global_order(load, whole, first, second):
    steps = 2
    states = []
    seen: Content = []
    for rank in range(first):
        with load(rank=rank, world_size=first) as loader:
            part, state = cut(loader, steps)
            seen += part
            states.append(state)
    assert states == states[:1] * first
    for rank in range(second):
        with load(rank=rank, world_size=second) as loader:
            loader.load_state_dict(states[0])
            seen += [
                (epoch, batch.index, *content_of([batch])[0][2:])
                for batch in loader
                if not batch.repeated
                for epoch in [batch.epoch]
            ]
    assert sorted(seen) == sorted(whole[:13])


def test_named_daemon_goes_on_where_a_private_one_was(serve, photographs, whole):
    with load_private(photographs, epochs=None) as loader:
        before, state = cut(loader, 17)
    serve(photographs, "--batch-size", 4, "--image-size", 16, "--shuffle", "--seed", 3, "--num-workers", 1)
    with prefetchd.batches(epochs=2) as loader:
        loader.load_state_dict(state)
        assert before + content_of(loader) == whole[:26]


def test_position_a_million_epochs_in_is_reached_without_making_a_batch_before_it(serve, photographs):
    n_slots = 5
    daemon = serve(photographs, *large_ring(n_slots), "--shuffle")
    with prefetchd.batches() as loader:
        wait_until(lambda: daemon.status()["readers"][0]["does"] == "idle", "the ring is full")
        made_before = loader.status()["batches_made"]
        state = {**loader.state_dict(), "epoch": 1_000_000, "first_epoch": 1_000_000, "next_batch": 11}
        loader.load_state_dict(state)
        batches = iter(loader)
        seen = [next(batches)]
        # What is made ahead fills the ring. The batches that come before are 11 of this epoch, and 13 of each other.
        assert loader.status()["batches_made"] - made_before <= n_slots
        seen += batches
        assert [(batch.epoch, batch.index) for batch in seen] == [(1_000_000, 11), (1_000_000, 12)]
        order = Order(50, 4, drop_last=False, shuffle=True, seed=0)
        for batch in seen:
            wanted = order.sample_ids(batch.epoch, batch.index, 0, len(batch.y)).tolist()
            assert batch.sample_ids.tolist() == batch.y.tolist() == wanted


def test_state_counts_what_the_loop_was_given_and_not_what_was_prefetched(load):
    with load() as loader:
        loop = iter(loader)
        for number in range(3):
            next(loop)
            assert loader.state_dict()["next_batch"] == number + 1
        loader.load_state_dict(loader.state_dict())
        assert next(iter(loader)).index == 3


def test_set_epoch_chooses_the_next_iterations_epoch(load, whole):
    with load() as loader:
        loader.set_epoch(2)
        assert loader.state_dict()["epoch"] == 2
        assert content_of(loader) == whole[26:]
        assert next(iter(loader)).epoch == 3
        for wrong in (-1, "1", 1.5):
            with pytest.raises(prefetchd.ConfigError, match="whole number"):
                loader.set_epoch(wrong)  # type: ignore[arg-type]


def test_state_of_other_data_or_options_is_refused_and_the_loader_stays_as_it_was(photographs, tmp_path, whole):
    with load_private(photographs) as loader:
        _, state = cut(loader, 5)
    other = tmp_path / "manifest.txt"
    lines = photographs.read_text().splitlines(keepends=True)
    other.write_text("".join(f"{photographs.parent}/{line}" for line in lines[1:]))
    with load_private(other) as loader, pytest.raises(prefetchd.ManifestError, match="other data"):
        loader.load_state_dict(state)
    with load_private(photographs, seed=4) as loader:
        with pytest.raises(prefetchd.ConfigError, match="seed was 3 and is 4"):
            loader.load_state_dict(state)
        assert loader.state_dict()["next_batch"] == 0
        assert len(content_of(loader)) == 13


def rows_of(loader: prefetchd.Loader, n_batches: int | None = None) -> list[tuple[int, int, bytes, bytes]]:
    """Return each sample that the loop gets: epoch, number, and the bytes of x and y."""
    return [
        (batch.epoch, int(number), x.tobytes(), y.tobytes())
        for batch, _ in zip(loader, range(n_batches if n_batches is not None else 1 << 30), strict=False)
        if not batch.repeated
        for number, x, y in zip(batch.sample_ids, *batch, strict=True)
    ]


@pytest.fixture(scope="module")
def whole_rows(photographs):
    with load_private(photographs, epochs=2) as loader:
        return rows_of(loader)


@pytest.mark.parametrize("size", [1, 3, 8, 7, 50])
def test_another_batch_size_goes_on_at_the_same_sample(photographs, whole_rows, size):
    with load_private(photographs, epochs=2) as loader:
        _, state = cut(loader, 5)
    with load_private(photographs, epochs=2, batch_size=size) as loader:
        loader.load_state_dict(state)
        resumed = loader.state_dict()
        assert resumed["next_batch"] * size + resumed["next_row"] == 20
        first = loader.peek()
        whole_batch = loader.batch_at(0, 20 // size)
        assert first.sample_ids.tolist() == whole_batch.sample_ids[20 % size :].tolist()
        assert first.x.tobytes() == whole_batch.x[20 % size :].tobytes()
        assert pickle.loads(pickle.dumps(first)).sample_ids.tolist() == first.sample_ids.tolist()
        loader.load_state_dict(resumed)  # a resume of the resume
        assert loader.state_dict() == resumed
        loop = iter(loader)
        batch = next(loop)
        assert batch.copy().x.tobytes() == batch.x.tobytes() == first.x.tobytes()
        assert batch.first_row == 20 % size
        rows = len(batch.x)
        del batch
        assert rows_of(loop) == whole_rows[20 + rows :]


def test_another_batch_size_and_world_size_leave_nothing_out(photographs, whole_rows):
    with load_private(photographs) as loader:
        _, state = cut(loader, 5)
    seen = []
    for rank in range(2):
        with load_private(photographs, batch_size=6, rank=rank, world_size=2) as loader:
            loader.load_state_dict(state)
            seen += rows_of(loader)
    n_samples = len(whole_rows) // 2
    assert sorted(seen) == sorted(whole_rows[20:n_samples])
