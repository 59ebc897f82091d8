"""Commands of `itl` for many runs: `sweep memory`, `sweep status`; see `commands_world`."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from benchmarks.board import Board, describe, newest_metrics
from itl_env.errors import ConfigError, ITLError
from itl_env.files import read_json
from itl_train.memory_config import RECIPES, MemoryConfig, RecipeName
from itl_train.memory_sweep import memory_cells, sweep_memory
from itl_train.rows import RUNS
from itl_train.run_folder import FAILURE, read_yaml
from itl_train.sweep import CELLS, Launcher, Row, State, at_work, state
from itl_train.watch_config import WatchConfig


@dataclass(frozen=True, kw_only=True)
class SweepMemory(WatchConfig, Launcher):
    """Train one small Llama for each combination of settings; the same command goes on.

    A finished run is never run again. Rows of all runs are in OUT/runs.csv.
    """

    axes: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="AXES")]
    """Settings and their values: n_people=64,128 lr=1e-3,4e-3 seed=0:5 (seeds 0 to 4). They are the
    flags of `itl train memory`, with underscores."""
    out: Path  # folder of the sweep
    recipe: RecipeName = "quickstart"  # settings to begin with
    base: str = ""  # YAML file of the settings that all runs share
    ensemble: int = 0
    """Runs of one shape that train as one model, 1 for none; 0 chooses: several on a GPU, and where
    d_model x batch_size is at most 256."""
    retry: bool = False  # run again what failed

    def __post_init__(self) -> None:
        WatchConfig.__post_init__(self)
        Launcher.__post_init__(self)
        if self.ensemble < 0:
            raise ConfigError(f"ensemble is {self.ensemble}; it must not be negative.")


@dataclass(frozen=True)
class SweepStatus:
    """Say which runs of a sweep or a study are done, failed or waiting, and why they failed."""

    out: tyro.conf.Positional[Path]  # folder of the sweep


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """`name=a,b`, `name=first:end` or `name=[a,[b,c]]`, a YAML list whose items may be lists.

    Raises ConfigError for what is none of these, or no setting.
    """
    name, equals, values = text.partition("=")
    names = [field.name for field in fields(MemoryConfig)]
    if not equals or not values:
        raise ConfigError(f"{text!r} is no axis; write it like seed=0:3 or lr=1e-3,4e-3.")
    if name not in names:
        raise ConfigError(f"There is no setting {name!r}; there are {', '.join(names)}.")
    if values.startswith("["):
        listed = _yaml(values)
        if not isinstance(listed, list) or not listed:
            raise ConfigError(f"{values!r} is no list; write it like {name}=[a,[b,c]].")
        return name, listed
    first, colon, end = values.partition(":")
    if colon and first.isdecimal() and end.isdecimal():
        return name, list(range(int(first), int(end)))
    return name, [_value(item) for item in values.split(",")]


def _value(text: str) -> Any:
    """What YAML reads (a number, true, null, text), and 1e-3 as a number, which it does not."""
    value = _yaml(text)
    with suppress(TypeError, ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def run_sweep_memory(config: SweepMemory) -> None:
    """Run what is left of the sweep, and print how it stands."""
    base = {**RECIPES[config.recipe], **(read_yaml(Path(config.base)) if config.base else {})}
    axes = list(map(parse_axis, config.axes))
    names = [name for name, _ in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{twice[0]} is given twice; write its values as one axis.")
    cells = memory_cells(dict(axes), base)
    with Board(config.out) as board:
        rows = sweep_memory(
            cells,
            config.out,
            config,
            ensemble=config.ensemble,
            watch=config.watch(),
            retry=config.retry,
            on_change=board.show,
        )
    if rows:
        print(recall_table(rows, [name for name, values in axes if len(values) > 1]))
    print(f"{len(rows)} of {len(cells)} runs are done; their rows are in {config.out / RUNS}")
    if len(rows) < len(cells):
        raise ITLError(
            f"{len(cells) - len(rows)} of {len(cells)} runs failed; "
            f"`itl sweep status {config.out}` says why, and --retry runs them again."
        )


def recall_table(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """The runs' recalls beside the settings in which they differ, the first ones and the last."""
    import pandas as pd

    recalls = [name for name in ("recall_seen", "recall_unseen") if any(name in r for r in rows)]
    columns = [*axes, "parameters", "step", *recalls]
    # A row leaves out what is null. As objects, whole numbers stay whole beside it.
    cells = [{name: row.get(name, "null") for name in columns} for row in rows]
    return pd.DataFrame(cells, dtype=object).to_string(
        index=False, max_rows=40, float_format="{:.4g}".format
    )


def sweep_status(config: SweepStatus) -> None:
    """Print a line for each run that is not done, and the counts."""
    file = config.out / CELLS
    if not file.exists():
        raise ConfigError(f"{config.out} holds no sweep.")
    names = list(read_json(file, "The command of the sweep, given again, writes it anew."))
    states = {name: _state(config.out / name) for name in names}
    for name, its in states.items():
        if its == "failed":
            print(f"failed   {name}: {_reason(config.out / name / FAILURE)}")
        elif its == "running":
            print(f"running  {name}: {newest_metrics(config.out / name)}")
    print(describe(states))


def _reason(file: Path) -> str:
    """The last line of a traceback, and where the whole is."""
    last = file.read_text(encoding="utf-8").splitlines()[-1]
    # Errors of this library are sentences; of others the kind says more than the text.
    sentence = last.partition(": ")[2] if last.startswith("itl_env.errors.") else last
    return f"{sentence.rstrip('.')}; see {file}"


def _state(folder: Path) -> State:
    return "running" if at_work(folder) else state(folder)
