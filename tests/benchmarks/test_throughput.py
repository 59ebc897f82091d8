"""The throughput benchmark: what it reports, never how fast anything was."""

import json
import math
import subprocess
import sys

import pytest

from benchmarks.throughput import ThroughputConfig, throughput
from benchmarks.timing import compare, race

pytestmark = pytest.mark.xdist_group("throughput")  # so that it is measured once


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    import torch

    out = tmp_path_factory.mktemp("throughput")
    shown = []
    threads = torch.get_num_threads()
    # Small tensors on several busy cores are slower than on one.
    results = throughput(ThroughputConfig(out, preset="smoke", n_threads=1), shown.append)
    torch.set_num_threads(threads)
    return out, results, shown


def keyed(value, word):
    """Every number under a key that contains `word`, however deep."""
    if isinstance(value, list):
        return [number for part in value for number in keyed(part, word)]
    if not isinstance(value, dict):
        return []
    here = [part for key, part in value.items() if word in key]
    return here + [n for key, part in value.items() if word not in key for n in keyed(part, word)]


def test_every_ratio_is_a_positive_number(measured):
    _, results, _ = measured
    ratios = keyed(results, "ratio")
    assert len(ratios) == 3 * len(results["comparisons"])
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios)


def test_both_sides_produced_the_same(measured):
    _, results, _ = measured
    assert [row["checked"] for row in results["comparisons"] if not row["equal"]] == []


def test_every_part_is_measured(measured):
    _, results, _ = measured
    units = [row["unit"] for row in results["comparisons"]]
    assert {unit: units.count(unit) for unit in units} == {
        "lookups/s": 2,
        "steps/s": 4,
        "questions/s": 5,
        "dialogues/s": 9,
        "operations/s": 6,
    }
    assert len(results["absolutes"]) == 7
    assert results["absolutes"][3]["what"].startswith("seconds for 200 expert episodes")
    for row in results["comparisons"]:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["per_s_low"] <= row["per_s"] <= row["per_s_high"]


def test_the_files_hold_what_was_returned_and_name_the_machine(measured):
    out, results, shown = measured
    assert json.loads((out / "throughput.json").read_text()) == results
    table = (out / "throughput.md").read_text()
    assert shown == [table]
    assert results["machine"]["cpu"] in table
    assert results["machine"]["torch_threads"] == 1
    assert table.index("ratio") < table.index("| alone |")
    assert sorted(path.name for path in out.iterdir()) == ["throughput.json", "throughput.md"]


def test_the_config_loads_no_torch():
    code = "import sys, benchmarks.throughput; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_sides_take_turns_and_the_first_round_is_not_counted():
    played = []
    rates = race({name: lambda name=name: played.append(name) or 1 for name in "ab"}, rounds=2)
    assert "".join(played) == "baabba"
    assert all(len(figures) == 2 for figures in rates.values())


def test_a_ratio_is_that_of_the_same_round():
    rates = {"ours": [2.0, 30.0, 4.0], "theirs": [1.0, 10.0, 1.0]}
    row = compare(rates, "ours", "theirs", "x/s", equal=True, checked="")
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (3.0, 2.0, 4.0)
    assert (row["per_s"], row["against_per_s"]) == (4.0, 1.0)
