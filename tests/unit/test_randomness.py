"""Randomness of a sample: from (seed, epoch, sample id) alone, the same for ever, and like nobody else's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefetchd.sampling.randomness import AUGMENT, GLOBAL_SEEDS, TARGET_TRANSFORM, TRANSFORM, SampleRandomness, between

MASK = (1 << 64) - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x64-10 as its authors write it (Random123)."""
    c, k = list(counter), list(key)
    for round_ in range(10):
        if round_:
            k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k[0], second & MASK, (first >> 64) ^ c[3] ^ k[1], first & MASK]
    return c


@pytest.mark.parametrize("place", [(0, 0, 0), (7, 3, 11), (2**63 - 1, 2**53, 2**62)])
def test_words_are_philox_of_key_seed_and_id_and_counter_position_purpose_epoch(place: tuple[int, int, int]):
    seed, epoch, sample_id = place
    rng = SampleRandomness(seed)
    # numpy counts before it computes: the first block is of counter 1.
    words = [word for position in (1, 2, 3) for word in philox([position, AUGMENT, epoch, 0], [seed, sample_id])]
    units = rng.units(epoch, sample_id, 12)
    assert units == [(word >> 11) * 2.0**-53 for word in words]
    assert rng.word(epoch, sample_id, TRANSFORM) == philox([1, TRANSFORM, epoch, 0], [seed, sample_id])[0]


def test_golden_values():
    """What these values are decides every augmented pixel: they must never change."""
    rng = SampleRandomness(42)
    assert rng.units(0, 0, 2) == GOLDEN_UNITS
    assert [rng.word(3, 5, purpose) for purpose in (AUGMENT, TRANSFORM, TARGET_TRANSFORM, GLOBAL_SEEDS)] == GOLDEN_WORDS


GOLDEN_UNITS = [0.8201981478608876, 0.18924562408645496]
GOLDEN_WORDS = [14920583572667559575, 1446213966545091448, 16718418920021517669, 9071566685058263844]


def test_draws_depend_on_nothing_that_was_drawn_before():
    one, other = SampleRandomness(1), SampleRandomness(1)
    other.units(9, 9, 5)
    other.word(1, 2, TRANSFORM)
    other.generator(1, 2, TRANSFORM).random(3, dtype=np.float32)
    assert one.units(4, 5, 40) == other.units(4, 5, 192)[:40]
    expected = one.generator(1, 2, TRANSFORM).integers(1000, size=5).tolist()
    other.generator(1, 2, TRANSFORM).integers(7, dtype=np.int32)  # leaves half a word behind
    assert other.generator(1, 2, TRANSFORM).integers(1000, size=5).tolist() == expected


def test_each_purpose_epoch_sample_and_seed_has_its_own_numbers():
    seen = set()
    for seed in (0, 1):
        rng = SampleRandomness(seed)
        for epoch in range(5):
            for sample_id in range(20):
                for purpose in (AUGMENT, TRANSFORM, TARGET_TRANSFORM, GLOBAL_SEEDS):
                    seen.add(rng.word(epoch, sample_id, purpose))
    assert len(seen) == 2 * 5 * 20 * 4


@pytest.mark.parametrize("word", [0, 20, 32, 64])
def test_units_are_uniform_and_neighbours_are_independent(word: int):
    """Over 20000 samples: mean, variance, an even histogram, no correlation with the next id or the next epoch."""
    rng, n = SampleRandomness(0), 20000
    drawn = np.array([rng.units(0, sample_id, word + 1)[word] for sample_id in range(n)])
    later = np.array([rng.units(1, sample_id, word + 1)[word] for sample_id in range(n)])
    assert abs(drawn.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(drawn.var() - 1 / 12) < 0.005
    counts = np.bincount((drawn * 50).astype(int), minlength=50)
    chi_squared = ((counts - n / 50) ** 2 / (n / 50)).sum()
    assert 20 < chi_squared < 100  # 49 degrees of freedom: far out on either side is a thing of 1 in 10000
    for other in (np.roll(drawn, 1), later):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 5 / math.sqrt(n)


def test_between_stays_between():
    assert between(0.0, (2, 5)) == 2
    assert 2 <= between(1 - 2**-53, (2, 5)) <= 5
    assert between(0.25, (-1, 1)) == -0.5
