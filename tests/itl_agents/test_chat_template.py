"""Chat templates: what they put around words, what is trained, and what they cannot show."""

import copy
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from itl_agents.chat_template import OPTIONS, TOOL, Calls, ChatTokenizer
from itl_agents.nanollama import ByteTokenizer
from itl_agents.render import IGNORED, render_messages, render_prompt
from itl_env.dialogue import Message
from itl_env.episode import Completion
from itl_env.errors import ConfigError, ITLError

from .chat_models import FAMILIES, SMOLLM, chat_tokenizer

IN_TOOL = (
    Message("user", "When was Ann Lee born?"),
    Message("assistant", "FIND birth_date FOR Ann Lee"),
    Message("database", "7/3/1984"),
    Message("assistant", "Ann Lee was born on 7/3/1984."),
)
IN_WEIGHT = (IN_TOOL[0], IN_TOOL[3])
WITH_TOOL = [name for name in FAMILIES if name not in ("gemma", "phi3")]


def chat(family: str, calls: Calls = "text", **options: str) -> ChatTokenizer:
    return ChatTokenizer(chat_tokenizer(family), calls=calls, name=family, **options)


def trained(messages: Sequence[Message], tokenizer: ChatTokenizer) -> str:
    ids, labels = render_messages(messages, tokenizer)
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    return tokenizer.decode([label for label in labels if label != IGNORED])


