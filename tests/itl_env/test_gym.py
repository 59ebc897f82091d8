"""The Gymnasium shells: the API, one episode through every shell, and vectorisation."""

import copy
import doctest
import itertools
import json
import os
import pickle
import random
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import itl_env.gym
import itl_env.gym_vector
import itl_env.recall
import itl_env.unicode_text
from itl_env import (
    Completion,
    ConfigError,
    EnvironmentFailure,
    FactDatabase,
    FactRecallEnv,
    FactRecallVectorEnv,
    RecallTask,
    TextActions,
    UnicodeText,
    people,
)

ID = "itl_env:ITL/FactRecall-v0"
KEYS = {"name", "attribute", "n_queries", "error_code", "stop_reason", "answer", "gold", "rewards"}

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("gym") / "facts.db"
    FactDatabase.create(f"sqlite:///{path}", people(50, seed=0)).close()
    return f"sqlite:///{path}"


@pytest.fixture
def task(url):
    return RecallTask(FactDatabase(url))


def action(kind, text):
    return {"kind": kind, "text": text}


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


# -- one environment


@pytest.mark.parametrize(
    "module", [itl_env.recall, itl_env.gym, itl_env.gym_vector, itl_env.unicode_text]
)
def test_the_examples_in_docstrings_are_true(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("arguments", [{}, {"dialect": "sql"}, {"max_queries": 0}])
def test_gymnasiums_checker_finds_nothing(url, arguments):
    env = gymnasium.make(ID, database=url, **arguments)
    check_env(env.unwrapped)
    env.close()


def test_gymnasiums_checker_finds_nothing_in_text_actions(url):
    env = TextActions(gymnasium.make(ID, database=url, disable_env_checker=True))
    # The checker says this of every wrapper.
    warnings.filterwarnings("ignore", message=".*different from the unwrapped version")
    check_env(env)
    env.close()


def test_the_same_seed_asks_the_same_fact_and_seeds_differ(url):
    env = gymnasium.make(ID, database=url)
    asked = [[env.reset(seed=seed)[0], env.reset()[0]] for seed in (1, 2, 1)]
    assert asked[0] == asked[2] != asked[1]
    assert asked[0][0] != asked[0][1]


def test_a_seed_means_the_same_fact_with_every_version_of_numpy(task):
    class Bits:
        state = None

        def random_raw(self):
            return 2**63

    class Generator:
        bit_generator = Bits()

    # The middle of the generator's range is the middle of the facts.
    assert itl_env.gym_shared.draw_facts(task, [Generator()]) == [task.fact(task.n_facts // 2)]


def test_options_pin_a_fact(url, task):
    env = FactRecallEnv(url)
    fact = task.fact(7)
    for given in (
        {"name": fact.name, "attribute": fact.attribute},
        [fact.name, fact.attribute],
    ):
        question, info = env.reset(seed=3, options={"fact": given})
        assert question == task.question(fact)
        assert (info["name"], info["attribute"]) == (fact.name, fact.attribute)


@pytest.mark.parametrize(
    "options",
    [
        {"fact": ["Nobody", "birth_date"]},
        {"fact": {"name": "Nobody"}},
        {"fact": "birth_date"},
        {"fact": [1, 2]},
        {"fact": ["\0", "birth_date"]},
        {"fcat": ["Nobody", "birth_date"]},
    ],
)
def test_wrong_options_are_refused(url, options):
    with pytest.raises(ConfigError):
        FactRecallEnv(url).reset(options=options)


def test_the_gold_answer_is_hidden_until_the_end(url, task):
    env = FactRecallEnv(url, max_queries=3)
    _, info = env.reset(seed=0)
    assert info.keys() == KEYS
    fact = task.fact_about(info["name"], info["attribute"])
    for text in ("FIND", "FIND occupation FOR Nobody"):
        _, reward, terminated, truncated, info = env.step(action(0, text))
        assert info.keys() == KEYS
        assert (info["gold"], info["answer"], reward) == (None, None, 0.0)
        assert not terminated
        assert not truncated
        assert fact.value not in json.dumps(info)
    observation, reward, terminated, truncated, info = env.step(action(1, fact.value))
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert (info["gold"], info["answer"], info["stop_reason"]) == (fact.value,) * 2 + ("answered",)
    assert info["rewards"] == {"exact": 1.0}


def test_spent_turns_truncate(url):
    env = FactRecallEnv(url)
    env.reset(seed=0)
    env.step(action(0, "FIND x FOR y"))
    _, reward, terminated, truncated, info = env.step(action(0, "FIND x FOR y"))
    assert (reward, terminated, truncated, info["stop_reason"]) == (
        0.0,
        False,
        True,
        "out_of_turns",
    )
    assert info["error_code"] == "too_many_queries"


def test_out_of_order_calls_say_reset(url):
    env = FactRecallEnv(url, render_mode="ansi")
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(action(1, "x"))
    with pytest.raises(ResetNeeded, match="reset"):
        env.render()
    env.reset(seed=0)
    env.step(action(1, "x"))
    with pytest.raises(ResetNeeded, match="over"):
        env.step(action(1, "x"))


def test_what_is_no_action_is_an_error_of_the_caller(url):
    env = FactRecallEnv(url)
    env.reset(seed=0)
    for wrong in (action(2, "x"), action(0, None), action(1, b"x")):
        with pytest.raises(InvalidAction):
            env.step(wrong)


def test_a_text_that_is_too_long_gets_an_error_reply(url):
    env = FactRecallEnv(url, max_length=10, max_turns=3)
    for kind in (0, 1):
        env.reset(seed=0)
        observation, _, terminated, truncated, info = env.step(action(kind, "x" * 11))
        assert info["error_code"] == "too_long"
        assert observation in env.observation_space
        assert not terminated
        assert not truncated


def test_questions_and_replies_are_observations_whatever_the_limit(tmp_path):
    rows = [{"name": "n" * 600, "a": "v" * 9}, {"name": "m", "a": "v" * 9}]
    rows += [{"name": f"n{i}", "a": "v" * 500} for i in range(20)]
    FactDatabase.create(tmp_path / "long.db", rows).close()
    database = FactDatabase(tmp_path / "long.db")
    for max_length in (1, 10, 200, 1000):
        for dialect in ("lookup", "sql"):
            env = FactRecallEnv.from_task(
                RecallTask(database, max_length=max_length, dialect=dialect)
            )
            assert env.reset(options={"fact": ["m", "a"]})[0] in env.observation_space
            reply = env.step(action(0, "FIND b FOR m" if dialect == "lookup" else "SELECT a"))[0]
            assert reply in env.observation_space
    with pytest.raises(ConfigError, match="max_length"):
        FactRecallEnv.from_task(RecallTask(database, max_length=10)).reset(
            options={"fact": ["n" * 600, "a"]}
        )


def test_render_shows_one_plain_line_a_message(url, task):
    env = gymnasium.make(ID, database=url, style="fenced", render_mode="ansi")
    fact = task.fact(0)
    env.reset(options={"fact": [fact.name, fact.attribute]})
    env.step(action(0, task.query(fact.attribute, fact.name)))
    env.step(action(1, "\x1b[31mred\nand \ud800"))
    lines = env.render().splitlines()
    roles = [line.split()[0] for line in lines]
    assert roles == ["user", "assistant", "database", "assistant", "database"]
    assert lines[2].endswith(fact.value)
    assert all(line.isprintable() for line in lines)
    assert lines[3].endswith(r"\x1b[31mred\nand \ud800")


def test_arguments_that_contradict_are_refused(url):
    for arguments in (
        {"keys": [5, 5]},
        {"keys": 5},
        {"keys": [1, 2, 3]},
        {"render_mode": "human"},
        {"rubric": "kind"},
        {"max_turns": 0},
        {"phrasings": {"birth_date": {"question": "?"}}},
    ):
        with pytest.raises(ConfigError):
            FactRecallEnv(url, **arguments)
    with pytest.raises(ConfigError):
        FactRecallEnv(b"facts.db")
    for arguments in ({"num_envs": 0}, {"autoreset_mode": "Never"}):
        with pytest.raises(ConfigError):
            FactRecallVectorEnv(url, **arguments)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://ann:sesame@host/facts",
        "postgresql://ann@host/facts?password=sesame",
        "postgresql://ann@host/facts?sslpassword=sesame",
    ],
)
def test_passwords_never_enter_specs(address):
    for make in (gymnasium.make, gymnasium.make_vec):
        with pytest.raises(ConfigError, match="PGPASSWORD") as caught:
            make(ID, database=address)
        assert "sesame" not in str(caught.value)


def test_own_phrasings_and_slices_reach_the_task(url):
    phrasings = {"occupation": {"question": "Job of {name}?", "statement": "{name}: {value}"}}
    arguments = {"keys": [3, 4], "attributes": ["occupation"], "phrasings": phrasings}
    env = gymnasium.make(ID, database=url, **arguments)
    name = next(FactDatabase(url).names(3))
    assert {env.reset()[0] for _ in range(5)} == {f"Job of {name}?"}


def test_specs_survive_json_and_make_the_same_environment(url):
    first = TextActions(gymnasium.make(ID, database=url, keys=[0, 9], rubric="lenient"))
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(first.spec.to_json()))
    assert isinstance(again, TextActions)
    assert again.reset(seed=5) == first.reset(seed=5)
    assert again.unwrapped.task.keys == first.unwrapped.task.keys
    vector = gymnasium.make_vec(ID, num_envs=2, database=url, autoreset_mode="SameStep")
    spec = gymnasium.envs.registration.EnvSpec.from_json(vector.spec.to_json())
    assert same(gymnasium.make_vec(spec).reset(seed=1), vector.reset(seed=1))


