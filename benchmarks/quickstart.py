"""The whole loop in minutes on a CPU: should a model know this, or look it up?

    itl quickstart --out runs/quickstart

Makes a database of 20,000 people, trains one small Llama to look facts up and its in-weight twin to
know the facts of 64 people, and asks both about people they were trained on and about people they
have never seen, who stand in the same database.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine
from benchmarks.statistics import percent, wilson
from itl_env.database import FactDatabase
from itl_env.errors import ConfigError, ITLError
from itl_env.facts import ATTRIBUTES, people, world_entropy
from itl_env.files import write_text

if TYPE_CHECKING:
    from itl_env.recall import RecallTask
    from itl_train.memory_config import MemoryConfig

Say = Callable[[str], None]


@dataclass(frozen=True)
class QuickstartConfig:
    """What `itl quickstart` runs."""

    out: Path = Path("runs/quickstart")  # folder for the database, the runs and the report
    seed: int = 0  # drives world, initialisation and data order
    n_people: int = 20_000  # people in the database
    n_unseen: int = 1_000  # of these, people that no model is trained on
    n_memorised: int = 64  # people whose facts the in-weight twin is trained on
    n_steps: int = 1_500  # optimizer steps of the in-tool model
    n_twin_steps: int = 600  # optimizer steps of the in-weight twin

    def __post_init__(self) -> None:
        if not 1 <= self.n_memorised <= self.n_people - self.n_unseen or self.n_unseen < 1:
            raise ConfigError(
                f"{self.n_people} people cannot hold {self.n_unseen} unseen ones and "
                f"{self.n_memorised} memorised ones; raise n_people."
            )


@dataclass(frozen=True)
class Row:
    """One line of the result: an agent, the people it was asked about, and its count."""

    agent: str
    asked_about: str
    right: int
    asked: int
    queried: int

    def to_dict(self) -> dict[str, Any]:
        """The row with its recall and Wilson interval."""
        low, high = wilson(self.right, self.asked)
        recall = self.right / self.asked
        return {**vars(self), "recall": recall, "recall_low": low, "recall_high": high}


def quickstart(
    config: QuickstartConfig,
    say: Say = print,
    on_metrics: Callable[[str, dict[str, Any]], None] = lambda run, row: None,
) -> dict[str, Any]:
    """Run the whole loop, or the rest of it; returns what `results.json` holds.

    say: told each stage in a line.
    on_metrics: called with the name of the run and each of its metrics.

    Ctrl-C leaves a folder from which the same command goes on.
    """
    from itl_train.memory import MemoryRun  # torch is loaded only when the work begins

    began = time.perf_counter()
    seconds: dict[str, float] = {}

    def stage(name: str, since: float) -> None:
        seconds[name] = round(time.perf_counter() - since, 1)

    start = time.perf_counter()
    url = make_world(config, say)
    stage("make the database", start)

    start = time.perf_counter()
    validate_world(url, say)
    stage("validate", start)

    rows: list[Row] = []
    curves: dict[str, list[dict[str, Any]]] = {}
    parameters: dict[str, int] = {}
    for name, run_config in run_configs(config, url).items():
        start = time.perf_counter()
        run = MemoryRun(run_config, config.out / name)
        parameters[name] = run.model.config.n_parameters
        trained_on = f"{run_config.n_people:,} people"
        say(
            f"{name}: {parameters[name]:,} parameters, trained on {trained_on} "
            f"for {run_config.n_steps:,} steps" + (f", from step {run.step:,}" if run.step else "")
        )
        run.train(partial(on_metrics, name))
        stage(f"train {name}", start)
        start = time.perf_counter()
        curves[name] = run.folder.rows()
        for asked_about, task, n in (
            ("trained on", run.tasks.seen, min(run_config.n_people, 1_000)),
            ("never seen", unseen_task(config, run_config), config.n_unseen),
        ):
            rows.append(ask(name, asked_about, run.agent(), task, n))
            say(f"  {name}, people {asked_about}: {percent(rows[-1].right, rows[-1].asked)}")
        stage(f"ask {name}", start)
    rows.append(ask_guesser(config, url))

    results = {
        "config": {**vars(config), "out": config.out.name},
        "parameters": parameters,
        "bits_per_fact": world_entropy(config.n_people, "paper", seed=config.seed).bits_per_fact,
        "rows": [row.to_dict() for row in rows],
        "seconds": {**seconds, "in all": round(time.perf_counter() - began, 1)},
        "machine": machine(),
    }
    write_text(config.out / "results.json", json.dumps(results, indent=1) + "\n")
    from benchmarks.plots import quickstart_figure

    quickstart_figure(results, curves, config.out / "quickstart.png")
    write_text(config.out / "report.md", report(results))
    return results


def make_world(config: QuickstartConfig, say: Say) -> str:
    """Build the database, unless an interrupted run has; returns its URL."""
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ITLError(f"Cannot write to {config.out}: {error.strerror}.") from None
    path = config.out / f"people-{config.n_people}-seed-{config.seed}.db"
    url = f"sqlite:///{path}"
    if not path.exists():
        FactDatabase.create(url, people(config.n_people, seed=config.seed)).close()
    say(f"database: {config.n_people:,} people, {config.n_people * 4:,} facts in {path}")
    return url


def validate_world(url: str, say: Say, limit: int = 1_000) -> None:
    """Play the expert on some facts; raises ITLError if any gold call or answer scores below 1."""
    from itl_agents import ExpertAgent
    from itl_agents.evaluate import measure_recall, one_question_each
    from itl_env.recall import RecallTask

    database = FactDatabase(url)
    for max_queries, how in ((1, "with the tool"), (0, "without it")):
        task = RecallTask(database, max_queries=max_queries)
        count = measure_recall(ExpertAgent(task), task, one_question_each(task, limit))
        if count.right < count.asked:
            raise ITLError(
                f"The expert {how} got {count.right} of {count.asked} facts right; "
                f"run `itl validate --database {url}`."
            )
        say(f"expert {how}: {count.right:,} of {count.asked:,} right")
    database.close()


def run_configs(config: QuickstartConfig, url: str) -> "dict[str, MemoryConfig]":
    """The two runs, in the order in which they are trained."""
    from itl_train.memory_config import MemoryConfig

    in_tool = MemoryConfig(
        database=url,
        mode="in-tool",
        n_people=config.n_people - config.n_unseen,
        n_unseen=config.n_unseen,
        n_steps=config.n_steps,
        n_evaluate=100,
        evaluate_every=config.n_steps,
        seed=config.seed,
    )
    in_weight = MemoryConfig(
        database=url,
        mode="in-weight",
        n_people=config.n_memorised,
        n_unseen=0,
        n_steps=config.n_twin_steps,
        n_evaluate=100,
        evaluate_every=config.n_twin_steps,
        seed=config.seed,
    )
    return {"in-tool": in_tool, "in-weight": in_weight}


def unseen_task(config: QuickstartConfig, run_config: "MemoryConfig") -> "RecallTask":
    """The task about the last people of the database, on whom neither model is trained."""
    keys = slice(config.n_people - config.n_unseen, config.n_people)
    return run_config.task(FactDatabase(run_config.database), keys)


def ask(name: str, asked_about: str, agent: Any, task: "RecallTask", n_people: int) -> Row:
    """One question about each of n people (all attributes if they are fewer than 250)."""
    from itl_agents.evaluate import measure_recall, one_question_each

    facts = task.facts() if n_people * 4 <= 1_000 else one_question_each(task, n_people)
    count = measure_recall(agent, task, facts)
    return Row(name, asked_about, count.right, count.asked, count.n_queried)


def ask_guesser(config: QuickstartConfig, url: str) -> Row:
    """What guessing each attribute's most frequent value gets on the unseen people."""
    from itl_agents import NoToolAgent
    from itl_env.recall import RecallTask

    keys = slice(config.n_people - config.n_unseen, config.n_people)
    task = RecallTask(FactDatabase(url), keys=keys, max_queries=0)
    return ask("guessing", "never seen", NoToolAgent(task), task, config.n_unseen)


