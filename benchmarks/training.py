"""What the commands that train share: settings from flags, progress, and the result in words."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

Settings = TypeVar("Settings")

FACTS = {"seen": "recall {} on what it was trained on", "unseen": "recall {} on unseen people"}
SAMPLES = {
    "seen": "right outcomes {} on samples it was trained on",
    "unseen": "right outcomes {} on other samples",
}
"""What is said of the shares of what was asked at the end."""


class Team(Protocol):
    """The processes of a run."""

    @property
    def first(self) -> bool: ...


class Run(Protocol):
    """A training run in its folder."""

    @property
    def team(self) -> Team: ...
    @property
    def finished(self) -> bool: ...
    @property
    def step(self) -> int: ...

    def train(self, on_metrics: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Train to the end and return the last evaluation."""
        ...


def part_of(config: Any, settings: type[Settings]) -> Settings:
    """Of a command's flags, those that are settings of a kind."""
    names = [field.name for field in fields(settings)]  # type: ignore[arg-type]
    return settings(**{name: getattr(config, name) for name in names})


def train_run(
    run: Run, out: Path, label: str, n_steps: int, about: Mapping[str, str] = FACTS
) -> None:
    """Train a run to its end with progress, and print its result; one process speaks.

    about: what is said of a share, by who was asked.
    """
    from benchmarks.progress import TrainingProgress
    from benchmarks.statistics import percent

    if run.team.first and run.finished:
        print(f"{out} is finished; this is its result")
    elif run.team.first and run.step:
        print(f"going on from step {run.step:,}")
    with TrainingProgress({label: n_steps}) as progress:
        last = run.train(partial(progress, label))
    if not run.team.first:
        return
    for who, said in about.items():
        if f"asked_{who}" in last:
            share = percent(last[f"right_{who}"], last[f"asked_{who}"])
            print(f"step {last['step']:,}: {said.format(share)}")
    print(f"the run is in {out}")