@pytest.mark.parametrize("dialect", ["lookup", "sql"])
def test_environments_can_be_copied_and_pickled_in_an_episode(url, dialect):
    env = FactRecallEnv(url, dialect=dialect)
    env.reset(seed=0)
    fact = env.reply.state.fact
    query = action(0, env.task.query(fact.attribute, fact.name))
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.step(query)[0] == fact.value
        assert other.reset() == copy.deepcopy(env).reset()


def test_close_closes_what_the_environment_opened_and_no_more():
    database = FactDatabase.create("sqlite://", people(3))
    env = FactRecallEnv.from_task(RecallTask(database))
    env.close()
    env.close()
    env.reset(seed=0)
    assert len(list(database.names())) == 3


def test_closing_twice_and_going_on_is_allowed(url):
    env = gymnasium.make(ID, database=url)
    env.close()
    env.close()
    assert env.reset(seed=0)[0].endswith("?")


# -- one episode through every shell


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


# -- vectors


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


# -- the space, and sharing it between processes


def test_unicode_text_contains_any_text_up_to_its_length():
    space = UnicodeText(5, seed=0)
    assert all(text in space for text in ("", "12345", "😀😀😀😀😀", "\ud800\0\n"))
    assert not any(text in space for text in ("123456", None, 5, b"12345"))
    assert repr(space) == "UnicodeText(5)"
    assert space == UnicodeText(5) != UnicodeText(6)
    assert space != gymnasium.spaces.Text(5)
    samples = [space.sample() for _ in range(50)]
    assert all(sample in space and sample.isprintable() for sample in samples)
    for other in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert other == space
        state = copy.deepcopy(space)
        assert other.sample() == state.sample()


