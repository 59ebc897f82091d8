"""Commands of `itl` that train or measure: `quickstart`, `train memory`, `eval`, `bench list`.

See `commands_world`.
"""

from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from benchmarks.commands_play import check_new, check_slice, people_from
from benchmarks.commands_world import TaskSource
from benchmarks.evaluation import Measured
from benchmarks.quickstart import QuickstartConfig
from benchmarks.rollouts import Questions
from benchmarks.training import part_of, train_run
from itl_agents.hub import check_model
from itl_env.dialogue import Style
from itl_env.episode import Episode, read_episodes, write_episodes
from itl_env.errors import ConfigError
from itl_env.recall import Mode, max_queries_of
from itl_train import memory_config, sft_config
from itl_train.memory_config import MemoryConfig
from itl_train.run_folder import EVALUATIONS, TABLE
from itl_train.sft_config import SFTSettings
from itl_train.watch_config import WatchConfig


def run_quickstart(config: QuickstartConfig) -> None:
    """Run the whole loop and print its result."""
    from benchmarks.progress import TrainingProgress, track
    from benchmarks.quickstart import quickstart, table

    say = partial(print, flush=True)
    if config.model:
        from benchmarks import quickstart_model
        from benchmarks.rollouts import quiet_transformers

        quiet_transformers()
        with TrainingProgress({"in-tool": config.n_model_steps}) as progress:
            results = quickstart_model.quickstart_model(config, say, progress, track)
        print(f"\n{quickstart_model.table(results)}\n")
    else:
        n_steps = {"in-tool": config.n_steps, "in-weight": config.n_twin_steps}
        with TrainingProgress(n_steps) as progress:
            results = quickstart(config, say, progress, track)
        print(f"\n{table(results)}\n")
    print(f"{results['seconds']['in all']:.0f} s; see {config.out / 'report.md'}")


@dataclass(frozen=True)
class TrainMemory(WatchConfig, MemoryConfig):
    """Train a small Llama on the expert's episodes: to know facts, or to look them up.

    The folder can be interrupted at any time; the same command goes on.
    """

    RECIPES: ClassVar = memory_config.RECIPES

    out: Path = Path("runs/memory")  # folder of the run
    recipe: memory_config.RecipeName = "quickstart"  # settings to begin with; flags override them
    """quickstart: the defaults shown here. fast: larger batches, higher rates and a lower rotary
    base, until the people trained on are known. published: as in arXiv 2508.20755, every row
    padded to 257 tokens."""
    config: str = ""  # YAML file of settings, such as another run's config.yaml; flags override it


def run_train_memory(config: TrainMemory) -> None:
    """Train, and print the recall at the end."""
    from itl_train.memory import MemoryRun

    run = MemoryRun(part_of(config, MemoryConfig), config.out, config.watch())
    train_run(run, config.out, config.mode, config.n_steps)


@dataclass(frozen=True)
class TrainSFT(SFTSettings):
    """Fine-tune a pretrained model on the expert's episodes: to know facts, or to look them up.

    The folder can be interrupted at any time; the same command goes on.
    """

    RECIPES: ClassVar = sft_config.RECIPES

    out: Path = Path("runs/sft")  # folder of the run
    recipe: sft_config.RecipeName = "lora"  # settings to begin with; flags override them
    """lora: the defaults shown here, an adapter of rank 16. published: all weights in bfloat16,
    batches of 128, and the learning rate of arXiv 2508.20755 for the model."""
    config: str = ""  # YAML file of settings, such as another run's config.yaml; flags override it


