"""Throughput of the world: lookups, environment steps, expert episodes and bulk loading.

The reference is Python's own `sqlite3` on the same file, one SELECT a lookup: what a user would
write without the library. It gets the same page cache, so that code is compared and not settings.
"""

import json
import secrets
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sqlalchemy as sa

from benchmarks.timing import absolute, compare, race, say
from itl_agents import ExpertAgent, rollout
from itl_env import Answer, FactDatabase, Query, RecallTask, people, streams
from itl_env.connection import SQLITE_CACHE_KIB, make_engine, parse_url
from itl_env.dialogue import lookup_query
from itl_env.errors import ITLError
from itl_env.facts import ATTRIBUTES, Fact
from itl_train.peak_memory import peak_memory_mb

BATCH = 1024
STEPS = 2  # of an expert's episode: a query, then the answer
ENV = "itl_env:ITL/FactRecall-v0"

Select = Callable[[str, str | int], str]


def raw_select(path: Path, key: str) -> Select:
    """(attribute, key) -> value by `sqlite3` alone, which keeps the statements prepared."""
    connection = sqlite3.connect(path)
    cursor = connection.cursor()  # one for all: a new one for each SELECT is slower
    cursor.execute(f"PRAGMA cache_size = -{SQLITE_CACHE_KIB}")
    selects = {a: f"SELECT {a} FROM people WHERE {key} = ?" for a in ATTRIBUTES}

    def select(attribute: str, value: str | int) -> str:
        result: str = cursor.execute(selects[attribute], (value,)).fetchone()[0]
        return result

    return select


def lookups(path: Path, *, seed: int, n_batches: int, rounds: int) -> list[dict[str, Any]]:
    """Lookups of random facts in batches of 1,024, against one SELECT each."""
    say("lookups")
    database = FactDatabase(path)
    names = list(database.names())
    counters = np.arange(n_batches * BATCH)
    rows = streams.uniform_index(streams.key(seed, "lookup rows"), counters, len(names)).tolist()
    asked = [(names[row], ATTRIBUTES[i % len(ATTRIBUTES)]) for i, row in enumerate(rows)]
    batches = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
    ids = [(row, attribute) for row, (_, attribute) in zip(rows, asked, strict=True)]
    by_name, by_id = raw_select(path, "name"), raw_select(path, "id")

    found: dict[str, list[str | None]] = {}

    def ours() -> int:
        found["ours"] = [value for batch in batches for value in database.lookup(batch)]
        return len(asked)

    def raw_by_name() -> int:
        found["name"] = [by_name(attribute, name) for name, attribute in asked]
        return len(asked)

    def raw_by_id() -> int:
        found["id"] = [by_id(attribute, row) for row, attribute in ids]
        return len(asked)

    what = f"FactDatabase.lookup, batches of {BATCH:,} (target: 150,000/s)"
    name = "sqlite3, one SELECT by unique name"
    number = "sqlite3, one SELECT by integer primary key"
    rates = race({what: ours, name: raw_by_name, number: raw_by_id}, rounds)
    database.close()
    checked = f"{len(asked):,} values"
    return [
        compare(
            rates, what, name, "lookups/s", equal=found["ours"] == found["name"], checked=checked
        ),
        compare(
            rates, what, number, "lookups/s", equal=found["ours"] == found["id"], checked=checked
        ),
    ]


def env_steps(
    path: Path, *, seed: int, lanes: int, n_waves: int, rounds: int
) -> list[dict[str, Any]]:
    """Steps of an expert's episodes through each shell, against sqlite3 doing the same work.

    The reference looks the fact up (the query's step) and compares it with the fact (the answer's).
    Making an environment is not counted, resetting it is.
    """
    say("environment steps")
    task = RecallTask(FactDatabase(path))
    n = lanes * n_waves
    key = streams.key(seed, "step facts")
    rows = streams.uniform_index(key, np.arange(n), task.n_facts).tolist()
    facts = [task.fact(row) for row in rows]
    select = raw_select(path, "name")
    single = gymnasium.make(ENV, database=str(path))
    same_step = gymnasium.vector.AutoresetMode.SAME_STEP
    envs: dict[str, gymnasium.vector.VectorEnv[Any, Any, Any]] = {
        f"FactRecallVectorEnv, {lanes} lanes": gymnasium.make_vec(
            ENV, num_envs=lanes, database=str(path), autoreset_mode=same_step
        ),
        f"gymnasium's SyncVectorEnv, {lanes} lanes": gymnasium.make_vec(
            ENV,
            num_envs=lanes,
            database=str(path),
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": same_step},
        ),
    }
    right: dict[str, int] = {}

    def counted(name: str, play: Callable[[], int]) -> Callable[[], int]:
        def run() -> int:
            right[name] = play()
            return STEPS * n

        return run

    reference = "sqlite3, one SELECT a query"
    sides: dict[str, Callable[[], int]] = {
        f"RecallTask.advance, {lanes} lanes": lambda: _play_task(task, facts, lanes),
        "FactRecallEnv": lambda: _play_single(single, seed, n),
        **{name: partial(_play_vector, env, seed, n_waves) for name, env in envs.items()},
        reference: lambda: sum(select(f.attribute, f.name) == f.value for f in facts),
    }
    rates = race({name: counted(name, play) for name, play in sides.items()}, rounds)
    single.close()
    for env in envs.values():
        env.close()
    task.close()
    return [
        compare(
            rates, name, reference, "steps/s",
            equal=right[name] == right[reference] == n,
            checked=f"{n:,} episodes, each with the fact's own value",
        )
        for name in sides
        if name != reference
    ]  # fmt: skip