class Echo(gymnasium.Env):
    """Observations are a fixed list of awkward texts, then the action."""

    texts = ("", "plain", "😀 東京", "\ud800 lone", "\0 nul", "x" * 20, "é")

    def __init__(self):
        self.observation_space = self.action_space = UnicodeText(20)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turn = 0
        return self.texts[0], {}

    def step(self, action):
        self.turn += 1
        return self.texts[self.turn % len(self.texts)], 0.0, action == "end", False, {}


@pytest.mark.parametrize("shared_memory", [True, False])
def test_processes_share_awkward_texts(shared_memory):
    envs = AsyncVectorEnv([Echo, Echo], shared_memory=shared_memory)
    try:
        seen = [envs.reset()[0]]
        for turn in range(1, len(Echo.texts)):
            seen.append(envs.step(("go", "end" if turn == 3 else "go"))[0])
    finally:
        envs.close()
    second = [*Echo.texts[:4], "", *Echo.texts[1:3]]  # ended at step 3, reset at step 4
    # Earlier observations are not overwritten by later ones.
    assert seen == list(zip(Echo.texts, second, strict=True))


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


def test_text_actions_wrap_fact_recall_only():
    with pytest.raises(ConfigError):
        TextActions(Echo())


def test_all_lanes_and_facts_are_reached(url):
    """Draws cover the facts about evenly."""
    envs = FactRecallVectorEnv(url, num_envs=64, keys=[0, 2], max_queries=0)
    asked = list(
        itertools.chain.from_iterable(envs.reset(seed=seed)[0] for seed in range(0, 1280, 64))
    )
    counts = [asked.count(question) for question in set(asked)]
    assert len(counts) == 8
    assert min(counts) > 100