def run_train_sft(config: TrainSFT) -> None:
    """Fine-tune, and print the recall at the end."""
    from benchmarks.rollouts import quiet_transformers
    from itl_train.sft import SFTRun

    quiet_transformers()
    settings = part_of(config, SFTSettings)
    train_run(SFTRun(settings, config.out), config.out, config.mode, settings.steps)


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Ask a model about people of a database, by default those its run did not train on.

    Where the model belongs to a run, what is left out here is taken from its config.yaml.
    """

    model: tyro.conf.Positional[str]  # folder of a run or a checkpoint, a .gguf file, or a hub id
    database: str = ""  # URL or SQLite file of the fact database; the run's own by default
    table: str = ""  # its table of facts; the run's, else people
    key: str = ""  # the column that holds the names; the run's, else name
    trivia: bool = False  # the database is one of `itl facts trivia`; as in the run
    mode: Literal["", Mode] = ""  # with the database or without; as in the run
    style: Literal["", Style] = ""  # how calls are written; as in the run
    start: int = -1  # index of the first person; -1 for the first that the run did not train on
    n: int = 1000  # how many questions to ask
    questions: Questions = "one"  # of each person: one attribute in turn, or all of them
    samples: int = 3  # answers to print
    temperature: float = 0.0  # 0 takes the likeliest token
    lanes: int = 256  # episodes side by side
    seed: int = 0  # drives what is drawn where temperature is above 0
    out: str = ""  # JSON lines file for the episodes; none by default
    device: str = "cpu"  # where the model is asked: cpu, cuda, ...
    every: bool = False
    """Measure every checkpoint of a fine-tuning run, or the one that is named, and the base, by
    what follows, and keep it in RUN/evaluations; the same command goes on."""
    n_seen: int = Measured.n_seen  # with --every: facts trained on that are asked for
    n_unseen: int = Measured.n_unseen  # with --every: other facts that are asked for
    hellaswag: int = Measured.hellaswag  # with --every: items of HellaSwag; 0 for none
    hellaswag_file: str = ""  # of such items as lm-eval prepares them; the hub's data by default
    drift: int = Measured.drift  # with --every: prompts to measure drift from the base; 0 for none
    drift_tokens: int = Measured.drift_tokens  # of the base model's answer to each, at most

    @property
    def resumes(self) -> bool:
        """Whether what is measured is kept as it is measured."""
        return self.every

    def __post_init__(self) -> None:
        if (self.hellaswag or self.drift) and not self.every:
            raise ConfigError("HellaSwag and drift are measured with --every.")
        check_slice(self.n, max(self.start, 0), self.lanes, self.temperature)
        if self.samples < 0:
            raise ConfigError(f"samples is {self.samples}; it must not be negative.")
        if self.start < -1:
            raise ConfigError(
                f"start is {self.start}; it must be the index of a person, or -1 for the first one "
                "that the run did not train on."
            )


def run_eval(config: Eval) -> None:
    """Print the recall with its interval, and a few answers."""
    from benchmarks.progress import track
    from benchmarks.rollouts import (
        counted,
        describe,
        how_many,
        make_agent,
        questions,
        quoted,
    )
    from itl_agents.agent import rollout
    from itl_agents.evaluate import RecallCount
    from itl_train.models import find_checkpoint
    from itl_train.run_folder import run_settings

    if config.every:
        run_evaluation(config)
        return
    if config.out:
        check_new(Path(config.out))
    run: dict[str, Any] = {}
    check_model(config.model)
    if (folder := Path(config.model)).is_dir():
        find_checkpoint(folder)  # if there is none, that is what is wrong
        run = run_settings(folder)
    url = config.database or run.get("database")
    if "data" in run and not config.database:
        raise ConfigError(f"{config.model} has learnt to call tools; see `itl toolcall eval`.")
    if not url:
        raise ConfigError(f"{config.model} belongs to no run; name a database with --database.")
    source = TaskSource(
        database=url,
        table=config.table or run.get("table", "people"),
        key=config.key or run.get("key", "name"),
        style=config.style or run.get("style", "compact"),
        trivia=config.trivia or run.get("trivia", False),
    )
    mode = config.mode or run.get("mode", "in-tool")
    with source.open() as database:
        max_queries = max_queries_of(mode)
        n_attributes = len(source.task(database, keys=slice(0, 1), max_queries=0).attributes)
        n_trained = run.get("n_people", run.get("n_facts", 0) // n_attributes)
        first = n_trained if config.start < 0 else config.start
        task = source.task(database, keys=people_from(database, first), max_queries=max_queries)
        agent = make_agent(config.model, task, config.temperature, config.device)
        total = how_many(task, config.questions, config.n)
        facts = questions(task, config.questions, config.n)
        count = RecallCount()
        played = rollout(agent, task, facts, seed=config.seed, lanes=config.lanes)
        episodes = counted(track(played, "questions", total), count)
        samples = list(islice(episodes, config.samples)) if not config.out else []
        if config.out:
            write_episodes(episodes, config.out)
            samples = list(islice(read_episodes(config.out), config.samples))
        else:
            deque(episodes, maxlen=0)
    print(f"{agent.name}, {mode}, people from index {first:,}: {describe(count)}")
    for episode in samples:
        verdict = "right" if episode.reward == 1.0 else f"wrong, it is {episode.fact.value!r}"
        print(f"  {episode.messages[0].content}  {quoted(_last_words(episode))}  {verdict}")


def run_evaluation(config: Eval) -> None:
    """Measure what is left of a fine-tuning run, and print the table."""
    from benchmarks.evaluation import RunEvaluation, summary
    from benchmarks.progress import track
    from benchmarks.rollouts import quiet_transformers
    from benchmarks.timing import say

    quiet_transformers()
    folder, chosen = Path(config.model), None
    if folder.parent.name == "checkpoints":
        folder, chosen = folder.parent.parent, [folder]
    evaluation = RunEvaluation(
        folder, part_of(config, Measured), device=config.device, say=say, track=track
    )
    print(summary(evaluation.run(chosen)))
    print(f"the table is in {folder / EVALUATIONS / TABLE}")


def _last_words(episode: Episode) -> str:
    return episode.completions[-1].text


@dataclass(frozen=True)
class BenchList:
    """List the studies that `itl bench run` knows."""


def bench_list(config: BenchList) -> None:
    """Print every study with its summary."""
    from benchmarks.commands import STUDIES

    width = max(map(len, STUDIES))
    for name, study in STUDIES.items():
        print(f"{name:<{width}}  {study.summary}")