def _play_task(task: RecallTask, facts: Sequence[Fact], lanes: int) -> int:
    right = 0.0
    for start in range(0, len(facts), lanes):
        wave = facts[start : start + lanes]
        queries = [Query(lookup_query(fact.attribute, fact.name)) for fact in wave]
        replies = task.advance(task.start(wave), queries)
        answers = [Answer(reply.observation) for reply in replies]
        ends = task.advance([reply.state for reply in replies], answers)
        right += sum(end.reward for end in ends)
    return round(right)


def _play_single(env: Any, seed: int, n: int) -> int:
    right = 0.0
    for episode in range(n):
        _, info = env.reset(seed=seed if episode == 0 else None)
        query = lookup_query(info["attribute"], info["name"])
        reply, *_ = env.step({"kind": 0, "text": query})
        _, reward, *_ = env.step({"kind": 1, "text": reply})
        right += reward
    return round(right)


def _play_vector(envs: Any, seed: int, n_waves: int) -> int:
    right = 0.0
    zeros, ones = np.zeros(envs.num_envs, dtype=np.int64), np.ones(envs.num_envs, dtype=np.int64)
    _, info = envs.reset(seed=seed)
    for _ in range(n_waves):
        queries = tuple(map(lookup_query, info["attribute"], info["name"]))
        replies, *_ = envs.step({"kind": zeros, "text": queries})
        _, rewards, _, _, info = envs.step({"kind": ones, "text": replies})
        right += rewards.sum()
    return round(right)


def expert_episodes(path: Path, *, n_people: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds for the expert's episodes about all facts of n people, their dialogues included.

    All of it is Python in this one thread, so these are seconds of one core.
    """
    say("expert episodes")
    task = RecallTask(FactDatabase(path), keys=slice(0, n_people))

    def play() -> int:
        episodes = rollout(ExpertAgent(task), task, task.facts(), lanes=BATCH)
        if not all(episode.reward == 1.0 for episode in episodes):
            raise ITLError("The expert gave a wrong answer; run `itl validate` on this database.")
        return task.n_facts

    rates = race({"expert": play}, rounds)["expert"]
    n = task.n_facts
    task.close()
    what = f"seconds for {n:,} expert episodes, dialogues included"
    target = "at most 20" if n == 200_000 else ""
    return [absolute(what, "s", [n / rate for rate in rates], target)]


def bulk(
    folder: Path, *, seed: int, n: int, rounds: int, postgres: str | None
) -> list[dict[str, Any]]:
    """Making n people of the `large` world, and loading them with their index."""
    say(f"{n:,} people in bulk")
    million = n == 1_000_000
    alone = [_generate_alone(n, seed) for _ in range(rounds)]
    seconds, megabytes = zip(*alone, strict=True)
    rows = [
        absolute(f"generate {n:,} people", "s", list(seconds), "at most 15" if million else ""),
        absolute("peak memory of that process", "MB", list(megabytes), "at most 300"),
    ]
    places = {"SQLite": f"sqlite:///{folder / 'bulk.db'}"}
    if postgres is not None:
        places["PostgreSQL"] = postgres
    for place, url in places.items():
        beyond = [_load(url, n, seed) for _ in range(rounds)]
        what = f"load them with an index into {place}, beyond generation"
        rows.append(absolute(what, "s", beyond, "at most 6" if million else ""))
    return rows


def generate(n: int, seed: int) -> None:
    """Make people and print as JSON: seconds, and the most memory this process has held, in MB."""
    began = time.perf_counter()
    deque(people(n, seed, "large"), maxlen=0)
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, peak_memory_mb()]))


def _generate_alone(n: int, seed: int) -> tuple[float, float]:
    code = f"from benchmarks.throughput_world import generate; generate({n}, {seed})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, megabytes = json.loads(run.stdout)
    return seconds, megabytes


def _load(url: str, n: int, seed: int) -> float:
    """Seconds of a load less those of generation just before it."""
    began = time.perf_counter()
    deque(people(n, seed, "large"), maxlen=0)
    middle = time.perf_counter()
    table = f"itl_throughput_{secrets.token_hex(4)}"
    database = FactDatabase.create(url, people(n, seed, "large"), table=table)
    ended = time.perf_counter()
    database.close()
    if database.path is not None:
        database.path.unlink()
    else:
        with closing(make_engine(parse_url(url), None).connect()) as connection:
            connection.execute(sa.text(f"DROP TABLE {table}"))
    say(f"  loaded into {database.url}")
    return (ended - middle) - (middle - began)
