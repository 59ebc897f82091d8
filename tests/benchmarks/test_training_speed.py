"""The benchmarks of ensembles and of growing worlds: what they report, never how fast it was."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")


def test_ensembles_are_shown_to_train_the_same(run, tmp_path: Path) -> None:
    out = tmp_path / "ensembles"
    status, said, _ = run("bench", "run", "ensembles", "--preset", "smoke", "--out", out)
    assert status == 0
    assert (out / "ensembles.md").read_text() in said
    rows = json.loads((out / "ensembles.json").read_text())["rows"]
    assert [row["members"] for row in rows] == [1, 2]
    assert all(row["equal"] and row["ratio"] > 0 for row in rows)


def test_the_saved_state_does_not_grow_with_people(run, tmp_path: Path) -> None:
    out = tmp_path / "scaling"
    status, said, _ = run("bench", "run", "scaling", "--preset", "smoke", "--out", out)
    assert status == 0
    assert (out / "scaling.md").read_text() in said
    few, many = json.loads((out / "scaling.json").read_text())["rows"]
    assert many["state_mb"] == pytest.approx(few["state_mb"], rel=0.001)
    assert many["dialogues_mb"] > 4 * few["dialogues_mb"]
    assert few["ratio"] == 1.0


@pytest.mark.parametrize("study", ["ensembles", "scaling"])
def test_a_place_that_cannot_be_written_is_one_sentence(run, tmp_path: Path, study: str) -> None:
    (tmp_path / "file").write_text("")
    status, _, said = run("bench", "run", study, "--preset", "smoke", "--out", tmp_path / "file")
    assert status == 1
    assert said.splitlines()[-1].startswith("itl: Cannot write to")
