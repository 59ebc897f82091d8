"""Pretrained models as agents: small random ones that play, and what is refused."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from itl_agents import Conversation, continuation, rollout
from itl_agents.continuation import Memory, continue_prompts
from itl_agents.huggingface import HFAgent
from itl_agents.nanollama import (
    ByteTokenizer,
    NanoLlama,
    NanoLlamaAgent,
    NanoLlamaConfig,
    save_model,
)
from itl_agents.native_calls import read_call
from itl_agents.pretrained import load_pretrained
from itl_agents.render import render, render_prompt
from itl_env import FactDatabase, RecallTask
from itl_env.dialogue import Message
from itl_env.errors import ConfigError, ITLError

from .chat_models import chat_tokenizer

QUESTIONS = ("When was Ann Lee born?", "Where does Bernice Cunningham-Fortescue live?", "Who?")


def talks(*questions: str) -> list[Conversation]:
    return [
        Conversation((Message("user", question),), (), seed)
        for seed, question in enumerate(questions)
    ]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    tokenizer = chat_tokenizer("smollm")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.4, tie_word_embeddings=False,
    )  # fmt: skip
    # In double precision no rounding decides which token is likeliest.
    return LlamaForCausalLM(config).double().eval()


def agent(llama: LlamaForCausalLM, **settings: object) -> HFAgent:
    return HFAgent(llama, chat_tokenizer("smollm"), **{"max_new_tokens": 12, **settings})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_turns_do_not_depend_on_what_is_written_beside_them(
    llama: LlamaForCausalLM, temperature: float
) -> None:
    asked = talks(*QUESTIONS)
    player = agent(llama, temperature=temperature)
    together = player.respond(asked)
    assert len({tuple(turn.token_ids or ()) for turn in together}) == 3
    assert [player.respond([talk])[0] for talk in asked] == together
    assert agent(llama, temperature=temperature, batch_size=2).respond(asked) == together


def test_greedy_turns_are_the_likeliest_tokens(llama: LlamaForCausalLM) -> None:
    (turn,) = agent(llama).respond(talks(QUESTIONS[1]))
    player = agent(llama)
    ids = [
        *player.chat._marks("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
                            "trained by Hugging Face<|im_end|>\n<|im_start|>user\n"),
        *player.chat.encode(QUESTIONS[1]),
        *player.chat._marks("<|im_end|>\n<|im_start|>assistant\n"),
    ]  # fmt: skip
    for token in turn.token_ids or ():
        with torch.no_grad():
            assert int(llama(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_a_turn_ends_at_a_mark_or_is_cut(llama: LlamaForCausalLM) -> None:
    player = agent(llama)
    (cut,) = player.respond(talks(QUESTIONS[0]))
    assert cut.finish_reason == "length"
    assert len(cut.token_ids or ()) == 12
    player.stop_ids = (*player.stop_ids, (cut.token_ids or ())[3])
    (ended,) = player.respond(talks(QUESTIONS[0]))
    first = (cut.token_ids or ()).index((cut.token_ids or ())[3])
    assert ended.finish_reason == "stop"
    assert ended.text == player.chat.decode((cut.token_ids or [])[:first])


def test_a_conversation_too_long_for_the_model_is_an_error(llama: LlamaForCausalLM) -> None:
    long, short = agent(llama).respond(talks("When? " * 300, QUESTIONS[0]))
    assert long.finish_reason == "error"
    assert short.finish_reason != "error"
    (alone,) = agent(llama).respond(talks(QUESTIONS[0]))
    opening = len(render_prompt(talks("")[0].messages, agent(llama).chat))
    nearly = "x" * 400
    while len(agent(llama).chat.encode(nearly)) + opening > 250:
        nearly = nearly[:-1]
    near, other = agent(llama).respond(talks(nearly, QUESTIONS[0]))
    assert len(near.token_ids or ()) <= 6
    assert other == alone, "a long one beside it does not cut it short"


def test_a_long_question_is_cut_so_that_its_answer_fits(llama: LlamaForCausalLM) -> None:
    question = "never mind this " * 40 + QUESTIONS[0]
    talk, short, *_ = talks(question, QUESTIONS[0])
    assert agent(llama).respond([talk])[0].finish_reason == "error"
    limited = agent(llama, max_tokens=90)
    prompt = render_prompt(talk.messages, limited.chat, max_tokens=90 - 12)
    assert len(prompt) == 78
    (expected,) = continue_prompts(llama, [prompt], stop_ids=limited.stop_ids, max_new_tokens=12)
    assert limited.respond([talk])[0].token_ids == expected
    assert limited.respond([short]) == agent(llama).respond([short]), "which is not cut"
    assert agent(llama, max_tokens=40).respond([short])[0].finish_reason == "error"
    with pytest.raises(ConfigError, match="leaves no room for a question"):
        agent(llama, max_tokens=12)


def test_a_mark_that_is_not_the_templates_ends_a_turn_and_is_not_kept(
    llama: LlamaForCausalLM,
) -> None:
    player = agent(llama)
    (cut,) = player.respond(talks(QUESTIONS[0]))
    ids = cut.token_ids or []
    player.stop_ids = (*player.stop_ids, ids[3])
    (turn,) = player.respond(talks(QUESTIONS[0]))
    first = ids.index(ids[3])
    assert turn.token_ids == ids[:first]
    assert turn.finish_reason == "stop"


def test_penalties_that_a_model_ships_with_are_not_applied(llama: LlamaForCausalLM) -> None:
    expected = agent(llama).respond(talks(*QUESTIONS))
    llama.generation_config.repetition_penalty = 5.0
    llama.generation_config.do_sample = True
    try:
        assert agent(llama).respond(talks(*QUESTIONS)) == expected
        assert llama.generation_config.repetition_penalty == 5.0
    finally:
        llama.generation_config.repetition_penalty = 1.0
        llama.generation_config.do_sample = False


def test_batches_are_halved_when_memory_runs_out_and_nothing_is_lost(
    llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = talks(*(f"Where does number {n} live?" for n in range(9)))
    expected = agent(llama).respond(asked)
    player = agent(llama, batch_size=8)
    sizes = []
    write = player._write

    def small_memory(prompts: list[list[int]], *rest: object) -> list[list[int]]:
        sizes.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return write(prompts, *rest)

    monkeypatch.setattr(player, "_write", small_memory)
    assert player.respond(asked) == expected
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert player.batch_size == 2

    monkeypatch.setattr(player, "_write", lambda *_: small_memory([[]] * 4))
    with pytest.raises(ITLError, match="out of memory with a single conversation"):
        player.respond(asked)


def test_a_random_model_plays_to_the_end_and_its_tokens_are_kept(
    llama: LlamaForCausalLM, world: str
) -> None:
    task = RecallTask(FactDatabase(world), keys=slice(0, 3))
    player = agent(llama)
    for episode in rollout(player, task, task.facts(), lanes=4):
        labels = [label for label in render(episode, player.chat).labels if label >= 0]
        end = player.chat.stop_ids[0]
        written = []
        for turn in episode.completions:
            ids = list(turn.token_ids or ())
            written += ids if ids[-1] == end else [*ids, end]
        assert labels == written


def test_a_nanollamas_folder_plays_as_the_nanollama(world: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    nano = NanoLlama(NanoLlamaConfig(d_model=32, n_layers=1, n_heads=2, max_length=200), seed=3)
    save_model(nano, tmp_path)
    ByteTokenizer().save(tmp_path)
    task = RecallTask(FactDatabase(world), keys=slice(0, 4))
    player = HFAgent.load(tmp_path, max_new_tokens=20)
    assert set(player.stop_ids) == {258, 259}
    ours = list(rollout(NanoLlamaAgent(nano, max_new_tokens=20), task, task.facts()))
    theirs = list(rollout(player, task, task.facts()))
    assert [e.messages for e in theirs] == [e.messages for e in ours]
    assert [e.completions for e in theirs] == [e.completions for e in ours]


def test_an_adapter_is_merged_into_its_base(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tmp_path / "base"
    llama.save_pretrained(base)
    chat_tokenizer("smollm").save_pretrained(base)
    model, _, name = load_pretrained(base, dtype="float64")
    assert name == str(base)
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = adapted(ids).logits
        loaded = load_pretrained(tmp_path / "adapter", dtype="float64")
        assert torch.allclose(loaded.model(ids).logits, expected)
        assert not torch.allclose(llama(ids).logits, expected)
        # A base that is there is not read again, and stays as it is.
        there = load_pretrained(base, dtype="float64")
        (base / "model.safetensors").unlink()
        quick = load_pretrained(tmp_path / "adapter", dtype="float64", base=there)
        assert torch.allclose(quick.model(ids).logits, expected)
        assert torch.equal(there.model(ids).logits, llama(ids).logits)
        with pytest.raises(ITLError, match="Cannot load the model"):
            load_pretrained(tmp_path / "adapter", base=there._replace(source="another"))
        # In few bits the sum would be rounded, so both stay apart.
        short = there._replace(model=copy.deepcopy(there.model).bfloat16())
        apart = load_pretrained(tmp_path / "adapter", dtype="bfloat16", base=short)
        weight = short.model.model.layers[0].self_attn.q_proj.weight
        assert torch.equal(apart.model.model.layers[0].self_attn.q_proj.base_layer.weight, weight)
        assert not torch.equal(apart.model(ids).logits, short.model(ids).logits)
    assert loaded.tokenizer.chat_template == chat_tokenizer("smollm").chat_template


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("nonsense", "no file or folder here, no OWNER/NAME of the hub, and none of smollm-135m"),
        ("no/such/folder", "There is no model 'no/such/folder'"),
        ("missing.gguf", "There is no model 'missing.gguf'"),
        ("empty", "holds no model: there is no config.json"),
        ("file.bin", "is no model; name a folder"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").touch()
    with pytest.raises(ConfigError, match=why):
        load_pretrained(source)


def test_a_damaged_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ITLError, match=r"Cannot load the model .*\.$"):
        load_pretrained(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"no such thing")
    with pytest.raises(ITLError, match=r"Cannot load the model .*broken.gguf: "):
        load_pretrained(tmp_path / "broken.gguf")


def hub_error(kind: str) -> Exception:
    """An error of the hub, without the response that comes with it."""
    from huggingface_hub import errors

    cls: type[Exception] = getattr(errors, kind)
    return cls.__new__(cls)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("GatedRepoError", "its licence must be accepted first, .* then run `hf auth login`"),
        ("RepositoryNotFoundError", "the hub has none of that name, or it is private"),
        ("LocalEntryNotFoundError", "it is not on this machine, and the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_told(monkeypatch: pytest.MonkeyPatch, kind: str, why: str) -> None:
    from itl_agents import pretrained

    def refuse(*_: object, **__: object) -> None:
        raise OSError("a long story") from hub_error(kind)

    monkeypatch.setattr(pretrained.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ITLError, match=f"Cannot load the model meta-llama/.*: {why}"):
        load_pretrained("llama-1b")


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('<tool_call>{"name": "find", "arguments": {"attribute": "a", "name": "N"}}</tool_call>',
         ("a", "N")),
        ('{"name": "find", "parameters": {"attribute": "a", "name": "N {x}"}}', ("a", "N {x}")),
        ('[TOOL_CALLS] [{"name": "find", "arguments": {"attribute": "a", "name": "N"}}]',
         ("a", "N")),
        ("<tool_call>\n<function=find>\n<parameter=attribute>\na\n</parameter>\n"
         "<parameter=name>\nAnn Lee\n</parameter>\n</function>\n</tool_call>", ("a", "Ann Lee")),
        ('{"name": "other", "arguments": {"attribute": "a", "name": "N"}}', None),
        ('{"name": "find", "arguments": {"attribute": "a"}}', None),
        ('{"name": "find", "arguments": {"attribute": "a", "name": 3}}', None),
        ('{"name": "find", "arguments": "a"}', None),
        ("Ann Lee was born on 7/3/1984.", None),
        ("{" * 2000, None),
    ],
)  # fmt: skip
def test_native_calls_are_read(text: str, call: tuple[str, str] | None) -> None:
    assert read_call(text) == call


def play_two_turns(player: HFAgent, seed: int) -> list[list[int] | None]:
    """What it writes in two turns, of which the second follows a reply that it did not expect."""
    asked = talks(*(f"Where does {'Ann ' * n}Lee live?" for n in range(1, 10)))
    asked = [talk._replace(seed=seed + talk.seed) for talk in asked]
    first = player.respond(asked)
    again = [
        Conversation(
            (*talk.messages, Message("assistant", turn.text), Message("database", f"{seed} {i}")),
            (turn,),
            talk.seed + 100,
        )
        for i, (talk, turn) in enumerate(zip(asked, first, strict=True))
        if i != 4  # not all dialogues go on, nor in the same order
    ]
    return [turn.token_ids for turn in (*first, *player.respond(again[::-1]))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [64, 4])
def test_what_is_kept_of_a_turn_changes_nothing(
    llama: LlamaForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    batch_size: int,
) -> None:
    settings = {"temperature": temperature, "batch_size": batch_size, "max_new_tokens": 10}
    keeping, forgetting = agent(llama, **settings), agent(llama, keep_turns=False, **settings)
    for player in (keeping, forgetting):  # so that most turns end, early and late
        player.stop_ids = tuple({*player.stop_ids, *range(0, 602, 5)})
        if player._memory is not None:
            player._memory.stop_ids = frozenset(player.stop_ids)
    reads: list[int] = []
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)
    def counted(self: LlamaForCausalLM, input_ids: torch.Tensor, **settings: object) -> object:
        reads.append(input_ids.numel())
        return forward(self, input_ids, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    kept = play_two_turns(keeping, 7)
    n_kept, reads[:] = sum(reads), []
    assert play_two_turns(forgetting, 7) == kept
    assert n_kept < 0.9 * sum(reads), "less is read"
    monkeypatch.setattr(continuation, "keeps_plain_cache", lambda model: False)
    plain = play_two_turns(agent(llama, **settings), 7) if not temperature else None
    if plain is not None:
        cut = [ids[: _until(ids, keeping.stop_ids)] for ids in plain[:9] if ids]
        assert cut == kept[:9], "the generation of transformers writes the same"


def test_memory_that_runs_out_in_a_second_turn_changes_nothing(
    llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def player() -> HFAgent:
        made = agent(llama, max_new_tokens=10, batch_size=8)
        made.stop_ids = tuple({*made.stop_ids, *range(0, 602, 5)})
        made._memory.stop_ids = frozenset(made.stop_ids)
        return made

    expected = play_two_turns(player(), 7)
    forward = LlamaForCausalLM.forward
    failed: list[int] = []

    @functools.wraps(forward)
    def small(self: LlamaForCausalLM, input_ids: torch.Tensor, **settings: object) -> object:
        seen = settings.get("attention_mask")
        if seen is not None and len(input_ids) > 3 and seen.shape[1] > 70:  # in a second turn
            failed.append(len(input_ids))
            raise RuntimeError("MPS backend out of memory")
        return forward(self, input_ids, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "forward", small)
    short = player()
    assert play_two_turns(short, 7) == expected
    assert failed
    assert short.batch_size <= 3


def _until(ids: list[int], stops: tuple[int, ...]) -> int:
    """How many ids come before a stop that is not the template's."""
    return next((i for i, token in enumerate(ids) if token in stops), len(ids))


