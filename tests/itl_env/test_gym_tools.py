"""Tool calling through Gymnasium: the API, the same seeds, and the same episodes as the task's."""

import doctest
import json

import gymnasium
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

import itl_env.gym_tools
from itl_env import ConfigError, FactDatabase, ToolCallEnv, people, write_samples
from itl_env.generated import generate
from itl_env.gym_tools import build_tool_task

ID = "itl_env:ITL/ToolCall-v0"
KEYS = {
    "id", "category", "n_queries", "error_code", "stop_reason", "answer", "gold", "rewards",
}  # fmt: skip
SMALL = {"n": 60, "instruction": ""}

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def env():
    env = gymnasium.make(ID, **SMALL)
    yield env
    env.close()


def test_a_folder_of_data_and_categories_choose_samples(tmp_path):
    samples = list(generate(30, 0, categories=("calculator", "no_tool")))
    write_samples(samples, tmp_path / "train.jsonl")
    env = ToolCallEnv(data=str(tmp_path), categories=["no_tool"])
    assert env.task.samples == [each for each in samples if each.category == "no_tool"]
    assert ToolCallEnv(data=str(tmp_path)).task.samples == samples
    with pytest.raises(ConfigError, match="holds no samples of python_exec"):
        ToolCallEnv(data=str(tmp_path), categories=["python_exec"])
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="An action is a text, not int"):
        env.step(5)


def test_the_example_in_the_docstring_is_true():
    result = doctest.testmod(itl_env.gym_tools)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    "arguments",
    [{}, {"max_turns": 4}, {"rubric": "classic", "max_turns": 2}, {"executor": "subprocess"}],
)
def test_gymnasiums_checker_finds_nothing(arguments):
    env = gymnasium.make(ID, **SMALL, **arguments)
    check_env(env.unwrapped)
    env.close()


def test_the_same_seed_gives_the_same_task_and_seeds_differ(env):
    given = [[env.reset(seed=seed)[0], env.reset()[0]] for seed in (1, 2, 1)]
    assert given[0] == given[2] != given[1]
    assert given[0][0] != given[0][1]


def test_a_whole_episode_has_the_same_keys_and_hides_the_gold_answer(env):
    _, info = env.reset(options={"sample": "calculator-1-0-0"})
    assert set(info) == KEYS
    assert info["gold"] is None
    assert info["category"] == "calculator"
    turn = '{"tool": "calculator", "args": {"expression": "4 * 9"}}'
    reply, reward, terminated, truncated, info = env.step(turn)
    assert (reply, reward, terminated, truncated) == ("36", 1.0, True, False)
    assert set(info) == KEYS
    assert (info["answer"], info["gold"], info["stop_reason"]) == ("36", "36", "answered")
    assert info["rewards"] == {"form": 0.0, "outcome": 1.0}
    with pytest.raises(ResetNeeded, match="over"):
        env.step(turn)


def test_spent_turns_truncate():
    env = gymnasium.make(ID, **SMALL, max_turns=2)
    env.reset(seed=0)
    reply, reward, terminated, truncated, info = env.step("?")
    assert reply.startswith("error: ")
    assert (reward, terminated, truncated, info["error_code"]) == (0.0, False, False, "no_json")
    _, reward, terminated, truncated, _ = env.step("?")
    assert (reward, terminated, truncated) == (pytest.approx(-0.1), False, True)
    env.close()


def test_whatever_is_said_lies_in_the_observation_space():
    env = gymnasium.make(ID, **SMALL, max_length=20, max_turns=9)
    env.reset(seed=0)
    for turn in ("x", "{" * 21, '{"tool":"x","args":{}}'[:20], '{"final":1}'):
        reply = env.unwrapped.step(turn)[0]
        assert reply in env.observation_space
        assert len(reply) > 20
    env.close()


def test_an_environment_without_a_beginning_says_so(env):
    with pytest.raises(ResetNeeded, match="Call reset"):
        env.unwrapped.step("{}")


def test_the_dialogue_is_rendered():
    env = gymnasium.make(ID, **SMALL, max_turns=2, render_mode="ansi")
    env.reset(options={"sample": "calculator-1-0-0"})
    env.step('{"tool": "calculator", "args": {"expression": "4 * 9"}}')
    assert env.render().splitlines() == [
        "user      What is 4 times 9?",
        'assistant {"tool": "calculator", "args": {"expression": "4 * 9"}}',
        "database  36",
    ]
    env.close()


