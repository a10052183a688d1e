"""Mixtures: shares that hold in every prefix, passes of each source, and options in their one form."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.config.datasets import read_config_file
from prefetchd.config.mix import absolute_mix, canonical_mix, parse_mix, part_configs
from prefetchd.config.validate import make_config
from prefetchd.data.mix.source import MixedSource
from prefetchd.data.order.plan import attach_order, plan_order
from prefetchd.data.registry import open_source
from prefetchd.errors import ConfigError
from prefetchd.sampling.apportion import MOST_POSITIONS, apportion, whole_shares
from prefetchd.sampling.mixture import MIXED_POSITIONS, Mixture, make_period
from prefetchd.sampling.order import Order

Weights = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any)


def mixture(
    weights: Sequence[Sequence[int]], sizes: Sequence[int], n_samples: int | None = None, **options: Any
) -> Mixture:
    periods = tuple(make_period(each, apportion(each)) for each in weights)
    firsts = tuple(int(first) for first in np.cumsum([0, *sizes[:-1]]))
    n = n_samples or periods[0].epoch_samples(sizes, "first")
    return Mixture(firsts, tuple(sizes), periods, n, **{"seed": 5, "shuffle": False, **options})


def epoch_of(mixed: Mixture, epoch: int, batch_size: int = 7) -> list[int]:
    order = Order(mixed.n_samples, batch_size, False, mixed.shuffle, mixed.seed, mixture=mixed)
    return [
        number
        for batch in range(order.batches_per_epoch)
        for number in order.sample_ids(epoch, batch, 0, order.rows(epoch, batch)).tolist()
    ]


def sources_of(mixed: Mixture, ids: Sequence[int]) -> list[int]:
    return (np.searchsorted(mixed.firsts, ids, "right") - 1).tolist()


# --- apportionment


@given(Weights)
def test_no_prefix_is_more_than_one_off_its_share(weights):
    found = apportion(weights)
    total = sum(weights)
    assert np.bincount(found, minlength=len(weights)).tolist() == weights
    counts = np.cumsum(found[:, None] == np.arange(len(weights)), axis=0)
    off = abs(counts * total - np.arange(1, total + 1)[:, None] * np.array(weights))
    assert off.max() <= total  # whole numbers: exact
    # Tijdeman's bound, which is below one.
    n = sum(weight > 0 for weight in weights)
    assert off.max() * max(1, 2 * n - 2) <= total * max(0, 2 * n - 3)


@given(st.lists(st.floats(0.001, 1000), min_size=2, max_size=20))
def test_whole_shares_keep_the_ratio_to_the_precision(shares):
    whole, is_exact = whole_shares(shares)
    assert all(weight > 0 for weight in whole)
    assert sum(whole) <= MOST_POSITIONS
    for weight, share in zip(whole, shares, strict=True):
        ratio = Fraction(share) / sum(map(Fraction, shares))
        off = abs(Fraction(weight, sum(whole)) - ratio)
        assert off == 0 if is_exact else off * MOST_POSITIONS <= len(shares)


def test_shares_with_a_small_denominator_are_exact():
    assert whole_shares([Fraction("0.7"), Fraction("0.3")]) == ((7, 3), True)
    assert whole_shares([Fraction(1, 3), Fraction(2, 3), Fraction(0)]) == ((1, 2, 0), True)
    assert whole_shares([Fraction(1, 10**9), Fraction(1)]) == ((1, MOST_POSITIONS - 1), False)
    assert apportion((7, 3)).tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    assert apportion((0, 2)).tolist() == [1, 1]


# --- the order


@given(
    Weights.filter(lambda weights: len(weights) > 1),
    st.integers(0, 3),
    st.integers(1, 400),
    st.sampled_from([(False, 0), (True, 0), (True, 3)]),
    st.data(),
)
def test_each_source_comes_in_passes_and_no_prefix_of_an_epoch_is_more_than_one_off(
    weights, epoch, n_samples, shuffled, data
):
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=len(weights), max_size=len(weights)))
    mixed = mixture([weights], sizes, n_samples, shuffle=shuffled[0], shuffle_block=shuffled[1])
    seen: dict[int, list[int]] = {}
    for each in range(epoch + 1):
        ids = epoch_of(mixed, each)
        sources = np.array(sources_of(mixed, ids))
        for source, number in zip(sources.tolist(), ids, strict=True):
            seen.setdefault(source, []).append(number - mixed.firsts[source])
        counts = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
        shares = np.arange(1, n_samples + 1)[:, None] * np.array(weights)
        assert (abs(counts * sum(weights) - shares) <= sum(weights)).all()
    for source, numbers in seen.items():
        size = sizes[source]
        for first in range(0, len(numbers), size):
            one_pass = numbers[first : first + size]
            assert len(set(one_pass)) == len(one_pass)  # of a whole pass: each sample once
            assert set(one_pass) <= set(range(size))
            if not shuffled[0]:
                assert one_pass == list(range(len(one_pass)))


def test_passes_have_orders_of_their_own_and_sources_too():
    mixed = mixture([(1, 1)], (100, 100), shuffle=True)
    assert mixed.n_samples == 200
    first, second = epoch_of(mixed, 0), epoch_of(mixed, 1)
    of_a, of_b = first[::2], [number - 100 for number in first[1::2]]
    assert sorted(of_a) == sorted(of_b) == list(range(100))
    assert of_a != of_b
    assert of_a != second[::2]
    assert epoch_of(mixture([(1, 1)], (100, 100), shuffle=True, seed=6), 0) != first


def test_blocks_of_positions_join_without_a_seam():
    n = 2 * MIXED_POSITIONS + 11
    mixed = mixture([(2, 1)], (5000, 700), n, shuffle=True)
    ids = epoch_of(mixed, 3, batch_size=1000)
    assert len(ids) == n
    order = Order(n, 64, False, True, 5, mixture=mixed)
    batch = MIXED_POSITIONS // 64
    assert order.sample_ids(3, batch - 1, 60, 4).tolist() == ids[MIXED_POSITIONS - 4 : MIXED_POSITIONS]
    assert order.sample_ids(3, batch, 0, 4).tolist() == ids[MIXED_POSITIONS : MIXED_POSITIONS + 4]
    # Far away is as near as the first, and whole passes come before.
    far = order.sample_ids(10**9, batch, 0, 64)
    assert len(set(far.tolist())) == 64


def test_an_epoch_ends_as_the_first_or_the_last_source_is_exhausted():
    period = make_period((7, 3), apportion((7, 3)))
    sizes = (100, 10)
    first, last = period.epoch_samples(sizes, "first"), period.epoch_samples(sizes, "last")
    counts = lambda n: Counter(period.sources[np.arange(n) % 10].tolist())  # noqa: E731
    assert counts(first)[1] == 10
    assert counts(first + 1)[1] == 11
    assert counts(last)[0] == 100
    assert counts(last - 1)[0] == 99
    alone = make_period((1, 0), apportion((1, 0)))
    assert alone.epoch_samples(sizes, "first") == alone.epoch_samples(sizes, "last") == 100


def test_shares_by_epoch_hold_and_passes_go_on():
    mixed = mixture([(9, 1), (0, 1), (1, 1)], (30, 30), 20)
    ids = [epoch_of(mixed, epoch) for epoch in range(5)]
    assert [Counter(sources_of(mixed, each))[0] for each in ids] == [18, 0, 10, 10, 10]
    of_b = [number - 30 for each in ids for number in each if number >= 30]
    assert of_b == [number % 30 for number in range(2 + 20 + 30)]
    assert mixed.served_before(4, 1) == 2 + 20 + 20
    assert mixed.served_before(4, 0) == 18 + 20


def test_a_substitute_is_of_the_same_source():
    mixed = mixture([(1, 1)], (3, 4))
    following = mixed.following(5)
    assert [next(following) for _ in range(5)] == [6, 3, 4, 5, 6]
    part = Mixture((0, 10), (2, 3), mixed.periods, 6, 0, False, 0, np.array([1, 4, 10, 12, 19], np.uint32))
    following = part.following(12)
    assert [next(following) for _ in range(4)] == [19, 10, 12, 19]
    assert epoch_of(part, 0) == [1, 10, 4, 12, 1, 19]


@pytest.mark.parametrize("options", [{}, {"split": "0-60%"}, {"shuffle": "blocks", "shuffle_block": 7}])
def test_daemon_and_readers_have_one_order_in_little_memory(tmp_path, options):
    for name, rows in (("a", 900), ("b", 70)):
        np.save(tmp_path / f"{name}.npy", np.zeros((rows, 2), np.float32))
    mix = {str(tmp_path / "a.npy"): [0.75, 0.5], str(tmp_path / "b.npy"): [0.25, 0.5]}
    config = make_config(mix=mix, **{"shuffle": True, **options})
    source = open_source(config)
    plan = plan_order(config, source)
    handle, fds = plan.handle()
    attached = attach_order(config, source.facts.n_samples, handle, [os.dup(fd) for fd in fds])
    for epoch in range(3):
        for batch in range(plan.order.batches_per_epoch):
            rows = plan.order.rows(epoch, batch)
            ids = plan.order.sample_ids(epoch, batch, 0, rows).tolist()
            assert attached.sample_ids(epoch, batch, 0, rows).tolist() == ids
            assert not options.get("split") or set(ids) <= set(attached.mixture.ids.tolist())
    assert plan.shared_bytes <= 24 * 970
    assert plan.versions["mix"] == "3:1, 1:1"
    assert isinstance(source, MixedSource)
    for part in (*source.parts, plan.columns):
        part.close()


# --- the option


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ({"a.txt": 0.7, "b.txt": 0.3}, ("a.txt=0.7", "b.txt=0.3")),
        (["a.txt=0.7", "b=c.txt=3"], ("a.txt=0.7", "b=c.txt=3")),
        ({"a.txt": np.float64(0.5), "b.txt": [1, 0]}, ("a.txt=0.5", "b.txt=1,0")),
        ([("a.txt", "1/3"), ("b.txt", 2)], ("a.txt=1/3", "b.txt=2")),
        (["a.txt", "b.txt"], ("a.txt", "b.txt")),
        ([], ()),
    ],
)
def test_a_mix_has_one_form(value, texts):
    found = canonical_mix(value)
    assert found == texts == canonical_mix(found)
    config = make_config(source="a.txt", mix=value) if not texts else make_config(mix=value)
    assert make_config(**config.to_wire()) == config
    assert config.digest() == make_config(source="a.txt").digest()  # the sources' digests are the data's


def test_a_path_that_is_no_text_survives_the_wire():
    config = make_config(mix=[(b"\xff.txt", 0.5), ("b.txt", 0.5)])
    again = make_config(**config.to_wire())
    assert again == config
    assert os.fsencode(parse_mix(again.mix)[0].name) == b"\xff.txt"


def test_parts_have_seeds_of_their_own():
    first, second = part_configs(make_config(mix={"a.txt": 1, "b.txt": 2}, seed=2**63 - 1, split="0-90%"))
    assert (first.source, second.source) == ("a.txt", "b.txt")
    assert first.seed == 2**63 - 1
    assert first.seed != second.seed
    assert 0 <= second.seed < 2**63
    assert not first.mix
    assert first.split is None  # the order's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": {"a.txt": 1}}, "cannot mix 1 sources: give 2 to"),
        ({"mix": {"a": 1, "b": -1}}, "cannot mix 'b' with the share -1: it must be a number, 0 or more"),
        ({"mix": {"a": 1, "b": 0}}, "cannot mix 'b' with the share 0; leave it out"),
        ({"mix": {"a": [1, 0], "b": [1, 0]}}, "cannot mix in epoch 1: all shares are 0"),
        ({"mix": ["a=1", "b"]}, "cannot mix 'b': the others have shares"),
        ({"mix": ["a", "a"]}, "cannot mix 'a' with itself"),
        ({"mix": {"a": "1/0", "b": 1}}, "cannot use mix='a=1/0'"),
        ({"mix": 3}, "cannot use mix='int'"),
        ({"mix": ["a", "b"], "source": "c"}, "cannot use mix together with the source 'c'"),
        ({"mix": ["a", "b"], "limit": 3}, "cannot use limit together with mix; give epoch_samples"),
        ({"mix": ["a", "b"], "weights": "balanced"}, "cannot use weights together with mix"),
        ({"mix": ["a=1", "b=1"], "mix_temperature": 2}, "cannot use mix_temperature with shares"),
        ({"mix": ["a", "b"], "stop": "last", "epoch_samples": 3}, "cannot use stop together with epoch_samples"),
        ({"source": "a", "stop": "last"}, "cannot use stop without mix"),
        ({"source": "a", "epoch_samples": 3}, "cannot use epoch_samples without weights or mix"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_words(options, message):
    with pytest.raises(ConfigError) as refused:
        make_config(**options)
    assert str(refused.value).startswith(message)


def test_a_table_file_names_sources_beside_itself(tmp_path):
    (tmp_path / "one.toml").write_text('batch-size = 8\n[mix]\n"a.txt" = [0.9, 0.5]\n"/b.txt" = 0.1\n')
    options, tables = read_config_file(str(tmp_path / "one.toml"))
    assert not tables
    assert make_config(**options).mix == (f"{tmp_path}/a.txt=0.9,0.5", "/b.txt=0.1")
    (tmp_path / "two.toml").write_text('[train]\nmix = ["a.txt=3", "b.txt=1"]\n')
    _, tables = read_config_file(str(tmp_path / "two.toml"))
    assert make_config(**tables["train"]).mix == (f"{tmp_path}/a.txt=3", f"{tmp_path}/b.txt=1")


def test_absolute_paths_of_a_mix_leave_what_is_in_memory():
    here = os.getcwd()
    assert absolute_mix(("a.txt=0.5", "<list of 3 pairs>=0.5", "/b")) == (
        f"{here}/a.txt=0.5",
        "<list of 3 pairs>=0.5",
        "/b",
    )
