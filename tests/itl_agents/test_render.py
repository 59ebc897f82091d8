"""What is trained: the assistant's own words and the marks it must write, nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from itl_agents import ExpertAgent, rollout
from itl_agents.chat_template import ChatTokenizer
from itl_agents.nanollama import ByteTokenizer
from itl_agents.render import IGNORED, coloured, render, render_messages, render_prompt
from itl_env import FactDatabase, RecallTask
from itl_env.dialogue import Message
from itl_env.episode import Completion
from itl_env.errors import ConfigError, ITLError

from .chat_models import chat_tokenizer

TOKENIZER = ByteTokenizer()
CHAT = ChatTokenizer(chat_tokenizer("smollm"))
DIALOGUE = (
    Message("user", "When was Ann Lee born?"),
    Message("assistant", "FIND birth_date FOR Ann Lee"),
    Message("database", "7/3/1984"),
    Message("assistant", "Ann Lee was born on 7/3/1984."),
)


def trained(messages: tuple[Message, ...]) -> str:
    ids, labels = render_messages(messages, TOKENIZER)
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    return TOKENIZER.decode([label for label in labels if label != IGNORED])


def test_a_dialogue_is_rendered_with_its_marks() -> None:
    ids = render_messages(DIALOGUE, TOKENIZER).input_ids
    assert TOKENIZER.decode(ids) == (
        "<|user|>When was Ann Lee born?<|assistant|>FIND birth_date FOR Ann Lee"
        "<|database|>7/3/1984<|assistant|>Ann Lee was born on 7/3/1984.<|eod|>"
    )


@pytest.mark.parametrize("messages", [DIALOGUE, (DIALOGUE[0], DIALOGUE[3])])
def test_the_chat_template_agrees_on_ids_and_on_what_is_trained(
    messages: tuple[Message, ...], tmp_path: Path
) -> None:
    TOKENIZER.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ours = render_messages(messages, TOKENIZER)
    chat = [{"role": message.role, "content": message.content} for message in messages]
    theirs = tokenizer.apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    assert theirs["input_ids"] == ours.input_ids
    mask = [int(label != IGNORED) for label in ours.labels]
    assert theirs["assistant_masks"] == mask
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=True)
    assert prompt["input_ids"] == render_prompt(messages[:1], TOKENIZER)


def test_the_assistants_words_and_end_marks_are_trained() -> None:
    assert trained(DIALOGUE) == (
        "FIND birth_date FOR Ann Lee<|database|>Ann Lee was born on 7/3/1984.<|eod|>"
    )
    in_weight = (DIALOGUE[0], DIALOGUE[3])
    assert trained(in_weight) == "Ann Lee was born on 7/3/1984.<|eod|>"


def test_a_prompt_ends_where_the_assistant_writes() -> None:
    whole = render_messages(DIALOGUE, TOKENIZER).input_ids
    for turn in (1, 3):
        prompt = render_prompt(DIALOGUE[:turn], TOKENIZER)
        assert whole[: len(prompt)] == prompt
        assert prompt[-1] == TOKENIZER.assistant_id


def test_sampled_tokens_are_not_encoded_again() -> None:
    # 0xC3 alone is no UTF-8: as text it is U+FFFD, which would encode to other bytes.
    turn = Completion("\ufffd", [0xC3, TOKENIZER.database_id], "stop", "query")
    dialogue = (DIALOGUE[0], Message("assistant", "\ufffd"), DIALOGUE[2])
    ids = render_messages(dialogue, TOKENIZER, [turn]).input_ids
    start = ids.index(TOKENIZER.assistant_id)
    assert ids[start + 1 : start + 3] == [0xC3, TOKENIZER.database_id]


@given(st.text(), st.text(), st.sampled_from(["<|eod|>", "<|database|>", "<|assistant|>", ""]))
def test_data_never_becomes_a_mark(question: str, value: str, spelled: str) -> None:
    dialogue = (
        Message("user", question + spelled),
        Message("assistant", spelled + "FIND"),
        Message("database", value + spelled),
        Message("assistant", spelled + value),
    )
    ids = render_messages(dialogue, TOKENIZER).input_ids
    marks = [token for token in ids if token >= 256]
    assert marks == [256, 257, 258, 257, 259]


def test_an_episode_without_an_assistant_turn_is_refused(world: str) -> None:
    task = RecallTask(FactDatabase(world))
    episode = next(rollout(ExpertAgent(task), task, task.facts()))
    assert render(episode, TOKENIZER).labels[-1] == TOKENIZER.end_id
    from dataclasses import replace

    with pytest.raises(ITLError, match="no assistant turn"):
        render(replace(episode, messages=episode.messages[:1], completions=()), TOKENIZER)


def test_colours_show_what_is_trained() -> None:
    shown = coloured(render_messages(DIALOGUE, TOKENIZER), TOKENIZER)
    green = [piece.split("\033[0m")[0] for piece in shown.split("\033[32m")[1:]]
    assert green == [
        "FIND birth_date FOR Ann Lee<|database|>",
        "Ann Lee was born on 7/3/1984.<|eod|>",
    ]


@given(st.text(min_size=1, max_size=60), st.integers(1, 120), st.sampled_from(["bytes", "chat"]))
def test_only_the_left_part_of_the_question_is_cut(question: str, most: int, kind: str) -> None:
    tokenizer = TOKENIZER if kind == "bytes" else CHAT
    dialogue = (Message("user", question), *DIALOGUE[1:])
    whole = render_messages(dialogue, tokenizer)
    asked = tokenizer.encode(question)
    cut = render_messages(dialogue, tokenizer, max_tokens=most)
    n_lost = len(whole.input_ids) - len(cut.input_ids)
    assert n_lost == max(0, min(len(whole.input_ids) - most, len(asked) - 1))
    start = len(tokenizer.around(tuple(m.role for m in dialogue), False)[0].between)
    for before, after in zip(whole, cut, strict=True):
        assert after == [*before[:start], *before[start + n_lost :]]
    prompt = render_prompt(dialogue[:1], tokenizer, max_tokens=most)
    assert whole.input_ids[:start] == prompt[:start]
    assert len(prompt) <= most or asked[-1:] == prompt[start : start + 1]


def test_an_episode_that_cannot_be_cut_to_fit_is_refused(world: str) -> None:
    task = RecallTask(FactDatabase(world))
    episode = next(rollout(ExpertAgent(task), task, task.facts()))
    n = len(render(episode, TOKENIZER).input_ids)
    assert len(render(episode, TOKENIZER, n - 5).input_ids) == n - 5
    with pytest.raises(ConfigError, match=r"Episode 0 takes \d+ tokens .* the 20 of max_tokens"):
        render(episode, TOKENIZER, 20)
