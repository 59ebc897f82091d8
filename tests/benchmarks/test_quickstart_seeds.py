"""The study over seeds, at its smoke size."""

import json
from pathlib import Path

import pytest

from benchmarks.quickstart_seeds import QuickstartSeedsConfig, quickstart_seeds
from itl_env.errors import ConfigError


def test_every_seed_is_its_own_run_and_is_run_once(tmp_path: Path) -> None:
    lines: list[str] = []
    config = QuickstartSeedsConfig(out=tmp_path / "study", preset="smoke", n_seeds=2)
    study = quickstart_seeds(config, lines.append)
    assert [row["seed"] for row in study["seeds"]] == [0, 1]
    assert study["seeds"][0]["recalls"]["in-weight, trained on"]["asked"] == 16
    again = quickstart_seeds(config, lines.append)
    assert again == study == json.loads((tmp_path / "study" / "seeds.json").read_text())
    with pytest.raises(ConfigError, match="n_people=45, not 20000"):
        quickstart_seeds(QuickstartSeedsConfig(out=tmp_path / "study", n_seeds=2), lines.append)
    table = (tmp_path / "study" / "seeds.md").read_text()
    assert table.count("\n| 0 |") == table.count("\n| 1 |") == 1
