"""The evaluation of many fine-tuning runs, each checkpoint a job; see `benchmarks.evaluation`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.evaluation import Measured, RunEvaluation, settings_of
from itl_env.errors import ConfigError, ITLError
from itl_env.files import write_text
from itl_train.run_folder import CONFIG
from itl_train.runs import claim
from itl_train.sweep import (
    Cell,
    Launcher,
    Row,
    State,
    digest,
    for_device,
    list_cells,
    one_process,
    sweep,
)

if TYPE_CHECKING:
    import pandas as pd

MAKER = "itl sweep eval"
BASES = "bases"  # of a folder of such jobs: what is measured of the models that runs began with


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The runs among these folders, and those that are in them; raises ConfigError if none is."""
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {folder}.")
        own = [folder] if (folder / CONFIG).is_file() else []
        own += sorted(file.parent for file in folder.glob(f"*/{CONFIG}"))
        own += sorted(file.parent for file in folder.glob(f"*/run/{CONFIG}"))  # of a study's cells
        if not own:
            raise ConfigError(f"There is no run in {folder}.")
        found += [run for run in own if run not in found]
    return found


def sweep_evaluation(
    folders: Sequence[Path],
    measured: Measured,
    out: Path,
    launcher: Launcher,
    *,
    device: str = "cpu",
    retry: bool = False,
    on_change: Callable[[Mapping[str, State]], None] = lambda states: None,
) -> "dict[Path, pd.DataFrame]":
    """Measure every checkpoint of the runs, and return each run's table.

    Bases come first, for checkpoints are compared with them. `out/table.csv` holds all tables.

    Raises ConfigError if there is no run or checkpoint, ITLError if a job failed, and what `sweep`
    raises.
    """
    import pandas as pd

    one_process(launcher)
    launcher = for_device(launcher, device)
    runs = find_runs(folders)
    if not runs:
        raise ConfigError("Name the folders of runs, or of sweeps of runs, to be measured.")
    how = {"measured": asdict(measured), "device": device, "base": str((out / BASES).absolute())}
    bases: list[Cell] = []
    cells: list[Cell] = []
    for run in runs:
        place = str(run.absolute())
        own = RunEvaluation(run, measured).checkpoints()
        if not own:
            raise ConfigError(f"There is no checkpoint in {run} to evaluate yet.")
        for part, names in ((bases, [""]), (cells, [path.name for path in own])):
            for name in names:
                settings: dict[str, Any] = {"run": place, "checkpoint": name, **how}
                label = f"{run.name}-{name or 'base'}"
                part.append(Cell(f"{label}-{digest(settings)}", settings))
    claim(out, MAKER)
    list_cells([*bases, *cells], out)
    for part in (bases, cells):
        rows = sweep(part, evaluate_cell, out, launcher, retry=retry, on_change=on_change)
        if len(rows) < len(part):
            raise ITLError(
                f"{len(part) - len(rows)} of {len(part)} jobs failed; `itl sweep status {out}` "
                "says why, and --retry runs them again."
            )
    tables = {
        run: RunEvaluation(run, measured, base_folder=base_folder(run, out / BASES)).run()
        for run in runs
    }
    whole = pd.concat([table.assign(run=str(run)) for run, table in tables.items()])
    write_text(out / "table.csv", whole.to_csv(index=False))
    return tables


def base_folder(run: Path, bases: Path) -> Path:
    """Where what is measured of a run's base is kept; runs of one base share it."""
    settings = settings_of(run)
    shared = {name: getattr(settings, name) for name in ("model", "dtype", "calls", "system")}
    return bases / digest(shared)


def evaluate_cell(settings: Mapping[str, Any], folder: Path) -> Row:
    """Measure one checkpoint, or the base of a run; what is found is in the run's own folder."""
    from benchmarks.rollouts import quiet_transformers

    quiet_transformers()
    run = Path(settings["run"])
    evaluation = RunEvaluation(
        run,
        Measured(**settings["measured"]),
        base_folder=base_folder(run, Path(settings["base"])),
        device=settings["device"],
    )
    if settings["checkpoint"]:
        evaluation.measure(run / "checkpoints" / settings["checkpoint"])
    else:
        evaluation.measure_base()
    return {"run": settings["run"], "checkpoint": settings["checkpoint"]}
