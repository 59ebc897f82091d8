"""The entropy of a world: that of the paper, and equal to the sum over all assignments."""

import itertools
import math
from collections import Counter

import pytest

from itl_env.entropy import family_entropy, world_entropy
from itl_env.errors import ConfigError
from itl_env.facts import FAMILY_ATTRIBUTES, Vocabulary, people


def brute_force_entropy(members, n_values, correlation):
    """The joint entropy of a family's values, summed over all assignments and family values."""
    other = (1 - correlation) / n_values
    entropy = 0.0
    for values in itertools.product(range(n_values), repeat=members):
        probability = 0.0
        for family in range(n_values):
            terms = (other + correlation * (value == family) for value in values)
            probability += math.prod(terms) / n_values
        entropy -= probability * math.log2(probability) if probability else 0
    return entropy


@pytest.mark.parametrize(("members", "n_values"), [(8, 2), (5, 3), (3, 7)])
@pytest.mark.parametrize("correlation", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_family_entropy_equals_the_sum_over_all_assignments(members, n_values, correlation):
    table = family_entropy(members, n_values, correlation)
    expected = [brute_force_entropy(m, n_values, correlation) for m in range(members + 1)]
    assert table == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("correlation", [0.0, 0.02, 0.25, 0.75, 1.0])
def test_family_entropy_grows_with_each_member_by_ever_less_down_to_the_noise(correlation):
    n_values, table = 100, family_entropy(600, 100, correlation)
    other = (1 - correlation) / n_values
    mixture = [correlation + other] + [other] * (n_values - 1)
    noise = -sum(p * math.log2(p) for p in mixture if p)
    increments = table[1:] - table[:-1]
    assert increments[0] == pytest.approx(math.log2(n_values))
    assert (increments[1:] <= increments[:-1] + 1e-6).all()
    assert (increments >= noise - 1e-6).all()


def test_the_world_of_the_paper_has_its_published_entropy():
    entropy = world_entropy(1000)
    assert [round(bits, 2) for bits in entropy.bits.values()] == [14.06, 2.81, 7.73, 6.64]
    assert entropy.bits_per_person == pytest.approx(31.25, abs=0.005)
    assert entropy.bits_per_fact == pytest.approx(7.81, abs=0.005)
    assert entropy.total_bits == pytest.approx(1000 * entropy.bits_per_person)


def test_world_entropy_sums_the_families_that_are_in_the_world():
    tiny = Vocabulary("tiny", ("A", "B", "C"), ("X", "Y"), ("p", "q"), ("r", "s", "t"), ("u",))
    sizes = Counter(person.name[-1] for person in people(4, 7, tiny))
    entropy = world_entropy(4, tiny, correlation=0.5, seed=7)
    for attribute, n_values in [("birth_place", 2), ("current_address", 3), ("occupation", 1)]:
        expected = sum(brute_force_entropy(m, n_values, 0.5) for m in sizes.values()) / 4
        assert entropy.bits[attribute] == pytest.approx(expected, abs=1e-6)
    assert entropy.bits["birth_date"] == math.log2(17_136)


def test_correlation_lowers_the_entropy_to_one_value_per_family():
    vocabulary = Vocabulary.load("paper").limit()
    worlds = [world_entropy(8_192, vocabulary, c) for c in (0, 0.25, 0.5, 0.75, 1)]
    bits = [world.bits_per_person for world in worlds]
    assert bits == sorted(bits, reverse=True)
    shared = sum(math.log2(len(vocabulary.values(a))) for a in FAMILY_ATTRIBUTES)
    assert bits[-1] == pytest.approx(math.log2(17_136) + shared * 64 / 8_192)


def test_entropy_of_an_empty_world_is_refused():
    with pytest.raises(ConfigError, match="without people"):
        world_entropy(0)
