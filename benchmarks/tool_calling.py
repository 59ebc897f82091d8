"""Can small models learn to call tools, and does paying for what comes of it help?

    itl bench run tool-calling --preset laptop --out runs/tool-calling

A NanoLlama learns from generated samples which tool to call and with what; GRPO goes on where it
is still often wrong, on longer numbers. Another one, stopped half-way while it learns to look facts
up, goes on by GRPO, too. With `--model`, a pretrained model is taught the same by an adapter. Each
of these is a run in its own folder, so that a study that is interrupted goes on.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import machine
from benchmarks.progress import TrainingProgress, track
from benchmarks.statistics import percent, wilson
from benchmarks.timing import say
from benchmarks.tool_evaluation import ALL, Measured, agent_of, measure, write_table
from itl_agents.tool_metrics import METRICS
from itl_env.database import FactDatabase
from itl_env.errors import ConfigError
from itl_env.facts import people
from itl_env.files import read_json, write_text
from itl_env.generated import generate
from itl_env.samples import Sample, read_samples, write_samples
from itl_env.tool_call import INSTRUCTION
from itl_env.tool_data import TRAIN, VALIDATION, Mix, make_data
from itl_env.tool_split import call_key
from itl_train.memory_config import MemoryConfig
from itl_train.rl_config import RecallRLSettings, ToolRLSettings
from itl_train.run_folder import RunFolder
from itl_train.tool_config import ToolConfig
from itl_train.tool_sft_config import ToolSFTSettings

Row = dict[str, Any]

EASY, HARD = 1, 2  # levels of generated arithmetic
CHOSEN = """
How settings were come by: the model from scratch is stopped once 93% of 1,000 other samples come to
the right outcome, because a first run, to the end of 16,000 steps, came to 98%, and GRPO could not
lift it on longer numbers: at rates of 3e-4 and 1e-3, and temperatures of 1 and 1.6, it stayed at
78% or fell, for the model was as sure where it was wrong as elsewhere, and most groups had no
spread. (Of the longer numbers of that run, some calls had been trained on; the samples are now
split together.) The rate and batch of GRPO were set on facts, in a run of 120 steps of the same
seed.
"""
DATA_SEED = 42  # of samples at seed 0: that of `itl toolcall data`


@dataclass(frozen=True)
class Sizes:
    """How much a preset does."""

    n_tasks: int  # generated samples of all categories
    n_hard: int  # samples of longer numbers
    n_hard_shown: int  # of these, how many the model has seen before GRPO
    scratch: Mapping[str, Any]  # settings of the model that begins from nothing
    hard: Mapping[str, Any]  # settings of GRPO on longer numbers
    n_people: int
    half: Mapping[str, Any]  # settings of the model that is stopped half-way
    recall: Mapping[str, Any]  # settings of GRPO on facts
    sft: Mapping[str, Any]  # settings of the adapter of a pretrained model
    n_measured: int  # samples or facts that are asked for each figure; 0 for all
    n_pretrained: int  # the same for the pretrained model, which is slower


TINY = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_hidden": 16}
SIZES = {
    "smoke": Sizes(
        n_tasks=60, n_hard=40, n_hard_shown=10,
        scratch={**TINY, "n_steps": 3, "batch_size": 4, "max_new_tokens": 10},
        hard={"n_steps": 2, "n_generations": 2, "batch_size": 4, "max_new_tokens": 10,
              "steps_per_generation": 1, "n_evaluate": 4},
        n_people=40, half={**TINY, "n_steps": 2, "n_people": 20, "n_unseen": 10},
        recall={"n_steps": 2, "n_generations": 2, "batch_size": 4, "max_new_tokens": 10,
                "steps_per_generation": 1, "n_evaluate": 4, "n_people": 20, "n_unseen": 10},
        sft={"n_steps": 2, "batch_size": 2, "n_evaluate": 2, "lora_rank": 2, "max_new_tokens": 8},
        n_measured=8, n_pretrained=4,
    ),
    "laptop": Sizes(
        n_tasks=60_000, n_hard=7_500, n_hard_shown=3_000,
        scratch={"n_steps": 16_000, "batch_size": 32, "lr": 6e-3, "rope_theta": 100.0,
                 "stop_at": 0.93, "stop_on": "unseen", "evaluate_every": 1_000,
                 "n_evaluate": 1_000, "log_every": 500},
        hard={"n_steps": 200, "n_generations": 8, "batch_size": 64, "at_once": 64,
              "steps_per_generation": 2, "lr": 3e-4, "evaluate_every": 20, "n_evaluate": 500},
        n_people=22_000,
        half={"n_steps": 2_000, "evaluate_every": 100, "n_evaluate": 500, "stop_at": 0.35,
              "stop_on": "unseen"},
        recall={"n_steps": 200, "n_generations": 8, "batch_size": 64, "at_once": 64,
                "steps_per_generation": 2, "lr": 3e-4, "evaluate_every": 20, "n_evaluate": 500,
                "n_people": 5_000, "n_unseen": 1_000},
        sft={"n_steps": 200, "lr": 5e-4, "log_every": 10, "evaluate_every": 100, "n_evaluate": 50,
             "checkpoint_every": 100},
        n_measured=0, n_pretrained=300,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ToolCallingConfig:
    """Teach small models to call tools, pay them for what comes of it, and measure both."""

    out: Path = Path("runs/tool-calling")  # folder of the runs, the table, figures and report
    preset: Literal["smoke", "laptop"] = "smoke"  # smoke: seconds; laptop: about an hour and a half
    model: str = ""  # a pretrained model that is taught, too: a .gguf file, a folder or a hub id
    seed: int = 0  # drives data, initialisation, what is asked and what is sampled
    n_threads: int = 0  # CPU threads; 0 for one a core


@dataclass
class Study:
    """What the phases share: sizes, folders, and the rows of the table."""

    config: ToolCallingConfig
    sizes: Sizes = field(init=False)
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sizes = SIZES[self.config.preset]

    def place(self, name: str) -> Path:
        """A folder of the study."""
        return self.config.out / name

    def shared(self) -> dict[str, Any]:
        """Settings of all runs."""
        return {"seed": self.config.seed, "n_threads": self.config.n_threads}

    def train(self, run: Any, name: str, n_steps: int) -> None:
        """Train a run to its end with progress."""
        with TrainingProgress({name: n_steps}) as progress:
            run.train(lambda row: progress(name, row))

    def measured(self, phase: str, model: str, data: Path, n: int, **how: Any) -> None:
        """Add the rows of a model over validation samples; known ones are not asked again."""
        asked = Measured(data=str(data), n=n, **how).for_model(model)
        file = self.place("measured") / f"{phase}.json"
        made_by = {**asdict(asked), "model": model}
        if file.exists() and (there := read_json(file))["made_by"] == made_by:
            rows = there["rows"]
        else:
            task, samples = asked.open()
            rows, _ = measure(agent_of(model, task, asked), task, samples, track=_named(phase))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps({"made_by": made_by, "rows": rows}) + "\n")
        self.rows += [{"phase": phase, **row} for row in rows]

    def recalled(self, phase: str, model: str, settings: RecallRLSettings) -> None:
        """Add the row of a model over facts about unseen people."""
        from itl_agents.evaluate import facts_to_ask, measure_recall
        from itl_agents.nanollama import NanoLlamaAgent, load_model, open_tokenizer
        from itl_train.models import model_of
        from itl_train.rl_subjects import RecallSubject

        file = self.place("measured") / f"{phase}.json"
        folder = Path(model_of(model))
        made_by = {"model": str(folder), "database": settings.database, "n": settings.n_unseen}
        if not file.exists() or read_json(file)["made_by"] != made_by:
            task = RecallSubject.open(settings).unseen
            agent = NanoLlamaAgent(load_model(folder), open_tokenizer(folder))
            count = measure_recall(agent, task, facts_to_ask(task, settings.n_unseen))
            file.parent.mkdir(parents=True, exist_ok=True)
            found = {"made_by": made_by, "asked": count.asked, "right": count.right}
            write_text(file, json.dumps(found) + "\n")
        found = read_json(file)
        low, high = wilson(found["right"], found["asked"])
        self.rows.append(
            {
                "phase": phase, "category": "facts", "n": found["asked"],
                "right_outcome": found["right"] / found["asked"],
                "right_outcome_right": found["right"], "right_outcome_low": low,
                "right_outcome_high": high,
            }
        )  # fmt: skip


def tool_calling(config: ToolCallingConfig, show: Callable[[str], None] = print) -> Path:
    """Run what is left of the study, and write its table, figures and report; returns its folder.

    show: given the report at the end.
    """
    from benchmarks.rollouts import quiet_transformers

    quiet_transformers()
    config.out.mkdir(parents=True, exist_ok=True)
    _check_same(config)
    study = Study(config)
    tasks, hard = _data(study)
    _from_nothing(study, tasks, hard)
    _facts(study)
    if config.model:
        _pretrained(study, tasks)
    write_table(study.rows, config.out / "results.csv")
    results = {
        "preset": config.preset,
        "config": _recorded(config),
        "machine": machine(),
        "costs": [_costs(study, name) for name in ("hard-rl", "recall-rl")],
        "rows": study.rows,
    }
    write_text(config.out / "results.json", json.dumps(results, indent=1) + "\n")
    _figures(study)
    text = report(results)
    write_text(config.out / "report.md", text)
    show(text)
    return config.out


def _recorded(config: ToolCallingConfig) -> Row:
    return {**asdict(config), "out": "", "model": Path(config.model).name}


def _check_same(config: ToolCallingConfig) -> None:
    """Raise ConfigError if the folder holds a study of other settings."""
    file = config.out / "settings.json"
    wanted = {"preset": config.preset, "seed": config.seed}
    if not file.exists():
        write_text(file, json.dumps(wanted) + "\n")
    elif (there := read_json(file)) != wanted:
        raise ConfigError(f"{config.out} holds a study of other settings, {there}; name another.")


def _data(study: Study) -> tuple[Path, Path]:
    """The folders of samples: of all categories, and of longer numbers.

    They are split together, so that no call that is asked has been trained on in either; then some
    of the longer numbers to train on are put among the others, so that they are not all new.
    """
    sizes, seed = study.sizes, DATA_SEED + study.config.seed
    hard, tasks, both = study.place("hard"), study.place("tasks"), study.place("both")
    if not (tasks / VALIDATION).exists():
        say("samples")
        longer = study.place("longer.jsonl")
        drawn = generate(10 * sizes.n_hard, seed, categories=("calculator",), level=HARD)
        write_samples(islice(_distinct(drawn), sizes.n_hard), longer)
        make_data(Mix(generated=sizes.n_tasks, level=EASY, files=(str(longer),), seed=seed), both)
        parts = {name: list(read_samples(both / name)) for name in (TRAIN, VALIDATION)}
        _check_disjoint(parts)
        is_hard = f"calculator-{HARD}-"
        for folder in (hard, tasks):
            folder.mkdir(exist_ok=True)
        for name, samples in parts.items():
            long = [sample for sample in samples if sample.id.startswith(is_hard)]
            short = [sample for sample in samples if not sample.id.startswith(is_hard)]
            shown = long[: sizes.n_hard_shown] if name == TRAIN else []
            write_samples(long, hard / name)
            write_samples([*short, *shown], tasks / name)
    return tasks, hard


def _distinct(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples without those whose prompt has come before."""
    seen: set[str] = set()
    for sample in samples:
        if sample.prompt not in seen:
            seen.add(sample.prompt)
            yield sample


