"""The shuffled order mixes as well as a fair shuffle, by statistics that a bad one fails.

Each statistic is a number that is nearly standard normal if the permutations are drawn fairly; `LIMIT` is what such a
number exceeds in one case of 150,000. All keys are fixed, so nothing here depends on luck: numpy's permutation passes
by the same limit, and identity, rotations and affine maps fail, each where its fault lies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.sampling.order import Order
from prefetchd.sampling.permutation import SORTED_UP_TO, Permutation

LIMIT = 4.5
DRAWS = 100
SIZES = (1000, SORTED_UP_TO + 1, 20_011)  # sorted, the smallest network, a larger one

Array = np.ndarray
Shuffle = Callable[[int, int, int], Array]  # (n, seed, epoch) -> permutation
Statistic = Callable[[list[Array]], float]


# --- permutations: ours, a fair one, and bad ones


def ours(n: int, seed: int, epoch: int) -> Array:
    return Permutation(n, seed, epoch)(np.arange(n))


def numpys(n: int, seed: int, epoch: int) -> Array:
    return np.random.default_rng([n, seed, epoch]).permutation(n)


def identity(n: int, seed: int, epoch: int) -> Array:
    return np.arange(n)


def rotation(n: int, seed: int, epoch: int) -> Array:
    return (np.arange(n) + int(np.random.default_rng([n, seed, epoch]).integers(n))) % n


def affine(n: int, seed: int, epoch: int) -> Array:
    random = np.random.default_rng([n, seed, epoch])
    factor = next(f for f in iter(lambda: int(random.integers(2, n)), 0) if math.gcd(f, n) == 1)
    return (np.arange(n) * factor + int(random.integers(n))) % n


# --- statistics: of permutations of one n to a standard normal number


def chi_square(counts: Array, expected: float | Array, freedom: int) -> float:
    """Pearson's statistic, made normal by the cube root of Wilson and Hilferty."""
    value = float(((counts - expected) ** 2 / expected).sum())
    scale = 2 / (9 * freedom)
    return ((value / freedom) ** (1 / 3) - 1 + scale) / math.sqrt(scale)


