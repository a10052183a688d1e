"""Shards: every rank as many steps, the union is the epoch, and any number of ranks goes on where others were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefetchd.sampling.sharding import Shard

BATCHES = st.integers(1, 200)
RANKS = st.integers(1, 17)


def ranks(n_batches: int, world_size: int, **more) -> list[Shard]:
    return [Shard(n_batches, rank, world_size, **more) for rank in range(world_size)]


def seen_from(shards: list[Shard], start: int, n_steps: int | None = None) -> list[tuple[int, bool]]:
    """What all ranks see from the batch `start` on, step by step."""
    steps = shards[0].steps(start) if n_steps is None else n_steps
    return [shard.batch(step, start) for step in range(steps) for shard in shards]


@given(n_batches=BATCHES, world_size=RANKS)
def test_ranks_take_even_steps_and_cover_the_epoch(n_batches, world_size):
    shards = ranks(n_batches, world_size)
    assert {shard.steps() for shard in shards} == {-(-n_batches // world_size)}
    seen = seen_from(shards, 0)
    assert [batch for batch, repeated in seen if not repeated] == list(range(n_batches))
    wrapped = [batch for batch, repeated in seen if repeated]
    assert wrapped == [step % n_batches for step in range(len(wrapped))]


@given(n_batches=BATCHES, world_size=RANKS)
def test_ranks_with_drop_last_repeat_nothing_and_leave_ragged_steps_out(n_batches, world_size):
    seen = seen_from(ranks(n_batches, world_size, drop_last=True), 0)
    assert not any(repeated for _, repeated in seen)
    assert [batch for batch, _ in seen] == list(range(n_batches // world_size * world_size))


@given(n_batches=BATCHES, first=RANKS, second=RANKS, data=st.data())
def test_another_world_size_goes_on_with_exactly_what_is_left(n_batches, first, second, data):
    shards = ranks(n_batches, first)
    steps = data.draw(st.integers(0, shards[0].steps()))
    epoch, batch = shards[0].after(4, steps)
    before = [number for number, repeated in seen_from(shards, 0, steps) if not repeated]
    if epoch == 5:
        assert batch == 0
        assert before == list(range(n_batches))
        return
    after = [number for number, repeated in seen_from(ranks(n_batches, second), batch) if not repeated]
    assert before + after == list(range(n_batches))


@given(n_batches=BATCHES, world_size=RANKS, start=st.integers(0, 250))
def test_steps_of_a_resumed_epoch_end_where_the_epoch_does(n_batches, world_size, start):
    shard = Shard(n_batches, 0, world_size)
    steps = shard.steps(start)
    assert steps == 0 or start + (steps - 1) * world_size < n_batches
    assert start + steps * world_size >= n_batches
    assert shard.after(0, steps, start) == (1, 0)