def _check_disjoint(parts: Mapping[str, Sequence[Sample]]) -> None:
    """Fail if a call is in both parts: what is measured would be no generalisation."""
    calls = [
        {call_key(step) for sample in samples for step in sample.steps}
        for samples in parts.values()
    ]
    assert not calls[0] & calls[1], "a call that is asked is trained on"


def _from_nothing(study: Study, tasks: Path, hard: Path) -> None:
    """A NanoLlama from scratch, and GRPO on longer numbers."""
    from itl_train.rl import RLRun
    from itl_train.tool_calling import ToolRun

    sizes, n = study.sizes, study.sizes.n_measured
    scratch, paid = study.place("scratch"), study.place("hard-rl")
    config = ToolConfig(data=str(tasks), **{**sizes.scratch, **study.shared()})
    study.train(ToolRun(config, scratch), "from scratch", config.n_steps)
    study.measured("scratch", str(scratch), tasks, n)
    study.measured("scratch, longer numbers", str(scratch), hard, n)
    settings = ToolRLSettings(
        model=str(scratch), data=str(hard), instruction="", **{**sizes.hard, **study.shared()}
    )
    study.train(RLRun(settings, paid), "grpo", settings.n_steps)
    study.measured("after GRPO, longer numbers", str(paid), hard, n)
    study.measured("after GRPO", str(paid), tasks, n)