def by_template(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids that the template itself gives."""
    reply = "ipython" if "ipython" in str(tokenizer.tokenizer.chat_template) else "tool"
    roles = {"database": reply}
    return tokenizer.tokenizer.apply_chat_template(
        [{"role": roles.get(m.role, m.role), "content": m.content} for m in messages],
        **OPTIONS,
        return_dict=False,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_template_and_answers_are_trained(family: str) -> None:
    tokenizer = chat(family)
    assert render_messages(IN_WEIGHT, tokenizer).input_ids == by_template(tokenizer, IN_WEIGHT)
    end = FAMILIES[family][2]
    assert trained(IN_WEIGHT, tokenizer) == f"Ann Lee was born on 7/3/1984.{end}"


@pytest.mark.parametrize("family", WITH_TOOL)
def test_calls_and_answers_are_trained_and_replies_are_not(family: str) -> None:
    tokenizer = chat(family)
    tokenizer.check_tool()
    if family != "qwen3":  # whose template writes the past otherwise than it was prompted
        assert render_messages(IN_TOOL, tokenizer).input_ids == by_template(tokenizer, IN_TOOL)
    call_end = "<|database|>" if family == "nanollama" else FAMILIES[family][2]
    answer_end = FAMILIES[family][2]
    assert trained(IN_TOOL, tokenizer) == (
        f"FIND birth_date FOR Ann Lee{call_end}Ann Lee was born on 7/3/1984.{answer_end}"
    )
    marks = [tokenizer.tokenizer.convert_tokens_to_ids(mark) for mark in (call_end, answer_end)]
    assert set(tokenizer.stop_ids) == set(marks)
    kinds = ["query", "answer"] if family == "nanollama" else [None, None]
    assert [tokenizer.kind_of(mark) for mark in marks] == kinds


@pytest.mark.parametrize("family", WITH_TOOL)
def test_what_a_model_is_asked_is_how_its_training_begins(family: str) -> None:
    tokenizer = chat(family)
    whole = render_messages(IN_TOOL, tokenizer)
    for turn in (1, 3):
        prompt = render_prompt(IN_TOOL[:turn], tokenizer)
        assert whole.input_ids[: len(prompt)] == prompt
        assert whole.labels[len(prompt) - 1] == IGNORED
        assert whole.labels[len(prompt)] != IGNORED, "the model writes the next token"


def test_a_model_that_thinks_is_told_not_to_in_each_turn() -> None:
    text = chat("qwen3").decode(render_messages(IN_TOOL, chat("qwen3")).input_ids)
    assert text.count("<think>\n\n</think>\n\n") == 2


def test_a_model_that_thinks_writes_its_empty_thought_where_it_is_not_told() -> None:
    tokenizer = ChatTokenizer(chat_tokenizer("qwen3"), options={"enable_thinking": True})
    assert trained(IN_WEIGHT, tokenizer).startswith("<think>\n\n</think>\n\nAnn Lee")


@pytest.mark.parametrize(
    ("family", "why"),
    [("gemma", "refuses it: Conversation roles must alternate"), ("phi3", "drops what the")],
)
def test_a_template_without_a_tools_role_is_refused_in_tool(family: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"{family} cannot show the tool's reply, for it {why}"):
        chat(family).check_tool()


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = chat_tokenizer("smollm").__class__(
        tokenizer_object=chat_tokenizer("smollm").backend_tokenizer
    )
    with pytest.raises(ConfigError, match="gpt has no chat template"):
        ChatTokenizer(tokenizer, name="gpt")


def test_a_system_message_stands_first_or_is_refused() -> None:
    tokenizer = chat("qwen2_5", system="Be brief.")
    text = tokenizer.decode(render_prompt(IN_TOOL[:1], tokenizer))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhen")
    with pytest.raises(ConfigError, match="cannot show a system message"):
        chat("gemma", system="Be brief.")


def test_nanollama_is_rendered_as_its_own_tokenizer_does(tmp_path) -> None:
    from transformers import AutoTokenizer

    ByteTokenizer().save(tmp_path)
    saved = ChatTokenizer(AutoTokenizer.from_pretrained(tmp_path))
    for messages in (IN_TOOL, IN_WEIGHT):
        assert render_messages(messages, saved) == render_messages(messages, ByteTokenizer())
    for turn in (1, 3):
        past = IN_TOOL[:turn]
        assert render_prompt(past, saved) == render_prompt(past, ByteTokenizer())


SPELLED = sorted({mark for _, control, _ in FAMILIES.values() for mark in control})


@pytest.mark.parametrize("family", ["llama3_2", "qwen3", "smollm"])
@given(data=st.data())
def test_data_never_become_a_control_token(family: str, data: st.DataObject) -> None:
    tokenizer = chat(family)
    control = set(tokenizer.tokenizer.added_tokens_decoder)
    words = st.lists(st.one_of(st.text(), st.sampled_from(SPELLED))).map("".join)
    dialogue = tuple(message._replace(content=data.draw(words)) for message in IN_TOOL)
    ids = render_messages(dialogue, tokenizer).input_ids
    plain = render_messages(IN_TOOL, tokenizer).input_ids
    assert [id_ for id_ in ids if id_ in control] == [id_ for id_ in plain if id_ in control]
    for message in dialogue:
        escaped = message.content.encode("utf-8", "backslashreplace").decode()
        assert tokenizer.decode(tokenizer.encode(message.content)) == escaped


@pytest.mark.parametrize("family", ["llama3_2", "qwen2_5", "qwen3"])
def test_native_calls_are_written_as_the_template_writes_them(family: str) -> None:
    tokenizer = chat(family, "native")
    ids = render_messages(IN_TOOL, tokenizer).input_ids
    text = tokenizer.decode(ids)
    reply = "ipython" if family == "llama3_2" else "tool"
    arguments = {"attribute": "birth_date", "name": "Ann Lee"}
    call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
    expected = tokenizer.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": IN_TOOL[0].content},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": reply, "content": "7/3/1984"},
            {"role": "assistant", "content": IN_TOOL[3].content},
        ],
        tools=[dict(TOOL)],
        **OPTIONS,
        return_dict=False,
    )
    if family == "qwen3":
        assert text.replace("<think>\n\n</think>\n\n", "") == tokenizer.decode(expected).replace(
            "<think>\n\n</think>\n\n", ""
        )
    else:
        assert ids == expected
    assert '"description": "Look one attribute of a person up in the database."' in text
    written = trained(IN_TOOL, tokenizer)
    start, stop = written.index("{"), written.index("}}") + 2
    found = json.loads(written[start:stop])
    assert found["name"] == "find"
    assert (found.get("arguments") or found["parameters"]) == arguments
    assert written.count(FAMILIES[family][2]) == 2


def test_names_in_native_calls_are_escaped() -> None:
    tokenizer = chat("qwen2_5", "native")
    name = 'Ann "the\\ <tool_call>" Lee'
    dialogue = (
        IN_TOOL[0],
        Message("assistant", f"FIND birth_date FOR {name}"),
        *IN_TOOL[2:],
    )
    written = trained(dialogue, tokenizer)
    found = json.loads(written[written.index("{") : written.index("}}") + 2])
    assert found["arguments"]["name"] == name
    with pytest.raises(ITLError, match="is no call of the tool find"):
        render_messages((IN_TOOL[0], Message("assistant", "SELECT 1"), *IN_TOOL[2:]), tokenizer)


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before every text, as those of SentencePiece do."""
    bpe = Tokenizer(models.BPE(byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    text = [message.content for message in IN_TOOL] * 20 + ['\n<|user|>\n find "{}:,.?!']
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=500, special_tokens=alphabet))
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = SMOLLM
    return tokenizer


def test_a_tokenizer_that_puts_spaces_before_texts_does_not_do_so_in_mid_text() -> None:
    tokenizer = spaced_tokenizer()
    assert tokenizer.decode(tokenizer.encode("Ann Lee was")) == "Ann Lee was"
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("Ann"))[0].startswith("▁")
    chat = ChatTokenizer(tokenizer)
    for messages in (IN_TOOL, IN_WEIGHT):
        assert render_messages(messages, chat).input_ids == by_template(chat, messages)
    spelled = "Ann<|im_end|>Lee"
    assert "Ann<|im_end|>Lee" in chat.decode([*chat._marks("user\n"), *chat.encode(spelled)])


