"""Weighted draws without replacement: the frequencies of numpy's, every sample once, and any position by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.config.validate import make_config
from prefetchd.data.order.plan import plan_order, plan_sweep
from prefetchd.data.registry import open_source
from prefetchd.errors import ConfigError
from prefetchd.sampling import races
from prefetchd.sampling.order import Order
from prefetchd.sampling.places import Places, make_guide, sought
from tests.unit.test_order_plan import N, chosen, close


def order_of(weights: Any, n: int | None = None, ids: Any = None, seed: int = 3) -> Order:
    table = np.asarray(weights, np.float64)
    numbers = None if ids is None else np.asarray(ids, np.uint32)
    places = Places(numbers, weights=np.maximum(table / table.max(), 1e-300))
    return Order(len(table) if n is None else n, 1 << 20, False, True, seed, places)


def drawn(order: Order, epoch: int, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
    return order.sample_ids(epoch, 0, start, (order.n_samples if stop is None else stop) - start)


def test_exponentials_are_those_of_numpy():
    words = np.random.default_rng(0).integers(0, 1 << 64, 200_000, np.uint64)
    words[:4] = 0, (1 << 64) - 1, 1 << 63, (1 << 63) - 1
    found = races.exponentials(words)
    uniform = ((words >> np.uint64(12)) + 0.5) * 2.0**-52
    np.testing.assert_allclose(found, -np.log(uniform), rtol=1e-10)
    assert (found > 0).all()
    # The bits are the same on every machine.
    few = races.exponentials(np.array([1, 1 << 40, 1 << 62, 3 << 62], np.uint64))
    assert [each.hex() for each in few.tolist()] == [
        "0x1.25e4f7b2737fap+5",
        "0x1.0a2b23f33ab73p+4",
        "0x1.62e42fefa39edp+0",
        "0x1.26962113469d1p-2",
    ]


@pytest.mark.parametrize("weights", [[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 20.0], [0.001, 1.0, 1000.0, 0.5]])
def test_frequencies_are_those_of_numpys_draws(weights):
    """Of each ordered pair of first draws; numpy draws one after another from those that are left."""
    n_epochs, n = 6000, len(weights)
    rng = np.random.default_rng(1)
    shares = np.array(weights) / sum(weights)
    counts = np.zeros((2, n * n))
    order = order_of(weights, 2)
    for epoch in range(n_epochs):
        first, second = drawn(order, epoch).tolist()
        counts[0, first * n + second] += 1
        first, second = rng.choice(n, 2, replace=False, p=shares).tolist()
        counts[1, first * n + second] += 1
    exact = np.array([shares[i] * shares[j] / (1 - shares[i]) * (i != j) for i in range(n) for j in range(n)])
    large = exact * n_epochs > 5
    for each in counts:
        statistic = ((each[large] - exact[large] * n_epochs) ** 2 / (exact[large] * n_epochs)).sum()
        freedom = large.sum() - 1
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5
    assert not counts[0, exact == 0].any()


@given(n=st.integers(1, 400), epoch=st.integers(0, 2**52), seed=st.integers(0, 2**63 - 1), group=st.integers(1, 90))
def test_an_epoch_has_each_sample_once_and_any_position_by_itself(n, epoch, seed, group):
    weights = np.random.default_rng(n).random(n) ** 9 + 1e-12
    order = order_of(weights, ids=np.arange(n) * 7, seed=seed)
    whole = drawn(order, epoch)
    assert sorted(whole.tolist()) == (np.arange(n) * 7).tolist()
    with mock.patch.object(races, "GROUP_POSITIONS", group), mock.patch.object(races, "_BLOCK", 64):
        other = order_of(weights, ids=np.arange(n) * 7, seed=seed)  # another object, of which nothing is kept
        for start in range(0, n, 37):
            np.testing.assert_array_equal(drawn(other, epoch, start, min(n, start + 50)), whole[start : start + 50])


def test_draws_never_change_between_versions():
    assert drawn(order_of([1.0, 2.0, 3.0, 4.0, 0.5, 9.0], seed=0), 0).tolist() == [5, 3, 2, 1, 4, 0]
    assert not np.array_equal(drawn(order_of([1.0] * 90), 0), drawn(order_of([1.0] * 90), 1))


def test_extreme_weights_come_first_and_last():
    order = order_of([1e-300, 1.0, 1e300, 5e-324, 1e-10])
    assert [drawn(order, epoch)[0] for epoch in range(20)] == [2] * 20
    assert all(sorted(drawn(order, epoch).tolist()) == [0, 1, 2, 3, 4] for epoch in range(20))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    np.save(folder / "x.npy", np.arange(N * 2.0).reshape(N, 2))
    np.save(folder / "y.npy", np.repeat([0, 1, 2, 3], [40, 15, 4, 1]))
    np.save(folder / "w.npy", np.arange(N) % 3)
    return folder


def test_samples_with_a_weight_are_drawn_once(rows):
    options = {"weights": rows / "w.npy", "replace": False}
    found = chosen(rows / "x.npy", **options)
    assert sorted(found) == [i for i in range(N) if i % 3]
    assert chosen(rows / "x.npy", **options, epoch_samples=9) == found[:9]
    classes = np.load(rows / "y.npy")[chosen(rows / "x.npy", labels=rows / "y.npy", weights="balanced", replace=False)]
    assert sorted(classes.tolist()) == np.load(rows / "y.npy").tolist()
    part = chosen(rows / "x.npy", **options, labels=rows / "y.npy", where="label=1", limit=6)
    assert sorted(part) == [40, 41, 43, 44]


def test_what_means_nothing_is_refused(rows):
    with pytest.raises(ConfigError, match="cannot draw epoch_samples=41 with replace=False: 40 samples"):
        chosen(rows / "x.npy", weights=rows / "w.npy", replace=False, epoch_samples=41)
    with pytest.raises(ConfigError, match="cannot use replace=False without weights"):
        chosen(rows / "x.npy", replace=False)


def test_the_digest_and_a_sweep_follow(rows):
    digests = set()
    for replace in (True, False):
        config = make_config(source=str(rows / "x.npy"), weights=str(rows / "w.npy"), replace=replace)
        source = open_source(config)
        plan = plan_order(config, source)
        assert plan.reader_bytes == (0 if replace else 12 << 20)
        digests.add(config.digest(**plan.versions))
        assert plan_sweep(config, source).order.n_samples == N
        close(source)
        if plan.columns is not None:
            plan.columns.close()
    assert len(digests) == 2


@pytest.mark.parametrize("spread", [0, 3, 14])
def test_a_guide_finds_what_a_search_finds(spread):
    rng = np.random.default_rng(spread)
    until = np.cumsum(10 ** rng.uniform(-spread, spread, 70_000))
    guide = make_guide(until)
    assert guide is not None
    points = np.concatenate([rng.random(50_000) * until[-1], until, until * (1 - 1e-16), [0.0]])
    np.testing.assert_array_equal(sought(until, guide, points), np.searchsorted(until, points, "right"))
    assert make_guide(until[:100]) is None
