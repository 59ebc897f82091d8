"""Commands of `itl toolformer`: data, training, merging, and trying a model."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from benchmarks.training import part_of, train_run
from itl_env.errors import ConfigError
from itl_train.toolformer_config import ToolformerSettings

SHARES = {
    "tool": "exact calls {} on other questions",
    "copy": "exact copies {} of other sentences",
}
"""What is said of the validation rows at the end."""


@dataclass(frozen=True, kw_only=True)
class ToolformerData:
    """Make data of calculator calls as text: questions to call for, and sentences to copy."""

    out: Path  # folder to write the rows, the subsets to evaluate on and a report into
    text: tuple[str, ...] = ()
    """files that sentences to copy are taken from, plain text or JSON lines, also .gz; C4 from the
    hub if there is none"""
    n_tool: int = 5_000  # questions to train on
    n_copy: int = 5_000  # sentences to train on
    n_evaluate: int = 200  # rows of each subset to evaluate on: tool, copy, tool_ood
    validation: float = 0.1  # rows besides to validate on, as a share of those to train on
    seed: int = 0  # draws, chooses and mixes


def toolformer_data(config: ToolformerData) -> None:
    """Make the data, and print what there is and where."""
    from benchmarks.progress import Progress
    from itl_env.toolformer import REPORT_TEXT, ToolformerMix, make_toolformer_data

    if not config.text:
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # if it cannot be reached, that is said once
    with ExitStack() as stack:
        shown: list[Progress] = []

        def show(done: int, total: int, what: str) -> None:
            if not shown:
                shown.append(stack.enter_context(Progress("sentences", total)))
            shown[0].at(done, what)

        mix = part_of(config, ToolformerMix)
        report = make_toolformer_data(mix, config.out, on_progress=show)
    width = max(map(len, report["rows"]))
    for name, counts in report["rows"].items():
        said = ", ".join(f"{n:,} {kind}" for kind, n in counts.items())
        print(f"{name:<{width}}  {said}")
    print(f"in {config.out}; see {config.out / REPORT_TEXT}")


@dataclass(frozen=True, kw_only=True)
class ToolformerTrain(ToolformerSettings):
    """Fine-tune a pretrained model to write calculator calls as text; the loss is on targets.

    The folder can be interrupted at any time; the same command goes on.
    """

    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    out: Path = Path("runs/toolformer")  # folder of the run
    config: str = ""  # YAML file of settings, such as another run's config.yaml; flags override it


def toolformer_train(config: ToolformerTrain) -> None:
    """Fine-tune, and print the shares of exact calls and copies at the end."""
    from benchmarks.rollouts import quiet_transformers
    from itl_train.toolformer import ToolformerRun

    quiet_transformers()
    run = ToolformerRun(part_of(config, ToolformerSettings), config.out)
    train_run(run, config.out, "toolformer", run.n_steps, SHARES)


@dataclass(frozen=True, kw_only=True)
class ToolformerMerge:
    """Write a run's model as a folder that needs no adapter, such as for transcoders."""

    run: tyro.conf.Positional[Path]  # a run, whose last checkpoint is taken, or a checkpoint
    out: Path  # new folder for the model and its tokenizer


def toolformer_merge(config: ToolformerMerge) -> None:
    """Merge, and print where the model is."""
    from benchmarks.rollouts import quiet_transformers
    from itl_train.toolformer import merge

    quiet_transformers()
    print(f"the model is in {merge(config.run, config.out)}")


@dataclass(frozen=True, kw_only=True)
class ToolformerTry:
    """Ask a model in your own words: what it writes, whether that is a call, and what it gives."""

    text: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[TEXT]")] = ""
    """What to ask, such as "What is 3 plus 4?"; line after line from the terminal if left out."""
    model: str  # a run, a checkpoint, a folder, a .gguf file or a hub id
    max_new_tokens: int = 96  # at which what it writes is cut
    device: str = "cpu"  # where the model is asked: cpu, cuda, ...

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")


def toolformer_try(config: ToolformerTry) -> None:
    """Ask once, or until the lines end."""
    from benchmarks.rollouts import quiet_transformers
    from itl_agents.pretrained import load_pretrained
    from itl_train.models import model_of
    from itl_train.team import check_device
    from itl_train.toolformer_text import generate_texts

    quiet_transformers()
    check_device(config.device)
    model, tokenizer, _ = load_pretrained(model_of(config.model), device=config.device)
    for text in [config.text] if config.text.strip() else _lines():
        (written,) = generate_texts(model, tokenizer, [text], config.max_new_tokens)
        print(judged(written))


def judged(written: str) -> str:
    """What a model has written, and what that is, for a person to read."""
    from itl_env.toolformer import call_of, called, value_of

    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in written)
    value = value_of(written)
    if value is not None:
        verdict = f"a valid call: {call_of(written)} = {value}"
    elif call_of(written) is not None:
        verdict = "a valid call, but it has no value"
    elif called(written):
        verdict = "it begins like a call, but is no valid one"
    else:
        verdict = "no call"
    return f"{shown}\n{verdict}"


def _lines() -> Iterator[str]:
    """The lines of a person, or of a pipe, but the empty ones; Ctrl-D or Ctrl-C ends them."""
    from benchmarks.play import read_line

    if sys.stdin.isatty():
        print("Type a question, such as: What is 3 plus 4? Ctrl-D ends.")
    while True:
        try:
            line = read_line()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip():
            yield line
