"""The studies of a calculator tool seen from inside, small, and the commands they are made of."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from transformers import Gemma2Config, Gemma2ForCausalLM

from benchmarks import intervention_dose, intervention_layers
from benchmarks.cli import main
from benchmarks.interventions import (
    SHARES,
    Condition,
    Means,
    Subject,
    bias_only,
    differences,
    turned,
)
from benchmarks.toolformer_study import SIZES
from benchmarks.transcoder_validation import _changes
from itl_agents.pretrained import load_pretrained
from itl_agents.sites import site_of
from itl_agents.transcoder import About, Transcoder, dosed, load_npz
from itl_env.toolformer import KINDS, ToolformerRow, load_toolformer_rows
from itl_train.activations import Activations
from itl_train.toolformer_text import Score, format_example
from itl_train.transcoder import fit_of
from itl_train.transcoder_folders import open_base

from ..itl_agents.chat_models import chat_tokenizer
from ..itl_agents.transcoders import transcoder
from .command_line import sentence

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The transcoder of layer", "ignore::FutureWarning"),
    pytest.mark.xdist_group("toolformer-studies"),
]
LOSSES = [1.0, 2.0, 3.0, 4.0]
STUDIES = ("transcoder-validation", "intervention-layers", "intervention-dose")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toolformer")
    for name in STUDIES:
        command = [
            "bench",
            "run",
            name,
            "--runs",
            str(folder / "runs"),
            "--out",
            str(folder / name),
        ]
        assert main(command) == 0
    return folder


def base_and_delta(place, layer=1):
    root = place / "runs"
    delta = Transcoder.load(root / f"deltas-tuned/layer-{layer:02d}/percentile-50/d-4/transcoder")
    bases = (root / f"bases/layer-{layer:02d}").glob("*/transcoder")
    (base,) = [b for b in map(Transcoder.load, bases) if b.hash == delta.about.base_hash]
    return base, delta


def test_every_cell_is_measured_and_every_figure_drawn(place):
    sizes = SIZES["smoke"]
    found = pd.read_csv(place / "transcoder-validation/rows.csv")
    assert len(found) == len(sizes.layers) * len(sizes.percentiles) * (1 + len(sizes.d_new))
    found = pd.read_csv(place / "intervention-layers/rows.csv")
    assert len(found) == len(KINDS) * (1 + 6 * len(sizes.layers))
    assert set(found["n"]) == {sizes.n_evaluate}
    assert found.query("condition == 'raw'")["layer"].isna().all()
    found = pd.read_csv(place / "intervention-dose/rows.csv")
    assert sorted(set(found["alpha"])) == [0, 0.25, 0.5, 0.75, 1, 1.5]
    for figure in ("transcoder-validation/heat", "intervention-layers/layers",
                   "intervention-layers/differences",
                   "intervention-dose/dose"):  # fmt: skip
        assert (place / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    for name in STUDIES:
        results = json.loads((place / name / "results.json").read_text())
        assert results["rows"]
        assert "nan" not in (place / name / "report.md").read_text()
    written = (place / "intervention-layers/generations").glob("layer-01-*-full-*.jsonl")
    assert sorted(len(file.read_text().splitlines()) for file in written) == [4, 4, 4]


def test_no_dose_is_the_base_and_a_whole_one_the_delta(place, run, tmp_path):
    layers = pd.read_csv(place / "intervention-layers/rows.csv")
    runs = tmp_path / "runs"  # without the cells that both studies share
    shutil.copytree(place / "runs", runs, ignore=shutil.ignore_patterns("cells*"))
    command = ("bench", "run", "intervention-dose", "--runs", runs, "--out", tmp_path / "dose")
    assert run(*command, "--alphas", 0, 0.5, 1, 1.5)[0] == 0
    dose = pd.read_csv(tmp_path / "dose/rows.csv")
    for alpha, condition in ((0.0, "no_delta"), (1.0, "full")):
        one = dose[dose["alpha"] == alpha].sort_values(["layer", "subset"])
        other = layers[layers["condition"] == condition].sort_values(["layer", "subset"])
        assert one["cross_entropy"].tolist() == pytest.approx(other["cross_entropy"].tolist())
    assert dose[dose["alpha"] == 0.5]["cross_entropy"].tolist() != pytest.approx(
        dose[dose["alpha"] == 1.5]["cross_entropy"].tolist(), rel=1e-6
    )


def test_a_finished_study_is_only_read(place, monkeypatch, run):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Subject, "measured", refuse)
    command = (
        "bench", "run", "intervention-dose", "--runs", place / "runs", "--out",
        place / "intervention-dose",
    )  # fmt: skip
    status, said, _ = run(*command)
    assert (status, said.strip()) == (
        0, (place / "intervention-dose/report.md").read_text().strip()
    )  # fmt: skip
    with pytest.raises(AssertionError, match="measured again"):
        run(*command, "--alphas", "2.0")


def test_a_study_that_is_interrupted_ends_as_a_whole_one(place, run, tmp_path, monkeypatch):
    runs, out = tmp_path / "runs", tmp_path / "study"
    shutil.copytree(place / "runs", runs, ignore=shutil.ignore_patterns("cells*"))
    command = ("bench", "run", "intervention-layers", "--runs", runs, "--out", out)
    measured, calls = Subject.measured, iter(range(100))

    def interrupted(*args: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return measured(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Subject, "measured", interrupted)
        assert run(*command)[0] == 130
    assert len(list((runs / "cells").glob("*.json"))) == 5
    assert run(*command)[0] == 0
    for file in ("rows.csv", "differences.csv", "report.md"):
        assert (out / file).read_text() == (place / "intervention-layers" / file).read_text()


def test_a_report_says_its_command_and_what_a_dose_has_more_than_none(place):
    text = (place / "intervention-dose/report.md").read_text()
    assert "\n    itl bench run intervention-dose --out DIR\n" in text
    found = pd.read_csv(place / "intervention-dose/differences.csv")
    assert sorted(set(found["alpha"])) == [0.25, 0.5, 0.75, 1, 1.5]
    rows = pd.read_csv(place / "intervention-dose/rows.csv").set_index(["layer", "alpha", "subset"])
    for row in found.to_dict("records"):
        one, none = (rows.loc[row["layer"], alpha, row["subset"]] for alpha in (row["alpha"], 0.0))
        assert row["tool_call"] == pytest.approx(one["tool_call"] - none["tool_call"])
        more = one["cross_entropy"] - none["cross_entropy"]
        assert row["cross_entropy"] == pytest.approx(more, abs=1e-6)


def test_a_folder_of_another_study_or_run_is_refused(place, run, tmp_path):
    dose = ("bench", "run", "intervention-dose", "--runs")
    status, _, err = run(*dose, place / "runs", "--out", place / "intervention-layers")
    assert (status, "belongs to `itl bench run intervention-layers`" in sentence(err)) == (2, True)
    (tmp_path / "file").touch()
    status, _, err = run(*dose, tmp_path, "--out", tmp_path / "new")
    assert (status, "holds 'file', but nothing of these studies" in sentence(err)) == (2, True)
    assert not (tmp_path / "new").exists()


def test_findings_go_by_exact_tests_corrected_for_how_many_they_are():
    splits = {"no_delta": (15, 1), "bias only": (6, 0), "turned delta": (0, 12)}
    paired = [
        {"layer": 3, "less": name, "subset": "tool_ood", "tool_call": more - fewer,
         "tool_call_p": binomtest(more, more + fewer).pvalue}
        for name, (more, fewer) in splits.items()
    ]  # fmt: skip
    known = {**paired[1], "subset": "tool", "tool_call_p": 0.0}
    assert intervention_layers.findings([*paired, known]) == (
        "- layer 3: more often than no_delta, bias only; less often than turned delta"
    )
    paired[1]["tool_call_p"] = binomtest(5, 5).pvalue  # whose interval may not hold 0
    assert intervention_layers.findings(paired).endswith("not told apart from bias only")
    doses = [
        {"layer": 3, "alpha": alpha, "subset": "tool_ood", "tool_call": 0.02, "tool_call_p": p}
        for alpha, p in ((0.5, 0.03), (1.0, 0.01))
    ]
    assert intervention_dose.findings(doses) == (
        "- layer 3: +2.0% at 0.5 (told from 0); +2.0% at 1 (told from 0)"
    )
    doses[1]["tool_call_p"] = 0.03
    assert intervention_dose.findings(doses) == "- layer 3: +2.0% at 0.5; +2.0% at 1"


def test_conditions_do_what_they_are_named(place):
    model, tokenizer, _ = load_pretrained(place / "runs/merged")
    base, delta = base_and_delta(place)
    rows = {kind: load_toolformer_rows(place / f"runs/data/{kind}.jsonl") for kind in KINDS}
    subject = Subject(model, tokenizer, rows)
    site = site_of(model, 1)
    read = subject.reads(site, "tool")
    n = sum(len(row.input_ids) - len(subject.begins) for row in subject.rendered["tool"])
    assert read.shape == (n, 16)
    # A rotation keeps the norm of the delta's output at every token, and not its direction.
    own = dosed(base, delta)(read, read) - base(read)
    other = turned(base, delta, 0)(read, read) - base(read)
    assert torch.allclose(own.norm(dim=1), other.norm(dim=1), atol=1e-4)
    is_there = own.norm(dim=1) > 1e-3
    assert is_there.any()
    assert torch.cosine_similarity(own, other)[is_there].abs().mean() < 0.7
    found = Activations(place / "runs/activations-tuned-0-1/train")
    means = Means(base, found.read(1), found.wrote(1))
    left = found.wrote(1).float() - base(found.read(1).float())
    assert torch.allclose(means.left, left.mean(0), atol=1e-3)
    assert torch.allclose(bias_only(base, means)(read, read), base(read) + left.mean(0), atol=1e-3)
    raw = Condition("raw", site, None)
    identity = Condition("itself", site, lambda x, y: y)
    assert subject.measured(raw, "tool") == subject.measured(identity, "tool")


def test_what_is_kept_of_one_site_is_not_taken_at_another(place):
    model, tokenizer, _ = load_pretrained(place / "runs/merged")
    rows = {kind: load_toolformer_rows(place / f"runs/data/{kind}.jsonl") for kind in KINDS}
    whole = Subject(model, tokenizer, rows)
    for layer in (1, 0, 1):  # upwards as well as downwards
        base = open_base(str(place / "runs/bases"), layer)
        site = site_of(model, layer)
        for condition in (
            Condition("base", site, base.replacement(), base),
            Condition("nothing", site, lambda x, _: torch.zeros_like(x), base),
        ):
            fresh = Subject(model, tokenizer, rows).measured(condition, "tool")
            assert whole.measured(condition, "tool") == fresh


class Says(Subject):
    """A subject that writes what it is told to."""

    said: tuple[str, ...] = ()

    def texts(self, condition, kind, scores):
        return list(self.said)

    def scores(self, condition, kind):
        return [Score(loss, is_likeliest=False) for loss in (1.0, 3.0, 2.0, 2.0, 2.0)]


def test_what_is_counted(place):
    model, tokenizer, _ = load_pretrained(place / "runs/merged")
    call = "<tool_call>calculator(2+3)</tool_call>"
    rows = [ToolformerRow(str(i), "tool", "What is 2 + 3?", call, "5") for i in range(5)]
    subject = Says(model, tokenizer, {"tool": rows})
    subject.said = (
        call,
        "<tool_call>calculator(3+2)</tool_call>",
        "<tool_call>calculator(2*3)</tool_call>",
        "<tool_call>calculator(2+3)",
        f"What is 2 + 3? {call}",  # an echo of the prompt is no call
    )
    found, _ = subject.measured(Condition("raw", site_of(model, 0), None), "tool")
    assert [found[f"{metric}_right"] for metric in SHARES] == [4, 3, 2, 1]
    assert found["cross_entropy"] == 2.0


def test_transcoders_by_their_commands(place, run, tmp_path):
    runs = place / "runs"
    collect = (
        "transcoder", "collect", "--model", runs / "merged", "--data", runs / "data", "--layers", 1,
        "--out", tmp_path / "acts",
    )  # fmt: skip
    status, said, err = run(*collect)
    assert (status, err) == (0, ""), err
    assert re.search(r"train: [\d,]+ tokens at 1 layers", said)
    few = ("--n-steps", 4, "--evaluate-every", 2, "--batch-tokens", 64)
    status, said, _ = run(
        "transcoder", "train", "--activations", tmp_path / "acts", "--d-sae", 16, "--sparsity", 0.1,
        1, *few, "--out", tmp_path / "bases",
    )  # fmt: skip
    assert status == 0
    fits = said.splitlines()[1:]
    assert len(fits) == 5  # two rows, and behind "in" a folder for each
    assert all(Transcoder.load(Path(line.strip())).d_sae == 16 for line in fits[3:])
    delta = (
        "transcoder", "delta", "--activations", tmp_path / "acts", "--base", tmp_path / "bases",
        "--d-new", 2, 3, *few, "--out", tmp_path / "deltas",
    )  # fmt: skip
    status, said, _ = run(*delta)
    assert status == 0
    assert run(*delta)[:2] == (0, said)
    many = (
        "transcoder",
        "delta",
        "--activations",
        runs / "activations-tuned-0-1",
        "--layers",
        1,
        0,
    )
    for words in ((*collect[:-3], 9), ("transcoder", "train", *many[2:5], 9)):
        status, _, err = run(*words, "--out", tmp_path / "refused")
        assert (status, "layer 9" in sentence(err)) == (2, True)
        assert not (tmp_path / "refused").exists()
    status, _, err = run(*many, "--base", tmp_path / "bases", "--out", tmp_path / "refused")
    assert (status, "holds no transcoder of layer 0" in sentence(err)) == (2, True)
    assert not (tmp_path / "refused").exists()
    for words in (collect, delta):
        status, _, err = run(*words[:-1], tmp_path / "bases")
        assert (status, "belongs to `itl transcoder train`" in sentence(err)) == (2, True)
    (tmp_path / "acts/made-by.txt").unlink()  # as the folders of studies are
    assert run(*collect)[0] == 0
    for words in (
        ("fuse", "x", "it.npz"),
        ("validate", "x", "--activations", tmp_path / "acts", "--delta", "it.npz"),
    ):
        out = ("--out", tmp_path / "x") if words[0] == "fuse" else ()
        status, _, err = run("transcoder", *words, *out)
        assert (status, "does not say what it is a delta beside" in sentence(err)) == (2, True)
    made = tmp_path / "deltas/layer-01/percentile-50/d-3/transcoder"
    base = next(
        folder
        for folder in (tmp_path / "bases/layer-01").glob("*/transcoder")
        if Transcoder.load(folder).hash == Transcoder.load(made).about.base_hash
    )
    status, said, _ = run("transcoder", "fuse", base, made, "--out", tmp_path / "fused")
    assert status == 0
    fused = Transcoder.load(tmp_path / "fused")
    assert fused.d_sae == 19
    bases = tmp_path / "bases"
    other = runs / "deltas-tuned/layer-00/percentile-100/d-4/transcoder"
    assert run("transcoder", "fuse", bases, made, "--out", tmp_path / "found")[0] == 0
    assert Transcoder.load(tmp_path / "found").hash == fused.hash
    for words, problem in (
        ((base, made.parent), f"there is one in {made}"),
        ((base, other), "The delta is of layer 0, the base of layer 1"),
        ((tmp_path / "deltas", made), "holds no base of layer 1 that the delta was trained beside"),
    ):
        status, _, err = run("transcoder", "fuse", *words, "--out", tmp_path / "x")
        assert (status, problem in sentence(err)) == (2, True)
    told = []
    for words in ([tmp_path / "fused"], [base, "--delta", made], [bases, "--delta", made]):
        status, said, err = run(
            "transcoder", "validate", *words, "--activations", tmp_path / "acts"
        )
        assert status == 0
        told.append(float(re.search(r"unexplained +(\S+)", said)[1]))
    assert told[0] == pytest.approx(told[1], rel=1e-3)
    assert told[1] == told[2]
    status, _, err = run("transcoder", "validate", made, "--activations", tmp_path / "acts")
    assert (status, "is measured with its base" in sentence(err)) == (2, True)
    before = next((runs / "bases/layer-01").glob("*/transcoder"))  # of the model before
    others = ("transcoder", "validate", before, "--activations", tmp_path / "acts")
    status, _, err = run(*others)
    assert (status, "--other-model measures it there" in sentence(err)) == (2, True)
    status, said, _ = run(*others, "--other-model")
    found = Activations(tmp_path / "acts/validation")
    fit = fit_of(Transcoder.load(before), found.read(1), found.wrote(1))
    assert (status, f"unexplained {fit.unexplained:.4g}\n" in said) == (0, True)
    transcoder(d_model=8).save(tmp_path / "narrow")
    status, _, err = run(
        "transcoder", "validate", tmp_path / "narrow", "--activations", tmp_path / "acts"
    )
    assert (status, "has the width 8, the activations 16" in sentence(err)) == (2, True)
    assert run("transcoder", "fuse", base, made, "--out", tmp_path / "it.npz")[0] == 0
    status, _, err = run(
        "transcoder", "validate", tmp_path / "it.npz", "--activations", tmp_path / "acts"
    )
    assert (status, "does not say its layer" in sentence(err)) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["transcoder", "train", "--activations", "nowhere"], "nowhere/train holds no activations"),
        (
            ["transcoder", "delta", "--activations", "x", "--base", "y", "--d-new", "0"],
            "d_new holds 0",
        ),
        (["bench", "run", "transcoder-validation", "--d-new", "32", "0"], "d_new holds 0"),
        (
            [
                "bench",
                "run",
                "transcoder-validation",
                "--sparsities",
                "1",
                "--percentiles",
                "0",
                "1",
            ],
            "Two of the percentiles pick the same base",
        ),
        (["bench", "run", "intervention-dose", "--alphas", "nan"], "alphas must be finite"),
        (["transcoder", "fuse", "no", "such", "--out", "x"], "such holds no transcoder"),
        (["bench", "run", "intervention-dose", "--preset", "laptop"], "name one: --model"),
        (["bench", "run", "intervention-dose", "--alphas"], "alphas"),
        (["bench", "run", "intervention-dose", "--model", "nowhere"], "no model 'nowhere'"),
        (["bench", "run", "transcoder-validation", "--percentiles", "2"], "must be from 0 to 1"),
        (["transcoder", "train", "--activations", "x", "--lr", "0"], "lr is 0.0"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(run, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*words)
    assert status == 2
    assert said in sentence(err)
    assert not list(tmp_path.iterdir())


def test_parts_of_other_settings_are_not_taken(place, run, tmp_path):
    study = ("bench", "run", "intervention-dose", "--runs", place / "runs", "--out", tmp_path / "o")
    status, _, err = run(*study, "--seed", 1)
    assert (status, "was made with seed=0, not 1" in sentence(err)) == (2, True)


def test_further_layers_are_collected_when_they_are_asked_for(run, tmp_path):
    study = (
        "bench", "run", "intervention-dose", "--runs", tmp_path / "runs", "--out", tmp_path / "out",
        "--alphas", 1,
    )  # fmt: skip
    assert run(*study, "--layers", 1)[0] == 0
    assert run(*study)[0] == 0
    folders = sorted(path.name for path in (tmp_path / "runs").glob("activations-tuned*"))
    assert folders == ["activations-tuned-0", "activations-tuned-1"]
    found = pd.read_csv(tmp_path / "out/rows.csv")
    assert sorted(set(found["layer"])) == [0, 1]


def test_differences_are_paired():
    own = [
        {"cross_entropy": loss, "tool_call": True, "exact": i < 2} for i, loss in enumerate(LOSSES)
    ]
    other = [{"cross_entropy": 1.0, "tool_call": False, "exact": i < 1} for i in range(4)]
    found = differences(own, other)
    assert found["cross_entropy"] == pytest.approx(1.5)
    # 1.96 standard errors of the mean of 0, 1, 2, 3
    half = 1.959964 * (5 / 3) ** 0.5 / 2
    assert found["cross_entropy_high"] == pytest.approx(1.5 + half, rel=1e-5)
    assert (found["tool_call"], found["exact"]) == (1.0, 0.25)
    assert (found["tool_call_more"], found["tool_call_fewer"]) == (4, 0)
    assert found["tool_call_p"] == pytest.approx(2 / 2**4)
    change = _changes(dict.fromkeys(KINDS, LOSSES), {kind: [1.0] * 4 for kind in KINDS})
    assert change["change_tool"] == pytest.approx(1.5)
    assert change["change_tool_half"] == pytest.approx(half, rel=1e-5)


def test_gemma_2_with_gemma_scope_from_end_to_end(run, tmp_path):
    tokenizer = chat_tokenizer("gemma")
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=512,
        sliding_window=256, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    for layer in (0, 1):
        for l0 in (6, 40):
            made = transcoder(d_sae=32, seed=l0, layer=layer)
            made.save_npz(tmp_path / f"scope/layer_{layer}/width_16k/average_l0_{l0}/params.npz")
    status, said, err = run(
        "bench", "run", "intervention-layers", "--model", tmp_path / "gemma", "--base",
        tmp_path / "scope", "--runs", tmp_path / "runs", "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, err
    assert "| 1 | full |" in said
    assert not (tmp_path / "runs/bases").exists()
    delta = Transcoder.load(tmp_path / "runs/deltas-tuned/layer-01/percentile-50/d-4/transcoder")
    assert delta.about.base_hash == transcoder(d_sae=32, seed=40, layer=1).hash
    found = Activations(tmp_path / "runs/activations-tuned-0-1/train")
    texts = load_toolformer_rows(tmp_path / "runs/data/train.jsonl")
    n = sum(len(format_example(row.prompt, row.target, tokenizer).input_ids) for row in texts)
    assert found.about.n_tokens == n - len(texts)  # but where each text begins
    scope = tmp_path / "scope/layer_1/width_16k/average_l0_40/params.npz"
    fuse = ("transcoder", "fuse", scope, "--layer", 1)
    folder = tmp_path / "runs/deltas-tuned/layer-01/percentile-50/d-4/transcoder"
    assert run(*fuse, folder, "--out", tmp_path / "fused.npz")[0] == 0
    among = ("transcoder", "fuse", tmp_path / "scope", folder)  # its base is found among all
    assert run(*among, "--out", tmp_path / "found.npz")[0] == 0
    about = About(layer=1)
    fused, found_too = (load_npz(tmp_path / f"{name}.npz", about) for name in ("fused", "found"))
    assert fused.hash == found_too.hash
    status, _, err = run(*among, "--layer", 1, "--out", tmp_path / "again.npz")
    assert (status, "--layer is of a params.npz" in sentence(err)) == (2, True)
    status, said, _ = run(
        "transcoder", "validate", tmp_path / "fused.npz", "--layer", 1, "--activations",
        tmp_path / "runs/activations-tuned-0-1",
    )  # fmt: skip
    assert status == 0
    left = float(re.search(r"unexplained +(\S+)", said)[1])
    status, said, _ = run(
        "transcoder", "validate", scope, "--layer", 1, "--delta", folder, "--activations",
        tmp_path / "runs/activations-tuned-0-1",
    )  # fmt: skip
    assert float(re.search(r"unexplained +(\S+)", said)[1]) == pytest.approx(left, rel=1e-3)
