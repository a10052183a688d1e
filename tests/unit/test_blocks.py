"""The shuffle by blocks: each place once, any position by itself, in long runs, and as mixed as its windows allow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError
from prefetchd.sampling.blocks import WINDOW_BLOCKS, places_by_blocks
from prefetchd.sampling.order import Order
from prefetchd.sampling.places import Places
from prefetchd.sampling.sharding import Shard

SEEDS = st.integers(0, 2**63 - 1)


@given(n=st.integers(1, 5000), block=st.integers(2, 300), seed=SEEDS, epoch=st.integers(0, 10**9))
def test_each_place_comes_once(n, block, seed, epoch):
    places = places_by_blocks(np.arange(n), n, block, seed, epoch)
    np.testing.assert_array_equal(np.sort(places), np.arange(n))


@given(
    n=st.integers(1, 2**40),
    block=st.integers(2, 1 << 20),
    seed=SEEDS,
    positions=st.lists(st.integers(0, 2**40), min_size=1, max_size=10, unique=True),
)
def test_any_position_is_known_by_itself(n, block, seed, positions):
    inside = sorted({position % n for position in positions})
    if -(-n // block) > 1 << 20:
        block = max(block, n >> 20)
    together = places_by_blocks(np.array(inside), n, block, seed, 3).tolist()
    alone = [int(places_by_blocks(np.array([position]), n, block, seed, 3)[0]) for position in inside]
    assert together == alone
    assert len(set(together)) == len(inside)
    assert all(0 <= place < n for place in together)


@given(
    n=st.integers(1, 2000), batch_size=st.integers(1, 90), block=st.integers(2, 100), world_size=st.integers(1, 4),
    drop_last=st.booleans(),
)  # fmt: skip
def test_ranks_together_see_each_sample_once(n, batch_size, block, world_size, drop_last):
    order = Order(n, batch_size, drop_last, True, 7, Places(np.arange(n, dtype=np.uint32) * 2), block)
    seen: list[int] = []
    for rank in range(world_size):
        shard = Shard(order.batches_per_epoch, rank, world_size)
        for step in range(shard.steps()) if order.batches_per_epoch else ():
            batch, repeated = shard.batch(step)
            seen += [] if repeated else order.sample_ids(2, batch, 0, order.rows(2, batch)).tolist()
    assert len(set(seen)) == len(seen) == (n // batch_size * batch_size if drop_last else n)
    assert all(number % 2 == 0 for number in seen)


def test_a_stretch_of_an_epoch_reads_few_blocks():
    n, block = 100_000, 100
    places = places_by_blocks(np.arange(n), n, block, 1, 0)
    window = WINDOW_BLOCKS * block
    touched = [len(np.unique(places[first : first + window] // block)) for first in range(0, n, window)]
    assert set(touched[:-1]) == {WINDOW_BLOCKS}
    assert touched[-1] == n // block % WINDOW_BLOCKS


def test_it_is_mixed_within_windows_and_the_windows_are_not_neighbours():
    n, block = 64_000, 100
    places = places_by_blocks(np.arange(n), n, block, 1, 0)
    ranks = places[: WINDOW_BLOCKS * block].argsort().argsort()
    assert abs(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1]) < 5 / len(ranks) ** 0.5
    neighbours = np.abs(np.diff(places)) == 1
    assert neighbours.mean() < 3 * 2 / (WINDOW_BLOCKS * block)
    firsts = np.array([places[first : first + 1600].min() for first in range(0, n, 1600)])
    assert (firsts < n / 4).mean() > 0.5  # blocks of a window are from all over
    assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 0.3


def test_epochs_and_seeds_have_orders_of_their_own_and_none_is_the_full_shuffle():
    orders = {tuple(places_by_blocks(np.arange(500), 500, 10, seed, epoch)) for seed in range(5) for epoch in range(20)}
    assert len(orders) == 100
    full = Order(500, 500, False, True, 0).sample_ids(0, 0, 0, 500).tolist()
    assert Order(500, 500, False, True, 0, shuffle_block=10).sample_ids(0, 0, 0, 500).tolist() != full


def test_the_option_is_written_in_two_ways():
    blocks = make_config(source="x", shuffle="blocks")
    assert (blocks.shuffle, blocks.shuffle_block) == (True, 1024)
    assert make_config(source="x", shuffle="blocks", shuffle_block=64).shuffle_block == 64
    assert make_config(source="x", shuffle_block="64").shuffle is True
    assert make_config(**blocks.to_wire()) == blocks
    assert blocks.digest() != make_config(source="x", shuffle=True).digest()


@pytest.mark.parametrize("options", [{"shuffle": False}, {"weights": "balanced"}])
def test_blocks_without_a_shuffle_are_refused(options):
    with pytest.raises(ConfigError, match="cannot use shuffle_block with"):
        make_config(source="x", shuffle_block=64, **options)
