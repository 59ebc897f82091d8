"""Commands of `itl` about episodes: `play`, `rollout`, `show`; see `commands_world`."""

import json
import os
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from benchmarks.commands_world import TaskSource
from benchmarks.rollouts import Questions
from itl_env.database import FactDatabase
from itl_env.episode import (
    Episode,
    append_episodes,
    begun_episodes,
    read_episodes,
    unfinished,
)
from itl_env.errors import ConfigError, EnvironmentFailure, ITLError
from itl_env.files import read_json, write_text
from itl_env.recall import Mode, RecallTask, max_queries_of

if TYPE_CHECKING:
    from itl_agents.agent import Agent
    from itl_agents.render import DialogueTokenizer


def people_from(database: FactDatabase, start: int) -> slice:
    """The keys from `start` to the end; raises ConfigError if there are none."""
    if start >= len(database):
        raise ConfigError(
            f"table {database.table!r} of {database.url} holds {len(database):,} people, so there "
            f"are none from index {start:,}; lower --start."
        )
    return slice(start, None)


def check_new(file: Path) -> None:
    """Raise ConfigError if the file is there already: episodes may have taken hours."""
    if file.exists():
        raise ConfigError(f"{file} exists; name another file, or remove it.")


def check_slice(n: int, start: int, lanes: int, temperature: float) -> None:
    """Raise ConfigError for what no rollout can do."""
    for name, value in (("n", n), ("lanes", lanes)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")
    for name, number in (("start", start), ("temperature", temperature)):
        if number < 0:
            raise ConfigError(f"{name} is {number}; it must not be negative.")


@dataclass(frozen=True, kw_only=True)
class Play(TaskSource):
    """Answer questions yourself: you see what an agent sees, and get its reward."""

    mode: Mode = "in-tool"  # with the database to query, or from memory
    n: int = 0  # questions; 0 for as many as there are
    seed: int = 0  # drives the order of the questions


def run_play(config: Play) -> None:
    """Play until the questions or the person's lines end."""
    if config.n < 0:
        raise ConfigError(f"n is {config.n}; it must not be negative.")
    from benchmarks.play import play, read_line

    with config.open() as database:
        task = config.task(database, max_queries=max_queries_of(config.mode))
        play(task, seed=config.seed, n=config.n or None, read=read_line)


@dataclass(frozen=True, kw_only=True)
class Rollout(TaskSource):
    """Let an agent play and write its episodes to a file; interrupted, the same command goes on."""

    agent: str  # expert, circuit, no-tool, random; a folder, .gguf file or hub id; or see --url
    url: str = ""  # of an OpenAI-compatible server, such as http://localhost:8000/v1
    """The server's model is then the agent."""
    protocol: bool = False  # tell a model, in a system message, how to query the database
    at_once: int = 10  # requests to the server at a time
    timeout: float = 60.0  # seconds that the server may take for each, of which it has six tries
    device: str = "cpu"  # where a model plays that is no server's: cpu, cuda, ...
    out: Path  # JSON lines file for the episodes
    mode: Mode = "in-tool"  # with the database to query, or without
    n: int = 1000  # how many episodes to play
    start: int = 0  # index of the first person who is asked about
    questions: Questions = "one"  # of each person: one attribute in turn, or all of them
    temperature: float = 0.0  # of a trained model; 0 takes the likeliest token
    lanes: int = 256  # episodes side by side
    seed: int = 0  # drives whatever the agent draws

    def __post_init__(self) -> None:
        check_slice(self.n, self.start, self.lanes, self.temperature)
        if self.timeout <= 0:
            raise ConfigError(f"timeout is {self.timeout:g}; it must be above 0.")


def run_rollout(config: Rollout) -> None:
    """Write the episodes and print the recall."""
    from benchmarks.progress import track
    from benchmarks.rollouts import counted, describe, how_many, questions
    from itl_agents.agent import rollout
    from itl_agents.evaluate import RecallCount

    check_new(config.out)
    begun = begun_episodes(config.out)
    if begun:
        _check_same(config)
    with config.open() as database:
        task = config.task(
            database,
            keys=people_from(database, config.start),
            max_queries=max_queries_of(config.mode),
        )
        agent = _agent(config, task)
        facts = questions(task, config.questions, config.n)
        count = RecallCount()
        for episode in begun:
            asked = next(facts, None)
            if (episode.agent, episode.fact) != (agent.name, asked):
                raise ConfigError(
                    f"{unfinished(config.out)} holds episodes of another agent or people; the "
                    "model or the database has changed since, so remove it."
                )
            count.add(episode)
        if begun:
            print(f"going on after {len(begun):,} episodes")
        # If a server dies, what is under way is lost.
        lanes = min(config.lanes, 4 * config.at_once) if config.url else config.lanes
        played = rollout(agent, task, facts, seed=config.seed, lanes=lanes, first=len(begun))
        total = how_many(task, config.questions, config.n) - len(begun)
        write_text(_flags_file(config), json.dumps(_flags(config)) + "\n")
        try:
            append_episodes(counted(track(played, "episodes", total), count), config.out)
        except ConfigError:  # of the file, which nothing was written to
            raise
        except EnvironmentFailure as error:  # a server that died, or the database
            kept = f"{count.asked:,} episodes are kept; the same command goes on."
            raise EnvironmentFailure(f"{error} {kept}") from error
        except ITLError as error:  # a question that the agent was not made for
            kept = f"{count.asked:,} episodes are kept in {unfinished(config.out)}."
            raise type(error)(f"{error} {kept}") from error
        _flags_file(config).unlink()
        task.close()
    print(f"{agent.name}, {config.mode}: {describe(count)}")
    print(f"{count.asked:,} episodes in {config.out}")


HOW = ("out", "url", "at_once", "timeout", "device", "lanes")
"""Flags of a rollout on which its episodes do not hang."""


def _flags(config: Rollout) -> Any:
    """The others, as JSON holds them."""
    return json.loads(json.dumps({k: v for k, v in vars(config).items() if k not in HOW}))


def _flags_file(config: Rollout) -> Path:
    """Where they are while the rollout is unfinished."""
    return Path(f"{unfinished(config.out)}.flags.json")


def _check_same(config: Rollout) -> None:
    """Raise ConfigError that names a flag which is another than when the rollout was begun."""
    partial = unfinished(config.out)
    then = read_json(_flags_file(config), f"Remove {partial}, and begin anew.")
    for name, value in _flags(config).items():
        if then.get(name) != value:
            raise ConfigError(
                f"{partial} was begun with {name} {then.get(name)!r}, not {value!r}; give the "
                "command that began it, or remove it."
            )


def _agent(config: Rollout, task: RecallTask) -> "Agent":
    """The agent that plays: a server's model if there is a URL."""
    from benchmarks.rollouts import make_agent
    from itl_agents.chat import ChatAgent, protocol

    system = protocol(task) if config.protocol else ""
    if not config.url:
        return make_agent(config.agent, task, config.temperature, config.device, system)
    return ChatAgent(
        config.agent,
        url=config.url,
        system=system,
        at_once=config.at_once,
        timeout=config.timeout,
        temperature=config.temperature,
    )


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print episodes as a model is trained on them, with what is trained marked."""

    file: tyro.conf.Positional[Path]  # JSON lines file of `itl rollout`
    index: int = 0  # the first episode to print, counted from 0
    n: int = 3  # how many to print
    tokenizer: str = ""  # a pretrained model's folder, .gguf file or hub id; NanoLlama's if none
    calls: Literal["text", "native"] = "text"  # as which that model's calls are shown
    system: str = ""  # a system message before each dialogue; by default what the template has
    color: Literal["auto", "always", "never"] = "auto"
    """Colours, or else [brackets]; auto colours on a terminal unless NO_COLOR is set."""


def run_show(config: Show) -> None:
    """Print the episodes, each under a line that says how it ended."""
    from itl_agents.render import bracketed, coloured, render

    if config.index < 0 or config.n < 1:
        raise ConfigError("index must not be negative, and n must be at least 1.")
    if config.system and not config.tokenizer:
        raise ConfigError("A system message stands in a chat template; name one with --tokenizer.")
    colours = config.color == "always" or (
        config.color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    )
    read = read_episodes(config.file)
    n_before = sum(1 for _ in islice(read, config.index))
    episodes = list(islice(read, config.n))
    if not episodes:
        raise ITLError(f"{config.file} holds {n_before:,} episodes, so none at {config.index:,}.")
    tokenizer = _tokenizer(config)
    mark = "\033[32mgreen\033[0m" if colours else "[brackets]"
    print(f"What is trained is in {mark}.")
    for episode in episodes:
        print(f"\n{_headline(episode)}")
        print((coloured if colours else bracketed)(render(episode, tokenizer), tokenizer))


def _tokenizer(config: Show) -> "DialogueTokenizer":
    if not config.tokenizer:
        from itl_agents.nanollama.tokenizer import ByteTokenizer

        return ByteTokenizer()
    from benchmarks.rollouts import quiet_transformers
    from itl_agents.chat_template import ChatTokenizer
    from itl_agents.pretrained import load_tokenizer

    quiet_transformers()
    return ChatTokenizer(
        load_tokenizer(config.tokenizer),
        calls=config.calls,
        system=config.system,
        name=config.tokenizer,
    )


def _headline(episode: Episode) -> str:
    fact = episode.fact
    ending = f"error {episode.error}" if episode.error else str(episode.stop_reason)
    what = f"{fact.attribute} of {fact.name!r} is {fact.value!r}"
    if episode.sample is not None:
        what = f"{fact.attribute} sample {fact.name!r} expects {fact.value!r}"
    return (
        f"episode {episode.index} by {episode.agent}: {what}; reward {episode.reward:g}, {ending}"
    )
