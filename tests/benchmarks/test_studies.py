"""What the memory-load studies share: searches, rows, reports, interruptions; by their commands."""

import json
import re
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from scipy.stats import linregress

from benchmarks import circuit, studies
from benchmarks.reference import BOUNDS_IN_WEIGHT
from benchmarks.studies import WIDTHS, RecipeConfig, Study, StudyConfig, smallest
from benchmarks.study_report import line_fit, minimum
from itl_train.memory import MemoryRun
from itl_train.memory_config import RECIPES, MemoryConfig
from itl_train.sweep import Cell, Launcher, Row

from .command_line import smoke

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("enough", [*WIDTHS, 1_000])
def test_bisection_finds_the_smallest_width_that_is_enough(enough: int) -> None:
    known: dict[int, bool] = {}
    while (found := smallest(WIDTHS, known.get))[1] is not None:
        assert found[1] not in known
        known[found[1]] = found[1] >= enough
    assert found[0] == (enough if enough in WIDTHS else None)
    assert len(known) <= 5


class Recalls(Study[str]):
    """A study whose runs recall what is given, by width and seed."""

    def __init__(
        self,
        out: Path,
        recalls: dict[tuple[int, int], float],
        preset: Literal["laptop", "paper"] = "laptop",
    ) -> None:
        super().__init__("bounds", StudyConfig(out=out, preset=preset))
        self.recalls = recalls

    def run(self, cells: Sequence[Cell], launcher: Launcher | None = None) -> list[Row]:
        for cell in cells:
            recall = self.recalls[cell.settings["width"], cell.settings["seed"]]
            self.rows[cell.name] = {"cell": cell.name, "seen_recall": recall}
        return [self.rows[cell.name] for cell in cells]


def test_a_width_whose_first_seed_rules_it_out_costs_one_run(tmp_path: Path) -> None:
    def cells(group: str, width: int) -> list[Cell]:
        return [
            Cell(f"{group}-{width}-{seed}", {"width": width, "seed": seed}) for seed in range(3)
        ]

    # Of three widths the middle one is asked first: its best possible mean is 0.9497.
    study = Recalls(tmp_path, {(12, 0): 0.849, **dict.fromkeys([(16, s) for s in range(3)], 0.95)})
    assert study.search({"a": (8, 12, 16)}, cells) == {"a": 16}
    assert list(study.rows) == ["a-12-0", "a-16-0", "a-16-1", "a-16-2"]
    # 0.8502 may still do, and then the others decide.
    own = {(12, 0): 0.8502, (12, 1): 1.0, (12, 2): 1.0, (8, 0): 0.9, (8, 1): 1.0, (8, 2): 0.9}
    study = Recalls(tmp_path, own)
    assert study.search({"a": (8, 12)}, cells) == {"a": 12}
    assert len(study.rows) == 6


def test_where_every_width_is_run_the_narrowest_that_is_enough_counts(tmp_path: Path) -> None:
    recalls = {(8, 0): 0.1, (12, 0): 1.0, (16, 0): 0.9, (20, 0): 1.0}
    study = Recalls(tmp_path, recalls, preset="paper")
    found = study.search(
        {"a": (8, 12, 16, 20)}, lambda group, d: [Cell(f"{d}", {"width": d, "seed": 0})]
    )
    assert found == {"a": 12}, "bisection would have answered 20"
    assert len(study.rows) == 4


def test_a_fit_is_that_of_least_squares() -> None:
    points = [(4 * n, p) for n, p in BOUNDS_IN_WEIGHT.items()]
    fit = line_fit(points)
    assert fit is not None
    expected = linregress(*zip(*[(x, p) for x, p in points if p is not None], strict=True))
    assert fit["slope"] == pytest.approx(expected.slope)
    assert fit["intercept"] == pytest.approx(expected.intercept)
    assert fit["r2"] == pytest.approx(expected.rvalue**2)
    assert line_fit([(1, 1.0), (2, None), (3, 3.0)]) is None


@pytest.mark.parametrize("study", ["bounds", "generalisation", "compressibility"])
@pytest.mark.parametrize("recipe", ["fast", "published"])
def test_every_width_of_every_preset_is_a_model(
    tmp_path: Path, study: str, recipe: Literal["fast", "published"]
) -> None:
    presets = import_module(f"benchmarks.{study}").PRESETS
    for preset, sizes in presets.items():
        config = RecipeConfig(out=tmp_path, preset=preset, recipe=recipe)
        for width in sizes.widths:
            MemoryConfig(database="x", **config.settings(mode="in-tool", d_model=width))


def test_a_minimum_averages_over_its_seeds_and_names_what_fails_below() -> None:
    rows = [
        {
            "mode": mode, "d_model": d, "parameters": 100 * d, "seen_recall": recall,
            "steps": round(10 * recall), "exposures": 7 * recall, "bits_per_parameter": recall / 2,
        }
        for mode, d, recall in [
            ("in-tool", 8, 1.0), ("in-weight", 8, 0.2), ("in-weight", 12, 0.5),
            ("in-weight", 16, 0.9), ("in-weight", 16, 1.0), ("in-weight", 24, 1.0),
        ]
    ]  # fmt: skip
    found = minimum(rows, {"mode": "in-weight"}, 16)
    assert (found["parameters"], found["failed"]) == (1_600, 1_200)
    assert (found["recall"], found["recall_lowest"], found["recall_highest"]) == (0.95, 0.9, 1.0)
    assert (found["steps"], found["exposures"]) == (10, 7.0), "the most that a seed took"
    assert found["bits_per_parameter"] == pytest.approx(0.475)
    none = minimum(rows, {"mode": "in-weight"}, None)
    assert (none["parameters"], none["failed"], none["recall"]) == (None, 2_400, None)


