"""How well a model calls tools, measured over the samples of a folder.

    itl toolcall eval runs/tools --every

For a model, or for each checkpoint of a run and the model that it began with: each metric for each
category and in all, with all samples as denominator. What is measured of a run is kept as it is
done, in `RUN/evaluations/CHECKPOINT/`, and is not measured again with the same settings.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.rollouts import TOOL_BUILT_IN, make_agent, quoted
from benchmarks.statistics import percent, wilson
from itl_agents.agent import Agent, rollout
from itl_agents.hub import check_model, fingerprint
from itl_agents.tool_metrics import METRICS, ToolCount
from itl_env.episode import Episode
from itl_env.errors import ConfigError
from itl_env.files import read_json, write_text
from itl_env.samples import Sample
from itl_env.tool_call import ToolCallTask
from itl_train.models import begun_with, model_of
from itl_train.run_folder import EVALUATIONS, run_settings
from itl_train.tool_asking import asking_of
from itl_train.tool_questions import TRAIN, VALIDATION, ToolQuestions, asked

Part = Literal["validation", "train"]
Row = dict[str, Any]
Track = Callable[[Iterable[Episode], str, int], Iterable[Episode]]

ALL = "all"  # the category that stands for all of them
BASE = "base"  # the model that a run began with
MAX_NEW_TOKENS = 200  # of a turn, where no run says otherwise
N_SHOWN = 3  # sample answers that are kept


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is asked of a model, and how; what is left out here is taken from its run."""

    data: str = ""  # folder of `itl toolcall data`; by default that of the run
    part: Part = "validation"  # which of its samples
    n: int = 1_000  # how many of them, always the same ones; 0 for all
    max_turns: int = 0  # turns of an episode; 0 for those of the run, or else 1
    instruction: str = "auto"  # put before each prompt; {forms} stands for the forms of a turn
    """auto: as in the run; for a model of no run, the one that tells all forms"""
    database: str = ""  # URL of a fact database that the tool `find` looks into; the run's own
    rubric: Literal["outcome", "classic"] = "outcome"  # of the reward, whose mean is told besides
    max_tokens: int = 0
    """of a dialogue; longer prompts lose their left part; 0 for the run's, or for a pretrained
    model of no run 512 besides max_new_tokens"""
    max_new_tokens: int = 0  # of a turn; 0 for the run's, or else 200
    temperature: float = 0.0  # 0 takes the likeliest token
    seed: int = 0  # drives what is drawn where temperature is above 0

    def __post_init__(self) -> None:
        for name in ("n", "max_turns", "max_tokens", "max_new_tokens", "temperature"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative.")

    def for_model(self, model: str) -> "Measured":
        """The same with nothing left out.

        Raises ConfigError if there is no such model, or no samples are named.
        """
        run: dict[str, Any] = {}
        if model not in TOOL_BUILT_IN:
            check_model(model, among=TOOL_BUILT_IN)
            run = run_settings(Path(model))
        data = self.data or run.get("data", "")
        if not data:
            raise ConfigError(f"{model} has learnt from no samples; name their folder with --data.")
        max_new_tokens = self.max_new_tokens or run.get("max_new_tokens", MAX_NEW_TOKENS)
        asking = asking_of(
            model,
            max_turns=self.max_turns,
            instruction=self.instruction,
            database=self.database,
            max_tokens=self.max_tokens,
            max_new_tokens=max_new_tokens,
        )
        return replace(
            self,
            data=str(Path(data).absolute()),
            max_new_tokens=max_new_tokens,
            **asking._asdict(),
        )

    def open(self) -> tuple[ToolCallTask, list[Sample]]:
        """The task and the samples that are asked; see `ToolQuestions.open` for what is raised."""
        questions = ToolQuestions.open(
            self.data,
            max_turns=self.max_turns,
            instruction=self.instruction,
            rubric=self.rubric,
            database=self.database,
        )
        task = questions.unseen if self.part == "validation" else questions.seen
        return task, asked(task.samples, self.n or len(task.samples))


@dataclass
class Tally:
    """What came of some samples: the counts, and the sum of the reward and of its parts."""

    count: ToolCount = field(default_factory=ToolCount)
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, episode: Episode) -> None:
        """Count one episode."""
        self.count.add(episode)
        self.reward += episode.reward
        for name, value in episode.rewards.items():
            self.parts[name] = self.parts.get(name, 0.0) + value

    def row(self, category: str) -> Row:
        """The counts, shares with Wilson intervals and mean rewards as columns."""
        count = self.count
        row: Row = {"category": category, "n": count.asked, "unsupported": count.unsupported}
        for metric in METRICS:
            right = count.counts[metric]
            low, high = wilson(right, count.asked)
            row[metric] = count.rate(metric)
            row |= {f"{metric}_right": right, f"{metric}_low": low, f"{metric}_high": high}
        row["reward"] = self.reward / count.asked
        return row | {f"reward/{name}": value / count.asked for name, value in self.parts.items()}


