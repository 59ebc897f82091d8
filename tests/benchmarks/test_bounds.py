"""The smallest model against the number of facts, known and looked up."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from benchmarks import bounds, study_plots
from benchmarks.reference import BOUNDS_IN_WEIGHT, parameters_needed
from benchmarks.studies import Study

from .command_line import smoke

pytestmark = pytest.mark.usefixtures("one_thread")


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
    fit, built = {"slope": 2.0, "intercept": 5.0}, {"parameters": 900, "nonzero": 700}
    study_plots.bounds_figure(minima, fit, built, tmp_path / "bounds.png")
    (axes,) = figures[0].axes
    lines = {
        label.partition(", here")[0]: getattr(drawn, "lines", [drawn])[0].get_xydata()
        for drawn, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for what, p in (("900 all", 900), ("700 not zero", 700)):
        assert lines[f"theorem 4.2, built by hand: {what}"][:, 1].tolist() == [p, p]
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
    assert knows["recall"] >= 0.95, "150 exposures are enough to know the facts of two people"
    enough = rows[(rows["mode"] == "in-weight") & (rows["parameters"] == knows["parameters"])]
    assert enough[enough["n_people"] == 2]["seen_recall"].mean() == knows["recall"]

    assert run("sweep", "status", out)[1] == f"{len(rows)} done, 0 running, 0 waiting, 0 failed\n"
    before = (out / rows["cell"][0] / "row.json").stat().st_mtime_ns
    assert run(*command)[1] == said, "nothing is run again, and the report is the same"
    assert (out / rows["cell"][0] / "row.json").stat().st_mtime_ns == before
