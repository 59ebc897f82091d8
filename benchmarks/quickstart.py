"""The whole loop in minutes on a CPU: should a model know this, or look it up?

    itl quickstart --out runs/quickstart

Makes a database of 20,000 people, trains one small Llama to look facts up and its in-weight twin to
know the facts of 64 people, and asks both about people they were trained on and about people they
have never seen, who stand in the same database.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine
from benchmarks.statistics import clustered_wilson, interval
from itl_env.database import FactDatabase
from itl_env.entropy import world_entropy
from itl_env.episode import Episode
from itl_env.errors import ConfigError, ITLError
from itl_env.facts import ATTRIBUTES, people
from itl_env.files import read_json, write_text

if TYPE_CHECKING:
    from itl_env.recall import RecallTask
    from itl_train.memory_config import MemoryConfig

Say = Callable[[str], None]
RESULTS = "results.json"


@dataclass(frozen=True)
class QuickstartConfig:
    """Run the whole loop: a database, two small models trained on it, questions, a figure.

    Ctrl-C leaves a folder from which the same command goes on.
    """

    out: Path = Path("runs/quickstart")  # folder for the database, the runs and the report
    seed: int = 0  # drives world, initialisation and data order
    n_people: int = 20_000  # people in the database
    n_unseen: int = 1_000  # of these, people that no model is trained on
    n_memorised: int = 64  # people whose facts the in-weight twin is trained on
    n_steps: int = 1_500  # optimizer steps of the in-tool model
    n_twin_steps: int = 900  # optimizer steps of the in-weight twin
    model: str = ""
    """A pretrained model to teach the tool instead: a folder, a .gguf file or a hub id."""
    n_model_steps: int = 60  # optimizer steps of its adapter

    def __post_init__(self) -> None:
        for name in ("n_unseen", "n_memorised", "n_steps", "n_twin_steps", "n_model_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.n_memorised > self.n_people - self.n_unseen:
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
    recall: float
    recall_low: float  # of the 95% interval, clustered by person
    recall_high: float


Track = Callable[[Iterable[Episode], str, int], Iterable[Episode]]


def quickstart(
    config: QuickstartConfig,
    say: Say = print,
    on_metrics: Callable[[str, dict[str, Any]], None] = lambda run, row: None,
    track: Track = lambda episodes, label, total: episodes,
) -> dict[str, Any]:
    """Run the whole loop, or the rest of it; returns what `results.json` holds.

    say: told each stage in a line.
    on_metrics: called with the name of the run and each of its metrics.
    track: hands on the episodes of each evaluation, given its name and their number.

    Ctrl-C leaves a folder from which the same command goes on. Raises ConfigError if the folder
    holds something else, or a run of another configuration.
    """
    if (there := begin_or_read(config, say)) is not None:
        return there
    clock = StageClock(config.out / "seconds.json")
    with clock("make the database"):
        url = make_world(config, say)
    with clock("validate"):
        validate_world(url, config, say)
    with clock("load torch"):
        run_by_name = run_configs(config, url)
    asked = [
        ask_run(name, run_config, config, clock, say, on_metrics, track)
        for name, run_config in run_by_name.items()
    ]
    rows = [row for run in asked for row in run["rows"]]
    parameters = {run["name"]: run["parameters"] for run in asked}
    with clock("ask the circuit"):
        row, parameters["circuit"] = ask_circuit(config, run_by_name["in-tool"], track)
        rows.append(vars(row))
    with clock("guess"):
        rows.append(vars(ask_guesser(config, url)))
    results = {
        "config": settings_of(config),
        "parameters": parameters,
        "bits_per_fact": world_entropy(config.n_people, "paper", seed=config.seed).bits_per_fact,
        "rows": rows,
        "machine": machine(),
    }
    with clock("draw"):
        from benchmarks.plots import quickstart_figure

        curves = {run["name"]: run["metrics"] for run in asked}
        quickstart_figure(results, curves, config.out / "quickstart.png")
    results["seconds"] = {**clock.seconds, "in all": round(sum(clock.seconds.values()), 1)}
    finish(config, results, report(results))
    return results


def settings_of(config: QuickstartConfig) -> dict[str, Any]:
    """All that the results hang on."""
    return {name: value for name, value in vars(config).items() if name != "out"}


def begin_or_read(config: QuickstartConfig, say: Say) -> dict[str, Any] | None:
    """What a finished folder holds; None if something is left to do.

    Raises ConfigError if the folder holds something else, or a run of another configuration.
    """
    from itl_train.run_folder import begin

    begin(config.out, settings_of(config))
    finished = config.out / RESULTS
    if not finished.exists():
        return None
    say(f"{config.out} is finished; remove it to run again")
    return dict(read_json(finished, "Remove it, and the report is written anew."))


def finish(config: QuickstartConfig, results: dict[str, Any], said: str) -> None:
    """Write the report and, for it says that all is there, the results last."""
    write_text(config.out / "report.md", said)
    write_text(config.out / RESULTS, json.dumps(results, indent=1) + "\n")


def ask_run(
    name: str,
    run_config: "MemoryConfig",
    config: QuickstartConfig,
    clock: "StageClock",
    say: Say,
    on_metrics: Callable[[str, dict[str, Any]], None],
    track: Track,
) -> dict[str, Any]:
    """Train one model and ask it, unless that is done; returns what `<name>.json` then holds."""
    from itl_train.memory import MemoryRun  # torch is loaded only when the work begins

    done = config.out / f"{name}.json"
    if done.exists():
        return dict(read_json(done, "Remove it, and the model is asked anew."))
    with clock(f"train {name}"):
        run = MemoryRun(run_config, config.out / name)
        n_parameters = run.model.config.n_parameters
        say(
            f"{name}: {n_parameters:,} parameters, trained on {run_config.n_people:,} "
            f"people for {run_config.n_steps:,} steps"
            + (f", from step {run.step:,}" if run.step else "")
        )
        run.train(partial(on_metrics, name))
    rows = []
    with clock(f"ask {name}"):
        for asked_about, task, n in (
            ("trained on", run.tasks.seen, min(run_config.n_people, 1_000)),
            ("never seen", unseen_task(config, run_config), config.n_unseen),
        ):
            row = ask(name, asked_about, run.agent(), task, n, track)
            rows.append(vars(row))
            recall = interval(row.recall, row.recall_low, row.recall_high)
            say(f"  {name}, people {asked_about}: {recall}")
    asked = {
        "name": name,
        "parameters": n_parameters,
        "rows": rows,
        "metrics": run.folder.rows(),
    }
    write_text(done, json.dumps(asked) + "\n")
    return asked


class StageClock:
    """Seconds of each stage, those of earlier, interrupted invocations included.

    Those of a stage that was killed are lost.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[str, float] = {}
        if file.exists():
            self.seconds = read_json(file, "Remove it, and stages are timed anew.")

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes, however it ends."""
        began = time.perf_counter()
        try:
            yield
        finally:
            taken = self.seconds.get(stage, 0.0) + time.perf_counter() - began
            self.seconds[stage] = round(taken, 1)
            write_text(self.file, json.dumps(self.seconds))


def make_world(config: QuickstartConfig, say: Say) -> str:
    """Build the database, unless an interrupted run has; returns its absolute path."""
    file = config.out / f"people-{config.n_people}-seed-{config.seed}.db"
    if not file.exists():
        FactDatabase.create(file, people(config.n_people, seed=config.seed)).close()
    n_facts = config.n_people * len(ATTRIBUTES)
    say(f"database: {config.n_people:,} people, {n_facts:,} facts in {file}")
    return str(file.absolute())


def validate_world(url: str, config: QuickstartConfig, say: Say) -> None:
    """Check the facts of the unseen people; raises ITLError if the world does not work."""
    from benchmarks.validate import validate

    with FactDatabase(url) as database:
        validation = validate(database, keys=slice(config.n_people - config.n_unseen, None))
    if validation.problems:
        raise ITLError(f"{validation.problems[0]}.")
    for check in validation.checks:
        say(f"{check.agent}, {check.mode}: {check.right:,} of {check.asked:,} right")


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


def ask(
    name: str,
    asked_about: str,
    agent: Any,
    task: "RecallTask",
    n_people: int,
    track: Track = lambda episodes, label, total: episodes,
) -> Row:
    """One question about each of n people (all attributes if that is at most 1,000)."""
    from itl_agents.agent import rollout
    from itl_agents.evaluate import RecallCount, one_question_each

    every = n_people * len(ATTRIBUTES) <= 1_000
    facts = list(task.facts()) if every else one_question_each(task, n_people)
    count = RecallCount()
    for episode in track(rollout(agent, task, facts), f"asking {name}", len(facts)):
        count.add(episode)
    low, high = clustered_wilson(list(count.by_person.values()))
    return Row(
        name, asked_about, count.right, count.asked, count.n_queried, count.recall, low, high
    )


def ask_circuit(
    config: QuickstartConfig, run_config: "MemoryConfig", track: Track
) -> tuple[Row, int]:
    """What the transformer built by hand recalls of the unseen people, and its parameters."""
    from itl_agents.circuit import CircuitAgent

    task = unseen_task(config, run_config)
    agent = CircuitAgent(task)
    row = ask("circuit", "never seen", agent, task, config.n_unseen, track)
    return row, agent.circuit.n_parameters


def ask_guesser(config: QuickstartConfig, url: str) -> Row:
    """What guessing gets on the unseen people: the values most frequent among the others."""
    from itl_agents import NoToolAgent
    from itl_env.recall import RecallTask

    n_trained = config.n_people - config.n_unseen
    database = FactDatabase(url)
    task = RecallTask(database, keys=slice(n_trained, config.n_people), max_queries=0)
    others = RecallTask(database, keys=slice(0, n_trained))
    guesser = NoToolAgent(task, fitted_on=others, sample=n_trained)
    return ask("guessing", "never seen", guesser, task, config.n_unseen)


def table(results: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        "| agent | people | questions | exact recall [95% interval] | queried |",
        "|---|---|---:|---:|---:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['agent']} | {row['asked_about']} | {row['asked']:,} | "
            f"{interval(row['recall'], row['recall_low'], row['recall_high'])} | "
            f"{100 * row['queried'] / row['asked']:.0f}% |"
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

Two small Llamas of one shape ({results["parameters"]["in-tool"]:,} parameters). One was trained to
query a database about {n_trained:,} people, its in-weight twin to answer from its weights about
{config["n_memorised"]}. Both were then asked about {config["n_unseen"]:,} people they had never
seen, who stand in the database. The circuit is a transformer whose
{results["parameters"]["circuit"]:,} weights are written by formulas from the attributes and their
phrasing (`itl_agents.circuit`): it was not trained at all. An answer counts if it is the very
value, up to case and space. People are asked one question each, about one attribute in turn, or all
{len(ATTRIBUTES)} where that is at most 1,000 questions. Guessing always answers the value that is
most frequent among the people trained on. A fact holds {results["bits_per_fact"]:.2f} bits on
average, which the in-weight model has to store and the in-tool model looks up.
Intervals are Wilson's, at 95%, clustered by person where a person is asked more than once.

Seed {config["seed"]}; last checkpoint; {len(ATTRIBUTES)} attributes.

| stage | seconds |
|---|---:|
{took}

Machine: {on["cpu"]}, {on["cores"]} cores, Python {on["python"]}, torch {on["torch"]}.
"""
