"""The cells of the memory-load studies."""

from pathlib import Path

from benchmarks.cells import World, make_cell, steps_for
from itl_env import FactDatabase, Vocabulary


def test_exposures_are_met() -> None:
    assert steps_for(500, 64, 128) == 1_000
    assert steps_for(1, 1, 128) == 1


def test_unseen_people_have_names_that_nobody_trained_on_has(tmp_path: Path) -> None:
    world = World(30, seed=1, n_unseen=20, unseen_vocabulary="ood")
    names = list(FactDatabase(world.build(tmp_path)).names())
    first = [name.split()[0] for name in names]
    assert len(names) == 50
    assert not set(first[30:]) & set(Vocabulary.load("paper").first_names)
    small = World(30, seed=1, first_names=8, last_names=4)
    assert len({name.split()[0] for name in FactDatabase(small.build(tmp_path)).names()}) == 8
    assert len(list(tmp_path.glob("*.db"))) == 2


def test_a_name_tells_all_settings() -> None:
    cell = make_cell("a", World(30, seed=1), {"lr": 1.0})
    assert cell == make_cell("a", World(30, seed=1), {"lr": 1.0})
    others = [
        make_cell("a", World(30, seed=2), {"lr": 1.0}),
        make_cell("a", World(30, seed=1), {"lr": 2.0}),
    ]
    assert len({cell.name, *(other.name for other in others)}) == 3
    # What is left out is its default, and threads change nothing but the time.
    same = make_cell("a", World(30, seed=1), {"lr": 1.0, "clip": 0.0, "n_threads": 2})
    assert same.name == cell.name
