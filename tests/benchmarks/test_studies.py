"""The memory-load studies: every one runs small, through its command, in real training."""

import json
import re
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.stats import linregress

from benchmarks import bounds, capacity, compressibility, generalisation, studies, study_plots
from benchmarks.reference import BOUNDS_IN_WEIGHT, parameters_needed
from benchmarks.studies import WIDTHS, RecipeConfig, Study, StudyConfig, smallest
from benchmarks.study_plots import generalisation_figure
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


@pytest.mark.parametrize(
    ("recalls", "said"),
    [
        (
            [0.95, 0.2, 0.95, 1.0],
            "from 1,024 people on here, from 1,024 people on in the published",
        ),
        ([0.95, 0.2, 0.3, 0.1], "at no number of people here"),
        ([0.0, 0.95, 0.9, 1.0], "from 256 people on here"),
    ],
)
def test_looking_up_is_learned_where_more_people_do_not_unlearn_it(
    recalls: list[float], said: str
) -> None:
    cells = [
        {"n_people": n, "parameters": 60_372, "unseen_recall": recall}
        for n, recall in zip((64, 256, 1_024, 4_096), recalls, strict=True)
    ]
    text = generalisation.agreement(cells)
    assert said in text
    agreeing = sum(
        (recall >= 0.9) == (n >= 1_024)
        for n, recall in zip((64, 256, 1_024), recalls[:3], strict=True)
    )
    assert text.endswith(f"of 3 numbers of people in both, they agree at {agreeing}.")


def test_sizes_are_compared_with_the_published_ones() -> None:
    minima = [
        {"mode": mode, "parameters": p, "published": published, "facts": facts}
        for mode, p, published, facts in [
            ("in-weight", 6_248, None, 128), ("in-weight", 10_908, 10_908, 256),
            ("in-weight", 23_300, 16_592, 512), ("in-tool", 10_908, 16_592, 256),
            ("in-tool", None, 23_300, 512),
        ]
    ]  # fmt: skip
    assert bounds.agreement(minima).splitlines() == [
        "- in-weight: of 2 sizes that were published too, ours is smaller at 0, equal at 1, larger "
        "at 1.",
        "- in-weight: from 128 to 512 facts (x4) the smallest P grows x3.7.",
        "- in-tool: of 1 sizes that were published too, ours is smaller at 1, equal at 0, larger "
        "at 0.",
    ]


def fixed(*recalls: float) -> dict[str, Any]:
    """What seeds recall with P fixed."""
    mean = sum(recalls) / len(recalls)
    lowest, highest = min(recalls), max(recalls)
    return {
        "parameters": 6_248, "recall": mean, "recall_lowest": lowest, "recall_highest": highest,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bound", "full", "said"),
    [
        (6_248, fixed(0.9, 1.0), "the published study and this one agree."),
        (16_592, fixed(0.9, 1.0), "the published study and this one disagree."),
        (
            10_908,
            fixed(0.9, 1.0),
            "with P fixed at 6,248, recall goes from 25.0% [20.0, 30.0] to 95.0% [90.0, 100.0], so "
            "every seed knows more: the published study and this one agree in direction.",
        ),
        (
            10_908,
            fixed(0.1, 0.1),
            "so every seed knows less: the published study and this one disagree.",
        ),
        (10_908, fixed(0.3, 0.9), "so seeds overlap: these widths cannot tell."),
    ],
)
def test_what_correlation_saves_is_compared_with_what_was_published(
    bound: int, full: dict[str, Any], said: str
) -> None:
    minima = [
        {"n_people": 128, "parameters": p, "bits": bits, "fixed": at_fixed_size}
        for p, bits, at_fixed_size in [(10_908, 4e3, fixed(0.2, 0.3)), (bound, 1e3, full)]
    ]
    ours, *published = compressibility.agreement(minima).splitlines()
    assert "the entropy to 0.25" in ours
    assert ours.endswith(said)
    assert published[1].endswith("8,192 people, published: the smallest P goes to at most 0.73.")


def test_recall_at_a_fixed_size_is_that_of_a_model_too_small_without_correlation() -> None:
    assert compressibility.narrower((8, 12, 16), 16) == 12
    assert compressibility.narrower((8, 12, 16), 8) is None
    assert compressibility.narrower((8, 12, 16), None) == 16


def test_seeds_that_recall_the_same_are_drawn(tmp_path: Path) -> None:
    # The mean of three times 0.1 is above 0.1, by rounding.
    row = {"d_model": 8, "n_people": 4, "parameters": 6_248, "unseen_recall": 0.1}
    generalisation_figure([row] * 3, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_bounds_stand_beside_the_published_ones_and_the_theory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(study_plots, "save", lambda figure, path: figures.append(figure))
    minima = [
        {"mode": mode, "facts": facts, "parameters": p, "failed": None}
        for mode, facts, p in (
            ("in-weight", 128, 10_000), ("in-weight", 256, 20_000), ("in-tool", 256, 15_000)
        )
    ]  # fmt: skip
    study_plots.bounds_figure(minima, {"slope": 2.0, "intercept": 5.0}, tmp_path / "bounds.png")
    (axes,) = figures[0].axes
    lines = {
        label.partition(", here")[0]: getattr(drawn, "lines", [drawn])[0].get_xydata()
        for drawn, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    assert lines["in-weight"].tolist() == [[128, 10_000], [256, 20_000]]
    assert lines["in-tool"].tolist() == [[256, 15_000]]
    published = {n: p for n, p in BOUNDS_IN_WEIGHT.items() if p is not None}
    assert lines["in-weight, published"].tolist() == [[4 * n, p] for n, p in published.items()]
    for bits in (2.0, 3.6):
        (name,) = [name for name in lines if f"at {bits:g} bits" in name]
        for facts, p in lines[name]:
            assert p == pytest.approx(
                parameters_needed(1_000, 31.25, bits) * facts / 4_000, rel=0.01
            )
    (fit,) = [name for name in lines if name.startswith("fit")]
    assert all(p == pytest.approx(2 * facts + 5) for facts, p in lines[fit])


@pytest.mark.parametrize("match", ["steps", "exposures"])
def test_models_are_matched_by_steps_or_by_exposures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, match: Literal["steps", "exposures"]
) -> None:
    asked: list[Cell] = []

    def only_ask(study: Study[None], cells: Sequence[Cell]) -> list[Row]:
        asked.extend(cells)
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "run", only_ask)
    with pytest.raises(KeyboardInterrupt):
        generalisation.generalisation(
            generalisation.GeneralisationConfig(out=tmp_path, match=match)
        )
    steps = [
        (cell.settings["model"]["n_steps"], cell.settings["world"]["n_people"]) for cell in asked
    ]
    seen = {(n_steps, n_steps / n_people) for n_steps, n_people in steps}
    assert len({pair[match == "exposures"] for pair in seen}) == 1
    assert len({pair[match == "steps"] for pair in seen}) == 5


