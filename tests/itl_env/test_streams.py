"""Named random streams: the same values everywhere, uniform, and true permutations."""

import doctest
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itl_env import streams

KEYS = st.integers(0, 2**64 - 1)


def test_bits_are_those_of_the_published_splitmix64():
    first_five = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert streams.bits(1234567, np.arange(5)).tolist() == first_five


def test_a_key_does_not_change_between_versions():
    assert streams.key(0, "world", 7) == 14001585254573255676


def test_keys_tell_apart_what_looks_alike():
    alike = [(0,), (1,), (0, "1"), (0, 1), (0, "a", "b"), (0, "ab"), (0, "a,b"), (-1,), (2**70,)]
    assert len({streams.key(seed, *names) for seed, *names in alike}) == len(alike)
    assert streams.key(np.int64(3), "a", np.uint8(1)) == streams.key(3, "a", 1)


@given(KEYS, st.integers(1, 2**32 - 1), st.integers(0, 2**40))
def test_uniform_index_is_the_exact_multiply_shift_of_the_bits(key, n, counter):
    counters = np.array([counter])
    assert (
        streams.uniform_index(key, counters, n)[0]
        == (int(streams.bits(key, counters)[0]) * n) >> 64
    )


def test_uniform_index_reaches_all_values_equally_often():
    n, draws = 213, 200_000
    counts = np.bincount(streams.uniform_index(5, np.arange(draws), n).astype(int), minlength=n)
    chi_square = ((counts - draws / n) ** 2 / (draws / n)).sum()
    assert abs(chi_square - (n - 1)) < 5 * math.sqrt(2 * (n - 1))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_bernoulli_has_its_probability(probability):
    rate = streams.bernoulli(9, np.arange(100_000), probability).mean()
    assert abs(rate - probability) <= (0 if probability in (0, 1) else 0.01)


@given(KEYS, st.integers(1, 2000))
@settings(max_examples=200)
def test_permute_is_a_bijection_of_its_range(key, n):
    assert np.array_equal(np.sort(streams.permute(np.arange(n), n, key)), np.arange(n))


@given(KEYS, st.integers(10_000, 2**62), st.integers(0, 2**62))
def test_permute_keeps_indices_of_huge_ranges_apart_and_inside(key, n, start):
    indices = (start % (n - 1000)) + np.arange(1000)
    images = streams.permute(indices, n, key)
    assert len(set(images.tolist())) == 1000
    assert int(images.max()) < n


def test_permute_gives_each_image_without_the_others():
    whole = streams.permute(np.arange(5000), 5000, 3)
    some = np.array([[4999, 17], [0, 2500]])
    assert np.array_equal(streams.permute(some, 5000, 3), whole[some])
    assert streams.permute(np.arange(0), 0, 3).size == 0


def test_permute_reaches_all_permutations_of_three_equally_often():
    keys = [streams.key(seed) for seed in range(1500)]
    seen = Counter(tuple(streams.permute(np.arange(3), 3, key).tolist()) for key in keys)
    assert len(seen) == 6
    assert all(abs(count - 250) < 5 * math.sqrt(250) for count in seen.values())


def test_permute_leaves_no_order_behind():
    n = 169_556
    images = streams.permute(np.arange(n), n, 0).astype(float)
    assert abs(np.corrcoef(images, np.arange(n))[0, 1]) < 0.02
    assert abs(np.corrcoef(images[1:], images[:-1])[0, 1]) < 0.02


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="index 5 is not in range"):
        streams.permute(np.array([5]), 5, 0)
    with pytest.raises(ValueError, match="n must be"):
        streams.uniform_index(0, np.arange(2), 0)
    with pytest.raises(ValueError, match="probability must be"):
        streams.bernoulli(0, np.arange(2), 1.5)


def test_the_documented_examples_run():
    assert doctest.testmod(streams).failed == 0
