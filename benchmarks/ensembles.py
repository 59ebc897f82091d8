"""Many small models trained as one: how many member-steps a second, against one at a time.

    itl bench run ensembles --out runs/ensembles

An ensemble's weights carry a leading member axis. The members of each race have the same seeds,
batches and rates on both sides, and their losses are shown to be equal.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.machine import machine
from benchmarks.study_report import publish, results_folder, table
from benchmarks.timing import check_threads, compare, race, say, with_spread
from itl_env import FactDatabase, people


class Sizes(NamedTuple):
    """What a preset measures."""

    members: tuple[int, ...]
    widths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    n_steps: int  # of every member in a round, at one member
    rounds: int


PRESETS = {
    "smoke": Sizes((1, 2), (8,), (4,), 2, 1),
    "laptop": Sizes((1, 4, 16, 64), (8, 16, 32, 64), (4, 32), 64, 3),
}


@dataclass(frozen=True)
class EnsemblesConfig:
    """Time ensembles of small models against the same models one at a time."""

    out: Path = Path("runs/ensembles")  # folder for ensembles.json and ensembles.md
    preset: Literal["smoke", "laptop"] = "laptop"  # laptop: minutes; smoke: does it run at all
    device: str = "cpu"  # where: cpu, cuda, ...
    n_threads: int = 0  # CPU threads of torch; 0 for its own choice


def ensembles(config: EnsemblesConfig, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure, write the two files, and return what the first holds."""
    import torch

    from itl_train.team import check_device

    check_device(config.device)
    check_threads(config.n_threads)
    if config.n_threads:
        torch.set_num_threads(config.n_threads)
    sizes = PRESETS[config.preset]
    out = results_folder(config.out)
    with tempfile.TemporaryDirectory(prefix="itl-ensembles-") as folder:
        file = Path(folder) / "people.db"
        FactDatabase.create(file, people(256, seed=0)).close()
        rows = [
            race_members(file, sizes, width, batch_size, n, config.device)
            for batch_size in sizes.batch_sizes
            for width in sizes.widths
            for n in sizes.members
        ]
    results = {
        "preset": config.preset,
        "device": config.device,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "machine": machine(),
    }
    publish(out, "ensembles", results, report(results), show)
    return results


def race_members(
    file: Path, sizes: Sizes, width: int, batch_size: int, n_members: int, device: str
) -> dict[str, Any]:
    """Member-steps a second of one ensemble, and of its members one at a time."""
    import torch

    from itl_agents.nanollama import ByteTokenizer, NanoLlama
    from itl_train.batches import BatchPlan, stacked
    from itl_train.memory_config import MemoryConfig
    from itl_train.sources import expert_dialogues
    from itl_train.step import ensemble_step, make_optimizers, train_step

    say(f"{n_members} members, d {width}, batch {batch_size}")
    config = MemoryConfig(
        database=str(file), mode="in-weight", n_people=256, n_unseen=0, d_model=width, n_layers=2,
        n_heads=2, d_hidden=None, batch_size=batch_size, device=device,
    )  # fmt: skip
    with FactDatabase(file) as database:
        dialogues = expert_dialogues(config.task(database, slice(0, 256)), ByteTokenizer())
    plans = [BatchPlan(dialogues.to(device), batch_size, seed) for seed in range(n_members)]
    shape, rates = config.model_config(), (config.lr, config.muon_lr)
    singles = [NanoLlama(shape, seed).to(device) for seed in range(n_members)]
    optimizers = [make_optimizers(model, config) for model in singles]
    ensemble = NanoLlama(shape, list(range(n_members))).to(device)
    together = make_optimizers(ensemble, config)
    member_rates = [torch.full((n_members,), rate, device=device) for rate in rates]
    n_steps = max(1, sizes.n_steps // n_members)
    done = {"alone": 0, "together": 0}
    losses: dict[str, list[list[float]]] = {"alone": [], "together": []}

    def steps(side: str) -> range:
        done[side] += n_steps
        return range(done[side] - n_steps, done[side])

    def train_alone() -> int:
        places = steps("alone")
        by_member = [  # one after the other, so that a member's weights stay near the processor
            [train_step(model, own, rates, plan.batch(place)).loss for place in places]
            for model, own, plan in zip(singles, optimizers, plans, strict=True)
        ]
        losses["alone"] += [list(step) for step in zip(*by_member, strict=True)]
        return n_steps * n_members

    def train_together() -> int:
        for step in steps("together"):
            batch = stacked([plan.batch(step) for plan in plans])
            stepped = ensemble_step(ensemble, together, member_rates, batch)
            losses["together"].append(stepped.losses.tolist())
        return n_steps * n_members

    found = race({"together": train_together, "alone": train_alone}, sizes.rounds)
    first = list(zip(losses["together"][0], losses["alone"][0], strict=True))
    equal = all(abs(a - b) < 1e-4 * b for a, b in first)
    checked = f"losses of the first step: {first[0][0]:.5f} and {first[0][1]:.5f}"
    row = compare(found, "together", "alone", "member-steps/s", equal=equal, checked=checked)
    return {"d_model": width, "batch_size": batch_size, "members": n_members, **row}


def report(results: dict[str, Any]) -> str:
    """`ensembles.md`."""
    rows = [
        (
            f"{row['batch_size']}",
            f"{row['d_model']}",
            f"{row['members']}",
            f"**{with_spread(row, 'ratio')}**",
            with_spread(row, "per_s"),
            with_spread(row, "against_per_s"),
            "same" if row["equal"] else f"NOT the same: {row['checked']}",
        )
        for row in results["rows"]
    ]
    head = (
        "batch", "d", "members", "ratio", "together, member-steps/s", "one at a time", "losses",
    )  # fmt: skip
    on = results["machine"]
    return f"""# Ensembles

{table(head, rows, left=0)}

In-weight dialogues, 2 layers, 2 heads, Muon; medians [lowest, highest] of the rounds. A ratio above
1 means that training together is faster. Device {results["device"]}; {on["cpu"]}, {on["cores"]}
cores, torch {on["torch"]} with {results["threads"]} threads.
"""
