"""NanoLlama against transformers' Llama, an independent implementation of the same equations."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from itl_agents.nanollama import (
    ByteTokenizer,
    NanoLlama,
    NanoLlamaAgent,
    NanoLlamaConfig,
    TurnMemory,
    generate,
    load_model,
    save_model,
)
from itl_agents.nanollama.cache import KVCache
from itl_agents.nanollama.generate import ROWS
from itl_env.errors import ConfigError, ITLError

CONFIGS = [
    NanoLlamaConfig(d_model=32, n_layers=2, n_heads=2),
    NanoLlamaConfig(d_model=48, n_layers=3, n_heads=4, n_kv_heads=2, d_hidden=40, rope_theta=100.0),
    NanoLlamaConfig(
        d_model=32, n_heads=4, n_kv_heads=2, d_hidden=64, tied_embeddings=True, qkv_bias=True
    ),
]


def prompts(seed: int, lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 260, (n,), generator=generator).tolist() for n in lengths]


def saved(config: NanoLlamaConfig, folder: Path) -> tuple[NanoLlama, LlamaForCausalLM]:
    model = NanoLlama(config, seed=3)
    # Gains of 1 would hide a norm that is applied in the wrong place.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)))
    save_model(model, folder)
    return model, AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_equal_those_of_transformers(config: NanoLlamaConfig, tmp_path: Path) -> None:
    model, llama = saved(config, tmp_path)
    ids = torch.tensor(prompts(0, [97] * 5))
    with torch.inference_mode():
        ours, theirs = model(ids), llama(ids).logits
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_blocks_can_begin_by_adding_nothing() -> None:
    ids = torch.tensor(prompts(0, [20]))
    silent = NanoLlama(CONFIGS[0], seed=1, zero_residual=True)
    with torch.inference_mode():
        logits = silent(ids)
        assert torch.allclose(logits[:, 5:6], silent(ids[:, 5:6]))
        assert not torch.allclose(logits, NanoLlama(CONFIGS[0], seed=1)(ids))
    assert torch.equal(silent.head, NanoLlama(CONFIGS[0], seed=1).head), "the rest is drawn alike"


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_are_counted(config: NanoLlamaConfig, tmp_path: Path) -> None:
    model, llama = saved(config, tmp_path)
    assert config.n_parameters == sum(p.numel() for p in model.parameters())
    # A Llama with biases has one on attention's output too; ours are saved as zeros.
    extra = config.n_layers * config.d_model if config.qkv_bias else 0
    assert config.n_parameters == llama.num_parameters() - extra


def test_the_published_shape_has_the_published_size() -> None:
    for d in (16, 64, 128):
        assert NanoLlamaConfig(d_model=d, n_heads=2).n_parameters == 32 * d**2 + 525 * d


@pytest.mark.parametrize("config", CONFIGS)
def test_selected_positions_equal_all_positions(config: NanoLlamaConfig) -> None:
    model = NanoLlama(config)
    ids = torch.tensor(prompts(1, [33] * 4))
    positions = torch.tensor([0, 32, 40, 131])
    with torch.inference_mode():
        assert torch.allclose(
            model(ids, positions=positions), model(ids).flatten(0, 1)[positions], atol=1e-5
        )


@pytest.mark.parametrize("config", CONFIGS)
def test_cached_logits_equal_uncached(config: NanoLlamaConfig) -> None:
    model = NanoLlama(config)
    rows = prompts(2, [5, 17, 11])
    more = torch.tensor(prompts(3, [6] * 3))
    width = max(map(len, rows))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    with torch.inference_mode():
        cache = KVCache(config.kv_shapes, 3, 64, model.embedding)
        model(padded, cache)
        cache.lengths += lengths
        first = model(more[:, :4], cache)
        cache.lengths += 4
        second = model(more[:, 4:], cache)
        for row, start in enumerate(rows):
            whole = model(torch.tensor([[*start, *more[row].tolist()]]))[0, len(start) :]
            assert torch.allclose(torch.cat((first[row], second[row])), whole, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batched_generation_equals_one_by_one(temperature: float) -> None:
    model = NanoLlama(CONFIGS[1], seed=1)
    rows = prompts(4, [3, 40, 12, 12, 25, 1, 9, 30])
    arguments = {"stop_ids": (7, 60, 255, 130), "max_new_tokens": 40, "temperature": temperature}
    seeds = list(range(len(rows)))
    together = generate(model, rows, seeds=seeds, **arguments)
    alone = [
        generate(model, [row], seeds=[seed], **arguments)[0]
        for row, seed in zip(rows, seeds, strict=True)
    ]
    assert together == alone
    lengths = {len(new.token_ids) for new in together}
    assert len(lengths) > 1, "rows should leave at different times for this to test anything"


def test_more_prompts_than_fit_side_by_side_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = NanoLlama(CONFIGS[1], seed=1)
    first = next_turns(model, TurnMemory(after=(7, 60, 130)))
    whole = [generate(model, first, stop_ids=(7,), max_new_tokens=30)]
    monkeypatch.setitem(ROWS, "cpu", 2)
    memory = TurnMemory(after=(7, 60, 130))
    assert next_turns(model, memory) == first, "turns of all parts, and their memory"
    whole.append(generate(model, first, stop_ids=(7,), max_new_tokens=30, memory=memory))
    assert whole[0] == whole[1]
    arguments: dict[str, Any] = {"stop_ids": (7,), "max_new_tokens": 9, "temperature": 1.0}
    drawn = generate(model, first, seeds=range(len(first)), **arguments)
    monkeypatch.setitem(ROWS, "cpu", 256)
    assert drawn == generate(model, first, seeds=range(len(first)), **arguments)


def next_turns(model: NanoLlama, after: TurnMemory) -> list[list[int]]:
    """Prompts of second turns: rows that ended with an id of `after`, and what came back."""
    rows = prompts(4, [3, 40, 12, 12, 25, 1, 9, 30])
    first = generate(model, rows, stop_ids=(7, 60, 130), max_new_tokens=40, memory=after)
    going_on = [place for place, new in enumerate(first) if new.token_ids[-1] in after.after]
    assert len(going_on) > 2, "dialogues should go on for this to test anything"
    replies = prompts(5, range(2, 2 + len(going_on)))
    return [
        [*rows[place], *first[place].token_ids, *reply]
        for place, reply in zip(going_on, replies, strict=True)
    ]


def test_a_next_turn_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    model = NanoLlama(CONFIGS[1], seed=1)
    memory = TurnMemory(after=(7, 60, 130))
    second = [*next_turns(model, memory), *prompts(6, [20])]  # the last one is of a new dialogue
    read: list[int] = []
    forward = NanoLlama.forward

    def spy(self: NanoLlama, ids: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        read.append(ids.shape[1])
        return forward(self, ids, *rest, **more)

    monkeypatch.setattr(NanoLlama, "forward", spy)
    arguments = {"stop_ids": (7,), "max_new_tokens": 30}
    with_memory = generate(model, second, memory=memory, **arguments)
    assert read[0] == 20, "the new dialogue is the longest thing to read"
    read.clear()
    assert with_memory == generate(model, second, **arguments)
    assert read[0] == max(map(len, second)) > 20


def test_dialogues_that_do_not_go_on_are_forgotten() -> None:
    """Rows of one block may be much longer than the only one that comes back."""
    model = NanoLlama(CONFIGS[1], seed=1)
    memory = TurnMemory(after=(7, 60, 130))
    shortest = min(next_turns(model, memory), key=len)
    arguments: dict[str, Any] = {"stop_ids": (7,), "max_new_tokens": 30}
    assert generate(model, [shortest], memory=memory, **arguments) == generate(
        model, [shortest], **arguments
    )


def add(model: NanoLlama) -> None:
    with torch.no_grad():
        model.embedding += 0.3


def replace(model: NanoLlama) -> None:
    model.embedding.data = model.embedding.data + 0.3


def train(model: NanoLlama) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.tensor(prompts(7, [20]))).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("change", [add, replace, train])
def test_other_weights_remember_nothing(change: Callable[[NanoLlama], None]) -> None:
    model = NanoLlama(CONFIGS[1], seed=1)
    memory = TurnMemory(after=(7, 60, 130))
    second = next_turns(model, memory)
    change(model)
    arguments = {"stop_ids": (7,), "max_new_tokens": 30}
    assert generate(model, second, memory=memory, **arguments) == generate(
        model, second, **arguments
    )


def test_greedy_generation_equals_that_of_transformers(tmp_path: Path) -> None:
    model, llama = saved(CONFIGS[0], tmp_path)
    for row in prompts(5, [4, 20]):
        theirs = llama.generate(
            torch.tensor([row]), max_new_tokens=30, do_sample=False, eos_token_id=[7, 130]
        )
        ours = generate(model, [row], stop_ids=(7, 130), max_new_tokens=30)[0]
        assert ours.token_ids == theirs[0, len(row) :].tolist()


def test_sampling_follows_the_softmax() -> None:
    model = NanoLlama(CONFIGS[0])
    row = prompts(6, [8])[0]
    n = 4000
    drawn = generate(
        model, [row] * n, stop_ids=(), max_new_tokens=1, temperature=0.7, seeds=list(range(n))
    )
    counts = torch.zeros(260)
    for new in drawn:
        counts[new.token_ids[0]] += 1
    with torch.inference_mode():
        expected = torch.softmax(model(torch.tensor([row]))[0, -1] / 0.7, dim=-1)
    assert (counts / n - expected).abs().sum() / 2 < 0.1  # total variation; about 0.06 by chance


@pytest.mark.parametrize("config", CONFIGS[1:])
def test_a_saved_model_loads_as_it_was(config: NanoLlamaConfig, tmp_path: Path) -> None:
    model, _ = saved(config, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ITLError, match="Cannot load a model"):
        load_model(tmp_path / "nowhere")
    save_model(NanoLlama(CONFIGS[0]), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(ITLError, match="Cannot load a model"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    description = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(description | {"attention_bias": True}))
    with pytest.raises(ITLError, match="missing or extra"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(description | {"num_hidden_layers": 3}))
    with pytest.raises(ITLError, match="missing or extra"):
        load_model(tmp_path)
    scaled = {"rope_type": "llama3", "rope_theta": 1e4}
    for changes, said in (
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"rope_parameters": scaled}, "rope_type is 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"factor": 2}}, "rope_scaling"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(description | changes))
        with pytest.raises(ITLError, match=said):
            load_model(tmp_path)
    save_model(NanoLlama(CONFIGS[2]), tmp_path / "biased")
    weights = load_file(tmp_path / "biased" / "model.safetensors")
    weights["model.layers.0.self_attn.o_proj.bias"] += 1.0
    save_file(weights, tmp_path / "biased" / "model.safetensors")
    with pytest.raises(ITLError, match=r"o_proj\.bias is not zero"):
        load_model(tmp_path / "biased")
    older = description | {"rope_parameters": None, "rope_theta": 500.0}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert load_model(tmp_path).config.rope_theta == 500.0


def test_a_model_of_another_vocabulary_is_no_agent() -> None:
    model = NanoLlama(NanoLlamaConfig(d_model=16, n_heads=2, vocabulary_size=300))
    with pytest.raises(ConfigError, match="300 tokens, but its tokenizer knows 260"):
        NanoLlamaAgent(model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"d_model": 65}, "does not divide"),
        ({"d_model": 20, "n_heads": 4}, "even head width"),
        ({"n_kv_heads": 3}, "n_kv_heads"),
        ({"n_layers": 0}, "must be positive"),
    ],
)
def test_a_contradictory_shape_is_refused(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        NanoLlamaConfig(**arguments)


def test_seeds_side_by_side_draw_different_noise() -> None:
    model = NanoLlama(CONFIGS[0])
    with torch.no_grad():
        model.head.zero_()  # what is drawn is the noise alone
    drawn = generate(
        model,
        prompts(6, [8] * 50),
        stop_ids=(),
        max_new_tokens=3,
        temperature=1.0,
        seeds=range(50),
    )
    later = [new.token_ids[1] for new in drawn[:-1]]
    earlier = [new.token_ids[0] for new in drawn[1:]]
    assert sum(a == b for a, b in zip(later, earlier, strict=True)) < 5


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    model = NanoLlama(NanoLlamaConfig(d_model=16, n_heads=2, max_length=32))
    with pytest.raises(ValueError, match="1 to 31 tokens"):
        generate(model, prompts(0, [32]), stop_ids=(), max_new_tokens=10)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generate(model, prompts(0, [3]), stop_ids=(), max_new_tokens=0)


def test_a_row_ends_where_the_model_ends_without_touching_the_others() -> None:
    model = NanoLlama(NanoLlamaConfig(d_model=16, n_heads=2, max_length=32))
    rows = prompts(1, [31, 30, 12, 3])
    together = generate(model, rows, stop_ids=(), max_new_tokens=10)
    assert [len(new.token_ids) for new in together] == [1, 2, 10, 10]
    assert together == [generate(model, [row], stop_ids=(), max_new_tokens=10)[0] for row in rows]


@given(st.text())
def test_bytes_come_back_as_text(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert max(ids, default=0) < 256
    assert tokenizer.decode(ids) == text


def test_the_hugging_face_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    save_model(NanoLlama(CONFIGS[0]), tmp_path)
    tokenizer.save(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    for text in (
        "Ann O'Hara lives at São Paulo.",
        "Zoë \U0001f600\tx\n y",
        "".join(map(chr, range(300))),
    ):
        assert other(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
        assert other.decode(tokenizer.encode(text)) == text
    assert other.convert_tokens_to_ids(["<|user|>", "<|eod|>"]) == [256, 259]
    assert len(other) == 260