def measure(
    agent: Agent,
    task: ToolCallTask,
    samples: Sequence[Sample],
    *,
    seed: int = 0,
    lanes: int = 256,
    track: Track = lambda episodes, label, total: episodes,
    keep: Callable[[Episode], None] = lambda episode: None,
) -> tuple[list[Row], list[Row]]:
    """Give an agent every one of the samples.

    keep: called with every episode as it ends.

    Returns a row for each category and one for all, and a few answers to look at.
    """
    tallies: dict[str, Tally] = {}
    every = Tally()
    shown: list[Row] = []
    played = rollout(agent, task, samples, seed=seed, lanes=lanes)
    for episode in track(played, "samples", len(samples)):
        assert episode.sample is not None
        keep(episode)
        tallies.setdefault(episode.sample.category, Tally()).add(episode)
        every.add(episode)
        if len(shown) < N_SHOWN:
            shown.append(_shown(episode))
    rows = [tallies[category].row(category) for category in sorted(tallies)]
    return [*rows, every.row(ALL)], shown


def _shown(episode: Episode) -> Row:
    sample = episode.sample
    assert sample is not None
    return {
        "prompt": sample.prompt,
        "said": [completion.text for completion in episode.completions],
        "came": episode.answer,
        "expected": sample.expected_answer,
        "reward": episode.reward,
    }


class ToolRunEvaluation:
    """The evaluation of every checkpoint of a run."""

    def __init__(
        self,
        folder: Path,
        measured: Measured,
        *,
        device: str = "cpu",
        lanes: int = 256,
        track: Track = lambda episodes, label, total: episodes,
    ) -> None:
        """Raises ConfigError if the folder holds no run with a checkpoint, or no samples fit."""
        from itl_train.checkpoint import checkpoints

        self.settings = run_settings(folder)
        self.checkpoints = checkpoints(folder / "checkpoints")
        if not self.settings or not self.checkpoints:
            raise ConfigError(f"{folder} holds no run with a checkpoint; name the folder of one.")
        self.folder = folder
        self.measured = measured.for_model(str(folder))
        self.task, self.samples = self.measured.open()
        self.device = device
        self.lanes = lanes
        self.track = track

    def run(self) -> list[Row]:
        """Measure what is left; rows of all checkpoints, oldest first, after those of the base.

        A run that began from nothing has no base. Raises ITLError for a damaged checkpoint.
        """
        rows = []
        if base := begun_with(self.folder) or self.settings.get("model"):
            rows += self._rows(BASE, 0, base)
        for path in self.checkpoints:
            rows += self._rows(path.name, int(path.name.rpartition("-")[2]), str(path))
        return rows

    def _rows(self, name: str, step: int, model: str) -> list[Row]:
        """Of one model, measured if it has not been."""
        measured = self.measured
        file = self.folder / EVALUATIONS / name / f"toolcall-{measured.part}.json"
        place = model_of(model)
        made_by = {**asdict(measured), "samples": self._digest, "model": fingerprint(place)}
        if file.exists():
            there = read_json(file, "Remove it, and it is measured anew.")
            if there["made_by"] == made_by:
                return named(there["rows"], name, step, measured.part)
        agent = agent_of(model, self.task, measured, self.device, self.settings)

        def track(episodes: Iterable[Episode], label: str, total: int) -> Iterable[Episode]:
            return self.track(episodes, f"{name}: {label}", total)

        rows, shown = measure(
            agent, self.task, self.samples, seed=measured.seed, lanes=self.lanes, track=track
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {"made_by": made_by, "rows": rows, "shown": shown}
        write_text(file, json.dumps(kept, ensure_ascii=False) + "\n")
        return named(rows, name, step, measured.part)

    @property
    def _digest(self) -> str:
        """What tells the samples from others in a folder of the same name."""
        name = VALIDATION if self.measured.part == "validation" else TRAIN
        content = (Path(self.measured.data) / name).read_bytes()
        return hashlib.blake2b(content, digest_size=8).hexdigest()


def agent_of(
    model: str,
    task: ToolCallTask,
    measured: Measured,
    device: str = "cpu",
    run: Mapping[str, Any] | None = None,
) -> Agent:
    """The agent of a model, or a scripted one, as it is measured; see `make_agent`."""
    return make_agent(
        model,
        task,
        measured.temperature,
        device,
        run=run,
        max_new_tokens=measured.max_new_tokens,
        max_tokens=measured.max_tokens,
    )


def named(rows: Iterable[Row], model: str, step: int | None, part: Part) -> list[Row]:
    """Rows of `measure` with what they are of in front."""
    return [{"model": model, "step": step, "part": part, **row} for row in rows]


def write_table(rows: Sequence[Row], file: Path) -> None:
    """Write rows as CSV."""
    import pandas as pd

    write_text(file, pd.DataFrame(rows).to_csv(index=False))


def table(rows: Sequence[Row]) -> str:
    """Rows for people to read: shares in per cent, with 95% Wilson intervals."""
    with_model = len({row["model"] for row in rows}) > 1
    head = [*(["model"] if with_model else []), "category", "n", *METRICS, "unsupported", "reward"]
    lines = [head]
    for row in rows:
        shares = [percent(row[f"{metric}_right"], row["n"]) for metric in METRICS]
        line = [row["category"], f"{row['n']:,}", *shares]
        line += [f"{row['unsupported']:,}", f"{row['reward']:.3f}"]
        lines.append([row["model"], *line] if with_model else line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    n_left = 2 if with_model else 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < n_left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def answers(shown: Iterable[Row]) -> str:
    """The answers of `measure` for people to read."""
    lines = []
    for each in shown:
        came = "nothing" if each["came"] is None else quoted(each["came"])
        said = " ".join(quoted(turn, 120) for turn in each["said"])
        lines.append(
            f"  {quoted(each['prompt'])}  {said}  gives {came}, expected "
            f"{quoted(each['expected'])}; reward {each['reward']:g}"
        )
    return "\n".join(lines)
