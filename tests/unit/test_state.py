"""The state of a loader: small, plain, and refused with what differs where it does not fit."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.client.state import Position, in_batches_of, make_state, read_state
from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError, ManifestError, PrefetchdError
from prefetchd.ipc.messages import Attached
from prefetchd.sampling.sharding import Shard


def info(*, manifest: str = "m" * 16, decoder: str = "opencv 5", n_batches: int = 10, **options: Any) -> Attached:
    config = make_config(source="train.txt", **options)
    versions = {"decoder": decoder}
    return Attached(
        version="0", pid=1, name="default", dataset="", layout={}, n_samples=100, batches_per_epoch=n_batches,
        drop_last=False, config=config.to_wire(), config_digest=config.digest(**versions), manifest_digest=manifest,
        versions=versions,
    )  # fmt: skip


def test_state_is_small_plain_json_and_read_back_as_the_same_position():
    position = Position(epoch=3, batch=7, first_epoch=2)
    state = make_state(info(seed=5, shuffle=True, image_size="32x48", dtype="float32", mean="0.5,0.5,0.4"), position)
    text = json.dumps(state)
    assert len(text) < 1000
    again = info(seed=5, shuffle=True, image_size="32x48", dtype="float32", mean="0.5,0.5,0.4", num_workers=3)
    assert read_state(json.loads(text), again) == position


@pytest.mark.parametrize(
    ("now", "error", "words"),
    [
        ({"seed": 6}, ConfigError, "seed was 5 and is 6"),
        ({"seed": 6, "batch_size": 8}, ConfigError, r"\(seed was 5 and is 6\)"),
        ({"seed": 5, "decoder": "opencv 4"}, ConfigError, "decoder was 'opencv 5' and is 'opencv 4'"),
        ({"seed": 5, "manifest": "other"}, ManifestError, "other data"),
        ({"seed": 5, "n_batches": 7}, ConfigError, "7 batches"),
    ],
)
def test_state_that_does_not_fit_is_refused_with_what_differs(now, error, words):
    state = make_state(info(seed=5), Position(0, 8, 0))
    with pytest.raises(error, match=words):
        read_state(state, info(**now))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3}, {"version": 0}, {"version": None}, {"epoch": -1}, {"epoch": "1"}, {"next_batch": True},
        {"next_batch": 2**60}, {"next_row": 32}, {"next_row": -1}, {"batch_size": 0}, {"batch_size": "4"},
        {"first_epoch": 9}, {"config_digest": None}, {"manifest_digest": 3},
    ],
)  # fmt: skip
def test_what_is_no_state_is_refused(change):
    state = {**make_state(info(), Position(1, 2, 0)), **change}
    with pytest.raises(ConfigError, match="cannot resume"):
        read_state(state, info())


def test_state_whose_numbers_went_through_an_array_format_is_read():
    position = Position(3, 2, 1)
    state = make_state(info(), position)
    state.update({name: np.int64(value) for name, value in state.items() if isinstance(value, int)})
    assert read_state(state, info()) == position


def test_state_holds_no_option_that_is_at_its_default():
    over_the_socket = json.loads(json.dumps(info(seed=5).config))
    served = msgspec.structs.replace(info(seed=5), config=over_the_socket)
    assert make_state(served, Position(0, 0, 0))["config"] == {"seed": 5, "decoder": "opencv 5"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": -1}, "version -1,"),
        ({"version": 10**20}, "version 100000000000000000000,"),
        ({"version": 10**5000}, "version of very many digits"),
        ({"rotation": 10}, "epochs that begin at batch 10, and an epoch has 10 batches"),
        ({"manifest_digest": "a\nb\x1b" * 1000}, "other data"),
        ({"manifest_digest": "f" * 16, "n_samples": ["\n"] * 10**5}, "other data"),
        ({"config_digest": "0", "config": {"a\n\x1b": "b\n" * 1000}}, "other batches"),
    ],
)
def test_what_is_said_of_a_state_is_right_and_one_short_line(change, words):
    with pytest.raises(PrefetchdError, match=words) as raised:
        read_state({**make_state(info(), Position(1, 2, 0)), **change}, info())
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


def test_long_values_that_differ_in_the_middle_are_shown_there():
    numbers = list(range(1000))
    state = make_state(info(where={"label": numbers}), Position(0, 0, 0))
    words = r"where was \.\.\.'7,498,499,500,501,.*and is \.\.\.'7,498,499,501,502,"
    with pytest.raises(ConfigError, match=words) as raised:
        read_state(state, info(where={"label": numbers[:500] + numbers[501:]}))
    assert len(str(raised.value)) < 300


def test_state_whose_iteration_begins_after_its_epoch_is_refused_for_that():
    state = {**make_state(info(), Position(1, 2, 0)), "first_epoch": 9}
    with pytest.raises(ConfigError, match=r"began with epoch 9, after the epoch 1 .*; give what state_dict"):
        read_state(state, info())


@pytest.mark.parametrize("nothing", [{}, None, [], "state", {"epoch": 1}])
def test_what_is_not_even_like_a_state_is_refused(nothing):
    with pytest.raises(ConfigError, match="no state"):
        read_state(nothing, info())


@pytest.mark.parametrize(
    ("position", "epochs", "iteration"),
    [
        (Position(0, 0, 0), 1, (0, 1)),  # nothing was seen yet
        (Position(0, 5, 0), 1, (0, 1)),
        (Position(1, 0, 0), 1, (1, 2)),  # the end of the only epoch: the next one
        (Position(1, 5, 0), 2, (0, 2)),  # the second of two epochs: its rest
        (Position(1, 0, 0), 2, (0, 2)),  # between the two
        (Position(2, 0, 0), 2, (2, 4)),
        (Position(5, 3, 4), 1, (5, 6)),  # saved with more epochs than now: the rest of the one it is in
        (Position(7, 3, 0), None, (0, None)),
    ],
)
def test_iteration_that_was_interrupted_is_finished_first(position, epochs, iteration):
    assert position.iteration(epochs) == iteration


def test_state_of_version_1_goes_on_at_the_same_sample():
    state = {**make_state(info(seed=5), Position(1, 1, 0)), "version": 1}
    del state["next_row"], state["batch_size"]
    assert read_state(state, info(seed=5)) == Position(1, 1, 0)
    assert read_state(state, info(seed=5, batch_size=24, n_batches=5)) == Position(1, 1, 0, row=8)


def test_state_within_a_batch_that_skips_bad_samples_is_refused():
    state = make_state(info(on_error="skip"), Position(0, 1, 0))
    assert read_state(state, info(on_error="skip", batch_size=16)) == Position(0, 2, 0)
    with pytest.raises(ConfigError, match="goes on at row 12 of a batch of 20"):
        read_state(state, info(on_error="skip", batch_size=20))


def test_rotated_state_whose_epochs_begin_within_a_batch_is_refused():
    with pytest.raises(ConfigError, match=r"begin at sample 12 .* within a batch of 8"):
        in_batches_of(8, Position(0, 1, 0, rotation=3), 4, 40, drop_last=False)


def samples_of(size: int, batch: int, n_samples: int) -> list[int]:
    return list(range(batch * size, min(n_samples, (batch + 1) * size)))


def taken(position: Position, size: int, n_samples: int, world: int, steps: int, *, drop_last: bool) -> list[int]:
    """Return the places that all ranks see in `steps` steps from `position` on, without those that are repeated."""
    n_batches = n_samples // size if drop_last else -(-n_samples // size)
    found = []
    for step in range(steps):
        for rank in range(world):
            shard = Shard(n_batches, rank, world, drop_last, position.rotation)
            batch, repeated = shard.batch(step, position.batch)
            first = position.row if not rank and not step else 0
            found += [] if repeated else samples_of(size, batch, n_samples)[first:]
    return found


@given(st.integers(1, 60), st.data())
def test_each_sample_comes_once_with_any_batch_sizes_and_world_sizes(n_samples, data):
    """Over three parts of an epoch, each with sizes of its own."""
    position, size, seen = Position(0, 0, 0), 1, []
    for part in range(3):
        new_size, world = data.draw(st.integers(1, n_samples)), data.draw(st.integers(1, 4))
        position, size = in_batches_of(new_size, position, size, n_samples, drop_last=False), new_size
        shard = Shard(-(-n_samples // size), 0, world)
        left = shard.steps(position.batch)
        steps = left if part == 2 else data.draw(st.integers(0, left))
        seen += taken(position, size, n_samples, world, steps, drop_last=False)
        if steps:
            position = Position(*shard.after(position.epoch, steps, position.batch), 0)
        if position.epoch:
            break
    assert seen == list(range(n_samples))


@given(st.integers(1, 60), st.data())
def test_with_drop_last_the_samples_of_whole_batches_come_once(n_samples, data):
    then, now = data.draw(st.integers(1, n_samples)), data.draw(st.integers(1, n_samples))
    steps = data.draw(st.integers(0, n_samples // then - 1))
    seen = taken(Position(0, 0, 0), then, n_samples, 1, steps, drop_last=True)
    position = in_batches_of(now, Position(0, steps, 0), then, n_samples, drop_last=True)
    if not position.epoch:
        left = n_samples // now - position.batch
        assert left > 0
        seen += taken(position, now, n_samples, 1, left, drop_last=True)
    assert seen == list(range(max(steps * then, n_samples // now * now)))


@given(st.integers(2, 60), st.data())
def test_rotated_epoch_goes_on_with_the_rest(n_samples, data):
    now = data.draw(st.integers(1, n_samples))
    then = data.draw(st.integers(1, n_samples))
    n_then = -(-n_samples // then)
    rotation = data.draw(st.sampled_from([each for each in range(n_then) if each * then % now == 0]))
    steps = data.draw(st.integers(0, n_then - 1))
    before = Position(0, steps, 0, rotation)
    seen = taken(Position(0, 0, 0, rotation), then, n_samples, 1, steps, drop_last=False)
    position = in_batches_of(now, before, then, n_samples, drop_last=False)
    seen += taken(position, now, n_samples, 1, -(-n_samples // now) - position.batch, drop_last=False)
    assert sorted(seen) == list(range(n_samples))
