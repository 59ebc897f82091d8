"""Commands of `itl` for many runs: `sweep memory|sft|eval|status`; see `commands_world`."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from benchmarks.board import Board, describe, newest_metrics
from benchmarks.evaluation import Measured
from itl_env.errors import ConfigError, ITLError
from itl_env.files import read_json
from itl_train import sft_config
from itl_train.memory_config import RECIPES, MemoryConfig, RecipeName
from itl_train.memory_sweep import memory_cells, sweep_memory
from itl_train.rows import RUNS
from itl_train.run_folder import FAILURE, read_yaml
from itl_train.sft_config import SFTSettings
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
    """Count the runs of a sweep or a study that are done or waiting, and say why others failed."""

    out: tyro.conf.Positional[Path]  # folder of the sweep


def parse_axis(text: str, settings: type = MemoryConfig) -> tuple[str, list[Any]]:
    """`name=a,b`, `name=first:end` or `name=[a,[b,c]]`, a YAML list whose items may be lists.

    settings: whose fields may be axes.

    Raises ConfigError for what is none of these, or no setting.
    """
    name, equals, values = text.partition("=")
    names = [field.name for field in fields(settings)]
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


def parse_axes(texts: Sequence[str], settings: type) -> dict[str, list[Any]]:
    """All axes by their names; raises ConfigError if one is given twice."""
    axes = [parse_axis(text, settings) for text in texts]
    names = [name for name, _ in axes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{twice[0]} is given twice; write its values as one axis.")
    return dict(axes)


def run_sweep_memory(config: SweepMemory) -> None:
    """Run what is left of the sweep, and print how it stands."""
    base = {**RECIPES[config.recipe], **(read_yaml(Path(config.base)) if config.base else {})}
    axes = parse_axes(config.axes, MemoryConfig)
    cells = memory_cells(axes, base)
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
    _tell(rows, len(cells), axes, config.out)


def _tell(rows: Sequence[Row], n_cells: int, axes: Mapping[str, list[Any]], out: Path) -> None:
    """Print the runs' recalls; raises ITLError if one failed."""
    if rows:
        print(recall_table(rows, [name for name, values in axes.items() if len(values) > 1]))
    print(f"{len(rows)} of {n_cells} runs are done; their rows are in {out / RUNS}")
    if len(rows) < n_cells:
        raise ITLError(
            f"{n_cells - len(rows)} of {n_cells} runs failed; "
            f"`itl sweep status {out}` says why, and --retry runs them again."
        )


@dataclass(frozen=True, kw_only=True)
class SweepSFT(Launcher):
    """Fine-tune a pretrained model for each combination of settings; the same command goes on.

    A finished run is never run again. Rows of all runs are in OUT/runs.csv.
    """

    axes: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="AXES")]
    """Settings and their values: model=smollm-135m n_facts=500,1000 seed=0:5 (seeds 0 to 4). They
    are the flags of `itl train sft`, with underscores."""
    out: Path  # folder of the sweep
    recipe: sft_config.RecipeName = "lora"  # settings to begin with
    base: str = ""  # YAML file of the settings that all runs share
    retry: bool = False  # run again what failed


def run_sweep_sft(config: SweepSFT) -> None:
    """Run what is left of the sweep, and print how it stands."""
    from itl_train.sft_sweep import sft_cells, sweep_sft

    recipe = sft_config.RECIPES[config.recipe]
    base = {**recipe, **(read_yaml(Path(config.base)) if config.base else {})}
    axes = parse_axes(config.axes, SFTSettings)
    cells = sft_cells(axes, base)
    with Board(config.out) as board:
        rows = sweep_sft(cells, config.out, config, retry=config.retry, on_change=board.show)
    _tell(rows, len(cells), axes, config.out)


@dataclass(frozen=True, kw_only=True)
class SweepEval(Measured, Launcher):
    """Measure every checkpoint of many fine-tuning runs, as jobs; the same command goes on.

    What is measured is kept in each run's own folder, as by `itl eval RUN --every`.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUNS")]
    """Folders of runs, or of sweeps of runs."""
    out: Path  # folder of the jobs, and of table.csv, which holds all runs
    device: str = "cpu"  # where models are run
    retry: bool = False  # measure again what failed

    def __post_init__(self) -> None:
        Measured.__post_init__(self)
        Launcher.__post_init__(self)


def run_sweep_eval(config: SweepEval) -> None:
    """Measure what is left, and print the table of each run."""
    from benchmarks.evaluation import summary
    from benchmarks.evaluation_sweep import sweep_evaluation

    measured = Measured(**{f.name: getattr(config, f.name) for f in fields(Measured)})
    with Board(config.out) as board:
        tables = sweep_evaluation(
            config.runs,
            measured,
            config.out,
            config,
            device=config.device,
            retry=config.retry,
            on_change=board.show,
        )
    for run, table in tables.items():
        print(f"{run}\n{summary(table)}")
    print(f"the table of all is in {config.out / 'table.csv'}")


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