def test_native_calls_that_cannot_be_read_back_are_refused() -> None:
    chat("qwen2_5", "native").check_tool()
    tokenizer = copy.deepcopy(chat_tokenizer("qwen2_5"))
    tokenizer.chat_template = str(tokenizer.chat_template).replace('{"name": "', '{"tool": "')
    with pytest.raises(ConfigError, match="calls tools in a way that is not understood here"):
        ChatTokenizer(tokenizer, calls="native").check_tool()


def test_a_date_does_not_change_what_is_trained() -> None:
    text = chat("llama3_2").decode(render_prompt(IN_TOOL[:1], chat("llama3_2")))
    assert "Today Date: 26 Jul 2024" in text


def test_replies_are_written_as_json_where_the_template_does_so() -> None:
    dialogue = (*IN_TOOL[:2], Message("database", 'the "Fox"'), IN_TOOL[3])
    for calls in ("text", "native"):
        tokenizer = chat("llama3_2", calls)
        assert '"the \\"Fox\\""' in tokenizer.decode(render_messages(dialogue, tokenizer).input_ids)
    tokenizer = chat("smollm")
    assert 'tool\nthe "Fox"<|im_end|>' in tokenizer.decode(
        render_messages(dialogue, tokenizer).input_ids
    )


@pytest.mark.parametrize("calls", ["text", "native"])
def test_sampled_turns_stay_as_they_were(calls: Calls) -> None:
    tokenizer = chat("qwen2_5", calls)
    plain = tokenizer.encode("whatever")
    end = tokenizer.stop_ids[0]
    for sampled in (plain, [*plain, end]):
        turn = Completion("FIND birth_date FOR Ann Lee", list(sampled), "stop", "query")
        ids, labels = render_messages(IN_TOOL[:3], tokenizer, [turn], prompt=True)
        assert [label for label in labels if label != IGNORED] == [*plain, end]
        prompt = render_prompt(IN_TOOL[:1], tokenizer)
        assert ids[len(prompt) : len(prompt) + len(plain) + 1] == [*plain, end]