def _facts(study: Study) -> None:
    """A NanoLlama that half knows how to look facts up, and GRPO on facts."""
    from itl_train.memory import MemoryRun
    from itl_train.rl import RLRun

    sizes = study.sizes
    world = study.place("world.db")
    if not world.exists():
        FactDatabase.create(world, people(sizes.n_people, seed=study.config.seed)).close()
    url = f"sqlite:///{world.absolute()}"
    half, paid = study.place("half"), study.place("recall-rl")
    config = MemoryConfig(database=url, **{**sizes.half, **study.shared()})
    study.train(MemoryRun(config, half), "half-way", config.n_steps)
    settings = RecallRLSettings(model=str(half), database=url, **{**sizes.recall, **study.shared()})
    study.recalled("half-way, facts", str(half), settings)
    study.train(RLRun(settings, paid), "grpo on facts", settings.n_steps)
    study.recalled("after GRPO, facts", str(paid), settings)


def _pretrained(study: Study, tasks: Path) -> None:
    """An adapter of a pretrained model, before and after."""
    from itl_train.tool_sft import ToolSFTRun

    sizes, out = study.sizes, study.place("sft")
    settings = ToolSFTSettings(
        model=study.config.model, data=str(tasks), **{**sizes.sft, **study.shared()}
    )
    how = {"instruction": INSTRUCTION, "max_new_tokens": settings.max_new_tokens}
    study.measured("pretrained", study.config.model, tasks, sizes.n_pretrained, **how)
    study.train(ToolSFTRun(settings, out), "adapter", settings.steps)
    study.measured("pretrained, with adapter", str(out), tasks, sizes.n_pretrained, **how)


