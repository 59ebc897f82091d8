"""Commands of `itl` about tool calling: `toolcall data`."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from itl_env.errors import ConfigError
from itl_env.samples import Category

if TYPE_CHECKING:
    from itl_env.tool_data import Mix
    from itl_env.tool_report import Report

N_GENERATED, N_PUBLISHED = 10_000, 8_000  # samples of the presets


@dataclass(frozen=True, kw_only=True)
class ToolcallData:
    """Make data of tool calling: every call is executed, and no call is in both parts."""

    out: Path  # folder to write train.jsonl, validation.jsonl and a report into
    preset: Literal["generated", "published", "none"] = "generated"
    """generated: arithmetic, code and plain questions, made here; published: a fifth each of GSM8K
    and code, the rest Alpaca, from the hub; none: only the files that are named below"""
    n: int = 0  # samples of the preset; 0 for its own number, 10,000 generated or 8,000 published
    categories: tuple[Category, ...] = ("calculator", "python_exec", "no_tool")
    """what is generated, as much of each: calculator, python_exec, no_tool, multi_turn"""
    level: int = 1  # how hard the generated arithmetic is, 1 to 4
    files: tuple[Path, ...] = ()  # files of samples of your own, JSON lines or an array; all taken
    gsm8k: str = ""  # a file of GSM8K's rows (question, answer), instead of the hub
    python: str = ""
    """a file of rows of code (instruction or prompt, code, output), instead of the hub"""
    instructions: str = ""
    """a file of rows that need no tool (instruction, input, output), instead of the hub; `sample`
    for a few of our own"""
    validation: float = 0.2  # share of the samples that is put aside
    seed: int = 42  # draws, chooses and splits

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ConfigError(f"n is {self.n}; it must not be negative.")
        if self.preset == "none" and self.n:
            raise ConfigError("n is for a preset; with --preset none all good rows are taken.")


def toolcall_data(config: ToolcallData) -> None:
    """Make the data and print what was kept, what was refused, and where it is."""
    from benchmarks.progress import Progress
    from itl_env.tool_data import REPORT_TEXT, make_data

    if config.preset == "published":
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # if it cannot be reached, that is said once
    with ExitStack() as stack:
        shown: list[Progress] = []

        def show(done: int, total: int, source: str) -> None:
            if not shown:
                shown.append(stack.enter_context(Progress("samples", total)))
            shown[0].at(done, source)

        report = make_data(mix(config), config.out, on_progress=show)
    print(summary(report))
    print(f"in {config.out}; what was refused and why is in {config.out / REPORT_TEXT}")


def mix(config: ToolcallData) -> "Mix":
    """What the flags ask for.

    A file of a source that the preset does not have is taken besides, with all its good rows.
    """
    from itl_env.tool_data import HUB, Mix

    if config.preset == "none" and not any(
        (config.files, config.gsm8k, config.python, config.instructions)
    ):
        raise ConfigError("With --preset none, name --files, --gsm8k, --python or --instructions.")
    published = config.preset == "published"
    fifth = (config.n or N_PUBLISHED) // 5
    rest = (config.n or N_PUBLISHED) - 2 * fifth

    def wanted(share: int, file: str) -> int | None:
        return share if published else (None if file else 0)

    return Mix(
        generated=(config.n or N_GENERATED) if config.preset == "generated" else 0,
        categories=config.categories,
        level=config.level,
        gsm8k=wanted(fifth, config.gsm8k),
        python=wanted(fifth, config.python),
        instructions=wanted(rest, config.instructions),
        gsm8k_from=config.gsm8k or HUB,
        python_from=config.python or HUB,
        instructions_from=config.instructions or HUB,
        files=tuple(map(str, config.files)),
        validation=config.validation,
        seed=config.seed,
        allow_fewer=published,
    )


def summary(report: "Report") -> str:
    """What a data set holds, for a person to read."""
    rows = [
        ("source", "category", "train", "validation"),
        *(
            (source, category, f"{train:,}", f"{validation:,}")
            for (source, category), (train, validation) in report.counts.items()
        ),
        ("all", "", f"{report.n_train:,}", f"{report.n_validation:,}"),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{source:<{widths[0]}}  {category:<{widths[1]}}  {train:>{widths[2]}}  {rest:>{widths[3]}}"
        for source, category, train, rest in rows
    ]
    for tally in report.tallies:
        if tally.refused:
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in tally.refused.most_common())
            lines.append(f"refused {tally.refused.total():,} of {tally.source}: {reasons}")
    return "\n".join(lines)
