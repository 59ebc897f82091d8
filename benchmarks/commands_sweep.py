"""Commands of `itl` for many runs: `sweep memory`, `sweep status`; see `commands_world`."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from benchmarks.board import Board, describe, newest_metrics
from benchmarks.rows import RUNS, write_rows
from itl_env.connection import holds_password, parse_url, public_url
from itl_env.errors import ConfigError, ITLError
from itl_env.files import write_text
from itl_train.memory_config import RECIPES, MemoryConfig, RecipeName
from itl_train.run_folder import has_begun, read_yaml
from itl_train.sweep import (
    CELLS,
    FAILURE,
    Cell,
    Launcher,
    Row,
    State,
    at_work,
    grid,
    read_row,
    state,
    sweep,
)

ENSEMBLE = "ensemble-of-"  # with which the names of their folders begin


@dataclass(frozen=True, kw_only=True)
class SweepMemory(Launcher):
    """Train one small Llama for each combination of settings; the same command goes on.

    A finished run is never run again. Rows of all runs are in OUT/runs.csv.
    """

    axes: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="AXES")]
    """Settings and their values: n_people=64,128 lr=1e-3,4e-3 seed=0:5 (seeds 0 to 4)."""
    out: Path  # folder of the sweep
    recipe: RecipeName = "quickstart"  # settings to begin with
    base: str = ""  # YAML file of the settings that all runs share
    ensemble: int = 0
    """Runs of one shape that train as one model, 1 for none; 0 chooses: several on a GPU, and where
    d_model x batch_size is at most 256."""
    retry: bool = False  # run again what failed

    def __post_init__(self) -> None:
        super().__post_init__()
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


def memory_cells(axes: Mapping[str, Sequence[Any]], base: Mapping[str, Any]) -> list[Cell]:
    """One cell for each combination, named by the settings that differ.

    Raises ConfigError if the settings of one contradict.
    """
    differing = [key for key, values in axes.items() if len(values) > 1]
    cells = []
    for values in grid(axes):
        settings = {**base, **values}
        if "database" not in settings:
            raise ConfigError("No database is named; write database=URL among the axes.")
        url = parse_url(settings["database"])
        if holds_password(url):  # settings are written into files
            raise ConfigError(
                f"A sweep's database must be named without a password ({public_url(url)}); give it "
                "in PGPASSWORD or ~/.pgpass."
            )
        try:
            MemoryConfig(**settings)
        except TypeError as error:  # an unknown name, or text where a number belongs
            raise ConfigError(f"The settings {values} do not fit: {error}.") from None
        name = ",".join(f"{key}={values[key]}".replace("/", "_") for key in differing)
        cells.append(Cell(name or "run", settings))
    return cells


def check_begun(cells: Sequence[Cell], out: Path) -> None:
    """Raise ConfigError if a cell's folder holds a run of other settings than its name tells."""
    for cell in cells:
        if (out / cell.name / "config.yaml").exists():
            settings = asdict(MemoryConfig(**cell.settings))
            url = public_url(parse_url(settings["database"]))
            has_begun(out / cell.name, {**settings, "database": url})


def check_done(cells: Sequence[Cell], done: Mapping[str, Row], out: Path) -> None:
    """Raise ConfigError if the row of a cell, in an ensemble, is of other settings."""
    for cell in cells:
        if (row := done.get(cell.name)) is None:
            continue
        wanted = asdict(MemoryConfig(**cell.settings))
        there = asdict(MemoryConfig(**{name: row[name] for name in wanted if name in row}))
        if differing := [name for name in wanted if wanted[name] != there[name]]:
            key = differing[0]
            raise ConfigError(
                f"{out / row['folder']} holds a run {cell.name} with {key}={there[key]!r}, not "
                f"{wanted[key]!r}; choose another folder, or remove it."
            )


def ensembles(cells: Sequence[Cell], config: SweepMemory) -> list[Cell]:
    """The same runs, those joined in one cell that train fastest as one model; see `train_cell`.

    With several jobs at a time, ensembles are made small enough that all have work; so one that is
    unfinished goes on only with as many jobs as before.
    """
    from itl_train.ensemble import fastest_size, may_join

    alike: dict[Any, list[Cell]] = {}
    for cell in cells:
        settings = MemoryConfig(**cell.settings)
        size = config.ensemble or fastest_size(settings)
        alone = size == 1 or (config.out / cell.name).exists()  # as it may have begun
        alike.setdefault(cell.name if alone else (size, may_join(settings)), []).append(cell)
    joined = []
    for key, own in alike.items():
        if isinstance(key, str):
            joined += own
            continue
        size = key[0]
        if config.at_a_time:
            size = min(size, math.ceil(len(own) / config.at_a_time))
        joined += [_joined(own[first : first + size]) for first in range(0, len(own), size)]
    return joined


