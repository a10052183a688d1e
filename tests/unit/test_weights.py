"""Own orders and weights: any length, repeats, draws by position whose frequencies are the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.client.in_memory.numbers import take_in_numbers
from prefetchd.client.in_memory.recognize import take_in
from prefetchd.columns.store import Columns
from prefetchd.config.validate import make_config
from prefetchd.data.images.source import ImageSource
from prefetchd.data.order.plan import plan_order, plan_sweep
from prefetchd.data.registry import open_source
from prefetchd.data.table.records import TableRecords
from prefetchd.errors import ConfigError
from prefetchd.sampling.order import Order
from prefetchd.sampling.places import DRAWN_POSITIONS, Places
from prefetchd.sampling.sharding import Shard
from tests.unit.test_order_plan import N, chosen, close

N_DRAWS = 200_000


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    np.save(folder / "x.npy", np.arange(N * 2.0).reshape(N, 2))
    np.save(folder / "y.npy", np.repeat([0, 1, 2, 3], [40, 15, 4, 1]))
    return folder


def drawn(order: Order, epoch: int, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any]:
    """Return the samples at these positions of an epoch; batches of one row have one position each."""
    assert order.batch_size == 1 << 18
    return order.sample_ids(epoch, 0, start, (order.n_samples if stop is None else stop) - start)


def order_of(weights: list[float], n: int = N_DRAWS, ids: list[int] | None = None, seed: int = 3) -> Order:
    table = None if ids is None else np.array(ids, np.uint32)
    return Order(n, 1 << 18, False, True, seed, Places(table, np.cumsum(np.array(weights, np.float64))))


def assert_frequencies(found: np.ndarray[Any, Any], weights: list[float]) -> None:
    """Hold counts to a chi-square statistic: its mean is the degrees of freedom, its variance twice those."""
    expected = np.array(weights) / sum(weights) * len(found)
    counts = np.bincount(found, minlength=len(weights))
    freedom = len(weights) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert freedom - 5 * (2 * freedom) ** 0.5 < statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5


@pytest.mark.parametrize("weights", [[1.0] * 50, [1.0, 2.0, 3.0, 4.0], [1e-3, 1.0, 1e3], list(range(1, 200))])
@pytest.mark.parametrize("epoch", [0, 1, 10**9])
def test_frequencies_are_the_weights(weights, epoch):
    assert_frequencies(drawn(order_of(weights), epoch), weights)


def test_draws_that_follow_one_another_are_independent():
    found = drawn(order_of([1.0] * 8), 0)
    assert_frequencies(found[:-1] * 8 + found[1:], [1.0] * 64)
    both = drawn(order_of([1.0] * 8), 1) * 8 + found
    assert_frequencies(both, [1.0] * 64)
    other = drawn(order_of([1.0] * 8, seed=4), 0) * 8 + found
    assert_frequencies(other, [1.0] * 64)


@given(
    n=st.integers(1, 5000),
    start=st.integers(0, 4999),
    count=st.integers(0, 1500),
    epoch=st.integers(0, 2**52),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_position_is_drawn_by_itself(n, start, count, epoch, seed):
    order = order_of([1.0, 5.0, 2.0], n, [7, 8, 9], seed)
    start, count = min(start, n), min(count, n - min(start, n))
    whole = drawn(order, epoch)
    assert whole.dtype == np.int64
    assert set(whole.tolist()) <= {7, 8, 9}
    np.testing.assert_array_equal(drawn(order, epoch, start, start + count), whole[start : start + count])


@given(batch_size=st.integers(1, 700), world_size=st.integers(1, 5), drop_last=st.booleans())
def test_ranks_of_every_number_share_one_draw(batch_size, world_size, drop_last):
    n = 2 * DRAWN_POSITIONS + 17
    order = Order(n, batch_size, drop_last, True, 1, Places(None, np.cumsum([1.0, 2.0, 3.0])))
    whole = drawn(order_of([1.0, 2.0, 3.0], n, seed=1), 5).tolist()
    rows: dict[int, list[int]] = {}
    for rank in range(world_size):
        shard = Shard(order.batches_per_epoch, rank, world_size)
        for step in range(shard.steps()):
            batch, _ = shard.batch(step)
            rows[batch] = order.sample_ids(5, batch, 0, order.rows(5, batch)).tolist()
    kept = n // batch_size * batch_size if drop_last else n
    assert [i for batch in sorted(rows) for i in rows[batch]] == whole[:kept]


def test_draws_never_change_between_versions():
    found = drawn(order_of([1.0, 2.0, 3.0, 4.0], 12, seed=0), 0)
    assert found.tolist() == [2, 3, 2, 2, 2, 2, 2, 0, 1, 1, 3, 3]


def test_balanced_draws_each_class_as_often(rows):
    options = {"labels": rows / "y.npy", "weights": "balanced", "epoch_samples": 40_000, "batch_size": 1000}
    found = np.array(chosen(rows / "x.npy", **options))
    labels = np.load(rows / "y.npy")
    assert_frequencies(labels[found], [1.0] * 4)
    assert_frequencies(found[labels[found] == 0], [1.0] * 40)
    some = np.array(chosen(rows / "x.npy", **options, where="label=1,3"))
    assert_frequencies((labels[some] == 3).astype(int), [1.0, 1.0])


def test_weights_come_from_a_file_an_array_or_the_labels(rows, tmp_path):
    weights = np.zeros(N, np.float32)
    weights[[3, 50]] = 1, 3
    np.save(tmp_path / "w.npy", weights)
    of_file = chosen(rows / "x.npy", weights=tmp_path / "w.npy", epoch_samples=4000)
    assert_frequencies((np.array(of_file) == 50).astype(int), [1.0, 3.0])
    assert set(of_file) == {3, 50}
    passed = {"weights": take_in_numbers("weights", weights)}
    assert chosen(rows / "x.npy", passed, weights="<60 numbers>", epoch_samples=4000) == of_file
    labels = np.load(rows / "y.npy")
    by_label = chosen(rows / "x.npy", labels=rows / "y.npy", weights="label", epoch_samples=5000)
    assert 0 not in labels[by_label]
    assert len(chosen(rows / "x.npy", labels=rows / "y.npy", weights="label")) == 20


@pytest.mark.parametrize("smallest", [5e-324, 1e-310, 1e-300])
@pytest.mark.parametrize("replace", [True, False])
def test_tiny_weights_draw_as_larger_ones_of_their_ratio(tmp_path, smallest, replace):
    n = 40_000  # so many that draws are sought by the guide
    np.save(tmp_path / "x.npy", np.zeros(n))
    weights = np.arange(n) % 4
    found = []
    for unit in (smallest, 1.0):
        passed = {"weights": take_in_numbers("weights", weights * unit)}
        found.append(chosen(tmp_path / "x.npy", passed, weights="<numbers>", replace=replace))
    assert found[0] == found[1] or smallest == 1e-300  # whose multiples are rounded
    assert_frequencies(weights[found[0]] - 1, [1.0, 2.0, 3.0] if replace else [1.0, 1.0, 1.0])


def test_a_named_column_weighs():
    columns = {"path": [f"/{i}.jpg" for i in range(4)], "label": [0, 0, 1, 1], "hardness": [0.0, 1.0, 0.0, 3.0]}
    config = make_config(source="memory", weights="hardness", epoch_samples=1000)
    table = take_in(columns, config)
    records = TableRecords.make(Columns.attach(table.description, table.fd), config, "memory")
    source = ImageSource(config, "table", records, "opencv")
    plan = plan_order(config, source)
    found = np.concatenate([plan.order.sample_ids(0, batch, 0, 32) for batch in range(31)])
    assert_frequencies((found == 3).astype(int), [1.0, 3.0])
    assert set(found.tolist()) == {1, 3}
    assert plan.columns is not None
    plan.columns.close()
    close(source)


def test_an_own_order_is_served_as_it_is(rows, tmp_path):
    ids = [5, 3, 3, 59, 0, 5]
    np.save(tmp_path / "ids.npy", ids)
    assert chosen(rows / "x.npy", order=tmp_path / "ids.npy", batch_size=4) == ids
    assert chosen(rows / "x.npy", {"order": take_in_numbers("order", ids)}, order="<6 numbers>") == ids
    assert sorted(chosen(rows / "x.npy", order=tmp_path / "ids.npy", shuffle=True, seed=1)) == sorted(ids)
    options = {"order": tmp_path / "ids.npy", "labels": rows / "y.npy"}
    assert chosen(rows / "x.npy", **options, where="label=0", limit=4) == [5, 3, 3, 0]
    long = np.arange(10 * N) % N
    assert chosen(rows / "x.npy", {"order": take_in_numbers("order", long)}, order="<numbers>") == long.tolist()


def test_a_sweep_has_each_sample_once(rows, tmp_path):
    np.save(tmp_path / "ids.npy", [5, 3, 3, 59, 0, 5])
    for options, expected in (
        ({"order": tmp_path / "ids.npy", "shuffle": True}, [0, 3, 5, 59]),
        ({"labels": rows / "y.npy", "weights": "balanced", "epoch_samples": 1000, "drop_last": True}, list(range(N))),
    ):
        given: dict[str, Any] = {**options, "source": rows / "x.npy"}
        config = make_config(**given)
        source = open_source(config)
        plan = plan_sweep(config, source)
        batches = range(plan.order.batches_per_epoch)
        assert [i for b in batches for i in plan.order.sample_ids(0, b, 0, plan.order.rows(0, b)).tolist()] == expected
        if plan.columns is not None:
            plan.columns.close()
        close(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, 2.0]}, "it has 2 weights for 60 samples"),
        ({"weights": [-1.0, *[1.0] * 59]}, "the weight of sample 0 is -1"),
        ({"weights": [*[1.0] * 59, float("nan")]}, "the weight of sample 59 is nan"),
        ({"weights": [0.0] * 60}, "its weights add up to 0; give some above 0"),
        ({"weights": [1e308] * 60}, "its weights add up to inf; give smaller ones"),
        ({"order": [0, 60]}, "names the sample 60"),
        ({"weights": "fold"}, "only the labels are known by name"),
        ({"weights": "balanced"}, "samples have no labels here"),
        ({"epoch_samples": 5}, "cannot use epoch_samples without weights"),
        ({"subset": [1], "order": [1]}, "cannot use subset together with order"),
    ],
)
def test_what_means_nothing_is_refused(rows, options, message):
    passed, given = {}, {}
    for name, value in options.items():
        is_list = isinstance(value, list)
        passed |= {name: take_in_numbers(name, value)} if is_list else {}
        given[name] = f"<{len(value)} numbers>" if is_list else value
    with pytest.raises(ConfigError, match=message):
        chosen(rows / "x.npy", passed, **given)
    if "subset" in options:
        for table in passed.values():
            table.close()


def test_the_digest_follows_order_and_weights(rows):
    digests = set()
    options: list[dict[str, Any]] = [
        {}, {"order": [1, 2]}, {"order": [2, 1]}, {"order": [1, 2, 2]}, {"weights": [1.0] * N},
        {"weights": [2.0, *[1.0] * (N - 1)]}, {"weights": "balanced"}, {"weights": "balanced", "epoch_samples": 9},
    ]  # fmt: skip
    for each in options:
        passed = {name: take_in_numbers(name, value) for name, value in each.items() if isinstance(value, list)}
        given = {name: "<numbers>" if name in passed else value for name, value in each.items()}
        config = make_config(source=str(rows / "x.npy"), labels=str(rows / "y.npy"), **given)
        source = open_source(config)
        plan = plan_order(config, source, passed)
        if plan.columns is not None:
            plan.columns.close()
        close(source)
        digests.add(config.digest(**plan.versions))
    assert len(digests) == len(options)
