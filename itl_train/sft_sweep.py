"""Grids of fine-tuning runs.

    base = {"database": "sqlite:///facts.db", "model": "smollm-135m"}
    cells = sft_cells({"lr": [1e-3, 3e-4], "seed": range(3)}, base)
    rows = sweep_sft(cells, Path("runs/sweep"), Launcher())

The same call goes on with what an interrupted one left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from itl_agents.hub import check_pretrained
from itl_train.rows import RUNS, columns, write_rows
from itl_train.runs import claim
from itl_train.sft_config import SFTSettings
from itl_train.sft_questions import Questions
from itl_train.sweep import (
    Cell,
    Launcher,
    Row,
    State,
    digest,
    for_device,
    grid_cells,
    list_cells,
    one_process,
    sweep,
)

MAKER = "itl sweep sft"


def sft_cells(axes: Mapping[str, Sequence[Any]], base: Mapping[str, Any]) -> list[Cell]:
    """One cell for each combination, named by the settings that differ and a hash of all.

    Raises ConfigError if the settings of one contradict, or if there is none.
    """
    cells = grid_cells(axes, base, SFTSettings, needed=("database", "model"))
    return [
        Cell(f"{cell.name}-{digest(asdict(SFTSettings(**cell.settings)))}", cell.settings)
        for cell in cells
    ]


def sweep_sft(
    cells: Sequence[Cell],
    out: Path,
    launcher: Launcher,
    *,
    retry: bool = False,
    on_change: Callable[[Mapping[str, State]], None] = lambda states: None,
) -> list[Row]:
    """Fine-tune what is left of the cells, and return the rows of all that are done, in order.

    A row holds a run's settings and its last evaluation; `out/runs.csv` holds all rows. Raises
    ConfigError if a database holds too few facts or the folder holds something else, and what
    `sweep` raises.
    """
    one_process(launcher)
    every = [SFTSettings(**cell.settings) for cell in cells]
    for model in {settings.model for settings in every}:
        check_pretrained(model)
    for settings in every:
        Questions.open(settings).seen.database.close()
    for device in {settings.device for settings in every}:
        launcher = for_device(launcher, device)
    claim(out, MAKER)
    list_cells(cells, out)
    rows = sweep(cells, train_sft_cell, out, launcher, retry=retry, on_change=on_change)
    write_rows(out / RUNS, rows)
    return rows


def train_sft_cell(settings: Mapping[str, Any], folder: Path) -> Row:
    """Fine-tune one run; its row is its settings, defaults included, and its last evaluation."""
    from itl_train.sft import SFTRun

    run = SFTRun(SFTSettings(**settings), folder)
    last = run.train()
    n_parameters = run.trainer.model.num_parameters()
    return {**columns(asdict(run.settings)), "parameters": n_parameters, **last}
