"""Grids of memory runs: small ones of one shape train as one model, an ensemble.

    base = {"database": "sqlite:///facts.db", "mode": "in-weight", "n_people": 64}
    cells = memory_cells({"lr": [1e-3, 4e-3], "seed": range(3)}, base)
    rows = sweep_memory(cells, Path("runs/sweep"), Launcher())

The same call goes on with what an interrupted one left.
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from itl_env.connection import lasting_url
from itl_env.errors import ConfigError
from itl_env.files import read_json, write_text
from itl_train.memory_config import MemoryConfig
from itl_train.rows import RUNS, columns, write_rows
from itl_train.run_folder import CONFIG, FAILURE, has_begun, read_yaml
from itl_train.runs import claim, claimed
from itl_train.sweep import (
    CELLS,
    ROW,
    Cell,
    Launcher,
    Row,
    State,
    digest,
    for_device,
    grid_cells,
    one_process,
    read_row,
    state,
    sweep,
)
from itl_train.watch_config import UNWATCHED, WatchConfig

MAKER = "itl sweep memory"
ENSEMBLE = "ensemble-of-"  # with which the names of their folders begin
ENSEMBLES = "ensembles.json"  # of each ensemble of a sweep, its members' names and settings


def memory_cells(axes: Mapping[str, Sequence[Any]], base: Mapping[str, Any]) -> list[Cell]:
    """One cell for each combination, named by the settings that differ.

    Raises ConfigError if the settings of one contradict, or if there is none.
    """
    return grid_cells(axes, base, MemoryConfig)


def sweep_memory(
    cells: Sequence[Cell],
    out: Path,
    launcher: Launcher,
    *,
    ensemble: int = 0,
    watch: WatchConfig = UNWATCHED,
    retry: bool = False,
    on_change: Callable[[Mapping[str, State]], None] = lambda states: None,
) -> list[Row]:
    """Train what is left of the cells, and return the rows of all that are done, in order.

    A row holds a run's settings and its last evaluation. `out/runs.csv` holds these rows, and after
    them those of other grids that were run in the folder.

    cells: of `memory_cells`. ensemble: runs of one shape that train as one model; 1 for none, 0 for
        as many as are fastest. watch: how runs are watched, which then train alone. retry,
        on_change: see `sweep`.

    A run of the same settings that is in the folder already, of another grid say, is not run again,
    whatever its name. Where a member of an ensemble fails, say by a learning rate that is too high,
    all its members are run alone, so that only that one fails. Raises ConfigError if a database
    does not fit or the folder holds something else, and what `sweep` raises.
    """
    one_process(launcher)
    if watch != UNWATCHED:
        if ensemble > 1:
            raise ConfigError("Runs that are watched train alone; leave ensemble at 0 or 1.")
        ensemble = 1
    there = names_there(out) if claimed(out, MAKER) else {}
    cells = [Cell(there.get(_identity(cell.settings), cell.name), cell.settings) for cell in cells]
    done = finished_members(out)
    check_worlds([c for c in cells if c.name not in done and state(out / c.name) != "done"])
    for device in {MemoryConfig(**cell.settings).device for cell in cells}:
        launcher = for_device(launcher, device)
    claim(out, MAKER)
    check_begun(cells, out)
    while True:
        done = finished_members(out)
        check_done(cells, done, out)
        left = join_cells(
            [cell for cell in cells if cell.name not in done], out, launcher, ensemble
        )
        begun = [done[cell.name]["folder"].partition("/")[0] for cell in cells if cell.name in done]
        _list_folders([*begun, *(cell.name for cell in left)], out)
        before: dict[str, State] = dict.fromkeys(begun, "done")

        def tell(states: Mapping[str, State], before: Mapping[str, State] = before) -> None:
            on_change({**before, **states})

        work = partial(train_memory_cell, watch=watch)
        sweep(left, work, out, launcher, retry=retry, on_change=tell)
        failed = [cell.name for cell in left if _failed(out, cell)]
        if not failed:
            return _write_table(cells, out)
        for name in failed:
            warnings.warn(f"{name} failed; its members are run alone.", stacklevel=2)
        retry = False  # what failed alone failed just now


def n_runs(name: str) -> int:
    """How many runs are trained in a folder of this name: more than one in an ensemble's."""
    return int(name.removeprefix(ENSEMBLE).split("-")[0]) if name.startswith(ENSEMBLE) else 1


