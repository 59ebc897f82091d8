"""Gemma Scope: which of its files is taken, and what is said where there is none."""

import huggingface_hub
import pytest

from itl_agents.gemma_scope import gemma_scope
from itl_env.errors import ConfigError, ITLError

from .transcoders import transcoder


def test_gemma_scope_is_found_by_layer_and_percentile(tmp_path):
    for l0 in (110, 6, 25, 7):
        place = tmp_path / f"layer_1/width_16k/average_l0_{l0}"
        transcoder(seed=l0).save_npz(place / "params.npz")
    transcoder(seed=1).save_npz(tmp_path / "layer_11/width_16k/average_l0_5/params.npz")
    for percentile, l0 in ((0.0, 6), (0.25, 7), (0.5, 25), (0.75, 110), (1.0, 110)):
        found = gemma_scope(tmp_path, 1, percentile=percentile)
        assert (found.about.l0, found.hash) == (l0, transcoder(seed=l0).hash)
    with pytest.raises(ConfigError, match="holds no transcoder at layer_2/width_16k"):
        gemma_scope(tmp_path, 2)
    with pytest.raises(ConfigError, match="percentile is 2"):
        gemma_scope(tmp_path, 1, percentile=2)


def test_without_a_connection_the_hub_is_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ITLError, match="no folder here and cannot be had from the hub"):
        gemma_scope("nobody/no-such-transcoders", 1)


def test_a_misspelt_folder_of_transcoders_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda _: pytest.fail("it was asked"))
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("bases", "runs/bases", "a/b/c", str(tmp_path / "bases")):
        with pytest.raises(ConfigError, match=f"There is no folder {name}, and it is no OWNER"):
            gemma_scope(name, 1)
