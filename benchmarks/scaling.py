"""Does training cost more the more people there are?

    itl bench run scaling --out runs/scaling

Times steps of one model on worlds of growing size, taking turns, and weighs what a run keeps: the
dialogues in memory, and the state that is saved for resuming.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.machine import machine
from benchmarks.study_report import publish, results_folder, table
from benchmarks.timing import check_threads, race, say, spread, with_spread
from itl_env import FactDatabase, people


class Sizes(NamedTuple):
    """What a preset measures."""

    n_people: tuple[int, ...]
    batch_size: int
    n_steps: int  # a round: as many as a group of batches, so that short and long ones balance
    rounds: int


PRESETS = {
    "smoke": Sizes((8, 64), 4, 2, 1),
    "laptop": Sizes((64, 1_024, 16_384, 131_072), 128, 64, 3),
}


@dataclass(frozen=True)
class ScalingConfig:
    """Time training steps, and weigh what is kept, on worlds of growing size."""

    out: Path = Path("runs/scaling")  # folder for scaling.json and scaling.md
    preset: Literal["smoke", "laptop"] = "laptop"  # laptop: minutes; smoke: does it run at all
    n_threads: int = 0  # CPU threads of torch; 0 for its own choice


def scaling(config: ScalingConfig, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure, write the two files, and return what the first holds."""
    import torch

    from itl_train.memory import MemoryRun
    from itl_train.memory_config import MemoryConfig

    check_threads(config.n_threads)
    if config.n_threads:
        torch.set_num_threads(config.n_threads)
    sizes = PRESETS[config.preset]
    out = results_folder(config.out)
    rows: list[dict[str, Any]] = []
    sides: dict[str, Callable[[], int]] = {}
    with tempfile.TemporaryDirectory(prefix="itl-scaling-") as folder:
        for n in sizes.n_people:
            say(f"{n:,} people")
            file = Path(folder) / f"{n}.db"
            FactDatabase.create(file, people(n, seed=0)).close()
            settings = MemoryConfig(
                database=str(file), mode="in-weight", n_people=n, n_unseen=0, d_model=64,
                n_layers=2, n_heads=2, d_hidden=None, batch_size=sizes.batch_size, n_steps=1,
                n_evaluate=1,
            )  # fmt: skip
            began = time.perf_counter()
            run = MemoryRun(settings, Path(folder) / f"run-{n}")
            rendered = time.perf_counter() - began
            run.train()  # one step, which is saved
            saved = run.folder.checkpoints.rglob("*")
            dialogues = run.plan.dialogues
            rows.append(
                {
                    "n_people": n,
                    "prepare_s": round(rendered, 2),
                    "dialogues_mb": sum(t.nbytes for t in vars(dialogues).values()) / 2**20,
                    "state_mb": sum(f.stat().st_size for f in saved if f.is_file()) / 2**20,
                }
            )
            sides[str(n)] = _steps(run, sizes.n_steps)
        rates = race(sides, sizes.rounds)
    base = rates[str(sizes.n_people[0])]
    for row in rows:
        own = rates[str(row["n_people"])]
        row |= spread([1000 / rate for rate in own], "ms_a_step")
        row |= spread([b / a for a, b in zip(own, base, strict=True)], "ratio")
    results = {
        "preset": config.preset,
        "batch_size": sizes.batch_size,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "machine": machine(),
    }
    publish(out, "scaling", results, report(results), show)
    return results


def _steps(run: Any, n_steps: int) -> Callable[[], int]:
    """Trains some steps of a run's model on its batches, again and again the same."""
    from itl_train.step import train_step

    rates = (run.config.lr, run.config.muon_lr)

    def train() -> int:
        for step in range(n_steps):
            train_step(run.model, run.optimizers, rates, run.plan.batch(step))
        return n_steps

    return train


def report(results: dict[str, Any]) -> str:
    """`scaling.md`."""
    rows = [
        (
            f"{row['n_people']:,}",
            with_spread(row, "ms_a_step"),
            f"**{with_spread(row, 'ratio')}**",
            f"{row['state_mb']:.2f}",
            f"{row['dialogues_mb']:,.1f}",
            f"{row['prepare_s']:,.1f}",
        )
        for row in results["rows"]
    ]
    head = (
        "people", "ms a step", "against the smallest world", "saved state, MB",
        "dialogues in memory, MB", "seconds before the first step",
    )  # fmt: skip
    on = results["machine"]
    return f"""# The cost of more people

{table(head, rows, left=0)}

In-weight dialogues, d 64, 2 layers, 2 heads, batches of {results["batch_size"]}; medians
[lowest, highest] of the rounds, in which the worlds take turns. {on["cpu"]}, {on["cores"]} cores,
torch {on["torch"]} with {results["threads"]} threads.
"""
