"""From how many people looking up is learnt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from benchmarks import generalisation
from benchmarks.studies import Study
from benchmarks.study_plots import generalisation_figure
from itl_train.sweep import Cell, Row

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_seeds_that_recall_the_same_are_drawn(tmp_path: Path) -> None:
    # The mean of three times 0.1 is above 0.1, by rounding.
    row = {"d_model": 8, "n_people": 4, "parameters": 6_248, "unseen_recall": 0.1}
    generalisation_figure([row] * 3, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


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
