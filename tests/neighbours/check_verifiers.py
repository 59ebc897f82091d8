"""verifiers itself plays our environments, against a model that is a script on localhost.

Runs where verifiers is installed: `test_neighbours.py` says how.
"""

import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from textwrap import dedent

import gymnasium
import pytest
import verifiers.v1 as vf

import itl_env.verifiers
from itl_env.actions import call_turn, final_turn
from itl_env.errors import DatabaseError
from itl_env.verifiers import PLUGIN, GymEnv, load_environment

ID = "ITL/FactRecall-v0"
TOOLS = "ITL/ToolCall-v0"
CALCULATOR = {"categories": ["calculator"], "n": 10}


def query(info):
    return f"FIND {info['attribute']} FOR {info['name']}"


@pytest.fixture(scope="module")
def facts(world):
    """The info of each question that the rows ask, by the question."""
    env = gymnasium.make(ID, database=world)
    resets = [env.reset(seed=seed) for seed in range(20)]
    env.close()
    return dict(resets)


@pytest.fixture(scope="module")
def calculations():
    """The call and the final answer that each question of the calculator wants."""
    env = gymnasium.make(TOOLS, **CALCULATOR)
    task = env.unwrapped.task
    turns = {task.question(s): [task.expert_turn(s, n) for n in (0, 1)] for s in task.samples}
    env.close()
    return turns


@pytest.fixture
def model(facts, calculations):
    """A server of chat completions whose models are scripts, and the requests that it got."""

    def answer(name, messages):
        said = [message["content"] for message in messages if message["role"] == "user"]
        if said[0] in calculations:
            # No question has an answer below zero.
            wrong = [call_turn("calculator", {"expression": "1 - 2"}), final_turn("-1")]
            return (calculations[said[0]] if name == "right" else wrong)[len(said) - 1]
        call = query(facts[said[0]])
        if name == "right":
            # White space is the model's own, and part of what it wrote.
            return f"  {call}\n" if len(said) == 1 else said[-1]
        if name == "wrong":
            return call if len(said) == 1 else "The Moon"
        if name == "stumbling":
            return ["FIND FOR", call, said[-1]][len(said) - 1]
        return "FIND FOR"  # lost

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(body)
            content = answer(body["model"], body["messages"])
            reply = {
                "id": "completion",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": content},
                    }
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = requests
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def play(environment, server, name, rollouts=1):
    """The traces of each row's rollouts, played all at once as a trainer would."""
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    context = vf.ModelContext(
        model=name,
        client=vf.EvalClientConfig(base_url=url, api_key_var="NO_KEY_IS_NEEDED"),
        sampling=vf.SamplingConfig(temperature=0.5),
    )

    async def run():
        async with environment.serving():
            rows = [environment.slots(task, rollouts) for task in environment.taskset]
            runs = [environment.run_slot(slot, context) for row in rows for slot in row]
            return await asyncio.gather(*runs)

    episodes = asyncio.run(run())
    assert all(episode.ok for episode in episodes), [episode.errors for episode in episodes]
    traces = [trace for episode in episodes for trace in episode.traces]
    return [traces[start : start + rollouts] for start in range(0, len(traces), rollouts)]


def messages(trace):
    (branch,) = trace.branches
    return [(message.role, message.content) for message in branch.messages]


def test_a_right_answer_earns_one_and_the_dialogue_is_gymnasiums(world, facts, model):
    (trace,) = play(load_environment(ID, n_rows=1, seed=3, database=world), model, "right")[0]
    env = gymnasium.make(ID, database=world)
    question, info = env.reset(seed=3)
    call = f"  {query(info)}\n"
    value, *_ = env.step(call)
    *_, info = env.step(value)
    env.close()
    assert messages(trace) == [
        ("user", question),
        ("assistant", call),
        ("user", value),
        ("assistant", value),
    ]
    assert trace.reward == 1.0
    assert trace.metrics["exact"] == 1.0
    assert trace.info["gymnasium"] == info
    assert info["stop_reason"] == "answered"
    # The settings of the run reach the model.
    assert {request["temperature"] for request in model.requests} == {0.5}


def test_a_wrong_answer_earns_nothing(world, model):
    (trace,) = play(load_environment(ID, n_rows=1, database=world), model, "wrong")[0]
    assert trace.reward == 0.0
    assert trace.metrics["exact"] == 0.0
    assert trace.info["gymnasium"]["answer"] == "The Moon"


