"""What facts that follow from one another save."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import compressibility

from .command_line import smoke

pytestmark = pytest.mark.usefixtures("one_thread")


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