def _costs(study: Study, name: str) -> Row:
    """What the steps of a run of GRPO were spent on, in shares of their time."""
    rows = [row for row in RunFolder(study.place(name)).rows() if "update_s" in row]
    total = sum(row["seconds"] for row in rows)
    steps = max(row["step"] for row in rows)
    shares = {
        part: sum(row[f"{part}_s"] for row in rows) / total
        for part in ("generation", "tools", "update")
    }
    last = [row["kl"] for row in rows if "kl" in row][-1]
    return {"run": name, "steps": steps, "seconds_a_step": total / steps, **shares, "kl": last}


def _figures(study: Study) -> None:
    from benchmarks.tool_plots import run_figures

    for name in ("scratch", "hard-rl", "recall-rl"):
        for drawn in run_figures(RunFolder(study.place(name)).rows(), study.config.out):
            drawn.replace(drawn.with_name(f"{name}-{drawn.name}"))


def _named(phase: str) -> Callable[[Iterable[Any], str, int], Iterable[Any]]:
    return lambda episodes, label, total: track(episodes, f"{phase}: {label}", total)


def report(results: Mapping[str, Any]) -> str:
    """The study in words and tables, as Markdown."""
    rows, costs, on = results["rows"], results["costs"], results["machine"]
    lines = []
    for row in rows:
        shares = [
            percent(row[f"{metric}_right"], row["n"]) if f"{metric}_right" in row else ""
            for metric in METRICS
        ]
        name = f"**{row['category']}**" if row["category"] == ALL else row["category"]
        lines.append(f"| {row['phase']} | {name} | {row['n']:,} | {' | '.join(shares)} |")
    table = "\n".join(lines)
    spent = "\n".join(
        f"| {row['run']} | {row['steps']:,} | {row['seconds_a_step']:.2f} s | "
        f"{row['generation']:.1%} | {row['tools']:.1%} | {row['update']:.1%} | {row['kl']:.3f} |"
        for row in costs
    )
    return f"""# Tool calling

Machine: {on["cpu"]}, {on["cores"]} cores, torch {on["torch"]}. Preset {results["preset"]}.

None of these samples and facts was trained on: no call of a sample to train on occurs among them.
Shares are of all samples, with Wilson's 95% intervals. Answers are greedy.

| phase | category | n | {" | ".join(METRICS)} |
|---|---|---:|{"---:|" * len(METRICS)}
{table}

What a step of GRPO is spent on; KL is that from the model before it, in nats a token, at the end:

| run | steps | a step | generation | tools | update | KL |
|---|---:|---:|---:|---:|---:|---:|
{spent}

"longer numbers" have operands of one to four digits, all lengths alike, but for dividends, which
are products of two; the model had seen some of them among its samples of one and two digits.
"facts" are questions about people whom neither phase has seen; the model was stopped half-way
through learning to look them up. All is of one seed.
{CHOSEN if results["preset"] == "laptop" else ""}"""
