"""The in-tool half of the quickstart on a pretrained model.

    itl quickstart --model MODEL --out runs/quickstart-model

Fine-tunes a small adapter on the expert's episodes about some people, and asks the model before and
after about people that it was not trained on, who stand in the database.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine
from benchmarks.quickstart import (
    Say,
    StageClock,
    Track,
    begin_or_read,
    finish,
    make_world,
    settings_of,
)
from benchmarks.statistics import interval
from itl_agents.hub import check_pretrained
from itl_env.facts import ATTRIBUTES

if TYPE_CHECKING:
    from benchmarks.quickstart import QuickstartConfig

N_FACTS, N_UNSEEN = 1_000, 400  # facts trained on, and others that are asked for


def quickstart_model(
    config: "QuickstartConfig",
    say: Say = print,
    on_metrics: Callable[[str, dict[str, Any]], None] = lambda run, row: None,
    track: Track = lambda episodes, label, total: episodes,
) -> dict[str, Any]:
    """Run it, or the rest of it; returns what `results.json` holds. See `quickstart`.

    Raises ITLError if the model cannot be had, and ConfigError if it cannot be taught a tool.
    """
    check_pretrained(config.model)
    if (there := begin_or_read(config, say)) is not None:
        return there
    clock = StageClock(config.out / "seconds.json")
    with clock("make the database"):
        url = make_world(config, say)
    with clock("load the model"):
        from benchmarks.evaluation import Measured, RunEvaluation
        from itl_train.sft import SFTRun, SFTSettings

        run = SFTRun(
            SFTSettings(
                database=url,
                model=config.model,
                mode="in-tool",
                n_facts=N_FACTS,
                n_unseen=N_UNSEEN,
                n_steps=config.n_model_steps,
                evaluate_every=1e6,  # only at the end
                checkpoint_every=1e6,
                seed=config.seed,
            ),
            config.out / "in-tool",
        )
    n_people = N_FACTS // len(ATTRIBUTES)
    say(
        f"{config.model}: an adapter of rank {run.settings.lora_rank} is trained on {n_people:,} "
        f"people for {config.n_model_steps:,} steps"
        + (f", from step {run.step}" if run.step else "")
    )
    with clock("train in-tool"):
        run.train(partial(on_metrics, "in-tool"))
    del run  # and its model
    with clock("ask before and after"):
        evaluation = RunEvaluation(
            config.out / "in-tool",
            Measured(n_seen=0, n_unseen=N_UNSEEN),
            say=say,
            track=track,
        )
        found = evaluation.run(evaluation.checkpoints()[-1:])  # an interruption leaves others
    rows = [
        {
            "model": name,
            **{key: row[f"unseen_{key}"] for key in ("asked", "right", "recall", "low", "high")},
        }
        for name, row in zip(("before", "after"), found.to_dict("records"), strict=True)
    ]
    results: dict[str, Any] = {
        "config": settings_of(config),
        "rows": [{key: _plain(value) for key, value in row.items()} for row in rows],
        "machine": machine(),
        "seconds": {**clock.seconds, "in all": round(sum(clock.seconds.values()), 1)},
    }
    finish(config, results, report(results))
    return results


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's own."""
    return value.item() if hasattr(value, "item") else value


def table(results: Mapping[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| model | questions | exact recall [95% interval] |", "|---|---:|---:|"]
    for row in results["rows"]:
        share = interval(row["recall"], row["low"], row["high"])
        lines.append(f"| {row['model']} fine-tuning | {row['asked']:,} | {share} |")
    return "\n".join(lines)


def report(results: Mapping[str, Any]) -> str:
    """`report.md`: the table, and what it took."""
    config, on = results["config"], results["machine"]
    took = "\n".join(f"| {name} | {s:.1f} |" for name, s in results["seconds"].items())
    return f"""# Can {config["model"].rpartition("/")[2]} learn to look facts up?

{table(results)}

An adapter was trained for {config["n_model_steps"]:,} steps on the expert's episodes about
{N_FACTS // len(ATTRIBUTES):,} people. The questions are about {N_UNSEEN // len(ATTRIBUTES):,}
others; the model's own queries are run against the database, and an answer counts if it is the very
value, up to case and space. Intervals are Wilson's, at 95%, clustered by person.

| stage | seconds |
|---|---:|
{took}

Machine: {on["cpu"]}, {on["cores"]} cores, Python {on["python"]}, torch {on["torch"]}.
"""
