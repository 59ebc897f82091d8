"""What the memory-load studies share."""

from pathlib import Path

import pytest

from benchmarks.reference import BOUNDS_IN_WEIGHT, parameters_needed
from benchmarks.studies import WIDTHS, World, smallest, steps_for
from itl_env import FactDatabase, Vocabulary


@pytest.mark.parametrize("enough", [*WIDTHS, 1_000])
def test_bisection_finds_the_smallest_width_that_is_enough(enough: int) -> None:
    known: dict[int, float] = {}
    while (found := smallest(WIDTHS, known.get))[1] is not None:
        assert found[1] not in known
        known[found[1]] = float(found[1] >= enough)
    assert found[0] == (enough if enough in WIDTHS else None)
    assert len(known) <= 5


def test_exposures_are_met() -> None:
    assert steps_for(500, 64, 128) == 1_000
    assert steps_for(1, 1, 128) == 1


def test_all_bits_must_find_room() -> None:
    assert parameters_needed(100, 31.25, 2.0) == 1_563
    for n_people, published in BOUNDS_IN_WEIGHT.items():
        assert published is None or published > parameters_needed(n_people, 31.25, 3.6)


def test_unseen_people_have_names_that_nobody_trained_on_has(tmp_path: Path) -> None:
    world = World(30, seed=1, n_unseen=20, unseen_vocabulary="ood")
    names = list(FactDatabase(world.build(tmp_path)).names())
    first = [name.split()[0] for name in names]
    assert len(names) == 50
    assert not set(first[30:]) & set(Vocabulary.load("paper").first_names)
    small = World(30, seed=1, first_names=8, last_names=4)
    assert len({name.split()[0] for name in FactDatabase(small.build(tmp_path)).names()}) == 8
    assert len(list(tmp_path.glob("*.db"))) == 2
