"""The committed tables follow from the figures beside them, and the README from both."""

import csv
import json
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    circuit,
    ensembles,
    intervention_dose,
    intervention_layers,
    quickstart,
    quickstart_model,
    quickstart_seeds,
    scaling,
    throughput,
    throughput_sft,
    throughput_tools,
    throughput_transcoders,
    tool_calling,
    transcoder_validation,
)
from benchmarks.large_scale_report import paired_drift
from benchmarks.statistics import Z, holm, interval
from benchmarks.studies import RESULTS
from benchmarks.study_report import line_fit

from ..itl_env.hostile_tools import CALCULATOR, CPYTHON, MONTY

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")


def figures(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


@pytest.mark.parametrize(
    ("name", "table", "report"),
    [
        ("throughput/throughput.json", "throughput.md", throughput.report),
        ("throughput-sft/throughput-sft.json", "throughput-sft.md", throughput_sft.report),
        ("ensembles/ensembles.json", "ensembles.md", ensembles.report),
        ("ensembles-one-thread/ensembles.json", "ensembles.md", ensembles.report),
        ("scaling/scaling.json", "scaling.md", scaling.report),
        ("quickstart/results.json", "report.md", quickstart.report),
        ("quickstart-model/results.json", "report.md", quickstart_model.report),
        ("quickstart-model-seed-1/results.json", "report.md", quickstart_model.report),
        ("quickstart-seeds/seeds.json", "seeds.md", quickstart_seeds.table),
        ("tool-calling/results.json", "report.md", tool_calling.report),
        ("intervention-dose/results.json", "report.md", intervention_dose.report),
        ("intervention-layers/results.json", "report.md", intervention_layers.report),
        ("transcoder-validation/results.json", "report.md", transcoder_validation.report),
        (
            "throughput-transcoders/throughput-transcoders.json",
            "throughput-transcoders.md",
            throughput_transcoders.report,
        ),
        ("throughput-tools/throughput-tools.json", "throughput-tools.md", throughput_tools.report),
    ],
)
def test_a_table_follows_from_its_figures(
    name: str, table: str, report: Callable[[dict[str, Any]], str]
) -> None:
    assert report(figures(name)) == (RESULTS / name).with_name(table).read_text()


def two_digits(value: float) -> str:
    return f"{value:#.2g}".rstrip(".")


def test_the_ratios_of_the_readme_are_those_that_were_measured() -> None:
    rows = figures("throughput/throughput.json")["comparisons"]

    def ratio(what: str, against: str) -> str:
        (found,) = [r for r in rows if r["what"].startswith(what) and against in r["against"]]
        return two_digits(found["ratio"])

    expected = [
        ratio("NanoLlama, AdamW, in-weight", "padded"),
        ratio("NanoLlama, bfloat16, compiled, in-weight", "padded"),
        *(
            f"{ratio(f'NanoLlama, AdamW, in-tool {style}', 'padded')}; "
            f"{ratio(f'NanoLlama, bfloat16, compiled, in-tool {style}', 'padded')}"
            for style in ("compact", "fenced")
        ),
        *(
            ratio(f"NanoLlamaAgent, {mode}, 1,024 lanes", against)
            for mode in ("in-tool compact", "in-weight")
            for against in ("generate", "plain loop")
        ),
        ratio("FactDatabase.lookup", "unique name"),
        ratio("RecallTask.advance", ""),
        ratio("FactRecallVectorEnv", ""),
        ratio("FactRecallEnv", ""),
    ]
    (table,) = re.findall(r"\| library \| instead \| ratio \|\n\|[-|:]+\|\n((?:\|.*\n)+)", README)
    assert [line.split("|")[-2].strip() for line in table.splitlines()] == expected


def test_the_readme_says_how_fast_a_pretrained_model_is_taught_and_asked() -> None:
    found = figures("throughput-sft/throughput-sft.json")
    training, in_bfloat16, asking = (row["ratio"] for row in found["comparisons"])
    library, usual = (found["memory_mb"][side] / 1_000 for side in ("library", "usual"))
    text = " ".join(README.split())
    assert f"look facts up {two_digits(training)} times as fast as by TRL's" in text
    assert f"float32; {two_digits(in_bfloat16)} with bfloat16 here and float32 there)" in text
    assert f"within {library:.1f} GB instead of {usual:.1f}" in text
    assert round(asking) == 9
    assert "a ninth of the time" in text


def test_the_readme_says_how_the_quickstart_went() -> None:
    seeds = figures("quickstart-seeds/seeds.json")["seeds"]
    recalls = [100 * row["recalls"]["in-tool, never seen"]["recall"] for row in seeds]
    seconds = [row["seconds"] for row in seeds]
    text = " ".join(README.split())
    assert f"{min(recalls):.1f}% to {max(recalls):.1f}%" in text
    assert f"took {min(seconds):.0f} to {max(seconds):.0f} s on two cores" in text


def test_the_readme_says_how_the_quickstart_went_with_a_pretrained_model() -> None:
    found = figures("quickstart-model/results.json")
    before, after = found["rows"]
    share = interval(after["recall"], after["low"], after["high"])
    seconds = found["seconds"]
    text = " ".join(README.split())
    assert (
        f"took {seconds['in all'] / 60:.1f} minutes on two cores of an {found['machine']['cpu']}, "
        f"{seconds['train in-tool'] / 60:.1f} of them for training"
    ) in text
    assert f"of {after['asked']} questions" in text
    assert f"the model answers {share} exactly, and {100 * before['recall']:.1f}% before" in text
    _, other = figures("quickstart-model-seed-1/results.json")["rows"]
    share = interval(other["recall"], other["low"], other["high"])
    assert f"with `--seed 1`, another world, {share}." in text


def test_the_readme_says_what_knowing_and_looking_up_cost_a_pretrained_model() -> None:
    rows = figures("large-scale/study.json")["rows"]
    looks_up = [row for row in rows if row["mode"] == "in-tool"]
    knows = sorted((r for r in rows if r["mode"] == "in-weight"), key=lambda r: r["n_facts"])
    text = " ".join(README.split())

    def listed(values: list[str]) -> str:
        return f"{', '.join(values[:-1])} and {values[-1]}"

    recalls = sorted(row["unseen_recall"] for row in looks_up)
    assert f"brings {100 * recalls[0]:.1f}% to {100 * recalls[-1]:.1f}% of 400 answers" in text
    changes = sorted(100 * row["hellaswag_acc_change"] for row in looks_up)
    assert f"changes by {changes[0]:+.1f} to {changes[-1]:+.1f} points" in text
    lowest = min(100 * row["hellaswag_acc_change_low"] for row in looks_up)
    assert f"and no interval goes below {lowest:.1f}." in text
    minutes = [row["training_seconds"] / 60 for row in (*looks_up, *knows)]
    assert [row["threads"] for row in (*looks_up, *knows)] == [1, 1, 1, 1, 2, 2]
    assert f"in {min(minutes[:3]):.0f} to {max(minutes[:3]):.0f} minutes on one core" in text
    assert f"Knowing {listed([format(row['n_facts'], ',.0f') for row in knows])} facts" in text
    recalled = listed([f"{100 * row['seen_recall']:.1f}%" for row in knows])
    assert f"({recalled} recalled)" in text
    one, *two = (f"{each:.0f}" for each in minutes[3:])
    assert f"took {one} minutes on one core, {listed(two)} on two" in text
    said = listed([f"{100 * row['hellaswag_acc_change']:+.1f}" for row in knows])
    assert f"HellaSwag by {said} points, where every interval holds 0" in text
    for row in knows:
        assert row["hellaswag_acc_change_low"] <= 0 <= row["hellaswag_acc_change_high"]
    drifts = listed([f"{row['drift_tv']:.3f}" for row in knows])
    assert f"TV from the base is {drifts} if the facts are known" in text
    by_way = {row["trained"]: row for row in looks_up}
    adapter, low_rate = by_way["rank 16 at 0.001"], by_way["all weights at 0.0001"]
    same_rate = by_way["all weights at 0.0003"]
    more = []
    for row in knows:
        difference, error = paired_drift(same_rate, row)
        more.append(interval_text(difference, Z * error))
    assert f"and is {listed(more)} more than if they are looked up" in text
    grows = []
    for fewer, facts in pairwise(knows):
        difference, error = paired_drift(fewer, facts)
        low, high = difference - Z * error, difference + Z * error
        grows.append(f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]")
    assert f"growing by {grows[0]} and then by {grows[1]}" in text
    assert (low_rate["step"], adapter["step"]) == (40, 60)
    assert f"all weights at 1e-4 TV is {low_rate['drift_tv']:.3f}, after 60" in text
    assert f"of an adapter at 1e-3 {adapter['drift_tv']:.3f}." in text


def interval_text(mean: float, half: float) -> str:
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def test_the_tool_calling_of_the_readme_is_what_was_measured() -> None:
    results = figures("tool-calling/results.json")
    readme = " ".join(README.split())

    def share(phase: str, metric: str = "right_outcome") -> str:
        (row,) = [
            row
            for row in results["rows"]
            if row["phase"] == phase and row["category"] in ("all", "facts")
        ]
        low, high = row[f"{metric}_low"], row[f"{metric}_high"]
        return f"{row[metric]:.1%} [{100 * low:.1f}, {100 * high:.1f}]"

    expected = [
        share("scratch", "right_tool"),
        share("scratch"),
        f"{share('scratch, longer numbers')} to {share('after GRPO, longer numbers')}",
        f"{share('half-way, facts')} to {share('after GRPO, facts')}",
        f"{share('pretrained')} before and {share('pretrained, with adapter')} after",
        f"tools take {max(cost['tools'] for cost in results['costs']):.1%} of a step at most",
    ]
    assert [claim for claim in expected if claim not in readme] == []


def test_the_readme_says_how_fast_tools_are() -> None:
    found = figures("throughput-tools/throughput-tools.json")
    readme = " ".join(README.split())

    def row(what: str, against: str) -> dict[str, Any]:
        (only,) = [
            row
            for row in found["comparisons"]
            if row["what"] == what and row["against"].startswith(against)
        ]
        return only

    calculator = row("calculate", "simpleeval.simple_eval")
    python = row("MontyExecutor.run", "subprocess.run")
    samples, programs = (
        next(row["value"] for row in found["absolutes"] if row["what"].startswith(what))
        for what in ("generate 100,000 tasks", "generate 100,000 Python tasks")
    )
    assert (
        f"evaluates {round(calculator['per_s'], -3):,.0f} expressions a second, "
        f"{two_digits(calculator['ratio'])} times as many as `simple_eval`, Python's interpreter "
        f"runs {round(python['per_s'], -2):,.0f} programs, {python['ratio']:.0f} times as many "
        "as a process for each, and 100,000 samples are generated, their calls executed, in "
        f"{samples:.0f} s on one core, of Python in {programs:.0f} s"
    ) in readme


def test_the_readme_says_how_much_of_gsm8k_is_kept() -> None:
    report = (RESULTS / "gsm8k/report.md").read_text(encoding="utf-8")
    (counts,) = re.findall(r"^\| gsm8k \| ([\d,]+) \| \1 \| ([\d,]+) \| ([\d,]+) \|$", report, re.M)
    rows, kept, refused = (int(count.replace(",", "")) for count in counts)
    assert kept + refused == rows
    assert f"of GSM8K's training problems, {kept / rows:.0%} have marks" in " ".join(README.split())


def test_the_readme_says_how_many_hostile_inputs_there_are() -> None:
    n = len(CALCULATOR) + len(MONTY) + len(CPYTHON)
    assert f"Some {round(n, -2)} hostile inputs" in " ".join(README.split())


LAYERS = (6, 12, 18, 24)


def points(row: Mapping[str, Any]) -> str:
    """How much more often one calls than another, as the README says it."""
    value, low, high = (100 * float(row[f"tool_call{end}"]) for end in ("", "_low", "_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def test_the_readme_says_what_a_delta_adds_to_calls() -> None:
    readme, found = " ".join(README.split()), figures("intervention-layers/results.json")
    calls = {
        (row["layer"], row["condition"]): f"{row['tool_call']:.1%}"
        for row in found["rows"]
        if row["subset"] == "tool_ood"
    }
    more = {
        (row["layer"], row["less"]): row
        for row in found["differences"]
        if row["subset"] == "tool_ood"
    }
    dose = {
        (row["layer"], row["alpha"]): f"{row['tool_call']:.1%}"
        for row in figures("intervention-dose/results.json")["rows"]
        if row["subset"] == "tool_ood"
    }
    doses = [dose[12, alpha] for alpha in (0.25, 0.5, 0.75, 1.0, 1.5)]
    assert doses[3] == calls[12, "full"]
    expected = [
        f"calls after {calls[None, 'raw']} of 200 questions in phrasings that it was never "
        "trained on",
        f"With the base at layer 12 in place of the MLP it is {calls[12, 'no_delta']}; with a "
        f"quarter, half, three quarters, all and one and a half of the delta {doses[0]}, "
        f"{doses[1]}, {doses[2]}, {doses[3]} and {doses[4]}",
        f"not from the base with the mean of what it leaves, {calls[12, 'bias only']}",
    ]
    assert [claim for claim in expected if claim not in readme] == []
    for layer in LAYERS:
        own = {less: row for (at, less), row in more.items() if at == layer}
        chances = holm([row["tool_call_p"] for row in own.values()])
        unclear = [less for less, p in zip(own, chances, strict=True) if p >= 0.05]
        assert unclear == (["bias only"] if layer == 12 else list(own))
        assert len(own) == 5
    known = min(row["tool_call"] for row in found["rows"] if row["subset"] == "tool")
    assert f"it calls after {known:.1%} or more whatever stands in for one MLP" in readme


def test_the_readme_says_in_how_many_fine_tunings_a_delta_adds_calls() -> None:
    earlier = RESULTS / "intervention-layers-earlier"
    files = (
        RESULTS / "intervention-layers/differences.csv",
        earlier / "layers-6-12-18-24.csv",
        earlier / "layers-6-24.csv",
    )
    found: dict[int, list[str]] = {layer: [] for layer in LAYERS}
    for file in files:
        for row in csv.DictReader(file.read_text().splitlines()):
            if (row["less"], row["subset"]) == ("untuned delta", "tool_ood"):
                found[int(row["layer"])].append(points(row))
    (table,) = re.findall(r"\| layer \| this fine-tuning .*\n\|[-|:]+\|\n((?:\|.*\n)+)", README)
    assert table.splitlines() == [
        f"| {layer} | {' | '.join([*own, 'not measured'][:3])} |" for layer, own in found.items()
    ]


def test_the_readme_says_how_well_transcoders_fit() -> None:
    rows = figures("transcoder-validation/results.json")["rows"]
    assert sorted({row["layer"] for row in rows}) == list(LAYERS)

    def ends(column: str, d_new: int) -> str:
        values = [row[column] for row in rows if row["d_new"] == d_new]
        return f"{min(values):.2f} to {max(values):.2f}"

    expected = (
        f"The bases leave {ends('base_unexplained', 0)} of the variance of what these MLPs add "
        f"before fine-tuning and {ends('unexplained', 0)} after it; 32, 64 and 128 features beside "
        f"them leave {ends('unexplained', 32)}, {ends('unexplained', 64)} and "
        f"{ends('unexplained', 128)}"
    )
    assert expected in " ".join(README.split())


def test_the_readme_says_how_fast_transcoders_are() -> None:
    rows = figures("throughput-transcoders/throughput-transcoders.json")["comparisons"]
    training, forward, autograd, collecting, writing = (row["ratio"] for row in rows)
    assert (
        f"{training:.0%} of the speed of its matrix products alone, those of its gradients among "
        f"them ({forward:.0%} of its two forward ones), {autograd:.1f} times that of autograd; "
        f"collecting at four layers leaves {collecting:.0%} of the speed of the forward pass, "
        f"replacing an MLP {writing:.0%} of that of generation"
    ) in " ".join(README.split())


def test_the_readme_says_how_the_circuit_compares() -> None:
    found = figures("circuit/study.json")
    readme = " ".join(README.split())
    assert circuit.report(found) in (RESULTS / "circuit/report.md").read_text()
    rows = {(row["about"], row["style"]): row for row in found["recalls"]}
    assert all(row["right"] == row["asked"] and row["margin"] == 1 for row in rows.values())
    world = rows["the paper's world", "compact"]
    fenced = [row for row in rows.values() if row["style"] == "fenced"]
    texts = sum(row["asked"] for row in fenced if "any text" in row["about"])
    unseen = rows["first names of no word list", "fenced"]
    assert (
        f"all of {world['asked']:,} questions about {world['names']:,} people, all of "
        f"{unseen['asked']:,} about first names of no word list, and all of {texts:,} about names"
    ) in readme
    for style in ("compact", "fenced"):
        row = rows["the paper's world", style]
        assert (
            f"| {style} | {row['nonzero']:,} | {row['parameters']:,} | {row['blocks']} | "
            f"{row['d_model']} | {row['heads']} | 1 |"
        ) in README
    assert all(row["parameters"] == world["parameters"] for row in found["worlds"])
    assert f"1 to {found['worlds'][-1]['n_names']:,} names" in readme
    alike = [
        (row["attributes"], row["parameters"])
        for row in found["counts"]
        if (row["family"], row["style"]) == ("all asked for alike", "compact")
    ]
    fit = line_fit(alike)
    assert fit is not None
    assert f"some {round(fit['slope'], -2):,.0f} parameters an attribute" in readme
    *_, below, enough = found["twins"]
    assert below["unseen_recall"] < 0.95 <= enough["unseen_recall"]
    spread = {
        row["parameters"]: interval(
            row["unseen_recall"], row["unseen_lowest"], row["unseen_highest"]
        )
        for row in (below, enough)
    }
    times = enough["parameters"] / world["parameters"]
    assert (
        f"has {enough['parameters']:,} parameters, {times:.1f} "
        f"times the {world['parameters']:,} that are enough ({spread[enough['parameters']]}; with "
        f"{below['parameters']:,} it is {spread[below['parameters']]}; three seeds"
    ) in readme