def table(results: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| agent | people | questions | exact recall [95% interval] | queried |",
        "|---|---|---:|---:|---:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['agent']} | {row['asked_about']} | {row['asked']:,} | "
            f"{percent(row['right'], row['asked'])} | {100 * row['queried'] / row['asked']:.0f}% |"
        )
    return "\n".join(lines)


def report(results: dict[str, Any]) -> str:
    """`report.md`: the question, the figure, the table, what it took."""
    config, on = results["config"], results["machine"]
    n_trained = config["n_people"] - config["n_unseen"]
    took = "\n".join(f"| {name} | {s:.1f} |" for name, s in results["seconds"].items())
    return f"""# Should a model know this, or look it up?

![exact recall](quickstart.png)

{table(results)}

Two small Llamas with {results["parameters"]["in-tool"]:,} and
{results["parameters"]["in-weight"]:,} parameters. One was trained to query a database about
{n_trained:,} people, its in-weight twin to answer from its weights about {config["n_memorised"]}.
Both were then asked about {config["n_unseen"]:,} people they had never seen, who stand in the
database. A fact holds {results["bits_per_fact"]:.2f} bits; guessing is always answering the most
frequent value. Intervals are Wilson's, at 95%.

Seed {config["seed"]}; last checkpoint; {len(ATTRIBUTES)} attributes.

| stage | seconds |
|---|---:|
{took}

Machine: {on["cpu"]}, {on["cores"]} cores, Python {on["python"]}, torch {on["torch"]}.
"""
