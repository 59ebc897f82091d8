"""The large-scale study, run small: a NanoLlama stands for the pretrained model."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes

from benchmarks import large_scale as module
from benchmarks import studies
from benchmarks.large_scale import PRESETS, LargeScaleConfig, cell, losses_at
from benchmarks.large_scale_plots import facts_figure, steps_figure
from benchmarks.large_scale_report import claim, report
from benchmarks.studies import RESULTS
from itl_agents.nanollama import ByteTokenizer, NanoLlama, NanoLlamaConfig, save_model
from itl_train.rows import read_rows
from itl_train.sft_config import SFTSettings

from .test_hellaswag import ITEMS

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.xdist_group("lm-eval"),  # which is slow to import
]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "nano"
    save_model(NanoLlama(NanoLlamaConfig(d_model=48, n_layers=2, n_heads=2), seed=0), folder)
    ByteTokenizer().save(folder)
    return folder


def test_a_model_is_taught_and_measured_and_a_finished_study_is_only_read(
    run, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    out = tmp_path / "large-scale"
    command = (
        "bench", "run", "large-scale", "--preset", "smoke", "--launcher", "here", "--model", nano,
        "--hellaswag-file", items,
    )  # fmt: skip
    status, said, _ = run(*command, "--out", out)
    assert status == 0
    told = (out / "report.md").read_text()
    assert told in said
    assert "| nano | in-tool | nothing |" in told, "the base"
    assert f"--preset smoke --model nano --hellaswag-file {items.name} --seed 0`" in told
    assert "sft_checkpoint_every 40.0, sft_evaluate_every 40.0" in told
    for figure in ("facts.png", "steps.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    rows = pd.read_csv(out / "runs.csv")
    assert rows["mode"].tolist() == ["in-weight", "in-tool"]
    assert rows["model"].tolist() == ["nano", "nano"]
    knows = rows.iloc[0]
    assert knows["seen_recall"] == 1.0, "40 steps teach four facts"
    assert knows["drift_tv"] > 0
    assert knows["training_seconds"] > 0
    assert knows["hellaswag_items"] == 4
    every = pd.read_csv(out / "checkpoints.csv")
    assert every.groupby("cell")["step"].apply(list).tolist() == [[0, 2], [0, 20, 40]]
    assert every[every["step"] == 20]["drift_n_tokens"].iloc[0] < knows["drift_n_tokens"]

    # As a part of the library, the rows and the checkpoints need no training.
    results = tmp_path / "results" / "large-scale"
    results.mkdir(parents=True)
    for name in ("runs.csv", "checkpoints.csv"):
        (out / name).rename(results / name)
    for place in (studies, module):
        monkeypatch.setattr(place, "RESULTS", results.parent)
    again = tmp_path / "again"
    assert run(*command, "--out", again)[0] == 0
    assert [path.name for path in again.iterdir() if path.is_dir()] == []
    pd.testing.assert_frame_equal(pd.read_csv(again / "checkpoints.csv"), every)
    assert (again / "report.md").read_text() == (out / "report.md").read_text()


def test_a_model_must_be_named_where_the_preset_has_none(run, tmp_path: Path) -> None:
    status, _, said = run("bench", "run", "large-scale", "--out", tmp_path / "out")
    assert status == 2
    assert "name it with --model" in said


def test_the_published_grid_is_one_preset(tmp_path: Path) -> None:
    plan = PRESETS["paper"]
    config = LargeScaleConfig(out=tmp_path, preset="paper")
    cells = [cell(model, job, plan, config) for model, jobs in plan.jobs.items() for job in jobs]
    assert len({each.name for each in cells}) == 6 * 5 + 6
    rates = set()
    for each in cells:
        settings = SFTSettings(database="", **each.settings["sft"])
        assert (settings.batch_size, settings.lora_rank, settings.dtype) == (128, 0, "bfloat16")
        rates.add((settings.model, settings.mode, settings.rate))
    assert ("smollm-135m", "in-weight", 1e-3) in rates
    assert ("smollm-135m", "in-tool", 1e-4) in rates
    assert ("llama-8b", "in-weight", 2e-5) in rates


def test_a_cells_name_hangs_on_what_is_in_files_and_not_on_where_they_are(tmp_path: Path) -> None:
    plan = PRESETS["laptop"]
    job = plan.jobs[""][0]

    def name(content: str, items: str = "{}", **flags: Any) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "model.gguf").write_text(content)
        (folder / "items.jsonl").write_text(items)
        config = LargeScaleConfig(out=tmp_path, hellaswag_file=folder / "items.jsonl", **flags)
        return cell(str(folder / "model.gguf"), job, plan, config).name

    assert name("weights") == name("weights")
    assert (
        len({name("weights"), name("others"), name("weights", seed=1), name("weights", "[]")}) == 4
    )


def row(**changes: Any) -> dict[str, Any]:
    return {
        "model": "m", "mode": "in-tool", "trained": "rank 16", "n_facts": 1_000,
        "hellaswag_acc": 0.43, "hellaswag_acc_change": -0.002, "hellaswag_acc_change_low": -0.01,
        "hellaswag_acc_change_high": 0.006, "drift_tv": 0.05, "drift_tv_error": 0.01, **changes,
    }  # fmt: skip


def known(n_facts: int, *tv_sums: float) -> dict[str, Any]:
    by_answer = json.dumps({"tokens": [10] * len(tv_sums), "tv_sums": tv_sums})
    return {
        "model": "m", "mode": "in-weight", "trained": "all weights", "n_facts": n_facts,
        "drift_by_answer": by_answer,
    }  # fmt: skip


def test_the_claim_is_told_with_intervals() -> None:
    said = claim([row(), known(500, 3.0, 4.0, 3.5), known(100, 1.0, 2.0, 1.4)])
    assert said.splitlines() == [
        "- m, in-tool, 1,000 facts, rank 16: HellaSwag changes by -0.2 points [-1.0, +0.6]; TV is "
        "0.050 [0.030, 0.070].",
        "- m: from 100 to 500 facts known, TV grows, by +0.203 [+0.197, +0.210] over the same "
        "prompts.",
    ]
    looks_up = {**known(1_000, 0.5, 1.0, 0.7), "mode": "in-tool"}
    assert claim([looks_up, known(100, 1.0, 2.0, 1.4)]).splitlines() == [
        "- m, all weights: of the model that knows 100 facts, beside the one that looks up 1,000, "
        "TV is more, by +0.073 [+0.045, +0.102] over the same prompts.",
    ]
    assert not claim([{**looks_up, "trained": "rank 16"}, known(100, 1.0, 2.0)]).startswith("-")
    assert "TV falls, by" in claim([known(100, 3.0, 4.0), known(500, 1.0, 2.1)])
    assert "TV does not clearly change" in claim([known(100, 3.0, 4.0), known(500, 1.0, 6.1)])
    assert claim([]).startswith("Nothing was measured")


def test_a_checkpoint_has_the_loss_that_was_logged_last() -> None:
    metrics = [
        {"step": 5, "loss": 3.0}, {"step": 8, "recall_seen": 0.1}, {"step": 10, "loss": 2.0}
    ]  # fmt: skip
    assert losses_at(metrics, [0, 5, 8, 10, 38]) == [None, 3.0, 3.0, 2.0, 2.0]


def series(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """The points of each series by its label."""
    found = {}
    for drawn in axes.containers:
        line = drawn.lines[0]
        found[drawn.get_label()] = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
    return found


def test_figures_draw_every_run_and_the_published_ones(tmp_path: Path) -> None:
    rows = [
        {
            "model": "m", "mode": mode, "trained": trained, "n_facts": n, "parameters": 135,
            "seen_recall": recall, "hellaswag_acc": 0.4, "hellaswag_acc_relative": share,
            "hellaswag_acc_relative_low": share - 0.1, "hellaswag_acc_relative_high": share + 0.1,
            "drift_tv": 1 - share, "steps_to_recall": steps,
        }
        for mode, trained, n, recall, share, steps in (
            ("in-weight", "all weights", 500, 0.9, 0.8, None),
            ("in-weight", "all weights", 100, 0.95, 0.9, 70),
            ("in-tool", "all weights", 1_000, 1.0, 0.9, 30),
            ("in-tool", "rank 16", 1_000, 1.0, 1.0, 20),
        )
    ]  # fmt: skip
    figure = facts_figure(rows, tmp_path / "facts.png")
    hellaswag, relative, drift, steps, size, _ = figure.axes
    known, all_weights, looked_up = (
        "m, in-weight, all weights", "m, in-tool, all weights", "m, in-tool, rank 16"
    )  # fmt: skip
    one = [(1_000, 0.4)]
    assert series(hellaswag) == {
        known: [(100, 0.4), (500, 0.4)], all_weights: one, looked_up: one
    }  # fmt: skip
    assert series(relative)[known] == [(100, 0.9), (500, 0.8)]
    assert series(drift)[looked_up] == [(1_000, 0.0)]
    assert series(steps)[known] == [(100, 70)], "the other never got there"
    assert series(steps)[looked_up] == [(1_000, 20)]
    assert series(size)[known] == [(135, 0.95), (135, 0.9)]
    assert {axes.get_xlabel() for axes in (hellaswag, relative, drift, steps)} == {"facts"}
    faint = {line.get_label(): line for line in relative.lines if "published" in line.get_label()}
    published = faint["published, six models, in-weight"]
    assert (500, 0.94) in list(zip(published.get_xdata(), published.get_ydata(), strict=True))
    assert published.get_alpha() == 0.5

    every = pd.DataFrame(
        {
            "cell": ["a", "a", "b"], "model": "m", "mode": ["in-weight", "in-weight", "in-tool"],
            "n_facts": [100, 100, 1_000], "step": [5, 0, 0], "seen_recall": [0.5, 0.0, 0.1],
            "trained": "rank 16", "hellaswag_acc": [0.3, 0.4, 0.4],
            "hellaswag_acc_change": [-0.1, 0.0, 0.0], "drift_tv": [0.2, 0.0, 0.0],
            "drift_kl": [0.6, 0.0, 0.0], "loss": [1.5, None, None],
        }
    )  # fmt: skip
    recall, hellaswag, drift, loss = steps_figure(every, tmp_path / "steps.png").axes
    label = "m, in-weight, 100 facts, rank 16"
    assert series(recall) == {
        label: [(0, 0.0), (5, 0.5)], "m, in-tool, 1,000 facts, rank 16": [(0, 0.1)]
    }  # fmt: skip
    assert series(hellaswag)[label] == [(0, 0.0), (5, -0.1)], "of the very items"
    assert series(drift)[label] == [(0, 0.0), (5, 0.2)]
    assert series(loss) == {label: [(1.5, 0.6)]}


PUBLISHED = [folder for folder in [RESULTS / "large-scale"] if (folder / "report.md").exists()]


@pytest.mark.parametrize("folder", PUBLISHED)
def test_the_report_in_the_repository_follows_from_the_rows_beside_it(folder: Path) -> None:
    whole = json.loads((folder / "study.json").read_text())
    assert (folder / "report.md").read_text().startswith(report(whole))
    there = read_rows(folder / "runs.csv")
    assert list(there) == [row["cell"] for row in whole["rows"]]
    for row in whole["rows"]:
        assert {name: row[name] for name in there[row["cell"]]} == pytest.approx(
            there[row["cell"]], nan_ok=True
        )
