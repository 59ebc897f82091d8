"""The throughput of tools: what is reported, never how fast anything was."""

import json
import math
from collections import Counter

import pytest

from benchmarks import throughput_tools
from benchmarks.throughput_tools import ThroughputToolsConfig, calculations, env_steps
from itl_env.errors import EnvironmentFailure
from itl_env.subprocess_executor import SubprocessExecutor
from itl_env.tool_call import ToolCallTask

pytestmark = pytest.mark.xdist_group("throughput-tools")  # so that it is measured once


@pytest.fixture(scope="module")
def measured(tmp_path_factory, require):
    try:
        SubprocessExecutor()
    except EnvironmentFailure as failure:
        require(False, str(failure))
    out = tmp_path_factory.mktemp("throughput-tools")
    shown: list[str] = []
    config = ThroughputToolsConfig(out, preset="smoke")
    return out, throughput_tools.throughput_tools(config, shown.append), shown


def test_every_part_is_measured(measured):
    _, results, _ = measured
    assert Counter(row["unit"] for row in results["comparisons"]) == {
        "calls/s": 3,
        "programs/s": 3,
        "steps/s": 4,
        "turns/s": 1,
    }
    assert all(0 < row["ratio"] < math.inf for row in results["comparisons"])
    assert [row["unit"] for row in results["absolutes"]] == ["s"] * 4
    assert all(0 < row["value"] < math.inf for row in results["absolutes"])


def test_both_sides_gave_the_same(measured):
    _, results, _ = measured
    assert [row["checked"] for row in results["comparisons"] if row["equal"] is not True] == []


def test_the_files_hold_what_was_returned_and_name_the_machine(measured):
    out, results, shown = measured
    assert json.loads((out / "throughput-tools.json").read_text()) == results
    table = (out / "throughput-tools.md").read_text()
    assert shown == [table]
    for name in ("cpu", "simpleeval", "pydantic-monty"):
        assert results["machine"][name] in table
    assert table.index("ratio") < table.index("| alone |")


def test_a_side_that_computes_something_else_is_found(monkeypatch):
    monkeypatch.setattr(throughput_tools, "simple_eval", lambda expression: 7)
    rows = {row["against"]: row["equal"] for row in calculations(0, 10, 1)}
    assert rows.pop("simpleeval.simple_eval") is False
    assert set(rows.values()) == {True}


def test_an_environment_that_replies_something_else_is_found(monkeypatch):
    monkeypatch.setattr(ToolCallTask, "expert_turn", lambda *_: "{}")
    assert [row["equal"] for row in env_steps("calculator", 0, 10, 4, 1)] == [False, False]
