"""An OpenEnv server of our environments, as a process, and the clients that talk to it.

Runs where openenv is installed: `test_neighbours.py` says how.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import gymnasium
import pytest
import uvicorn
from openenv.core import GenericEnvClient

from itl_env.errors import DatabaseError
from itl_env.openenv import TextAction, TextClient, build_app

ID = "ITL/FactRecall-v0"
ARGUMENTS = {"max_queries": 2, "max_turns": 3}
TOOLS = "ITL/ToolCall-v0"
TOOL_ARGUMENTS = {"categories": ["calculator", "python_exec"], "n": 20, "max_turns": 3}
ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds, for a busy machine: a server starts in five


@pytest.fixture(scope="module")
def server(world, tmp_path_factory):
    """The address of a server that was started as the module's docstring says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "itl_env.openenv:app"]
    environment = {
        **os.environ,
        "ITL_OPENENV_ID": ID,
        "ITL_OPENENV_ARGUMENTS": json.dumps({"database": world, **ARGUMENTS}),
        "ITL_OPENENV_SESSIONS": "3",
    }
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=ROOT, env=environment, stdout=file, stderr=file
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE)


def wait_for(url, process, log):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            return get(url, "health")
        except urllib.error.URLError:
            time.sleep(0.1)
    pytest.fail(f"No answer from {url} within {PATIENCE} seconds:\n{log.read_text()}")


def get(url, route):
    with urllib.request.urlopen(f"{url}/{route}", timeout=PATIENCE) as reply:
        return json.load(reply)


@pytest.fixture
def env(world):
    """The same environment, played directly."""
    env = gymnasium.make(ID, database=world, **ARGUMENTS)
    yield env
    env.close()


@pytest.fixture(scope="module")
def tool_server():
    """The address of a server of the other environment, in a thread of this process."""
    app = build_app(TOOLS, **TOOL_ARGUMENTS)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()


def connect(url):
    """A client that is as patient as the rest."""
    return TextClient(base_url=url, connect_timeout_s=PATIENCE, message_timeout_s=PATIENCE)


def query(info):
    return f"FIND {info['attribute']} FOR {info['name']}"


def step(client, text):
    """A step over the network, as Gymnasium's tuple."""
    result = client.step(TextAction(text=text))
    seen = result.observation
    assert (seen.reward, seen.done) == (result.reward, result.done)
    return seen.text, result.reward, result.done and not seen.truncated, seen.truncated, seen.info


def test_a_seed_asks_the_same_question_as_gymnasium(server, env):
    with connect(server) as client:
        for seed in range(10):
            result = client.reset(seed=seed)
            assert (result.observation.text, result.observation.info) == env.reset(seed=seed)
            assert (result.reward, result.done) == (None, False)


@pytest.mark.parametrize("last", ["value", "The Moon", "FIND FOR"])
def test_an_episode_is_the_one_that_gymnasium_plays(server, env, last):
    with connect(server) as client:
        client.reset(seed=5, episode_id="five")
        _, info = env.reset(seed=5)
        call = query(info)
        directly = [env.step("FIND FOR"), env.step(f" {call}\n")]
        final = directly[1][0] if last == "value" else last
        directly.append(env.step(final))
        assert [step(client, text) for text in ("FIND FOR", f" {call}\n", final)] == directly
        assert directly[0][0].startswith("error: ")
        # Right, wrong and out of turns: the ends that there are.
        assert directly[2][1:4] == (float(last == "value"), last != "FIND FOR", last == "FIND FOR")
        state = client.state()
        assert (state.environment, state.seed) == (ID, 5)
        assert (state.episode_id, state.step_count) == ("five", 3)


@pytest.mark.parametrize("sample", ["calculator-1-0-0", "python_exec-1-0-1"])
def test_an_episode_of_tool_calls_is_the_one_that_gymnasium_plays(tool_server, sample):
    env = gymnasium.make(TOOLS, **TOOL_ARGUMENTS)
    options = {"sample": sample}
    question, info = env.reset(options=options)
    state = env.unwrapped.reply.state
    turns = ["{}}", *(env.unwrapped.task.expert_turn(state.sample, n) for n in (0, 1))]
    directly = [env.step(turn) for turn in turns]
    assert directly[0][4]["error_code"] == "invalid_json"
    assert directly[2][1:4] == (pytest.approx(0.9667, abs=1e-3), True, False)
    with connect(tool_server) as client:
        observation = client.reset(options=options).observation
        assert (observation.text, observation.info) == (question, info)
        assert [step(client, turn) for turn in turns] == directly
        for seed in range(5):
            observation = client.reset(seed=seed).observation
            assert (observation.text, observation.info) == env.reset(seed=seed)
    env.close()


def test_options_pin_the_fact(server, env):
    name = env.reset(seed=9)[1]["name"]
    options = {"fact": {"name": name, "attribute": "occupation"}}
    with connect(server) as client:
        observation = client.reset(options=options).observation
        assert (observation.text, observation.info) == env.reset(options=options)


def test_clients_side_by_side_do_not_mix(server, env):
    with connect(server) as first, connect(server) as second:
        clients = {1: first, 2: second}
        infos = {seed: client.reset(seed=seed).observation.info for seed, client in clients.items()}
        assert infos[1] != infos[2]
        values = {seed: step(client, query(infos[seed]))[0] for seed, client in clients.items()}
        for seed in clients:
            env.reset(seed=seed)
            assert values[seed] == env.step(query(infos[seed]))[0]
        # A new episode of one leaves the other's as it is.
        first.reset(seed=3)
        assert step(second, values[2])[1:3] == (1.0, True)
        assert first.state().step_count == 0


def test_a_session_more_than_allowed_is_refused(server):
    with (
        connect(server) as one,
        connect(server) as two,
        connect(server) as three,
    ):
        for client in (one, two, three):
            client.reset(seed=0)
        with pytest.raises(RuntimeError), connect(server) as four:
            four.reset(seed=0)
        one.reset(seed=1)
    with connect(server) as again:
        again.reset(seed=0)


def test_mistakes_are_told_and_the_session_goes_on(server):
    with connect(server) as client:
        with pytest.raises(RuntimeError, match=r"reset"):
            client.step(TextAction(text="too early"))
        with pytest.raises(RuntimeError, match="no reset argument 'sead'"):
            client.reset(sead=1)
        with pytest.raises(RuntimeError, match="no reset option 'facts'"):
            client.reset(options={"facts": 1})
        info = client.reset(seed=1).observation.info
        value = step(client, query(info))[0]
        assert step(client, value)[1] == 1.0
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            step(client, value)


def test_the_generic_client_plays_from_the_published_schema(server):
    schema = get(server, "schema")
    assert schema["action"]["required"] == ["text"]
    assert get(server, "metadata")["name"] == ID
    with GenericEnvClient(base_url=server) as client:
        info = client.reset(seed=2).observation["info"]
        value = client.step({"text": query(info)}).observation["text"]
        result = client.step({"text": value})
        assert (result.reward, result.done) == (1.0, True)


def test_wrong_arguments_fail_when_the_server_starts(world):
    with pytest.raises(DatabaseError, match="no column 'salary'"):
        build_app(ID, database=world, attributes=["salary"])
