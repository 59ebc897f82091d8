"""Agents by name, the questions they are asked, what came of it: `itl rollout`, `itl eval`."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from benchmarks.statistics import clustered_wilson
from itl_agents.agent import Agent
from itl_agents.evaluate import RecallCount, one_question_each
from itl_agents.hub import check_model
from itl_agents.scripted import ExpertAgent, NoToolAgent, RandomAgent
from itl_agents.tool_scripted import DirectAgent, ToolExpert
from itl_env.episode import Episode
from itl_env.errors import ConfigError
from itl_env.facts import Fact
from itl_env.recall import RecallTask
from itl_env.tool_call import ToolCallTask
from itl_train.models import find_checkpoint, is_nanollama
from itl_train.run_folder import run_settings

Questions = Literal["one", "all"]
LONG_NAME, LONG_VALUE = 300, 600  # bytes, of what a circuit is built for by its name


def _circuit(task: RecallTask) -> Agent:
    """The transformer built by hand, for longer names and values than it takes by default."""
    from itl_agents.circuit import CircuitAgent

    return CircuitAgent(task, max_name_length=LONG_NAME, max_value_length=LONG_VALUE)


BUILT_IN: Mapping[str, Callable[[RecallTask], Agent]] = {
    "expert": ExpertAgent,
    "circuit": _circuit,
    "no-tool": NoToolAgent,
    "random": RandomAgent,
}
TOOL_BUILT_IN: Mapping[str, Callable[[ToolCallTask], Agent]] = {
    "expert": ToolExpert,
    "direct": lambda task: DirectAgent(),
}


def make_agent(
    name: str,
    task: RecallTask | ToolCallTask,
    temperature: float = 0.0,
    device: str = "cpu",
    system: str = "",
    *,
    run: Mapping[str, Any] | None = None,
    max_new_tokens: int | None = None,
    max_tokens: int = 0,
) -> Agent:
    """An agent: scripted, by its name; or a model, by the folder of its run or checkpoint, its
    .gguf file, or its hub id.

    system: a message before each conversation; by default that of the model's run.
    run: the settings of that run, if it is not the one that the model belongs to.
    max_new_tokens, max_tokens: see `HFAgent`; by default as many as an agent takes.

    Raises ConfigError if it is none, reads no such message, or the model cannot play the task.
    """
    scripted: Mapping[str, Callable[[Any], Agent]]
    scripted = BUILT_IN if isinstance(task, RecallTask) else TOOL_BUILT_IN
    if name in scripted:
        if system:
            raise ConfigError(f"The agent {name} reads no system message; leave out --protocol.")
        return scripted[name](task)
    place = name
    limits = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    if Path(name).is_dir():
        checkpoint = find_checkpoint(Path(name))
        if is_nanollama(checkpoint):
            if system:
                raise ConfigError(
                    f"The NanoLlama {checkpoint} reads no system message; leave out --protocol."
                )
            from itl_agents.nanollama import NanoLlamaAgent, load_model, open_tokenizer

            return NanoLlamaAgent(
                load_model(checkpoint).to(device),
                open_tokenizer(checkpoint),
                name=str(checkpoint),
                temperature=temperature,
                **limits,
            )
        place = str(checkpoint)
        run = run_settings(Path(name)) if run is None else run
    else:
        check_model(name, among=scripted)
    run = run or {}
    if system and (run.get("system") or run.get("calls") == "native"):
        raise ConfigError(
            f"{name} was trained under a system message or with calls of its own; leave out "
            "--protocol."
        )
    from itl_agents.huggingface import HFAgent

    quiet_transformers()
    if isinstance(task, ToolCallTask) and run.get("calls") == "native":
        from itl_agents.native_tools import NativeToolAgent
        from itl_agents.pretrained import load_pretrained

        model, tokenizer, _ = load_pretrained(
            place, dtype=run.get("dtype", "float32"), device=device
        )
        return NativeToolAgent(
            model, tokenizer, task, name=name, system=run.get("system", ""),
            temperature=temperature, **limits,
        )  # fmt: skip
    replies = task.max_queries > 0 if isinstance(task, RecallTask) else task.max_turns > 1
    agent = HFAgent.load(
        place,
        calls=run.get("calls", "text"),
        system=system or run.get("system", ""),
        dtype=run.get("dtype", "float32"),
        device=device,
        keep_turns=replies,
        temperature=temperature,
        max_tokens=max_tokens,
        **limits,
    )
    if replies:
        agent.chat.check_tool()
    return agent


def quiet_transformers() -> None:
    """Leave progress to this library, and of messages those of errors."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    # What its next version will rename, which is no concern of who runs a command.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")


def questions(task: RecallTask, which: Questions, n: int) -> Iterator[Fact]:
    """At most n facts, in order: `one` of each person, attributes in turn, or `all` of them."""
    return islice(task.facts() if which == "all" else one_question_each(task, n), n)


def how_many(task: RecallTask, which: Questions, n: int) -> int:
    """How many `questions` gives; warns if they are fewer than n."""
    there = task.n_facts if which == "all" else len(task.keys)
    if there < n:
        more = " (--questions all asks for every attribute)" if which == "one" else ""
        are = "is one question" if there == 1 else f"are {there:,} questions"
        warnings.warn(f"there {are}, fewer than {n:,}{more}", stacklevel=2)
    return min(n, there)


def counted(episodes: Iterable[Episode], count: RecallCount) -> Iterator[Episode]:
    """The episodes, each added to the count as it passes."""
    for episode in episodes:
        count.add(episode)
        yield episode


def describe(count: RecallCount) -> str:
    """Recall with its interval, clustered by person, and what else was counted."""
    low, high = clustered_wilson(list(count.by_person.values()))
    return (
        f"recall {100 * count.recall:.1f}% [{100 * low:.1f}, {100 * high:.1f}] "
        f"({count.right:,} of {count.asked:,} questions; {count.n_queried:,} queried, "
        f"{count.n_errors:,} with an error, {count.n_unanswered:,} unanswered)"
    )


def quoted(text: str, limit: int = 60) -> str:
    """The text in quotes, cut where it is long."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text):,} characters)"
