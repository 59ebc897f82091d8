"""The study of the circuit, small: what it writes, and that its parts measure what they say."""

import json
import shutil
from itertools import pairwise

import pytest
from PIL import Image

from benchmarks.circuit import (
    FAMILIES,
    PRESETS,
    CircuitConfig,
    any_text,
    cases,
    circuit,
    distance,
    growth,
    kept,
    report,
    sampled,
    sampled_places,
    size_of,
)
from itl_env.facts import ATTRIBUTES

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
    counts = iter(result["counts"])
    monkeypatch.setattr("benchmarks.circuit.every_attribute", lambda *_: next(counts))
    monkeypatch.setattr("benchmarks.circuit.sampled", lambda n_names, n: result["worlds"][0])
    again = circuit(CircuitConfig(out=out, preset="smoke"), lambda line: None)
    assert asked == []
    assert again["recalls"] == result["recalls"]


def test_another_circuit_is_asked_anew(study, tmp_path, monkeypatch):
    out, _, _ = study
    shutil.copytree(out / "asked", tmp_path / "asked")
    case = next(cases(PRESETS["smoke"]))
    asked = []
    monkeypatch.setattr("benchmarks.circuit.ask", lambda case, say: asked.append(case) or {})
    kept(tmp_path, 0, case, print)
    assert asked == []
    kept(tmp_path, 0, case._replace(attributes=ATTRIBUTES[:3]), print)
    assert len(asked) == 1


def test_worlds_of_any_size_are_asked_by_one_circuit(study):
    _, result, _ = study
    sizes = {(row["nonzero"], row["parameters"]) for row in result["worlds"]}
    assert sizes == {(1_376, 7_673)}
    assert all(row["right"] == row["asked"] > 0 for row in result["worlds"])


def test_every_circuit_that_is_counted_is_asked_for_each_of_its_attributes(study):
    _, result, _ = study
    assert {row["attributes"] for row in result["counts"]} == {1, 2, 4}
    assert all(row["right"] == row["asked"] == 64 for row in result["counts"])


def test_people_are_sampled_from_the_whole_world():
    row = sampled(10_000_000, 20)
    assert row["asked"] == row["names"] == row["right"] == 20
    places = sampled_places(10_000_000, 1_000)
    assert max(places) > 9_900_000
    assert 400 < sum(place < 5_000_000 for place in places) < 600
    assert sampled_places(5, 1_000) == [0, 1, 2, 3, 4]


def test_names_that_are_any_text_are_what_they_are_said_to_be():
    rows = list(any_text(2_000))
    names = [row["name"] for row in rows]
    assert len(set(names)) == 2_000
    lengths = {len(name.encode()) for name in names}
    assert min(lengths) == 1
    assert max(lengths) == 60
    text = "".join(names)
    assert all(letter in text for letter in "a-é李🧪яω7 ")
    for n, row in enumerate(rows):
        assert all(names[(n + 1) % 2_000] in row[attribute] for attribute in ATTRIBUTES)
    assert len({row["occupation"][0] for row in rows}) > 20
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
    assert "after 7 steps has 350 parameters, 3.5 times the 100" in distance(twins, small, 7)
    assert "None of these models" in distance(twins[:1], small, 7)


@pytest.mark.parametrize("family", FAMILIES.values())
def test_size_grows_no_faster_than_the_theorem_allows(family):
    counts = [size_of(family[:n], "compact") for n in (16, 32, 64)]
    for smaller, larger in pairwise(counts):
        assert larger["parameters"] <= 4 * smaller["parameters"]
        assert larger["nonzero"] <= 2.2 * smaller["nonzero"]
        assert larger["blocks"] <= 8