def _list_folders(first: Sequence[str], out: Path) -> None:
    """Write the names of the folders of all runs, these first, for whoever asks how they stand."""
    names = list(dict.fromkeys([*first, *folders_of_runs(out)]))
    write_text(out / CELLS, json.dumps(names, indent=1) + "\n")


def _write_table(cells: Sequence[Cell], out: Path) -> list[Row]:
    """Write `runs.csv`: the rows of the cells that are done, which it returns, then all others."""
    rows: dict[str, Row] = {}
    for name in folders_of_runs(out):
        if state(out / name) == "done":
            row = read_row(out / name)
            rows |= {each["cell"]: each for each in row.get("rows", [row])}
    own = [rows.pop(cell.name) for cell in cells if cell.name in rows]
    write_rows(out / RUNS, [*own, *rows.values()])
    return own


def folders_of_runs(out: Path) -> list[str]:
    """The names of the folders of all runs that sweeps have begun in a folder, and of ensembles.

    An ensemble that failed is none: its members were run alone.
    """
    files = (CONFIG, ROW, FAILURE)
    names = sorted({file.parent.name for each in files for file in out.glob(f"*/{each}")})
    return [
        name for name in names if not (name.startswith(ENSEMBLE) and state(out / name) == "failed")
    ]


def names_there(out: Path) -> dict[str, str]:
    """The names of the runs that sweeps have begun in a folder, by their settings.

    Raises ConfigError if those of one are not what this version knows.
    """
    found = {}
    for file in out.glob(f"*/{CONFIG}"):
        if "members" not in (settings := read_yaml(file)):
            try:
                found[_identity(settings)] = file.parent.name
            except TypeError as error:
                raise ConfigError(
                    f"The settings in {file} do not fit: {error}; remove {file.parent}, or name "
                    "another folder."
                ) from None
    for members in _ensembles(out).values():
        found |= {_identity(member["settings"]): member["name"] for member in members}
    return found


def _resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run, defaults included."""
    return asdict(MemoryConfig(**settings))


def _identity(settings: Mapping[str, Any]) -> str:
    """A hash of all settings of a run."""
    resolved = _resolved(settings)
    return digest({**resolved, "database": lasting_url(resolved["database"])})


def _ensembles(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The names and settings of the members of each ensemble of a sweep."""
    file = out / ENSEMBLES
    if not file.exists():
        return {}
    return dict(read_json(file, "Remove it and its ensembles, which are trained anew then."))


def check_worlds(cells: Sequence[Cell]) -> None:
    """Raise ConfigError if a run could not begin.

    That is: if its database is not there or holds too few people, its tokenizer or a source cannot
    be read, a dialogue is longer than its model, or there is no compiler where it wants one.
    """
    from itl_train.memory import Tasks
    from itl_train.sources import open_plan
    from itl_train.step import check_compiler

    configs = [MemoryConfig(**cell.settings) for cell in cells]
    for config in configs:
        check_compiler(config)
    # Dialogues are rendered to see that they fit: once for all runs that train on the same.
    asked = (
        "database", "table", "key", "mode", "style", "n_people", "n_unseen", "tokenizer",
        "max_length", "sources", "batch_size",
    )  # fmt: skip
    for config in {tuple(getattr(each, name) for name in asked): each for each in configs}.values():
        tasks = Tasks.open(config)
        open_plan(config, tasks.seen_in, tasks.tokenizer(), device="cpu")
        tasks.seen.database.close()


def check_begun(cells: Sequence[Cell], out: Path) -> None:
    """Raise ConfigError if a cell's folder holds a run of other settings than its name tells."""
    for cell in cells:
        if (out / cell.name / CONFIG).exists():
            settings = _resolved(cell.settings)
            url = lasting_url(settings["database"])
            has_begun(out / cell.name, {**settings, "database": url})


def check_done(cells: Sequence[Cell], done: Mapping[str, Row], out: Path) -> None:
    """Raise ConfigError if the row of a cell, in an ensemble, is of other settings."""
    for cell in cells:
        if (row := done.get(cell.name)) is not None:
            _check_same(cell, row, out / row["folder"])