def test_prompts_that_share_nothing_are_continued_as_alone(llama: LlamaForCausalLM) -> None:
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13, 14, 15, 16, 17], [30]]
    settings = {"stop_ids": (601,), "max_new_tokens": 9}
    together = continue_prompts(llama, prompts, **settings)
    assert [continue_prompts(llama, [prompt], **settings)[0] for prompt in prompts] == together
    for prompt, written in zip(prompts, together, strict=True):
        ids = list(prompt)
        for token in written:
            with torch.no_grad():
                assert int(llama(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_nothing_is_kept_once_the_weights_have_changed(llama: LlamaForCausalLM) -> None:
    memory = Memory((3,))
    continue_prompts(llama, [[1, 2]], stop_ids=range(602), max_new_tokens=2, memory=memory)
    memory.take(llama, [[]])  # which notes the weights
    (written,) = continue_prompts(
        llama, [[1, 2]], stop_ids=range(602), max_new_tokens=2, memory=memory
    )
    assert len(written) == 1
    memory.stop_ids = frozenset(range(602))
    assert memory.take(llama, [[1, 2, *written, 8]]) != [None]
    continue_prompts(llama, [[1, 2]], stop_ids=range(602), max_new_tokens=2, memory=memory)
    with torch.no_grad():
        llama.lm_head.weight += 1e-3
    assert memory.take(llama, [[1, 2, *written, 8]]) == [None]
    with torch.no_grad():
        llama.lm_head.weight -= 1e-3


def test_a_sliding_window_is_left_to_transformers() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = chat_tokenizer("smollm")
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=16, initializer_range=0.4,
        max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    mistral = MistralForCausalLM(config).double().eval()
    assert not continuation.keeps_plain_cache(mistral)
    player = HFAgent(mistral, tokenizer, max_new_tokens=8)
    asked = talks(*QUESTIONS)
    assert [player.respond([talk])[0] for talk in asked] == player.respond(asked)
