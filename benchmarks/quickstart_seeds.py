"""The quickstart over several seeds: is its result one lucky run?

    itl bench run quickstart-seeds --out runs/quickstart-seeds

Each seed has its own world, initialisation and data order, and a folder of its own; an interrupted
study goes on.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.quickstart import QuickstartConfig, quickstart
from benchmarks.statistics import interval
from itl_env.errors import ConfigError
from itl_env.files import write_text

SMALL: dict[str, Any] = {
    "n_people": 45,
    "n_unseen": 20,
    "n_memorised": 4,
    "n_steps": 10,
    "n_twin_steps": 10,
}


@dataclass(frozen=True)
class QuickstartSeedsConfig:
    """The quickstart once for each seed."""

    out: Path  # folder of the study; seed s runs in out/seed-s
    preset: Literal["smoke", "laptop"] = "laptop"  # smoke trains far too little, in seconds
    n_seeds: int = 5  # seeds 0, 1, ...

    def __post_init__(self) -> None:
        if self.n_seeds < 1:
            raise ConfigError(f"n_seeds is {self.n_seeds}; it must be at least 1.")


def quickstart_seeds(
    config: QuickstartSeedsConfig, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run every seed (a finished one is not run again); writes `seeds.json` and `seeds.md`."""
    sizes: dict[str, Any] = SMALL if config.preset == "smoke" else {}
    rows = []
    for seed in range(config.n_seeds):
        say(f"seed {seed}")
        results = quickstart(
            QuickstartConfig(out=config.out / f"seed-{seed}", seed=seed, **sizes), say
        )
        rows.append(_row(seed, results))
    study = {"preset": config.preset, "machine": results["machine"], "seeds": rows}
    write_text(config.out / "seeds.json", json.dumps(study, indent=1) + "\n")
    text = table(study)
    write_text(config.out / "seeds.md", text)
    say(text)
    return study


def _row(seed: int, results: dict[str, Any]) -> dict[str, Any]:
    recalls = {
        f"{row['agent']}, {row['asked_about']}": {
            key: row[key] for key in ("asked", "right", "recall", "recall_low", "recall_high")
        }
        for row in results["rows"]
    }
    return {"seed": seed, "seconds": results["seconds"]["in all"], "recalls": recalls}


def table(study: dict[str, Any]) -> str:
    """`seeds.md`: a line for each seed."""
    columns = list(study["seeds"][0]["recalls"])
    lines = [
        f"| seed | {' | '.join(columns)} | seconds |",
        f"|---:|{'---:|' * (len(columns) + 1)}",
    ]
    for row in study["seeds"]:
        cells = (
            interval(recall["recall"], recall["recall_low"], recall["recall_high"])
            for recall in row["recalls"].values()
        )
        lines.append(f"| {row['seed']} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    on = study["machine"]
    lines.append(f"\nExact recall. Machine: {on['cpu']}, {on['cores']} cores, torch {on['torch']}.")
    return "\n".join(lines) + "\n"
