"""The fact world: reproducible, of the published size, and uniform or correlated as asked."""

import doctest
import hashlib
import itertools
import math
import subprocess
import sys
from collections import Counter

import pytest

from itl_env import facts as facts_module
from itl_env.errors import ConfigError
from itl_env.facts import (
    ATTRIBUTES,
    FAMILY_ATTRIBUTES,
    VOCABULARIES,
    Fact,
    Person,
    Vocabulary,
    facts,
    people,
)


@pytest.fixture(scope="module")
def everyone():
    """All 169,556 people of the paper's vocabulary."""
    return list(people(Vocabulary.load("paper").n_names))


def digest(world):
    return hashlib.sha256("\n".join("|".join(person) for person in world).encode()).hexdigest()


def z_score(counts, n_cells, freedom=None):
    """Pearson's statistic against equal counts, in standard deviations from its mean."""
    freedom = freedom or n_cells - 1
    expected = sum(counts.values()) / n_cells
    missing = (n_cells - len(counts)) * expected
    chi_square = sum((c - expected) ** 2 / expected for c in counts.values()) + missing
    return (chi_square - freedom) / math.sqrt(2 * freedom)


# Vocabularies


def test_paper_has_the_published_cardinalities():
    paper = Vocabulary.load("paper")
    assert (len(paper.first_names), len(paper.last_names), paper.n_names) == (437, 388, 169_556)
    assert [len(paper.values(a)) for a in ATTRIBUTES] == [28 * 12 * 51, 7, 213, 100]


def test_large_names_twenty_million_people_and_shares_the_values_of_paper():
    paper, large = Vocabulary.load("paper"), Vocabulary.load("large")
    assert large.n_names >= 20_000_000
    assert all(large.values(a) == paper.values(a) for a in ATTRIBUTES)


def test_ood_first_names_are_new_and_the_rest_is_as_in_paper():
    paper, large, ood = map(Vocabulary.load, ("paper", "large", "ood"))
    known = {name.lower() for name in (*paper.first_names, *large.first_names)}
    assert len(ood.first_names) == 437
    assert not known & {name.lower() for name in ood.first_names}
    assert ood.last_names == paper.last_names
    assert all(ood.values(a) == paper.values(a) for a in ATTRIBUTES)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_words_are_plain_ascii_so_that_unseen_names_hold_no_unseen_bytes(name):
    vocabulary = Vocabulary.load(name)
    names = vocabulary.first_names + vocabulary.last_names
    assert all(word.isascii() and word.isalpha() and word[0].isupper() for word in names)
    assert all(place.isascii() for place in vocabulary.birth_places + vocabulary.addresses)
    assert all(job == job.lower() and len(job.split()) <= 2 for job in vocabulary.occupations)


def test_birth_dates_are_written_without_padding():
    dates = Vocabulary.load("paper").values("birth_date")
    assert {"1/1/1950", "28/12/2000", "7/3/1984"} <= set(dates)
    assert len(set(dates)) == 17_136
    assert "29/1/1950" not in dates
    assert "1/1/2001" not in dates


def test_limit_keeps_the_first_names_and_all_values():
    paper = Vocabulary.load("paper")
    small = paper.limit()
    assert small.n_names == 8_192
    assert small.first_names == paper.first_names[:128]
    assert [small.values(a) for a in ATTRIBUTES] == [paper.values(a) for a in ATTRIBUTES]
    with pytest.raises(ConfigError, match="437 first and 388 last"):
        paper.limit(first=438)


def test_word_lists_of_your_own_make_a_world(tmp_path):
    lists = {
        "first_names": ["# ours", "Ann", "Bo"],
        "last_names": ["Lee", "de la Cruz"],
        "birth_places": ["Chad"],
        "addresses": ["Rome", "Oslo"],
        "occupations": ["cook"],
    }
    for name, words in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(words), encoding="utf-8")
    ours = Vocabulary.from_folder(tmp_path, name="ours")
    names = {person.name for person in people(4, vocabulary=ours)}
    assert names == {"Ann Lee", "Ann de la Cruz", "Bo Lee", "Bo de la Cruz"}

    (tmp_path / "addresses.txt").unlink()
    with pytest.raises(ConfigError, match=r"addresses\.txt"):
        Vocabulary.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("first_names", "message"),
    [
        ((), "is empty"),
        (("Ann", "Bo", "Ann"), "repeats 'Ann'"),
        (("Mary Ann",), "must not contain a space"),
        (("Ann ",), "padded"),
        (("A\nnn",), "not printable"),
    ],
)
def test_a_vocabulary_that_cannot_name_people_is_refused(first_names, message):
    with pytest.raises(ConfigError, match=message):
        Vocabulary("ours", first_names, ("Lee",), ("Chad",), ("Rome",), ("cook",))


# People


def test_the_same_seed_gives_the_same_bytes_in_every_version():
    assert (
        digest(people(1000)) == "a58aa0feefd27d08ed42844b9ea72ce2a38e4463f6d8245ddf3f041e5d973720"
    )
    assert (
        digest(people(1000, seed=1, vocabulary="ood", correlation=0.5))
        == "0528b8f2ccb9e8235cb016626c072083c3c26f163f9f6489917a30fb181796b3"
    )
    assert (
        digest(people(1000, vocabulary="large", start=49_999_000))
        == "b9d3e9c60b6ee03d5e4edf3279f7a081cd7fafc0fcde130a00d0cc36864e60f9"
    )


