"""The quickstart, at a size that trains in seconds: what it writes and how it goes on."""

import json
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import quickstart_model
from benchmarks.quickstart import QuickstartConfig, quickstart
from itl_env.episode import Episode
from itl_env.errors import ConfigError, ITLError

from ..itl_train.test_sft import tiny_llama


def test_a_pretrained_model_is_taught_the_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart_model, "N_FACTS", 8)
    monkeypatch.setattr(quickstart_model, "N_UNSEEN", 8)
    said: list[str] = []
    config = small(tmp_path / "run", n_model_steps=2)
    config = replace(config, model=str(tiny_llama(tmp_path / "llama")))
    results = quickstart_model.quickstart_model(config, said.append)
    assert [row["model"] for row in results["rows"]] == ["before", "after"]
    assert [row["asked"] for row in results["rows"]] == [8, 8]
    text = (tmp_path / "run" / "report.md").read_text()
    assert text.startswith("# Can llama learn to look facts up?")
    assert quickstart_model.table(results) in text
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert quickstart_model.quickstart_model(config, said.append) == results
    assert "is finished" in said[-1]


def test_what_is_no_model_is_refused_before_a_world_is_made(tmp_path: Path) -> None:
    for place in (tmp_path, "nowhere/at/all"):
        config = replace(small(tmp_path / "run"), model=str(place))
        with pytest.raises(ConfigError, match=r"holds no model|There is no model"):
            quickstart_model.quickstart_model(config)
    assert list(tmp_path.iterdir()) == []


def small(out: Path, **changes: int) -> QuickstartConfig:
    sizes = {"n_people": 45, "n_unseen": 20, "n_memorised": 4, "n_steps": 20, "n_twin_steps": 20}
    return QuickstartConfig(out=out, **(sizes | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "run"
    quickstart(small(out), say=lambda line: None)
    return out


def test_it_writes_a_table_a_report_and_a_figure(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    asked = {(row["agent"], row["asked_about"]): row for row in results["rows"]}
    assert {pair: row["asked"] for pair, row in asked.items()} == {
        ("in-tool", "trained on"): 100,
        ("in-tool", "never seen"): 80,
        ("circuit", "never seen"): 80,
        ("in-weight", "trained on"): 16,
        ("in-weight", "never seen"): 80,
        ("guessing", "never seen"): 80,
    }
    for row in results["rows"]:
        assert 0 <= row["recall_low"] <= row["recall"] <= row["recall_high"] <= 1
    assert asked["in-weight", "never seen"]["queried"] == 0
    assert asked["circuit", "never seen"]["right"] == 80
    assert results["bits_per_fact"] == pytest.approx(7.81, abs=0.01)
    report = (finished / "report.md").read_text()
    assert results["machine"]["cpu"] in report
    assert "| in-tool | never seen | 80 |" in report
    with Image.open(finished / "quickstart.png") as figure:
        assert figure.width > 1000


def test_a_finished_run_is_read_not_trained_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    first = json.loads((finished / "results.json").read_text())
    again = quickstart(small(finished), say=lambda line: None)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before


def test_a_run_without_its_figure_is_not_finished(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.plots.quickstart_figure", fail)
        with pytest.raises(OSError, match="No space"):
            quickstart(small(tmp_path / "run"), say=lambda line: None)
    results = quickstart(small(tmp_path / "run"), say=lambda line: None)
    assert (tmp_path / "run" / "quickstart.png").exists()
    assert results["rows"] == json.loads((finished / "results.json").read_text())["rows"]


def test_ctrl_c_leaves_a_run_that_goes_on(finished: Path, tmp_path: Path) -> None:
    def interrupt(run: str, row: dict) -> None:
        if run == "in-weight":
            signal.raise_signal(signal.SIGINT)

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        quickstart(small(out), say=lambda line: None, on_metrics=interrupt)
    assert not (out / "results.json").exists()
    seen: list[str] = []
    asked: list[str] = []

    def note(episodes: Iterable[Episode], label: str, total: int) -> Iterable[Episode]:
        asked.append(label)
        return episodes

    seconds = json.loads((out / "seconds.json").read_text())
    results = quickstart(small(out), lambda line: None, lambda run, row: seen.append(run), note)
    assert "in-tool" not in seen
    assert set(asked) == {"asking in-weight", "asking circuit"}, (
        "of trained models, what was asked is not asked again"
    )
    assert results["seconds"]["ask in-tool"] == seconds["ask in-tool"]
    assert results["rows"] == json.loads((finished / "results.json").read_text())["rows"]


def test_what_cannot_work_is_said_first(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(ConfigError, match="cannot hold 45 unseen"):
        small(tmp_path, n_unseen=45)
    with pytest.raises(ConfigError, match="holds a run with n_steps=20, not 30"):
        quickstart(small(finished, n_steps=30), say=lambda line: None)
    with pytest.raises(ConfigError, match="of another kind"):
        quickstart(small(finished / "in-tool"), say=lambda line: None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ITLError, match="Cannot write the run folder"):
        quickstart(small(tmp_path / "file" / "run"), say=lambda line: None)
    with pytest.raises(ConfigError, match="is a file"):
        quickstart(small(tmp_path / "file"), say=lambda line: None)
    with pytest.raises(ConfigError, match="holds 'file' but no run"):
        quickstart(small(tmp_path), say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
