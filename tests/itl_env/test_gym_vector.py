"""Vectors of environments: they play as single ones do, and a failed step can be tried again."""

import itertools
import os
import random

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from itl_env import (
    Completion,
    ConfigError,
    EnvironmentFailure,
    FactDatabase,
    FactRecallEnv,
    FactRecallVectorEnv,
    RecallTask,
    TextActions,
)

from .gym_shells import ID, action

pytestmark = pytest.mark.filterwarnings("error")


def batch(actions):
    return {
        "kind": np.array([one["kind"] for one in actions]),
        "text": tuple(one["text"] for one in actions),
    }


def same(a, b):
    """Equality of observations, arrays and nested infos, types included."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tolist() == b.tolist()
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_specs_survive_json_and_make_the_same_environment(url):
    first = TextActions(gymnasium.make(ID, database=url, keys=[0, 9], rubric="lenient"))
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(first.spec.to_json()))
    assert isinstance(again, TextActions)
    assert again.reset(seed=5) == first.reset(seed=5)
    assert again.unwrapped.task.keys == first.unwrapped.task.keys
    vector = gymnasium.make_vec(ID, num_envs=2, database=url, autoreset_mode="SameStep")
    spec = gymnasium.envs.registration.EnvSpec.from_json(vector.spec.to_json())
    assert same(gymnasium.make_vec(spec).reset(seed=1), vector.reset(seed=1))


def turns_of(task, fact, policy):
    query = task.call(fact.attribute, fact.name)
    return {
        "expert": [query, task.statement(fact)],
        "wrong": [query, task.statement(fact._replace(value="Atlantis"))],
        "malformed": ["```sql\nFIND", ""],
        "in weight": [fact.value],
    }[policy]


@pytest.mark.parametrize("policy", ["expert", "wrong", "malformed", "in weight"])
@pytest.mark.parametrize("dialect", ["lookup", "sql"])
@pytest.mark.parametrize("style", ["compact", "fenced"])
def test_an_episode_is_the_same_through_task_env_and_vector_env(url, style, dialect, policy):
    task = RecallTask(FactDatabase(url), style=style, dialect=dialect)
    fact = task.fact(11)
    turns = turns_of(task, fact, policy)
    completions = [Completion(turn) for turn in turns]

    (state,) = task.start([fact])
    for turn in turns:
        (reply,) = task.advance([state], [task.parse(turn)], [turn])
        state = reply.state
    expected = task.episode(reply, completions)
    assert expected.reward == float(policy in ("expert", "in weight"))

    options = {"fact": [fact.name, fact.attribute]}
    raw = TextActions(FactRecallEnv.from_task(task))
    raw.reset(options=options)
    vector = FactRecallVectorEnv.from_task(task, num_envs=3)
    vector.reset(options=options)
    for turn in turns:
        raw.step(turn)
        vector.step([turn] * 3)
    for reply in (raw.unwrapped.reply, *vector.replies):
        assert task.episode(reply, completions) == expected

    if policy != "malformed":  # structured actions cannot say what has no structure
        actions = [
            action(int(i == len(turns) - 1), task.parse(turn).text) for i, turn in enumerate(turns)
        ]
        env = FactRecallEnv.from_task(task)
        env.reset(options=options)
        vector.reset(options=options)
        for one in actions:
            env.step(one)
            vector.step(batch([one] * 3))
        for reply in (env.reply, *vector.replies):
            assert task.episode(reply, completions) == expected


def random_action(rng, fact, task):
    """Right, wrong, malformed, forbidden and misdirected actions."""
    value = fact.value
    return action(
        *rng.choice(
            [
                (0, task.query(fact.attribute, fact.name)),
                (0, task.query("occupation", "Nobody")),
                (0, "FIND nothing FOR nobody"),
                (0, "garbage \0"),
                (1, value),
                (1, task.statement(fact)),
                (1, "Atlantis 😀"),
                (1, "\ud800"),
                (1, "x" * 5000),
            ]
        )
    )


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_vector_env_plays_as_gymnasiums_sync_vector_env(url, mode):
    n, rng = 5, random.Random(0)
    ours = gymnasium.make_vec(ID, num_envs=n, database=url, max_queries=2, autoreset_mode=mode)
    theirs = gymnasium.make_vec(
        ID,
        num_envs=n,
        database=url,
        max_queries=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
    )
    assert isinstance(ours, FactRecallVectorEnv)
    assert isinstance(theirs, SyncVectorEnv)
    assert ours.metadata == theirs.metadata
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert same(ours.reset(seed=4), theirs.reset(seed=4))
    ended = 0
    for _ in range(40):
        actions = batch([random_action(rng, reply.state.fact, ours.task) for reply in ours.replies])
        a, b = ours.step(actions), theirs.step(actions)
        assert same(a, b)
        assert a[0] in ours.observation_space
        over = a[2] | a[3]
        ended += over.sum()
        if mode is AutoresetMode.DISABLED and over.any():
            a, b = (env.reset(options={"reset_mask": over.copy()}) for env in (ours, theirs))
            assert same(a, b)
    assert ended > 40
    assert same(ours.reset(seed=[9, None, 9, 1, None]), theirs.reset(seed=[9, None, 9, 1, None]))
    assert ours.np_random_seed == theirs.np_random_seed
    pinned = {"fact": ours.task.fact(3)[:2]}
    assert same(ours.reset(options=pinned), theirs.reset(options=pinned))


def test_a_vector_step_is_one_lookup(url, monkeypatch):
    envs = gymnasium.make_vec(ID, num_envs=16, database=url)
    envs.reset(seed=0)
    calls = []
    lookup = envs.task.database.lookup
    monkeypatch.setattr(envs.task.database, "lookup", lambda q: calls.append(q) or lookup(q))
    facts = [reply.state.fact for reply in envs.replies]
    observations, *_ = envs.step(
        batch([action(0, envs.task.query(fact.attribute, fact.name)) for fact in facts])
    )
    assert list(observations) == [fact.value for fact in facts]
    assert [len(queries) for queries in calls] == [16]


def test_a_failed_step_can_be_tried_again(url, monkeypatch):
    envs = gymnasium.make_vec(ID, num_envs=2, database=url)
    envs.reset(seed=0)
    facts = [reply.state.fact for reply in envs.replies]
    actions = batch([action(0, envs.task.query(f.attribute, f.name)) for f in facts])

    def fail(queries):
        raise EnvironmentFailure("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(envs.task.database, "lookup", fail)
        with pytest.raises(EnvironmentFailure):
            envs.step(actions)
    assert list(envs.step(actions)[0]) == [fact.value for fact in facts]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_step_whose_new_questions_fail_can_be_tried_again(url, mode, monkeypatch):
    ours, theirs = (
        gymnasium.make_vec(ID, num_envs=3, database=url, autoreset_mode=mode) for _ in range(2)
    )
    assert same(ours.reset(seed=4), theirs.reset(seed=4))
    rng, failures = random.Random(0), 0

    def fail(indices):
        if len(indices):
            raise EnvironmentFailure("the disk is gone")
        return []

    for _ in range(20):
        actions = batch([random_action(rng, reply.state.fact, ours.task) for reply in ours.replies])
        before = ours.replies
        with monkeypatch.context() as patch:
            patch.setattr(ours.task, "facts_at", fail)
            try:
                played = ours.step(actions)
            except EnvironmentFailure:
                failures += 1
                assert ours.replies is before
                patch.undo()
                played = ours.step(actions)
        assert same(played, theirs.step(actions))
    assert failures > 5


def test_a_reset_that_fails_can_be_tried_again(url, monkeypatch):
    def fail(indices):
        raise EnvironmentFailure("the disk is gone")

    for make in (gymnasium.make, gymnasium.make_vec):
        ours, theirs = make(ID, database=url), make(ID, database=url)
        assert same(ours.reset(seed=4), theirs.reset(seed=4))
        with monkeypatch.context() as patch:
            patch.setattr(ours.unwrapped.task, "facts_at", fail)
            with pytest.raises(EnvironmentFailure):
                ours.reset()
        assert same(ours.reset(), theirs.reset())


def test_vector_misuse_is_clear(url):
    envs = FactRecallVectorEnv(url, num_envs=2, autoreset_mode="Disabled")
    both = batch([action(1, "x")] * 2)
    with pytest.raises(ResetNeeded):
        envs.step(both)
    for wrong in (
        {"seed": [1]},
        {"options": {"reset_mask": [True, False]}},
        {"options": {"reset_mask": np.zeros(2, bool)}},
        {"options": {"mask": 1}},
    ):
        with pytest.raises(ConfigError):
            envs.reset(**wrong)
    envs.reset(seed=0)
    with pytest.raises(InvalidAction):
        envs.step(batch([action(1, "x")]))
    envs.step(both)
    with pytest.raises(ResetNeeded, match="over"):
        envs.step(both)


def test_the_vector_env_renders_each_lane(url):
    envs = gymnasium.make_vec(ID, num_envs=2, database=url, render_mode="ansi")
    questions, _ = envs.reset(seed=0)
    assert envs.render() == tuple(f"user      {question}" for question in questions)


@pytest.mark.parametrize(
    ("context", "shared_memory"), [("fork", True), ("fork", False), ("spawn", True)]
)
def test_async_plays_as_sync_does(url, context, shared_memory):
    if context == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    arguments = {"num_envs": 2, "database": url}
    mode = {"autoreset_mode": "SameStep"}
    sync = gymnasium.make_vec(ID, **arguments, vectorization_mode="sync", vector_kwargs=mode)
    parallel = gymnasium.make_vec(
        ID,
        **arguments,
        vectorization_mode="async",
        vector_kwargs={"context": context, "shared_memory": shared_memory, **mode},
    )
    ours = gymnasium.make_vec(ID, **arguments, **mode)
    try:
        assert same(sync.reset(seed=1), parallel.reset(seed=1))
        ours.reset(seed=1)
        rng = random.Random(1)
        for _ in range(12):
            actions = batch(
                [random_action(rng, reply.state.fact, ours.task) for reply in ours.replies]
            )
            expected = sync.step(actions)
            assert same(expected, parallel.step(actions))
            assert same(expected, ours.step(actions))
    finally:
        parallel.close()


def test_wrapped_environments_play_in_sync_vectors(url, task):
    envs = gymnasium.make_vec(
        ID, num_envs=2, database=url, vectorization_mode="sync", wrappers=[TextActions]
    )
    envs.reset(seed=0)
    facts = [env.unwrapped.reply.state.fact for env in envs.envs]
    observations, *_ = envs.step(tuple(task.call(fact.attribute, fact.name) for fact in facts))
    assert list(observations) == [fact.value for fact in facts]


def test_all_lanes_and_facts_are_reached(url):
    """Draws cover the facts about evenly."""
    envs = FactRecallVectorEnv(url, num_envs=64, keys=[0, 2], max_queries=0)
    asked = list(
        itertools.chain.from_iterable(envs.reset(seed=seed)[0] for seed in range(0, 1280, 64))
    )
    counts = [asked.count(question) for question in set(asked)]
    assert len(counts) == 8
    assert min(counts) > 100
