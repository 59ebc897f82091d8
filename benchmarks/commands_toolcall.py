"""Commands of `itl toolcall`: data, training, evaluation, figures."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from benchmarks.tool_evaluation import Measured
from benchmarks.training import SAMPLES, part_of, train_run
from itl_env.errors import ConfigError
from itl_env.samples import Category
from itl_train.run_folder import CONFIG, EVALUATIONS
from itl_train.tool_config import ToolConfig
from itl_train.tool_sft_config import ToolSFTSettings
from itl_train.watch_config import WatchConfig

if TYPE_CHECKING:
    from itl_env.tool_data import Mix
    from itl_env.tool_report import Report

N_GENERATED, N_PUBLISHED = 10_000, 8_000  # samples of the presets


@dataclass(frozen=True, kw_only=True)
class ToolcallData:
    """Make data of tool calling: every call is executed, and no call is in both parts."""

    out: Path  # folder to write train.jsonl, validation.jsonl and a report into
    preset: Literal["generated", "published", "none"] = "generated"
    """generated: arithmetic, code and plain questions, made here; published: a fifth each of GSM8K
    and code, the rest Alpaca, from the hub; none: only the files that are named below"""
    n: int = 0  # samples of the preset; 0 for its own number, 10,000 generated or 8,000 published
    categories: tuple[Category, ...] = ("calculator", "python_exec", "no_tool")
    """what is generated, as much of each: calculator, python_exec, no_tool, multi_turn, mixed"""
    database: str = ""  # URL of a fact database, for samples of `mixed`: look up, then compute
    level: int = 1  # how hard the generated arithmetic is, 1 to 4
    files: tuple[Path, ...] = ()  # files of samples of your own, JSON lines or an array; all taken
    gsm8k: str = ""  # a file of GSM8K's rows (question, answer), instead of the hub
    python: str = ""
    """a file of rows of code (instruction or prompt, code, output), instead of the hub"""
    instructions: str = ""
    """a file of rows that need no tool (instruction, input, output), instead of the hub; `sample`
    for a few of our own"""
    validation: float = 0.2  # share of the samples that is put aside, above 0 and below 1
    seed: int = 42  # draws, chooses and splits

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ConfigError(f"n is {self.n}; it must not be negative.")
        if self.preset == "none" and self.n:
            raise ConfigError("n is for a preset; with --preset none all good rows are taken.")


def toolcall_data(config: ToolcallData) -> None:
    """Make the data and print what was kept, what was refused, and where it is."""
    from benchmarks.progress import Progress
    from itl_env.tool_data import REPORT_TEXT, make_data

    if config.preset == "published":
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # if it cannot be reached, that is said once
    with ExitStack() as stack:
        shown: list[Progress] = []

        def show(done: int, total: int, source: str) -> None:
            if not shown:
                shown.append(stack.enter_context(Progress("samples", total)))
            shown[0].at(done, source)

        report = make_data(mix(config), config.out, on_progress=show)
    print(summary(report))
    print(f"in {config.out}; what was refused and why is in {config.out / REPORT_TEXT}")


def mix(config: ToolcallData) -> "Mix":
    """What the flags ask for.

    A file of a source that the preset does not have is taken besides, with all its good rows.
    """
    from itl_env.tool_data import HUB, Mix

    if config.preset == "none" and not any(
        (config.files, config.gsm8k, config.python, config.instructions)
    ):
        raise ConfigError("With --preset none, name --files, --gsm8k, --python or --instructions.")
    published = config.preset == "published"
    fifth = (config.n or N_PUBLISHED) // 5
    rest = (config.n or N_PUBLISHED) - 2 * fifth

    def wanted(share: int, file: str) -> int | None:
        return share if published else (None if file else 0)

    return Mix(
        generated=(config.n or N_GENERATED) if config.preset == "generated" else 0,
        categories=config.categories,
        level=config.level,
        database=config.database,
        gsm8k=wanted(fifth, config.gsm8k),
        python=wanted(fifth, config.python),
        instructions=wanted(rest, config.instructions),
        gsm8k_from=config.gsm8k or HUB,
        python_from=config.python or HUB,
        instructions_from=config.instructions or HUB,
        files=tuple(map(str, config.files)),
        validation=config.validation,
        seed=config.seed,
        allow_fewer=published,
    )


def summary(report: "Report") -> str:
    """What a data set holds, for a person to read."""
    rows = [
        ("source", "category", "train", "validation"),
        *(
            (source, category, f"{train:,}", f"{validation:,}")
            for (source, category), (train, validation) in report.counts.items()
        ),
        ("all", "", f"{report.n_train:,}", f"{report.n_validation:,}"),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{source:<{widths[0]}}  {category:<{widths[1]}}  {train:>{widths[2]}}  {rest:>{widths[3]}}"
        for source, category, train, rest in rows
    ]
    for tally in report.tallies:
        if tally.refused:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in tally.refused.most_common())
            lines.append(f"refused {tally.refused.total():,} of {tally.source}: {reasons}")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ToolcallTrain(WatchConfig, ToolConfig):
    """Train a small Llama from scratch to call tools, on the expert's episodes about samples.

    The folder can be interrupted at any time; the same command goes on.
    """

    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    out: Path = Path("runs/tools")  # folder of the run
    config: str = ""  # YAML file of settings, such as another run's config.yaml; flags override it


def toolcall_train(config: ToolcallTrain) -> None:
    """Train, and print the share of right outcomes at the end."""
    from itl_train.tool_calling import ToolRun

    run = ToolRun(part_of(config, ToolConfig), config.out, config.watch())
    train_run(run, config.out, "tools", config.n_steps, SAMPLES)


@dataclass(frozen=True, kw_only=True)
class ToolcallSFT(ToolSFTSettings):
    """Fine-tune a pretrained model to call tools; the loss is on the JSON alone.

    The folder can be interrupted at any time; the same command goes on.
    """

    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    out: Path = Path("runs/tools-sft")  # folder of the run
    config: str = ""  # YAML file of settings, such as another run's config.yaml; flags override it


def toolcall_sft(config: ToolcallSFT) -> None:
    """Fine-tune, and print the share of right outcomes at the end."""
    from benchmarks.rollouts import quiet_transformers
    from itl_train.tool_sft import ToolSFTRun

    quiet_transformers()
    settings = part_of(config, ToolSFTSettings)
    train_run(ToolSFTRun(settings, config.out), config.out, "tools", settings.steps, SAMPLES)


@dataclass(frozen=True, kw_only=True)
class ToolcallEval(Measured):
    """Measure how well a model calls tools: each metric with its interval, for each category.

    All samples are the denominator of every metric. `unsupported` counts those for which the model
    wrote code that the executor does not know, which is nobody's mistake.
    """

    model: tyro.conf.Positional[str]  # a run, a checkpoint, a .gguf file, a hub id; expert, direct
    every: bool = False
    """Measure every checkpoint of a run, and the model that it began with, keep what is measured in
    RUN/evaluations, and draw it; the same command goes on."""
    out: str = ""  # CSV file for the table; with --every, RUN/evaluations/toolcall.csv by default
    episodes: str = ""  # JSON lines file for the episodes, which `itl show` prints; none by default
    lanes: int = 256  # episodes side by side
    device: str = "cpu"  # where the model is asked: cpu, cuda, ...

    @property
    def resumes(self) -> bool:
        """Whether what is measured is kept as it is measured."""
        return self.every

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lanes < 1:
            raise ConfigError(f"lanes is {self.lanes}; it must be at least 1.")
        if self.every and self.episodes:
            raise ConfigError("With --every no episodes are written; name one checkpoint for that.")
        if self.out and Path(self.out).suffix != ".csv":
            raise ConfigError(f"out is {self.out}; name a .csv file.")


def toolcall_eval(config: ToolcallEval) -> None:
    """Measure, and print the table and a few answers."""
    from benchmarks.commands_play import check_new
    from benchmarks.progress import track
    from benchmarks.tool_evaluation import agent_of, answers, measure, named, table, write_table
    from itl_env.episode import Episode, write_episodes
    from itl_env.files import check_place

    if config.every:
        _evaluate_run(config)
        return
    for file in filter(None, (config.out, config.episodes)):
        check_new(Path(file))
        check_place(Path(file))
    measured = part_of(config, Measured).for_model(config.model)
    task, samples = measured.open()
    agent = agent_of(config.model, task, measured, config.device)
    kept: list[Episode] = []
    rows, shown = measure(
        agent, task, samples, seed=measured.seed, lanes=config.lanes, track=track,
        keep=kept.append if config.episodes else lambda episode: None,
    )  # fmt: skip
    rows = named(rows, agent.name, None, measured.part)
    print(f"{agent.name}, {len(samples):,} {measured.part} samples of {measured.data}")
    print(table(rows))
    print(answers(shown))
    if config.out:
        write_table(rows, Path(config.out))
        print(f"the table is in {config.out}")
    if config.episodes:
        write_episodes(kept, config.episodes)
        print(f"the episodes are in {config.episodes}")


def _evaluate_run(config: ToolcallEval) -> None:
    """Measure what is left of a run, print the table and draw it."""
    from benchmarks.progress import track
    from benchmarks.rollouts import quiet_transformers
    from benchmarks.tool_evaluation import ToolRunEvaluation, table, write_table
    from benchmarks.tool_plots import evaluation_figure

    quiet_transformers()
    folder = Path(config.model)
    evaluation = ToolRunEvaluation(
        folder, part_of(config, Measured), device=config.device, lanes=config.lanes, track=track
    )
    rows = evaluation.run()
    out = Path(config.out) if config.out else folder / EVALUATIONS / "toolcall.csv"
    write_table(rows, out)
    evaluation_figure(rows, out.with_suffix(".png"))
    print(table(rows))
    print(f"the table is in {out}, drawn in {out.with_suffix('.png')}")


@dataclass(frozen=True, kw_only=True)
class ToolcallPlot:
    """Draw the metrics of a run over its steps, and write them as CSV, into the run's folder."""

    run: tyro.conf.Positional[Path]  # folder of a run, finished or not


def toolcall_plot(config: ToolcallPlot) -> None:
    """Draw whatever the run has measured, and print where it is."""
    from benchmarks.tool_evaluation import write_table
    from benchmarks.tool_plots import run_figures
    from itl_train.run_folder import RunFolder

    if not (config.run / CONFIG).is_file():
        raise ConfigError(f"{config.run} holds no run; name the folder of one.")
    rows = RunFolder(config.run).rows()
    if not rows:
        raise ConfigError(f"The run in {config.run} has not measured anything yet.")
    write_table(rows, config.run / "metrics.csv")
    for file in (config.run / "metrics.csv", *run_figures(rows, config.run)):
        print(file)