def _joined(cells: Sequence[Cell]) -> Cell:
    if len(cells) == 1:
        return cells[0]
    members = [{"name": cell.name, "settings": dict(cell.settings)} for cell in cells]
    digest = hashlib.blake2b(json.dumps(members).encode(), digest_size=4).hexdigest()
    return Cell(f"{ENSEMBLE}{len(cells)}-{digest}", {"members": members})


def finished_members(out: Path) -> dict[str, Row]:
    """The rows of runs that were members of ensembles, by their cell."""
    done = [read_row(folder) for folder in out.glob(f"{ENSEMBLE}*") if state(folder) == "done"]
    return {row["cell"]: row for ensemble in done for row in ensemble["rows"]}


def train_cell(settings: Mapping[str, Any], folder: Path) -> Row:
    """Train one run; its row is its settings and its last evaluation.

    An ensemble's settings are its `members`, and its row holds their `rows`, which say in which
    folder beside those of other cells each member is.
    """
    from itl_train.ensemble import EnsembleRun
    from itl_train.memory import MemoryRun

    if "members" not in settings:
        run = MemoryRun(MemoryConfig(**settings), folder)
        last = run.train()
        return {**settings, "parameters": run.model.config.n_parameters, **last}
    members = settings["members"]
    together = EnsembleRun([MemoryConfig(**each["settings"]) for each in members], folder)
    evaluations = together.train()
    own = {"parameters": together.model.config.n_parameters}
    return {
        "rows": [
            {"cell": m["name"], **m["settings"], **own, **last, "folder": f"{folder.name}/{place}"}
            for m, last, place in zip(
                members, evaluations, (member.path.name for member in together.members), strict=True
            )
        ]
    }


def run_sweep_memory(config: SweepMemory) -> None:
    """Run what is left of the sweep, and print how it stands."""
    base = {**RECIPES[config.recipe], **(read_yaml(Path(config.base)) if config.base else {})}
    cells = memory_cells(dict(map(parse_axis, config.axes)), base)
    if config.out.exists() and not config.out.is_dir():
        raise ConfigError(f"{config.out} is a file; name a folder for the sweep.")
    config.out.mkdir(parents=True, exist_ok=True)
    check_begun(cells, config.out)
    done = finished_members(config.out)
    check_done(cells, done, config.out)
    left = ensembles([cell for cell in cells if cell.name not in done], config)
    own = {done[cell.name]["folder"].partition("/")[0]: None for cell in cells if cell.name in done}
    names = [*own, *(cell.name for cell in left)]
    write_text(config.out / CELLS, json.dumps(names, indent=1) + "\n")
    with Board(config.out) as board:
        ended = sweep(
            left, train_cell, config.out, config, retry=config.retry, on_change=board.show
        )
    done |= {row["cell"]: row for each in ended for row in each.get("rows", [each])}
    rows = [done[cell.name] for cell in cells if cell.name in done]
    write_rows(config.out / RUNS, rows)
    print(f"{len(rows)} of {len(cells)} runs are done; their rows are in {config.out / RUNS}")
    if len(rows) < len(cells):
        raise ITLError(
            f"{len(cells) - len(rows)} of {len(cells)} runs failed; "
            f"`itl sweep status {config.out}` says why, and --retry runs them again."
        )


def sweep_status(config: SweepStatus) -> None:
    """Print a line for each run that is not done, and the counts."""
    file = config.out / CELLS
    if not file.exists():
        raise ConfigError(f"{config.out} holds no sweep.")
    names = list(json.loads(file.read_text(encoding="utf-8")))
    states = {name: _state(config.out / name) for name in names}
    for name, its in states.items():
        if its == "failed":
            last_line = (config.out / name / FAILURE).read_text(encoding="utf-8").splitlines()[-1]
            print(f"failed   {name}: {last_line}; see {config.out / name / FAILURE}")
        elif its == "running":
            print(f"running  {name}: {newest_metrics(config.out / name)}")
    print(describe(states))


def _state(folder: Path) -> State:
    return "running" if at_work(folder) else state(folder)