def test_the_rollouts_of_a_row_are_asked_the_same_and_rows_differ(world, facts, model):
    rows = play(load_environment(ID, n_rows=12, database=world), model, "right", rollouts=4)
    openings = [{messages(trace)[0] for trace in row} for row in rows]
    assert all(len(opening) == 1 for opening in openings)
    assert [opening.pop()[1] for opening in openings] == list(facts)[:12]
    assert {trace.reward for row in rows for trace in row} == {1.0}


def test_an_error_goes_back_to_the_model_which_goes_on(world, model):
    environment = load_environment(ID, n_rows=1, database=world, max_queries=2, max_turns=3)
    (trace,) = play(environment, model, "stumbling")[0]
    assert messages(trace)[2][1].startswith("error: ")
    assert trace.reward == 1.0
    assert trace.num_turns == 3


def test_an_episode_that_is_truncated_ends_unanswered(world, model):
    (trace,) = play(load_environment(ID, n_rows=1, database=world), model, "lost")[0]
    assert trace.reward == 0.0
    assert trace.num_turns == 2
    assert trace.info["gymnasium"]["stop_reason"] == "out_of_turns"


def test_a_limit_of_verifiers_ends_the_run_without_a_reward(world, model):
    environment = load_environment(ID, n_rows=1, database=world)
    config = environment.config
    agent = config.agent.model_copy(update={"max_turns": 1})
    limited = vf.load_environment(config.model_copy(update={"agent": agent}))
    (trace,) = play(limited, model, "right")[0]
    assert trace.num_turns == 1
    assert trace.reward == 0.0
    assert trace.info["gymnasium"]["stop_reason"] is None


def test_a_system_prompt_comes_first(world, model, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Ask with FIND <attribute> FOR <name>.")
    config = load_environment(ID, n_rows=1, database=world).config
    taskset = config.taskset.model_copy(update={"system_prompt": path})
    environment = vf.load_environment(config.model_copy(update={"taskset": taskset}))
    (trace,) = play(environment, model, "right")[0]
    assert trace.reward == 1.0
    roles = [[message["role"] for message in request["messages"]] for request in model.requests]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"]]
    assert model.requests[0]["messages"][0]["content"] == path.read_text()


@pytest.mark.parametrize(("name", "reward"), [("right", 1.0), ("wrong", 0.0)])
def test_a_tool_call_in_one_turn_is_the_answer(calculations, model, name, reward):
    environment = load_environment(TOOLS, n_rows=3, **CALCULATOR)
    for (trace,) in play(environment, model, name):
        (_, question), (role, turn) = messages(trace)
        assert (role, turn == calculations[question][0]) == ("assistant", name == "right")
        assert trace.reward == reward
        assert trace.metrics == {"form": 0.0, "outcome": reward}
        assert trace.info["gymnasium"]["stop_reason"] == "answered"


@pytest.mark.parametrize(("name", "reward"), [("right", 1.0), ("wrong", 0.0)])
def test_a_tool_call_in_more_turns_is_gymnasiums_dialogue(calculations, model, name, reward):
    environment = load_environment(TOOLS, n_rows=1, seed=4, max_turns=3, **CALCULATOR)
    (trace,) = play(environment, model, name)[0]
    env = gymnasium.make(TOOLS, max_turns=3, **CALCULATOR)
    question, _ = env.reset(seed=4)
    (_, asked), (_, call), (_, result), (_, final) = messages(trace)
    assert (asked, result) == (question, env.step(call)[0])
    assert [call, final] == calculations[question] or name == "wrong"
    *_, info = env.step(final)
    env.close()
    assert trace.info["gymnasium"] == info
    assert (trace.reward, trace.num_turns, info["answer"]) == (reward, 2, result)


def test_a_process_that_never_imported_it_finds_it_by_the_documented_file(
    world, tmp_path, monkeypatch
):
    file = tmp_path / f"{PLUGIN}.py"
    file.write_text(dedent("\n".join(itl_env.verifiers.__doc__.splitlines()[-2:])))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PLUGIN)
    taskset = {"id": PLUGIN, "n_rows": 3, "arguments": {"database": world}}
    environment = vf.load_environment(vf.resolve_env_config({"taskset": taskset}))
    assert sys.modules[PLUGIN].__file__ == str(file)
    assert isinstance(environment, GymEnv)
    assert [task.data.seed for task in environment.taskset] == [0, 1, 2]


def test_wrong_arguments_fail_when_the_environment_is_loaded(world):
    with pytest.raises(DatabaseError, match="no column 'salary'"):
        load_environment(ID, database=world, attributes=["salary"])
