"""Grids of memory runs: small ones of one shape train as one model, an ensemble.

    base = {"database": "sqlite:///facts.db", "mode": "in-weight", "n_people": 64}
    cells = memory_cells({"lr": [1e-3, 4e-3], "seed": range(3)}, base)
    rows = sweep_memory(cells, Path("runs/sweep"), Launcher())

The same call goes on with what an interrupted one left.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from itl_env.connection import holds_password, parse_url, public_url
from itl_env.errors import ConfigError
from itl_env.files import write_text
from itl_train.memory_config import MemoryConfig
from itl_train.rows import RUNS, write_rows
from itl_train.run_folder import has_begun
from itl_train.sweep import (
    CELLS,
    Cell,
    Launcher,
    Row,
    State,
    digest,
    for_device,
    grid,
    read_row,
    state,
    sweep,
)

ENSEMBLE = "ensemble-of-"  # with which the names of their folders begin
ENSEMBLES = "ensembles.json"  # of each ensemble of a sweep, its members' names and settings


def memory_cells(axes: Mapping[str, Sequence[Any]], base: Mapping[str, Any]) -> list[Cell]:
    """One cell for each combination, named by the settings that differ.

    Raises ConfigError if the settings of one contradict, or if there is none.
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
    if not cells:
        empty = next(key for key, values in axes.items() if not values)
        raise ConfigError(f"There is no value of {empty}, and so no run.")
    return cells


def sweep_memory(
    cells: Sequence[Cell],
    out: Path,
    launcher: Launcher,
    *,
    ensemble: int = 0,
    retry: bool = False,
    on_change: Callable[[Mapping[str, State]], None] = lambda states: None,
) -> list[Row]:
    """Train what is left of the cells, and return the rows of all that are done, in order.

    A row holds a run's settings and its last evaluation; all are in `out/runs.csv`, too.

    cells: of `memory_cells`. ensemble: runs of one shape that train as one model; 1 for none, 0 for
        as many as are fastest. retry, on_change: see `sweep`.

    Where a member of an ensemble fails, say by a learning rate that is too high, all its members
    are run alone, so that only that one fails. Raises ConfigError if the folder holds runs of other
    settings, and what `sweep` raises.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the sweep.")
    out.mkdir(parents=True, exist_ok=True)
    check_begun(cells, out)
    for device in {MemoryConfig(**cell.settings).device for cell in cells}:
        launcher = for_device(launcher, device)
    while True:
        done = finished_members(out)
        check_done(cells, done, out)
        left = join_cells(
            [cell for cell in cells if cell.name not in done], out, launcher, ensemble
        )
        begun = {
            done[cell.name]["folder"].partition("/")[0]: None for cell in cells if cell.name in done
        }
        names = [*begun, *(cell.name for cell in left)]
        write_text(out / CELLS, json.dumps(names, indent=1) + "\n")
        ended = sweep(left, train_memory_cell, out, launcher, retry=retry, on_change=on_change)
        if not any(_failed(out, cell) for cell in left):
            break
        retry = False  # what failed alone failed just now
    done |= {row["cell"]: row for each in ended for row in each.get("rows", [each])}
    rows = [done[cell.name] for cell in cells if cell.name in done]
    write_rows(out / RUNS, rows)
    return rows


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
        if (row := done.get(cell.name)) is not None:
            _check_same(cell, row, out / row["folder"])


def _check_same(cell: Cell, there: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError if what is there, in a folder, has other settings than the cell."""
    wanted = asdict(MemoryConfig(**cell.settings))
    found = asdict(MemoryConfig(**{name: there[name] for name in wanted if name in there}))
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

    file = out / ENSEMBLES
    recorded: dict[str, list[dict[str, Any]]] = {}
    if file.exists():
        recorded = json.loads(file.read_text(encoding="utf-8"))
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
    alike: dict[Any, list[Cell]] = {}
    for cell in wanted.values():
        settings = MemoryConfig(**cell.settings)
        most = size or fastest_size(settings)
        alone = most == 1 or cell.name in apart or (out / cell.name).exists()
        alike.setdefault(cell.name if alone else (most, may_join(settings)), []).append(cell)
    joined: list[Cell] = []
    for key, group in alike.items():
        most = 1 if isinstance(key, str) else key[0]
        if launcher.at_a_time:
            most = min(most, math.ceil(len(group) / launcher.at_a_time))
        joined += [_joined(group[first : first + most]) for first in range(0, len(group), most)]
    new = {cell.name: cell.settings["members"] for cell in joined if "members" in cell.settings}
    if new:
        write_text(file, json.dumps(recorded | new, indent=1) + "\n")
    return kept + joined


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


def train_memory_cell(settings: Mapping[str, Any], folder: Path) -> Row:
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
