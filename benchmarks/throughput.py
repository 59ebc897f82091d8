"""How fast the library is, against what a user would pick instead; both sides in one run.

    itl bench run throughput --out DIR

Writes `throughput.json` and `throughput.md`, ratios first. Every figure is the median of several
rounds with its lowest and highest; the sides of a comparison take turns in one process, and both
are shown to produce the same. Ratios above 1 mean that the library is the faster side.
"""

import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import machine
from benchmarks.study_report import publish, results_folder
from benchmarks.timing import absolutes_table, check_threads, comparisons_table, say
from itl_env import FactDatabase, people


@dataclass(frozen=True)
class ThroughputConfig:
    """Time the library and what one would use instead, in turns, in one process."""

    out: Path = Path("runs/throughput")  # folder for throughput.json and throughput.md
    preset: Literal["smoke", "laptop"] = "laptop"  # laptop: minutes; smoke: does it run at all
    seed: int = 0  # drives worlds, questions and initialisation
    postgres: str | None = None  # URL of a PostgreSQL server to load people into as well
    n_threads: int = 0  # CPU threads of torch; 0 for its own choice


@dataclass(frozen=True)
class Sizes:
    """How much each part does."""

    rounds: int  # timed rounds of each comparison
    n_people: int  # in the database
    n_batches: int  # of 1,024 lookups a round
    lanes: int
    n_waves: int  # episodes of each lane a round
    n_expert: int  # people whose four facts the expert plays
    n_bulk: int  # people made and loaded
    bulk_rounds: int
    many_lanes: int
    model_steps: int  # that it is trained for before
    max_new_tokens: int
    n_dialogue_people: int  # whose dialogues are trained on
    batch_size: int  # dialogues a training step
    train_steps: int  # a round
    compiled: bool  # whether training is also tried compiled


SIZES = {
    "smoke": Sizes(
        rounds=2, n_people=1_000, n_batches=2, lanes=4, n_waves=4, n_expert=50, n_bulk=1_000,
        bulk_rounds=1, many_lanes=6, model_steps=4, max_new_tokens=10, n_dialogue_people=50,
        batch_size=4, train_steps=1, compiled=False,
    ),
    "laptop": Sizes(
        rounds=3, n_people=100_000, n_batches=50, lanes=256, n_waves=16, n_expert=50_000,
        n_bulk=1_000_000, bulk_rounds=2, many_lanes=1_024, model_steps=1_200, max_new_tokens=160,
        n_dialogue_people=5_000, batch_size=128, train_steps=8, compiled=True,
    ),
}  # fmt: skip


def throughput(config: ThroughputConfig, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure everything, write the two files into `config.out` and return the first's content.

    show: given the table at the end.
    """
    from benchmarks import throughput_world as world

    sizes = SIZES[config.preset]
    began = time.perf_counter()
    check_threads(config.n_threads)
    out = results_folder(config.out)
    with tempfile.TemporaryDirectory(prefix="itl-throughput-") as temporary:
        folder = Path(temporary)
        path = folder / "people.db"
        say(f"database of {sizes.n_people:,} people")
        FactDatabase.create(path, people(sizes.n_people, config.seed)).close()
        seed, rounds = config.seed, sizes.rounds
        # What needs no torch comes first, and does not share memory or threads with it.
        absolutes = world.bulk(
            folder, seed=seed, n=sizes.n_bulk, rounds=sizes.bulk_rounds, postgres=config.postgres
        )
        absolutes += world.expert_episodes(path, n_people=sizes.n_expert, rounds=rounds)
        comparisons = world.lookups(path, seed=seed, n_batches=sizes.n_batches, rounds=rounds)
        comparisons += world.env_steps(
            path, seed=seed, lanes=sizes.lanes, n_waves=sizes.n_waves, rounds=rounds
        )

        import torch

        from benchmarks.throughput_rollouts import rollouts
        from benchmarks.throughput_training import Load, matmul_share, padding, training

        if config.n_threads:
            torch.set_num_threads(config.n_threads)
        for kind, lanes, against in (
            ("in-tool compact", sizes.lanes, ("generate",)),
            ("in-tool compact", sizes.many_lanes, ("generate", "loop")),
            ("in-weight", sizes.many_lanes, ("generate", "loop")),
        ):
            comparisons += rollouts(
                path,
                folder,
                kind=kind,
                seed=seed,
                n_steps=sizes.model_steps,
                n_questions=lanes,
                lanes=lanes,
                max_new_tokens=sizes.max_new_tokens,
                rounds=rounds,
                against=against,
            )
        load = Load(
            seed,
            sizes.n_dialogue_people,
            sizes.batch_size,
            sizes.train_steps,
            rounds,
            sizes.compiled,
        )
        absolutes += padding(path, load)
        comparisons += training(path, folder, load)
        comparisons += matmul_share(path, load)
        torch_threads = torch.get_num_threads()
    results = {
        "preset": config.preset,
        "seed": seed,
        "comparisons": comparisons,
        "absolutes": absolutes,
        "machine": {
            **machine(),
            "sqlite": sqlite3.sqlite_version,
            "torch_threads": torch_threads,
        },
        "seconds": round(time.perf_counter() - began, 1),
    }
    publish(out, "throughput", results, report(results), show)
    return results


def report(results: dict[str, Any]) -> str:
    """`throughput.md`: the machine, the ratios, then the figures that stand alone."""
    on = results["machine"]
    return f"""# Throughput

Machine: {on["cpu"]}, {on["cores"]} cores, {on["system"]}, Python {on["python"]}, SQLite
{on["sqlite"]}, torch {on["torch"]} with {on["torch_threads"]} threads, transformers
{on["transformers"]}. Preset {results["preset"]}, seed {results["seed"]}.

Figures are medians [lowest, highest] of the rounds. A ratio above 1 means that the library is
faster.

{comparisons_table(results["comparisons"])}

{absolutes_table(results["absolutes"])}
"""