def test_bounds_of_few_people_take_enough_steps_to_learn_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[int, int] = {}

    def only_ask(study: Study[Any], widths: Any, cells: Any) -> dict[Any, None]:
        for group, own in widths.items():
            steps[group.n_people] = cells(group, own[0])[0].settings["model"]["n_steps"]
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "search", only_ask)
    with pytest.raises(KeyboardInterrupt):
        bounds.bounds(bounds.BoundsConfig(out=tmp_path, preset="paper"))
    sizes = bounds.PRESETS["paper"]
    assert steps[2] == sizes.fewest_steps
    assert steps[256] == sizes.exposures * 256 * 4 // 32


def test_all_bits_must_find_room() -> None:
    assert parameters_needed(100, 31.25, 2.0) == 1_563
    for n_people, published in BOUNDS_IN_WEIGHT.items():
        assert published is None or published > parameters_needed(n_people, 31.25, 3.6)


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


def test_every_width_of_the_capacity_search_is_a_model(tmp_path: Path) -> None:
    for preset, sizes in capacity.PRESETS.items():
        config = capacity.CapacityConfig(out=tmp_path, preset=preset)
        for search in sizes.searches.values():
            for width, hidden in search.shapes.items():
                shape = {"d_model": width, "d_hidden": hidden}
                MemoryConfig(database="x", **config.settings(**capacity.SMALL, **shape))


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


def test_bounds_find_a_size_and_a_finished_study_is_only_read(run, tmp_path: Path) -> None:
    out = tmp_path / "bounds"
    command = smoke("bounds", out)
    status, said, _ = run(*command)
    assert status == 0
    assert (out / "report.md").read_text() in said
    for figure in ("bounds.png", "recall.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    rows = pd.read_csv(out / "runs.csv")
    assert set(rows["mode"]) == {"in-weight", "in-tool"}
    assert (rows["seen_low"] <= rows["seen_recall"]).all()
    minima = json.loads((out / "study.json").read_text())["minima"]
    assert [(m["mode"], m["n_people"]) for m in minima] == [
        ("in-weight", 2), ("in-weight", 3), ("in-tool", 2),
    ]  # fmt: skip
    knows = minima[0]
    assert knows["recall"] >= 0.95, "600 exposures are enough to know the facts of two people"
    enough = rows[(rows["mode"] == "in-weight") & (rows["parameters"] == knows["parameters"])]
    assert enough[enough["n_people"] == 2]["seen_recall"].mean() == knows["recall"]

    assert run("sweep", "status", out)[1] == f"{len(rows)} done, 0 running, 0 waiting, 0 failed\n"
    before = (out / rows["cell"][0] / "row.json").stat().st_mtime_ns
    assert run(*command)[1] == said, "nothing is run again, and the report is the same"
    assert (out / rows["cell"][0] / "row.json").stat().st_mtime_ns == before


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

    monkeypatch.setattr(studies, "sweep", only_known)
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


def test_compressibility_draws_what_correlation_saves(run, tmp_path: Path) -> None:
    out = tmp_path / "compressibility"
    status, said, _ = run(*smoke("compressibility", out))
    assert status == 0
    assert "published: the smallest P goes to 0.47" in said
    assert (out / "compressibility.png").read_bytes().startswith(b"\x89PNG")
    free, bound = json.loads((out / "study.json").read_text())["minima"]
    assert bound["bits"] < free["bits"]
    rows = pd.read_csv(out / "runs.csv")
    assert set(rows[rows["seed"] == 1]["d_model"]) == {4}, "too narrow, and run with a new seed"
    for found in (free, bound):
        (own,) = rows[(rows["seed"] == 1) & (rows["correlation"] == found["correlation"])].to_dict(
            "records"
        )
        assert found["fixed"]["recall"] == own["seen_recall"]
        assert found["fixed"]["parameters"] == own["parameters"] < found["parameters"]


def test_capacity_is_searched_with_a_small_vocabulary(run, tmp_path: Path) -> None:
    out = tmp_path / "capacity"
    status, said, _ = run(*smoke("capacity", out))
    assert status == 0
    assert (out / "report.md").read_text() in said
    (found,) = json.loads((out / "study.json").read_text())["minima"]
    assert found["parameters"] is not None, "600 exposures are enough to know two people"
    width = found["d_model"]
    # One table of fewer than 260 tokens, and the gain of its norm, beside the blocks.
    assert found["parameters"] < 32 * width**2 + 265 * width


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
    assert "batch_size 128" in report
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
