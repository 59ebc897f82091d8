"""How small a model can be that knows its facts."""

import json
from pathlib import Path

import pytest

from benchmarks import capacity
from itl_train.memory_config import MemoryConfig

from .command_line import smoke

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_width_of_the_capacity_search_is_a_model(tmp_path: Path) -> None:
    for preset, sizes in capacity.PRESETS.items():
        config = capacity.CapacityConfig(out=tmp_path, preset=preset)
        for search in sizes.searches.values():
            for width, hidden in search.shapes.items():
                shape = {"d_model": width, "d_hidden": hidden}
                MemoryConfig(database="x", **config.settings(**capacity.SMALL, **shape))


def test_capacity_is_searched_with_a_small_vocabulary(run, tmp_path: Path) -> None:
    out = tmp_path / "capacity"
    status, said, _ = run(*smoke("capacity", out))
    assert status == 0
    assert (out / "report.md").read_text() in said
    (found,) = json.loads((out / "study.json").read_text())["minima"]
    assert found["parameters"] is not None, "150 exposures are enough to know two people"
    width = found["d_model"]
    # One table of fewer than 260 tokens, and the gain of its norm, beside the blocks.
    assert found["parameters"] < 32 * width**2 + 265 * width