def where_the_first_samples_land(perms: list[Array]) -> float:
    n, n_bins = len(perms[0]), 10
    landed = np.concatenate([np.argsort(perm)[:4] for perm in perms])
    counts = np.bincount(landed * n_bins // n, minlength=n_bins)
    edges = -(-np.arange(n_bins + 1) * n // n_bins)
    return chi_square(counts, np.diff(edges) / n * len(landed), n_bins - 1)


def which_samples_come_first(perms: list[Array]) -> float:
    return where_the_first_samples_land([np.argsort(perm) for perm in perms])


def serial_correlation(perms: list[Array]) -> float:
    n = len(perms[0])
    total = sum(float(np.corrcoef(perm[:-1], perm[1:])[0, 1]) + 1 / n for perm in perms)
    return total * math.sqrt(n / len(perms))


def pairs_of_neighbours(perms: list[Array]) -> float:
    n_bins = 8
    counts = np.zeros(n_bins * n_bins)
    for perm in perms:
        bins = perm * n_bins // len(perm)
        counts += np.bincount(bins[:-1] * n_bins + bins[1:], minlength=n_bins * n_bins)
    return chi_square(counts, counts.sum() / len(counts), (n_bins - 1) ** 2)


def differences_of_neighbours(perms: list[Array]) -> float:
    n, n_bins = len(perms[0]), 25
    counts = np.zeros(n_bins)
    for perm in perms:
        counts += np.bincount((np.diff(perm) % n - 1) * n_bins // (n - 1), minlength=n_bins)
    return chi_square(counts, counts.sum() / n_bins, n_bins - 1)


def neighbours_that_stay_neighbours(perms: list[Array]) -> float:
    """Poisson with mean two for each permutation."""
    found = sum(int((np.abs(np.diff(perm)) == 1).sum()) for perm in perms)
    return (found - 2 * len(perms)) / math.sqrt(2 * len(perms))


def fixed_points(perms: list[Array]) -> float:
    """How many permutations have none, one, two, three, or more of them: Poisson with mean one."""
    found = np.array([int((perm == np.arange(len(perm))).sum()) for perm in perms])
    chances = np.array([1, 1, 1 / 2, 1 / 6]) / math.e
    expected = np.append(chances, 1 - chances.sum()) * len(perms)
    return chi_square(np.bincount(np.minimum(found, 4), minlength=5), expected, 4)


def cycles(perms: list[Array]) -> float:
    """As many as the n-th harmonic number, with that less pi^2 / 6 as the variance."""
    n, found = len(perms[0]), 0
    for perm in perms:
        follows, seen = perm.tolist(), bytearray(n)
        for start in range(n):
            found += not seen[start]
            while not seen[start]:
                seen[start] = 1
                start = follows[start]
    harmonic = sum(1 / k for k in range(1, n + 1))
    return (found - harmonic * len(perms)) / math.sqrt((harmonic - math.pi**2 / 6) * len(perms))


def rises(perms: list[Array]) -> float:
    n = len(perms[0])
    found = sum(int((np.diff(perm) > 0).sum()) for perm in perms)
    return (found - (n - 1) / 2 * len(perms)) / math.sqrt((n + 1) / 12 * len(perms))


def inversions(perms: list[Array]) -> float:
    """Of the first 500 values of each, which are in fair order themselves."""
    n, found, later = 500, 0, np.triu(np.ones((500, 500), bool), 1)
    for perm in perms:
        found += int(((perm[:n, np.newaxis] > perm[:n]) & later).sum())
    return (found - n * (n - 1) / 4 * len(perms)) / math.sqrt(n * (n - 1) * (2 * n + 5) / 72 * len(perms))


STATISTICS: dict[Statistic, tuple[Shuffle, ...]] = {  # and which bad shuffles must fail each
    where_the_first_samples_land: (identity,),
    which_samples_come_first: (identity,),
    serial_correlation: (identity, rotation),
    pairs_of_neighbours: (identity, rotation),
    differences_of_neighbours: (identity, rotation),
    neighbours_that_stay_neighbours: (identity, rotation, affine),
    fixed_points: (identity, rotation, affine),
    cycles: (identity, rotation, affine),
    rises: (identity, rotation),
    inversions: (identity, rotation),
}


# --- what is measured: permutations as they are, and how one follows from another


def of_epochs(shuffle: Shuffle, n: int) -> Iterator[Array]:
    yield from (shuffle(n, 7, epoch) for epoch in range(DRAWS))


def of_seeds(shuffle: Shuffle, n: int) -> Iterator[Array]:
    yield from (shuffle(n, seed, 0) for seed in range(DRAWS))


def from_epoch_to_epoch(shuffle: Shuffle, n: int) -> Iterator[Array]:
    for before, after in pairwise(shuffle(n, 7, epoch) for epoch in range(DRAWS + 1)):
        yield after[np.argsort(before)]


def from_seed_to_seed(shuffle: Shuffle, n: int) -> Iterator[Array]:
    for before, after in pairwise(shuffle(n, seed, 3) for seed in range(DRAWS + 1)):
        yield after[np.argsort(before)]


def from_an_epoch_to_a_seed(shuffle: Shuffle, n: int) -> Iterator[Array]:
    for number in range(DRAWS):
        yield shuffle(n, number + 1, number)[np.argsort(shuffle(n, number, number + 1))]


def from_n_to_the_next_n(shuffle: Shuffle, n: int) -> Iterator[Array]:
    """With the sample that was added left out again."""
    for epoch in range(DRAWS):
        larger = shuffle(n + 1, 7, epoch)
        yield larger[larger != n][np.argsort(shuffle(n, 7, epoch))]


SELECTIONS = (
    of_epochs, of_seeds, from_epoch_to_epoch, from_seed_to_seed, from_an_epoch_to_a_seed, from_n_to_the_next_n
)  # fmt: skip


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("shuffle", "select"), [(numpys, of_epochs), *((ours, select) for select in SELECTIONS)])
def test_a_shuffle_cannot_be_told_from_a_fair_one(shuffle: Shuffle, select: Callable, n: int) -> None:
    """Positions, neighbours, fixed points, cycles, rises, inversions; over epochs, seeds, sizes, and between them."""
    perms = list(select(shuffle, n))
    found = {statistic.__name__: round(statistic(perms), 2) for statistic in STATISTICS}
    assert {name: value for name, value in found.items() if abs(value) > LIMIT} == {}


@pytest.mark.parametrize(("statistic", "bad"), [(stat, bad) for stat, bads in STATISTICS.items() for bad in bads])
def test_each_statistic_can_fail(statistic: Statistic, bad: Shuffle) -> None:
    """A shuffle with the fault that it looks for is far beyond the limit."""
    assert abs(statistic(list(of_epochs(bad, 1009)))) > 2 * LIMIT


def test_affine_maps_show_in_each_epochs_differences() -> None:
    """Together the epochs of an affine map look fair by their differences; each alone is far from it."""
    assert all(abs(differences_of_neighbours([perm])) > 2 * LIMIT for perm in of_epochs(affine, 1009))
    values = [differences_of_neighbours([perm]) for perm in of_epochs(ours, SORTED_UP_TO + 1)]
    assert max(map(abs, values)) < LIMIT


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("along", ["seeds", "epochs"])
@pytest.mark.parametrize("shuffle", [ours, numpys])
def test_every_order_of_a_few_samples_is_equally_likely(shuffle: Shuffle, along: str, n: int) -> None:
    """All n! orders, each some 50 times: also where a Feistel network would be unfair."""
    draws = 50 * math.factorial(n) if n > 3 else 2000
    keys = [(number, 5) if along == "seeds" else (5, number) for number in range(draws)]
    counts = Counter(tuple(shuffle(n, *key).tolist()) for key in keys)
    every = np.array([counts[order] for order in permutations(range(n))])
    assert every.sum() == draws
    assert abs(chi_square(every, draws / len(every), len(every) - 1)) < LIMIT


@pytest.mark.parametrize("n", [SORTED_UP_TO + 1, 10**6, 2**32 - 5, 2**32, 2**40 + 7, 2**62])
def test_batches_of_a_large_set_are_fair_draws(n: int) -> None:
    """The first batch of 2000 epochs: uniform over the set, neighbours unrelated, also in the lowest digits."""
    order = Order(n, 64, drop_last=True, shuffle=True, seed=3)
    whole = np.array([order.sample_ids(epoch, 0, 0, 64) for epoch in range(2000)])
    bins = (whole / n * 16).astype(np.int64).clip(0, 15)
    per_bin = np.bincount(bins.ravel(), minlength=16)
    assert abs(chi_square(per_bin, bins.size / 16, 15)) < LIMIT
    neighbours = np.bincount((bins[:, :-1] * 16 + bins[:, 1:]).ravel(), minlength=256)
    assert abs(chi_square(neighbours, neighbours.sum() / 256, 255)) < LIMIT
    across_epochs = np.bincount((bins[:-1] * 16 + bins[1:]).ravel(), minlength=256)
    assert abs(chi_square(across_epochs, across_epochs.sum() / 256, 255)) < LIMIT
    lowest = np.bincount((whole % 7).ravel(), minlength=7)
    assert abs(chi_square(lowest, whole.size / 7, 6)) < LIMIT
    differences = np.bincount((np.diff(whole, axis=1) % 11).ravel(), minlength=11)
    assert abs(chi_square(differences, differences.sum() / 11, 10)) < LIMIT


# --- properties that hold without chance


@pytest.mark.parametrize("first", range(1, 400, 50))
def test_every_small_size_is_a_bijection(first: int) -> None:
    """All n up to 400, in a few epochs."""
    for n in range(first, first + 50):
        for epoch in range(3):
            assert np.array_equal(np.sort(ours(n, 1, epoch)), np.arange(n))


@pytest.mark.parametrize("n", [SORTED_UP_TO - 1, SORTED_UP_TO, SORTED_UP_TO + 1, 4225, 4226, 4290, 65_536, 1_000_003])
def test_sizes_where_the_method_or_the_square_changes_are_bijections(n: int) -> None:
    """On both sides of the sorted sizes, and squares, which the network fills without a remainder."""
    for epoch in range(3):
        assert np.array_equal(np.sort(ours(n, 1, epoch)), np.arange(n))


@given(
    n=st.one_of(
        st.integers(1, 1 << 62),
        st.integers(1, 1 << 20),
        st.integers(1, 1 << 31).map(lambda root: root * root),
        st.integers(0, 62).map(lambda bits: 1 << bits),
    ),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**40),
    choice=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_samples_never_collide_and_stay_inside_for_any_size(n: int, seed: int, epoch: int, choice: int) -> None:
    """Runs of neighbours, and positions from all over the set, as far as it goes."""
    random = np.random.default_rng(choice)
    start = int(random.integers(0, max(1, n - 1000)))
    run = np.arange(start, min(n, start + 1000))
    positions = np.unique(np.concatenate([run, random.integers(0, n, 1000), [0, n - 1]]))
    ids = Permutation(n, seed, epoch)(positions)
    assert ids.dtype == np.int64
    assert len(np.unique(ids)) == len(positions)
    assert ids.min() >= 0
    assert ids.max() < n


def test_an_order_depends_on_seed_epoch_and_size_alone() -> None:
    """Not on which positions are asked for together, nor on what was asked for before."""
    for n in (100, 10**6, 2**40):
        positions = np.random.default_rng(1).integers(0, n, 500)
        together = Permutation(n, 1, 2)(positions)
        Permutation(n, 2, 1)(positions)
        alone = [int(Permutation(n, 1, 2)(positions[i : i + 1])[0]) for i in range(0, 500, 50)]
        assert together[::50].tolist() == alone
        assert Permutation(n, 1, 3)(positions).tolist() != together.tolist()
        assert Permutation(n, 2, 2)(positions).tolist() != together.tolist()
        assert Permutation(n + 1, 1, 2)(positions).tolist() != together.tolist()