def test_a_person_has_four_facts_in_order():
    (person,) = people(1)
    assert person.facts() == tuple(Fact(person.name, a, getattr(person, a)) for a in ATTRIBUTES)
    assert list(facts(3)) == [fact for person in people(3) for fact in person.facts()]
    assert tuple(person._asdict()) == ("name", *ATTRIBUTES)
    assert isinstance(person, Person)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_smaller_world_is_a_prefix_and_any_slice_can_be_made_alone(everyone, correlation):
    # 65,536 is where chunks meet.
    world = everyone if correlation == 0 else list(people(66_000, correlation=correlation))
    assert list(people(10, correlation=correlation)) == world[:10]
    assert list(people(20, correlation=correlation, start=65_530)) == world[65_530:65_550]
    assert list(people(0)) == []


def test_all_names_are_used_once(everyone):
    paper = Vocabulary.load("paper")
    names = {f"{first} {last}" for first in paper.first_names for last in paper.last_names}
    assert len(everyone) == 169_556
    assert {person.name for person in everyone} == names


def test_the_first_people_do_not_share_names_or_families_more_than_by_chance():
    world = list(people(50_000, vocabulary="large"))
    first, last = zip(*(person.name.split(" ") for person in world), strict=True)
    assert abs(z_score(Counter(first), 5_000)) < 5
    assert abs(z_score(Counter(last), 10_000)) < 5


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_values_are_uniform_over_the_whole_list(everyone, attribute):
    values = Vocabulary.load("paper").values(attribute)
    counts = Counter(getattr(person, attribute) for person in everyone)
    assert set(counts) <= set(values)
    assert abs(z_score(counts, len(values))) < 5


@pytest.mark.parametrize(
    "pair", [p for p in itertools.combinations(ATTRIBUTES, 2) if "birth_date" not in p]
)
def test_attributes_are_independent_of_each_other(everyone, pair):
    vocabulary = Vocabulary.load("paper")
    counts = Counter(tuple(getattr(person, a) for a in pair) for person in everyone)
    assert abs(z_score(counts, math.prod(len(vocabulary.values(a)) for a in pair))) < 5


def test_values_do_not_depend_on_the_last_name_without_correlation(everyone):
    counts = Counter((person.name.split(" ")[1], person.birth_place) for person in everyone)
    # Each last name has exactly 437 people, which leaves six free counts to each.
    assert abs(z_score(counts, 388 * 7, freedom=388 * 6)) < 5


def test_seeds_and_vocabularies_give_unrelated_worlds():
    worlds = [list(people(2000, 0)), list(people(2000, 1)), list(people(2000, 0, "ood"))]
    for one, other in itertools.combinations(worlds, 2):
        shared = sum(
            a.current_address == b.current_address for a, b in zip(one, other, strict=True)
        )
        assert shared < 30  # 9.4 expected
        assert sum(a.birth_date == b.birth_date for a, b in zip(one, other, strict=True)) < 5


@pytest.mark.parametrize("correlation", [0.25, 0.75])
def test_family_values_are_shared_at_the_rate_asked_for(correlation):
    vocabulary = Vocabulary.load("paper").limit()
    uniform, mixed, family = (
        list(people(8_192, 0, vocabulary, c)) for c in (0.0, correlation, 1.0)
    )
    assert [p[:2] for p in mixed] == [p[:2] for p in uniform]  # names and birth dates
    inherited = {}
    for attribute in FAMILY_ATTRIBUTES:
        values = vocabulary.values(attribute)
        inherited[attribute] = [
            getattr(p, attribute) == getattr(f, attribute)
            for p, f in zip(mixed, family, strict=True)
        ]
        rate = correlation + (1 - correlation) / len(values)
        assert abs(sum(inherited[attribute]) / 8_192 - rate) < 0.025
        # Values that no family has still occur: correlation does not shrink the vocabulary.
        assert {getattr(p, attribute) for p in mixed} == set(values)
    both = sum(map(lambda a, b: a and b, inherited["occupation"], inherited["current_address"]))
    rates = [correlation + (1 - correlation) / v for v in (100, 213)]
    assert abs(both / 8_192 - math.prod(rates)) < 0.025


def test_full_correlation_makes_each_family_one():
    world = list(people(8_192, 0, Vocabulary.load("paper").limit(), 1.0))
    families = {
        (p.name.split(" ")[1], p.birth_place, p.current_address, p.occupation) for p in world
    }
    assert len(families) == 64
    assert len({p.birth_date for p in world}) > 5_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 169_557}, "'paper' has 169,556"),
        ({"n": 1, "start": 169_556}, "'paper' has 169,556"),
        ({"n": -1}, "negative"),
        ({"n": 1, "start": -1}, "negative"),
        ({"n": 1, "correlation": 1.1}, r"\[0, 1\]"),
        ({"n": 1, "correlation": float("nan")}, r"\[0, 1\]"),
        ({"n": 1, "vocabulary": "huge"}, "paper, large, ood"),
    ],
)
@pytest.mark.parametrize("function", [people, facts])
def test_impossible_worlds_are_refused_at_the_call(function, arguments, message):
    with pytest.raises(ConfigError, match=message):
        function(**arguments)


def test_an_unknown_attribute_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match="birth_date, birth_place"):
        Vocabulary.load("paper").values("shoe_size")


# The module


def test_making_people_needs_neither_torch_nor_datasets():
    code = (
        "import sys, itl_env.facts, itl_env.export\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'pandas', 'trl'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_documented_examples_run():
    assert doctest.testmod(facts_module).failed == 0