def test_samples_of_a_file_and_a_database_are_served(tmp_path):
    write_samples(generate(10, 9, categories=("no_tool",)), tmp_path / "s.jsonl")
    env = gymnasium.make(ID, data=str(tmp_path / "s.jsonl"))
    assert env.reset(seed=0)[1]["id"].startswith("no_tool-1-9-")
    env.close()
    url = f"sqlite:///{tmp_path / 'facts.db'}"
    FactDatabase.create(url, people(20)).close()
    env = gymnasium.make(
        ID, database=url, categories=["mixed", "calculator"], n=10, max_turns=3, instruction=""
    )
    question, _ = env.reset(options={"sample": "mixed-0-0"})
    name = question.removeprefix("How old did ").split(" turn in ")[0]
    call = {"tool": "find", "args": {"attribute": "birth_date", "name": name}}
    assert "/" in env.step(json.dumps(call))[0]
    env.close()


def test_a_task_that_is_there_already_is_wrapped_and_left_open():
    env = gymnasium.make(ID, **SMALL)
    other = ToolCallEnv.from_task(env.unwrapped.task)
    assert other.reset(seed=3)[0] == env.reset(seed=3)[0]
    other.close()
    env.reset(options={"sample": "python_exec-1-0-1"})
    assert env.step('{"tool": "python", "args": {"code": "print(1)"}}')[0] == "1"
    env.close()


def test_its_spec_is_json():
    env = gymnasium.make(ID, **SMALL)
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.reset(seed=2)[0] == env.reset(seed=2)[0]
    again.close()
    env.close()


def test_vector_environments_serve_it():
    envs = gymnasium.make_vec(ID, num_envs=3, vectorization_mode="sync", **SMALL)
    single = gymnasium.make(ID, **SMALL)
    questions, _ = envs.reset(seed=5)
    assert list(questions) == [single.reset(seed=seed)[0] for seed in (5, 6, 7)]
    *_, infos = envs.step(["?"] * 3)
    assert list(infos["error_code"]) == ["no_json"] * 3
    envs.close()
    single.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"executor": "shell"}, "There is no executor 'shell'; choose among monty, subprocess"),
        ({"n": 0}, "n is 0; it must be at least 1"),
        ({"categories": ["mixed"]}, "The category 'mixed' looks facts up; name a database"),
        ({"categories": ["multi_turn"]}, "takes . turns, but max_turns is 1"),
        ({"database": "postgresql://me:secret@host/facts"}, "may not hold a password"),
        ({"data": "nowhere.jsonl"}, "Cannot read nowhere.jsonl"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        gymnasium.make(ID, disable_env_checker=True, **arguments)
    with pytest.raises(ConfigError, match="There is no render_mode 'human'"):
        ToolCallEnv(render_mode="human")


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("n", ["5", 5.0, True, None], "a whole number"),
        ("level", ["2", 1.5], "a whole number"),
        ("data_seed", [2.5, "x"], "a whole number"),
        ("max_turns", ["5", 2.5, None], "a whole number"),
        ("max_length", ["x", [1]], "a whole number"),
        ("instruction", [None, 3], "text"),
        ("rubric", [["outcome"], 1], "text"),
        ("executor", [["monty"], None], "text"),
        ("data", [5, ["a"]], "text"),
        ("database", [5, ["a"]], "text"),
        ("categories", ["calculator", 5], "a list of text"),
        ("categories", [["calculator", 5], [["calculator"]]], "text"),
    ],
)
def test_arguments_of_another_kind_are_refused(name, values, kind):
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{name}.* must be {kind}, not .*\.$"):
            build_tool_task(**{name: value})


def test_reset_options_that_there_are_not_are_refused(env):
    for name in (["x"], 5, {"id": "x"}):
        with pytest.raises(ConfigError, match="There is no sample "):
            env.reset(options={"sample": name})
    with pytest.raises(ConfigError, match="There is no sample 'x'"):
        env.reset(options={"sample": "x"})
    with pytest.raises(ConfigError, match="There is no reset option 'fact'; there is sample"):
        env.reset(options={"fact": "x"})


def test_a_first_reset_that_is_refused_does_no_harm(env):
    with pytest.raises(ConfigError):
        env.reset(options={"fact": "x"})
    env.reset(seed=0)
    assert env.step("?")[4]["error_code"] == "no_json"
