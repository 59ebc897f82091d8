"""The throughput of a pretrained model: what is reported, never how fast anything was."""

import json
import math
from pathlib import Path

from ..itl_train.test_sft import tiny_llama


def test_both_ways_are_timed_and_their_memory_measured(run, one_thread, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said, _ = run(
        "bench", "run", "throughput-sft", "--preset", "smoke", "--n-threads", "1", "--model",
        tiny_llama(tmp_path / "llama"), "--out", out,
    )  # fmt: skip
    assert status == 0
    assert (out / "throughput-sft.md").read_text() in said
    results = json.loads((out / "throughput-sft.json").read_text())
    assert [row["unit"] for row in results["comparisons"]] == ["tokens/s", "questions/s"]
    for row in results["comparisons"]:
        assert 0 < row["ratio"] < math.inf
    assert all(megabytes > 100 for megabytes in results["memory_mb"].values())
    assert [row["equal"] for row in results["comparisons"]] == [None, True]
    assert results["model"] == "llama"


def test_a_model_must_be_named(run, tmp_path: Path) -> None:
    status, _, said = run("bench", "run", "throughput-sft", "--out", tmp_path / "out")
    assert status == 2
    assert "Name a model with --model" in said
