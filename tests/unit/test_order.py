"""The order of samples: a bijection for every epoch, the same for the same seed, and shards that cover an epoch."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.sampling.order import Order
from prefetchd.sampling.permutation import Permutation

SEEDS = st.integers(0, 2**63 - 1)


def whole_epoch(order: Order, epoch: int) -> list[int]:
    batches = range(order.batches_per_epoch)
    return [i for batch in batches for i in order.sample_ids(epoch, batch, 0, order.rows(epoch, batch)).tolist()]


@given(n=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10**9))
def test_permutation_is_a_bijection(n, seed, epoch):
    ids = Permutation(n, seed, epoch)(np.arange(n))
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(np.sort(ids), np.arange(n))


@given(
    n=st.integers(1, 2**62), seed=SEEDS, positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=20, unique=True)
)
@settings(max_examples=50)
def test_permutation_of_a_huge_set_stays_inside_and_never_collides(n, seed, positions):
    inside = sorted({position % n for position in positions})
    ids = Permutation(n, seed, 0)(np.array(inside)).tolist()
    assert len(set(ids)) == len(inside)
    assert all(0 <= i < n for i in ids)


@pytest.mark.parametrize("n", [0, 2**62 + 1])
def test_permutation_refuses_sizes_that_it_cannot_do(n):
    with pytest.raises(ValueError, match="n="):
        Permutation(n, 0, 0)


def test_permutation_never_changes_between_versions():
    assert Permutation(10, 0, 0)(np.arange(10)).tolist() == [3, 4, 9, 2, 7, 6, 8, 5, 0, 1]
    assert Permutation(10**6, 0, 0)(np.arange(5)).tolist() == [309476, 157911, 118300, 953398, 358635]


@pytest.mark.parametrize(
    ("n", "digest"),
    [
        (4097, "d98851386eaab2a3"),
        (10**9, "4388ae6307092b46"),
        (2**32 + 1, "b64da2624fdc3f48"),
        (2**62, "a7168d57c23d77e6"),
    ],
)
def test_permutation_of_any_size_never_changes_between_versions(n, digest):
    permutation = Permutation(n, 2**63, 5)
    positions = np.arange(1000) * (n // 1000)
    ids = permutation(positions)
    assert blake2b(ids.astype("<i8").tobytes(), digest_size=8).hexdigest() == digest
    np.testing.assert_array_equal(permutation.inverse(ids), positions)


def test_every_epoch_and_seed_has_an_order_of_its_own():
    order = Order(100, 8, drop_last=False, shuffle=True, seed=1)
    orders = [tuple(whole_epoch(order, epoch)) for epoch in range(50)]
    other = Order(100, 8, drop_last=False, shuffle=True, seed=2)
    orders += [tuple(whole_epoch(other, epoch)) for epoch in range(50)]
    assert len(set(orders)) == 100
    assert tuple(whole_epoch(order, 7)) == orders[7]


def test_shuffling_leaves_no_sample_near_its_place_more_often_than_chance():
    n, epochs = 200, 300
    first = np.array([Permutation(n, 0, epoch)(np.arange(1))[0] for epoch in range(epochs)])
    assert len(set(first.tolist())) > 0.6 * n  # 155 expected of 200
    fixed = sum(int((Permutation(n, 0, epoch)(np.arange(n)) == np.arange(n)).sum()) for epoch in range(epochs))
    assert 0.6 * epochs < fixed < 1.5 * epochs  # one an epoch expected


@given(
    n=st.integers(1, 500),
    batch_size=st.integers(1, 64),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=SEEDS,
    epoch=st.integers(0, 1000),
)
def test_an_epoch_has_each_sample_once_less_what_drop_last_leaves_out(n, batch_size, shuffle, drop_last, seed, epoch):
    order = Order(n, batch_size, drop_last, shuffle, seed)
    ids = whole_epoch(order, epoch)
    assert len(set(ids)) == len(ids) == (n // batch_size * batch_size if drop_last else n)
    assert all(0 <= i < n for i in ids)
    if not shuffle:
        assert ids == list(range(len(ids)))
    for batch in range(order.batches_per_epoch):
        assert 1 <= order.rows(epoch, batch) <= batch_size


@given(n=st.integers(1, 300), first=st.integers(0, 15), count=st.integers(0, 16))
def test_part_of_a_batch_is_that_part_of_the_whole(n, first, count):
    order = Order(n, 16, drop_last=False, shuffle=True, seed=9)
    rows = order.rows(3, 0)
    first, count = min(first, rows), min(count, max(0, rows - first))
    whole = order.sample_ids(3, 0, 0, rows)
    np.testing.assert_array_equal(order.sample_ids(3, 0, first, count), whole[first : first + count])


@given(n=st.integers(1, 6000), seed=SEEDS, epoch=st.integers(0, 10**6), block=st.sampled_from([0, 1, 7, 64]))
@settings(max_examples=50, deadline=None)
def test_positions_are_where_the_samples_stand(n, seed, epoch, block):
    order = Order(n, 8, drop_last=False, shuffle=True, seed=seed, shuffle_block=block)
    ids = order.sample_ids(epoch, 0, 0, n)
    assert order.positions(epoch, ids).tolist() == list(range(n))
    inside = Permutation(n, seed, epoch)
    np.testing.assert_array_equal(inside.inverse(inside(np.arange(n))), np.arange(n))
