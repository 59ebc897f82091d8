"""A model behind a server as an agent: a small one of our own, behind `transformers serve`."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cli import main
from itl_agents import rollout
from itl_agents.chat import ChatAgent, ServerFailure, _called, protocol
from itl_agents.chat_template import FIND
from itl_agents.huggingface import HFAgent
from itl_env import FactDatabase, RecallTask
from itl_env.dialogue import Message
from itl_env.errors import ConfigError
from itl_env.trivia import SAMPLE, create_trivia, read_trivia, trivia_task

from ..itl_train.test_sft import tiny_llama
from .test_huggingface import talks

pytestmark = pytest.mark.xdist_group("server")  # one is enough


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`transformers serve` with one model, until it is stopped."""

    def __init__(self, model: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        command = [
            sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--host",
            "127.0.0.1", "--port", str(self.port), "--device", "cpu", "--dtype", "float32",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1):
                    return
            except OSError:
                assert self.process.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("served") / "llama")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    running = Server(model)
    yield running
    running.stop()


def agent(server: Server, model: Path, **settings: object) -> ChatAgent:
    return ChatAgent(str(model), url=server.url, **{"max_new_tokens": 8, "retries": 0, **settings})


def test_a_served_model_says_what_it_says_here(server: Server, model: Path) -> None:
    asked = talks(*(f"Where does number {n} live?" for n in range(5)))
    here = HFAgent.load(model, max_new_tokens=8)
    expected = [
        here.chat.tokenizer.decode(turn.token_ids, skip_special_tokens=True)
        for turn in here.respond(asked)
    ]
    served = agent(server, model, at_once=3)
    assert [turn.text for turn in served.respond(asked)] == expected
    assert {turn.finish_reason for turn in served.respond(asked)} == {"length"}


def test_it_plays_to_the_end(server: Server, model: Path, world: str) -> None:
    task = RecallTask(FactDatabase(world), keys=slice(0, 2))
    served = agent(server, model, system=protocol(task))
    episodes = list(rollout(served, task, task.facts(), lanes=4))
    assert len(episodes) == 8
    assert all(episode.agent == str(model) for episode in episodes)


def test_a_server_that_dies_takes_no_episode_along(
    server: Server, model: Path, world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short_lived = Server(model)
    out = tmp_path / "episodes.jsonl"
    command = [
        "rollout", "--database", world, "--agent", str(model), "--url", short_lived.url, "--n", "6",
        "--lanes", "2", "--mode", "in-weight", "--out", str(out),
    ]  # fmt: skip
    answered = ChatAgent.respond

    def dies_later(self: ChatAgent, conversations: list) -> list:
        if (tmp_path / "episodes.jsonl.partial").read_text().count("\n") == 4:
            short_lived.stop()
            self.retries = 0
        return answered(self, conversations)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ChatAgent, "respond", dies_later)
        assert main(command) == 1
    said = capsys.readouterr().err
    assert "cannot be reached; see whether it runs. 4 episodes are kept; the same command" in said
    partial = tmp_path / "episodes.jsonl.partial"
    kept = partial.read_text()
    assert kept.count("\n") == 4
    partial.write_text(kept + '{"schema": 1, "ind')  # as a kill would leave it
    assert not out.exists()

    flags = tmp_path / "episodes.jsonl.partial.flags.json"
    told = flags.read_text()
    flags.unlink()
    assert main(command) == 1
    assert f"Cannot read {flags}" in capsys.readouterr().err
    flags.write_text(told)

    command[command.index(short_lived.url)] = server.url
    for flag, told in (("--seed=1", "seed 0, not 1"), ("--mode=in-tool", "mode 'in-weight'")):
        assert main([*command, flag]) == 2
        assert f"was begun with {told}" in capsys.readouterr().err
    assert main(command) == 0
    assert "going on after 4 episodes" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(6))
    assert out.read_text().startswith(kept)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == [out.name], "and nothing beside it"


def test_a_server_that_is_not_there_is_told(model: Path) -> None:
    nobody = ChatAgent("m", url=f"http://127.0.0.1:{free_port()}/v1", retries=0)
    with pytest.raises(ServerFailure, match="cannot be reached"):
        nobody.respond(talks("Who?"))


DIALOGUE = (
    Message("user", "When was Ann Lee born?"),
    Message("assistant", "FIND birth_date FOR Ann Lee"),
    Message("database", "7/3/1984"),
)


def test_calls_are_sent_as_text_or_as_the_servers_own() -> None:
    talk = talks("")[0]._replace(messages=DIALOGUE)
    text = ChatAgent("m", url="http://localhost/v1", system="Be brief.").messages(talk)
    assert [(m["role"], m["content"]) for m in text] == [
        ("system", "Be brief."),
        ("user", "When was Ann Lee born?"),
        ("assistant", "FIND birth_date FOR Ann Lee"),
        ("user", "7/3/1984"),
    ]
    native = ChatAgent("m", url="http://localhost/v1", calls="native").messages(talk)
    (call,) = native[1]["tool_calls"]
    assert call["function"]["name"] == FIND
    assert json.loads(call["function"]["arguments"]) == {
        "attribute": "birth_date", "name": "Ann Lee",
    }  # fmt: skip
    assert native[2] == {"role": "tool", "tool_call_id": call["id"], "content": "7/3/1984"}


def test_a_servers_call_is_spelt_as_the_environment_does() -> None:
    class Function:
        name = FIND
        arguments = '{"attribute": "birth_date", "name": "Ann Lee"}'

    assert _called(Function).text == "FIND birth_date FOR Ann Lee"
    Function.name = "other"
    assert _called(Function).kind == "query", "which the environment refuses"


def test_the_protocol_names_the_attributes(world: str) -> None:
    text = protocol(RecallTask(FactDatabase(world)))
    assert "FIND <attribute> FOR <name>" in text
    assert "birth_date, birth_place, current_address, occupation" in text
    assert "<name> is copied from the question" in text
    with pytest.raises(ConfigError, match="no tool"):
        protocol(RecallTask(FactDatabase(world), max_queries=0))


def test_the_protocol_of_trivia_takes_the_whole_question(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'trivia.db'}"
    create_trivia(database, read_trivia(SAMPLE))
    assert "<name> is the question, word for word" in protocol(trivia_task(database))
