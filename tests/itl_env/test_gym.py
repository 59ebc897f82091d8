"""The Gymnasium environment: the API, one episode, what is refused, and copies of it."""

import copy
import doctest
import json
import pickle
import warnings

import gymnasium
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

import itl_env.gym
import itl_env.gym_vector
import itl_env.recall
import itl_env.unicode_text
from itl_env import (
    ConfigError,
    FactDatabase,
    FactRecallEnv,
    FactRecallVectorEnv,
    RecallTask,
    TextActions,
    people,
)

from .gym_shells import ID, action

KEYS = {"name", "attribute", "n_queries", "error_code", "stop_reason", "answer", "gold", "rewards"}

pytestmark = pytest.mark.filterwarnings("error")


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


def test_a_first_reset_that_is_refused_does_no_harm(url):
    env = gymnasium.make(ID, database=url)
    with pytest.raises(ConfigError):
        env.reset(options={"fcat": 1})
    env.reset(seed=0)
    assert env.step(action(0, "FIND"))[4]["error_code"] == "malformed"
    env.close()


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