def test_rows_of_the_library_count_as_done_unless_asked_afresh(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "RESULTS", tmp_path / "results")
    first = tmp_path / "first"
    assert run(*smoke("generalisation", first))[0] == 0
    (tmp_path / "results" / "generalisation").mkdir(parents=True)
    shutil.copy(first / "runs.csv", tmp_path / "results" / "generalisation")

    read, again = tmp_path / "read", tmp_path / "again"
    status, said, _ = run(*smoke("generalisation", read))
    assert status == 0
    assert "2 of the 2 runs came with the library" in said
    assert [path.name for path in read.iterdir() if path.is_dir()] == [], "nothing was trained"
    rows = pd.read_csv(first / "runs.csv")
    pd.testing.assert_frame_equal(rows, pd.read_csv(read / "runs.csv"))
    assert run(*smoke("generalisation", again), "--fresh")[0] == 0
    assert (again / rows["cell"][0]).is_dir()
    same = [column for column in rows if column != "seconds"]
    pd.testing.assert_frame_equal(rows[same], pd.read_csv(again / "runs.csv")[same])
    assert {"unseen_recall", "unseen_low", "unseen_high"} <= set(rows)


PUBLISHED = sorted(
    path.parent.name
    for path in studies.RESULTS.glob("*/runs.csv")
    if (path.parent / "report.md").exists()  # else the study goes on
    and path.parent.name != "large-scale"  # whose cells hang on files that are not here
)


@pytest.mark.parametrize("study", PUBLISHED)
def test_reports_in_the_repository_follow_from_the_rows_beside_them(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str
) -> None:
    """Every run that a study asks for is among its rows, so nothing may be left to train."""

    def only_known(cells: Sequence[Cell], *_: object, known: Sequence[Row], **__: object) -> Any:
        rows = {row["cell"]: row for row in known}
        return [rows[cell.name] for cell in cells]

    def answered(out: Path, place: int, *_: object) -> Row:
        """What the circuit has been asked takes minutes to ask again."""
        known: Row = json.loads((studies.RESULTS / study / "study.json").read_text())
        return dict(known["recalls"][place])

    monkeypatch.setattr(studies, "sweep", only_known)
    monkeypatch.setattr(circuit, "kept", answered)
    assert run("bench", "run", study, "--preset", "laptop", "--out", tmp_path)[0] == 0
    there = studies.RESULTS / study
    ours, rows = (pd.read_csv(folder / "runs.csv") for folder in (tmp_path, there))
    assert set(ours["cell"]) == set(rows["cell"]), "no row is there that the report leaves out"
    for text in (tmp_path / "report.md", there / "report.md"):
        assert "The report was made on: " in text.read_text()
    here, kept = (
        re.sub("The report was made on: .*", "", (folder / "report.md").read_text())
        for folder in (tmp_path, there)
    )
    assert here == kept


def test_an_interrupted_study_goes_on_under_another_recipe(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "generalisation"
    command = (*smoke("generalisation", out), "--recipe", "published")

    train = MemoryRun.train

    def one_then_stop(memory_run: MemoryRun) -> dict[str, Any]:
        if list(out.glob("*/row.json")):
            raise KeyboardInterrupt
        return train(memory_run)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryRun, "train", one_then_stop)
        assert run(*command)[0] == 130
    (done,) = out.glob("*/row.json")
    before = done.stat().st_mtime_ns
    assert run(*command)[0] == 0
    assert done.stat().st_mtime_ns == before
    report = (out / "report.md").read_text()
    assert "--recipe published --match steps" in report
    assert "weight_decay 0.1" in report
    assert "batch_size 32" in report
    assert "n_steps 100000" not in report, "the study's own number of steps was taken"


def test_a_failed_run_is_named_and_the_others_are_kept(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES["fast"], "lr", 1e30)  # which no training survives
    status, _, said = run(*smoke("bounds", tmp_path / "bounds"))
    assert status == 1
    assert "runs failed, such as in-tool-2-people" in said
    assert "--retry" in said


def test_a_study_needs_a_folder(run, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    status, _, said = run("bench", "run", "bounds", "--preset", "smoke", "--out", file)
    assert (status, said) == (2, f"itl: {file} is a file; name a folder.\n")


def test_a_study_of_other_settings_needs_a_folder_of_its_own(run, tmp_path: Path) -> None:
    out = tmp_path / "bounds"
    out.mkdir()
    (out / "made-by.txt").write_text("itl bench run bounds --preset smoke --recipe fast\n")
    status, _, said = run(*smoke("bounds", out), "--recipe", "published")
    assert status == 2
    assert "--recipe fast`, not to `itl bench run bounds --preset smoke --recipe published`" in said
