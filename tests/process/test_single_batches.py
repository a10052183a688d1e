"""Single batches beside the loop (`peek`, `batch_at`), and older iterators, which raise when they are asked again."""

from __future__ import annotations

import types

import numpy as np
import pytest

import prefetchd
from tests.process.commands import large_ring

OPTIONS = {"batch_size": 4, "image_size": 16, "num_workers": 1, "shuffle": True, "seed": 3}


@pytest.fixture
def load(serve_module, photographs):
    """Make a loader of a daemon with those options."""

    def attach(**more):
        words = ("--batch-size", 4, "--image-size", 16, "--num-workers", 1, "--shuffle", "--seed", 3)
        serve_module(photographs, *words, name="shuffled")
        return prefetchd.batches(daemon="shuffled", **more)

    return attach


def same(one, other):
    assert (one.epoch, one.index) == (other.epoch, other.index)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)
    return True


@pytest.fixture(scope="module")
def epochs(photographs):
    """Three epochs' batches, by (epoch, index)."""
    with prefetchd.batches(photographs, **OPTIONS, epochs=3) as loader:
        return {(batch.epoch, batch.index): batch.copy() for batch in loader}


def test_peek_is_the_next_batch_and_moves_nothing(load, epochs):
    with load() as loader:
        assert same(loader.peek(), epochs[0, 0])
        seen = []
        for batch in loader:
            seen.append((batch.epoch, batch.index))
            state = loader.state_dict()
            next_place = (0, batch.index + 1) if batch.index < 12 else (1, 0)
            assert same(loader.peek(), epochs[next_place])
            assert loader.state_dict() == state
        assert seen == [(0, index) for index in range(13)]
        assert same(loader.peek(), epochs[1, 0])
        loader.set_epoch(2)
        assert same(loader.peek(), epochs[2, 0])
        assert next(iter(loader)).epoch == 2


@pytest.mark.parametrize("named", [False, True])
def test_any_batch_of_any_epoch_is_there_while_a_loop_runs(serve, photographs, epochs, named):
    """A private daemon takes a second connection over the first one; so does one with a name."""
    if named:
        serve(photographs, "--batch-size", 4, "--image-size", 16, "--num-workers", 1, "--shuffle", "--seed", 3)
    with prefetchd.batches() if named else prefetchd.batches(photographs, **OPTIONS) as loader:
        batches = iter(loader)
        seen = [next(batches).index]
        for place in ((2, 12), (0, 0), (1, 7)):
            batch = loader.batch_at(*place)
            assert same(batch, epochs[place])
            batch.x[...] = 0  # it is the caller's own
        seen += [batch.index for batch in batches]
        assert seen == list(range(13))
        assert len(loader.status()["consumers"]) == 1
        assert same(loader.batch_at(np.int64(1), np.int64(0)), epochs[1, 0])


def test_smallest_ring_serves_a_single_batch_beside_a_loop_far_away(serve, photographs):
    """Its three slots are the loop's two and the one to fill."""
    daemon = serve(photographs, *large_ring(3))
    with prefetchd.batches(epochs=3) as loader:
        assert daemon.status()["ring"]["slots"] == 3
        seen = []
        for batch in loader:
            seen.append((batch.epoch, batch.index))
            if batch.index % 5 == 2:
                assert loader.peek().index == (batch.index + 1) % 13
                assert loader.batch_at(0, 12).sample_ids.tolist() == [48, 49]
        assert seen == [(epoch, index) for epoch in range(3) for index in range(13)]


def test_peek_is_of_this_rank(load, epochs):
    with load(rank=1, world_size=3) as loader:
        assert same(loader.peek(), epochs[0, 1])
        batches = iter(loader)
        next(batches)
        assert same(loader.peek(), epochs[0, 4])
        assert next(batches).index == 4


def test_place_that_does_not_exist_is_refused(load):
    with load() as loader:
        for place in ((0, 13), (-1, 0), (0, -1), (0.5, 0), (True, 0), (0, "1")):
            with pytest.raises(prefetchd.ConfigError, match="whole number from 0"):
                loader.batch_at(*place)
    with pytest.raises(prefetchd.PrefetchdError, match="closed"):
        loader.batch_at(0, 0)


def test_member_of_a_group_has_batches_but_no_next_one(module_daemon):
    with prefetchd.batches(group="g") as loader:
        assert loader.batch_at(0, 3).index == 3
        with pytest.raises(prefetchd.ConfigError, match="a member of the group"):
            loader.peek()
        assert sorted(batch.index for batch in loader) == list(range(13))


def test_bad_sample_of_a_single_batch_raises_and_the_loop_goes_on(tmp_path, photographs):
    lines = photographs.read_text().splitlines()
    bad = photographs.parent / "bad.txt"
    bad.write_text("\n".join([*lines[:40], "not-there.jpg 0", *lines[41:]]))
    with prefetchd.batches(bad, batch_size=4, image_size=16, num_workers=1) as loader:
        batches = iter(loader)
        next(batches)
        with pytest.raises(prefetchd.SampleError, match="not-there"):
            loader.batch_at(0, 10)
        assert next(batches).index == 1


def test_older_iterator_raises_when_it_is_asked_again(load):
    with load() as loader:
        older = iter(loader)
        assert next(older).index == 0
        newer = iter(loader)
        with pytest.raises(prefetchd.PrefetchdError, match=r"a newer iter\(\) of the same loader"):
            next(older)
        assert next(newer).index == 0
        with pytest.raises(prefetchd.PrefetchdError, match=r"a newer iter\(\)"):
            list(zip(loader, loader, strict=True))
        for _ in range(2):
            with pytest.raises(prefetchd.PrefetchdError, match=r"loader\.peek"):
                [next(iter(loader)) for _ in loader]


def test_iterator_that_has_ended_by_itself_stays_ended(load):
    with load() as loader:
        older = iter(loader)
        assert len(list(older)) == 13
        iter(loader)
        assert list(older) == []
        closed = iter(loader)
        next(closed)
        closed.close()
        iter(loader)
        assert list(closed) == []


def test_state_that_is_loaded_ends_the_running_loop_in_words(load):
    with load() as loader:
        loop = iter(loader)
        next(loop)
        loader.load_state_dict(loader.state_dict())
        with pytest.raises(prefetchd.PrefetchdError, match="load_state_dict"):
            next(loop)
        assert next(iter(loader)).index == 1


def test_iterator_is_a_generator_to_libraries_that_ask(load):
    """Keras takes nothing else as an endless stream."""
    with load() as loader:
        loop = iter(loader)
        assert isinstance(loop, types.GeneratorType)
        assert next(loop).index == 0
        assert loop.send(None).index == 1
        with pytest.raises(KeyError):
            loop.throw(KeyError("mine"))
        assert list(loop) == []
