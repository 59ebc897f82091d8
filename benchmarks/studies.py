"""What the memory-load studies share: their flags, their rows, and the search for a size.

A study trains cells (`benchmarks.cells`) with the sweep of `itl_train.sweep`. Every row it has goes
into `runs.csv`; rows of the library's own results count as done, so that a study is continued and
not repeated.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from benchmarks.board import Board
from benchmarks.cells import train_cell
from benchmarks.reference import RECALL
from itl_env.errors import ITLError
from itl_env.files import write_text
from itl_train.memory_config import RECIPES
from itl_train.rows import RUNS, read_rows, write_rows
from itl_train.runs import claim
from itl_train.sweep import (
    CELLS,
    Cell,
    Launcher,
    Row,
    State,
    Work,
    for_device,
    one_process,
    read_row,
    state,
    sweep,
)

RESULTS = Path(__file__).parent / "results"

# The published grid of widths; at 2 layers, 2 heads and the byte vocabulary P = 32 d^2 + 525 d.
WIDTHS = (*range(4, 81, 4), *range(88, 129, 8))

# The published shape and call, and what else all studies share.
SHAPE: Mapping[str, Any] = {
    "n_layers": 2, "n_heads": 2, "d_hidden": None, "style": "fenced", "max_length": 512,
    "rope_theta": 10_000.0, "tied_embeddings": False, "qkv_bias": False, "tokenizer": "bytes",
    "dtype": "float32", "clip": 0.0, "weight_decay": 0.0, "pad_to": 0,
    "evaluate_every": 500, "n_evaluate": 1_024,
}  # fmt: skip
# What a recipe must not change: the parameters and the call that are compared.
SAME = {name: SHAPE[name] for name in ("n_layers", "n_heads", "d_hidden", "style")}


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Launcher):
    """The flags of every study."""

    out: Path  # folder of the study
    preset: Literal["smoke", "laptop", "paper"] = "laptop"  # how much is run
    """smoke: about a minute; laptop: some hours on two cores; paper, where there is one: the
    published grid."""
    device: str = "cpu"  # where models are trained: cpu, cuda, ...
    retry: bool = False  # run again what failed
    fresh: bool = False  # run also what the library's own result tables hold

    @property
    def flags(self) -> str:
        """Those of the command that say what is run, for its report."""
        return f"--preset {self.preset}"


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(StudyConfig):
    """The flags of a study whose models are all trained alike."""

    recipe: Literal["fast", "published"] = "fast"  # how models are trained

    def settings(self, **own: Any) -> dict[str, Any]:
        """The model's settings under the recipe; positions turn as in the published models."""
        recipe = RECIPES[self.recipe]
        small: dict[str, Any] = {}
        if self.preset == "smoke":  # its few facts would be in a whole batch many times over
            small = {"evaluate_every": 50, "batch_size": recipe["batch_size"] // 4}
        model = {**SHAPE, **recipe, **SAME, "rope_theta": SHAPE["rope_theta"]}
        return {**model, **small, "device": self.device, **own}

    @property
    def flags(self) -> str:
        """See `StudyConfig.flags`."""
        return f"{super().flags} --recipe {self.recipe}"


Group = TypeVar("Group")


class Study(Generic[Group]):
    """The rows of one study, known and new.

    name: of the study, and of its folder among the results. work: what a cell does.
    """

    def __init__(self, name: str, config: StudyConfig, work: Work = train_cell) -> None:
        """Raises ConfigError if `config.out` is no folder, or that of something else."""
        self.name = name
        self.work = work
        self.config = config
        one_process(config)
        for_device(config, config.device)  # which raises before anything is written
        claim(config.out, f"itl bench run {name} {config.flags}")
        self._known = {} if config.fresh else read_rows(RESULTS / name / RUNS)
        self.rows: dict[str, Row] = {}  # of the cells asked for, by their names
        self._here: dict[str, None] = {}  # the cells that are run in `config.out`, in order
        self._states: dict[str, State] = {}  # of all cells so far

    @property
    def n_shipped(self) -> int:
        """How many rows are the library's own, measured elsewhere."""
        return sum(name in self._known for name in self.rows)

    def run(self, cells: Sequence[Cell], launcher: Launcher | None = None) -> list[Row]:
        """The rows of the cells, run where there is none yet.

        launcher: the study's own by default.

        Raises ITLError if one failed; the others are kept.
        """
        config = self.config
        self._here |= dict.fromkeys(c.name for c in cells if c.name not in self._known)
        self._list_cells()

        def show(states: Mapping[str, State]) -> None:
            self._states |= states
            board.show(self._states)

        with Board(config.out) as board:
            rows = sweep(
                cells,
                self.work,
                config.out,
                for_device(launcher or config, config.device),
                known=self._known.values(),
                retry=config.retry,
                on_change=show,
            )
        self.keep(rows)
        if len(rows) < len(cells):
            done = {row["cell"] for row in rows}
            failed = [cell.name for cell in cells if cell.name not in done]
            raise ITLError(
                f"{len(failed)} runs failed, such as {failed[0]}; see failure.txt in its folder in "
                f"{config.out}. With --retry, the same command runs them again."
            )
        return rows

    def take_in(self, cells: Sequence[Cell]) -> None:
        """The rows of those cells that are done, without running the others."""
        begun = [cell.name for cell in cells if (self.config.out / cell.name).is_dir()]
        self._here |= dict.fromkeys(begun)
        self._list_cells()
        own = {name: read_row(self.config.out / name) for name in begun if self._done(name)}
        there = self._known | own
        self.keep([there[cell.name] for cell in cells if cell.name in there])

    def _list_cells(self) -> None:
        write_text(self.config.out / CELLS, json.dumps(list(self._here), indent=1) + "\n")

    def _done(self, name: str) -> bool:
        return state(self.config.out / name) == "done"

    def keep(self, rows: Sequence[Row]) -> None:
        """Add the rows to those of the study, and write them all."""
        self.rows |= {row["cell"]: row for row in rows}
        write_rows(self.config.out / RUNS, list(self.rows.values()))

    def search(
        self,
        widths: Mapping[Group, Sequence[int]],
        cells: Callable[[Group, int], Sequence[Cell]],
    ) -> dict[Group, int | None]:
        """The smallest width of each group whose mean recall reaches `RECALL`; None if none does.

        widths: those to choose from, ascending. cells: those of a group and a width, one for each
            seed. Where the first seed does so badly that the mean cannot reach `RECALL` whatever
            the others do, these are not run.

        The preset `paper` runs every width and seed of every group; others bisect.
        """
        enough: dict[tuple[Group, int], bool] = {}

        def ask(group: Group) -> tuple[int | None, int | None]:
            return smallest(widths[group], lambda width: enough.get((group, width)))

        def can_reach(wanted: Sequence[Cell]) -> bool:
            """Whether the mean recall is enough, if seeds not run yet recall everything."""
            rows = [self.rows.get(cell.name, {}) for cell in wanted]
            recalls = [float(row.get("seen_recall", 1.0)) for row in rows]
            # Rounding takes the mean of three times 0.95 below it.
            return sum(recalls) / len(recalls) > RECALL - 1e-9

        if self.config.preset == "paper":
            self.run([cell for g, own in widths.items() for w in own for cell in cells(g, w)])
            return {
                g: next((w for w in own if can_reach(cells(g, w))), None)
                for g, own in widths.items()
            }
        while asked := {g: width for g in widths if (width := ask(g)[1]) is not None}:
            each = {group: cells(group, width) for group, width in asked.items()}
            self.run([wanted[0] for wanted in each.values()])
            self.run([cell for wanted in each.values() if can_reach(wanted) for cell in wanted])
            for group, wanted in each.items():
                enough[group, asked[group]] = can_reach(wanted)
        return {group: ask(group)[0] for group in widths}


def smallest(
    widths: Sequence[int], enough: Callable[[int], bool | None]
) -> tuple[int | None, int | None]:
    """Bisect for the smallest width that is enough.

    enough: whether a width is, None where it is not known yet.

    Returns (that width or None if none is, the width to try next or None if done). It is taken for
    granted that what is wider than enough is enough.
    """
    low, high = 0, len(widths)  # the answer's place; len(widths) for none
    while low < high:
        middle = (low + high) // 2
        found = enough(widths[middle])
        if found is None:
            return None, widths[middle]
        if found:
            high = middle
        else:
            low = middle + 1
    return (widths[low] if low < len(widths) else None), None
