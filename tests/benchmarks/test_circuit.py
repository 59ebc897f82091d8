"""The study of the circuit, small: what it writes, and that its parts measure what they say."""

import json
from itertools import pairwise

import pytest
from PIL import Image

from benchmarks.circuit import (
    FAMILIES,
    CircuitConfig,
    any_text,
    circuit,
    distance,
    growth,
    report,
    sampled,
    size_of,
)

pytestmark = pytest.mark.xdist_group("circuit")  # one process, so that the study runs once


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("circuit") / "study"
    said: list[str] = []
    return out, circuit(CircuitConfig(out=out, preset="smoke"), said.append), said


def test_every_answer_is_right_and_every_margin_one(study):
    _, result, said = study
    assert all(row["right"] == row["asked"] > 0 for row in result["recalls"])
    assert all(row["margin"] == 1.0 for row in result["recalls"])
    assert {row["style"] for row in result["recalls"]} == {"compact", "fenced"}
    assert {row["attributes"] for row in result["recalls"]} == {1, 4, 16}
    assert "the paper's world, compact: 100.0%" in said[0]


def test_the_report_and_its_figures_are_written(study):
    out, result, said = study
    assert report(json.loads((out / "study.json").read_text())) in (out / "report.md").read_text()
    assert said[-1] == (out / "report.md").read_text()
    for name in ("circuit.png", "attention.png"):
        assert Image.open(out / name).size[0] > 500
    assert (out / "runs.csv").exists()
    assert result["twins"][0]["parameters"] > result["recalls"][0]["parameters"]


def test_given_again_it_asks_nothing_again(study, monkeypatch):
    out, result, _ = study
    asked = []
    monkeypatch.setattr("benchmarks.circuit.ask", lambda case, say: asked.append(case))
    monkeypatch.setattr("benchmarks.circuit.sampled", lambda n_names, n: result["worlds"][0])
    again = circuit(CircuitConfig(out=out, preset="smoke"), lambda line: None)
    assert asked == []
    assert again["recalls"] == result["recalls"]


def test_the_size_is_the_same_for_any_number_of_names(study):
    _, result, _ = study
    sizes = {(row["nonzero"], row["parameters"]) for row in result["worlds"]}
    assert sizes == {(1_376, 7_673)}
    assert all(row["right"] == row["asked"] > 0 for row in result["worlds"])


def test_people_are_sampled_from_the_whole_world():
    row = sampled(10_000_000, 20)
    assert row["asked"] == row["names"] == row["right"] == 20


def test_names_that_are_any_text_are_what_they_are_said_to_be():
    rows = list(any_text(2_000))
    names = [row["name"] for row in rows]
    assert len(set(names)) == 2_000
    lengths = {len(name.encode()) for name in names}
    assert min(lengths) == 1
    assert max(lengths) == 60
    text = "".join(names)
    assert all(letter in text for letter in "a-é李🧪яω7 ")
    assert any(row["occupation"].startswith(names[n + 1]) for n, row in enumerate(rows[:-1]))
    assert rows[:50] == list(any_text(2_000))[:50]


def test_growth_is_fitted_over_the_compact_circuits_of_a_family():
    rows = [
        {
            "family": name,
            "style": s,
            "attributes": n,
            "nonzero": 10 * n + 5,
            "parameters": n * n,
        }
        for name in FAMILIES
        for s in ("compact", "fenced")
        for n in (1, 2, 4)
    ]
    said = growth(rows)
    assert said.count("10 |A| +5 (R^2 1.000)") == 2
    assert said.count("like |A|^2.00") == 2


def test_the_distance_is_to_the_smallest_trained_model_that_recalls_enough():
    small = {"parameters": 100, "nonzero": 10}
    twins = [{"parameters": n, "unseen_recall": recall} for n, recall in ((200, 0.9), (350, 0.96))]
    assert "has 350 parameters, 3.5 times the 100" in distance(twins, small)
    assert "None of these models" in distance(twins[:1], small)


@pytest.mark.parametrize("family", FAMILIES.values())
def test_size_grows_no_faster_than_the_theorem_allows(family):
    counts = [size_of(family[:n], "compact") for n in (16, 32, 64)]
    for smaller, larger in pairwise(counts):
        assert larger["parameters"] <= 4 * smaller["parameters"]
        assert larger["nonzero"] <= 2.2 * smaller["nonzero"]
        assert larger["blocks"] <= 8