def _check_same(cell: Cell, there: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError if what is there, in a folder, has other settings than the cell."""
    wanted = _resolved(cell.settings)
    found = _resolved({name: there[name] for name in wanted if name in there})
    if differing := [name for name in wanted if wanted[name] != found[name]]:
        key = differing[0]
        raise ConfigError(
            f"{folder} holds a run {cell.name} with {key}={found[key]!r}, not {wanted[key]!r}; "
            "choose another folder, or remove it."
        )


def join_cells(cells: Sequence[Cell], out: Path, launcher: Launcher, size: int = 0) -> list[Cell]:
    """The same runs, some of them joined in one cell that trains them as one model.

    size: of ensembles; 0 for the fastest, but small enough that all jobs at a time have work.

    An ensemble that an earlier sweep began is kept as it is, and members of one that failed are run
    alone. `out/ensembles.json` tells which there are.
    """
    from itl_train.ensemble import fastest_size, may_join

    recorded = _ensembles(out)
    wanted = {cell.name: cell for cell in cells}
    kept: list[Cell] = []
    apart: set[str] = set()
    for name, members in recorded.items():
        own = [member for member in members if member["name"] in wanted]
        if state(out / name) == "failed":
            apart |= {member["name"] for member in own}
        elif own:  # were it done, there would be none
            for member in own:
                _check_same(wanted.pop(member["name"]), member["settings"], out / name)
            kept.append(Cell(name, {"members": members}))
    alone: list[Cell] = []
    alike: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in wanted.values():
        settings = MemoryConfig(**cell.settings)
        most = size or fastest_size(settings)
        if most == 1 or cell.name in apart or (out / cell.name).exists():
            alone.append(cell)
        else:
            alike.setdefault((most, may_join(settings)), []).append(cell)
    joined: list[Cell] = []
    for (most, _), group in alike.items():
        if launcher.at_a_time:
            most = min(most, math.ceil(len(group) / launcher.at_a_time))
        joined += [_joined(group[first : first + most]) for first in range(0, len(group), most)]
    new = {cell.name: cell.settings["members"] for cell in joined if "members" in cell.settings}
    if new:
        write_text(out / ENSEMBLES, json.dumps(recorded | new, indent=1) + "\n")
    return kept + joined + alone


def _joined(cells: Sequence[Cell]) -> Cell:
    if len(cells) == 1:
        return cells[0]
    members = [{"name": cell.name, "settings": dict(cell.settings)} for cell in cells]
    return Cell(f"{ENSEMBLE}{len(cells)}-{digest(members)}", {"members": members})


def _failed(out: Path, cell: Cell) -> bool:
    """Whether a cell is an ensemble that failed."""
    return "members" in cell.settings and state(out / cell.name) == "failed"


def finished_members(out: Path) -> dict[str, Row]:
    """The rows of runs that were members of ensembles, by their cell."""
    done = [read_row(folder) for folder in out.glob(f"{ENSEMBLE}*") if state(folder) == "done"]
    return {row["cell"]: row for ensemble in done for row in ensemble["rows"]}


def train_memory_cell(
    settings: Mapping[str, Any], folder: Path, watch: WatchConfig = UNWATCHED
) -> Row:
    """Train one run; its row is its settings, defaults included, and its last evaluation.

    An ensemble's settings are its `members`, and its row holds their `rows`, which say in which
    folder beside those of other cells each member is.
    """
    from itl_train.ensemble import EnsembleRun
    from itl_train.memory import MemoryRun

    if "members" not in settings:
        run = MemoryRun(MemoryConfig(**settings), folder, watch)
        last = run.train()
        return {**columns(_resolved(settings)), "parameters": run.model.config.n_parameters, **last}
    members = settings["members"]
    together = EnsembleRun([MemoryConfig(**each["settings"]) for each in members], folder)
    evaluations = together.train()
    own = {"parameters": together.model.config.n_parameters}
    return {
        "rows": [
            {
                "cell": member["name"],
                **columns(_resolved(member["settings"])),
                **own,
                **last,
                "folder": f"{folder.name}/{run.path.name}",
            }
            for member, last, run in zip(members, evaluations, together.members, strict=True)
        ]
    }
