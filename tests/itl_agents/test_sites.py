"""Sites: what is read is what the MLP is given, and what is replaced is what the block adds."""

from functools import partial

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Glm4Config,
    GPT2Config,
    GPT2LMHeadModel,
    Olmo2Config,
    StableLmConfig,
)

from itl_agents.continuation import continue_prompts
from itl_agents.sites import Below, fingerprint, n_layers, recorded, replaced, site_of
from itl_env.errors import ConfigError

from .decoders import D_MODEL, FAMILIES, decoder

SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip
IDS = torch.tensor([[1, 5, 9, 13, 17], [1, 6, 10, 14, 18]])


@pytest.fixture(params=FAMILIES)
def model(request, tmp_path):
    return decoder(request.param, str(tmp_path / "model"))


@torch.no_grad()
def test_what_is_read_and_written_is_what_the_block_computes(model):
    site = site_of(model, 1)
    block = model.get_submodule("model.layers.1")
    residual = []
    gain = block.get_submodule(site.reads.rpartition(".")[2]).weight
    mlp_inputs = []
    hooks = [
        block.mlp.register_forward_pre_hook(lambda _, given: mlp_inputs.append(given[0])),
        block.register_forward_hook(lambda *given: residual.append(given[2])),
        block.get_submodule(site.reads.rpartition(".")[2]).register_forward_pre_hook(
            lambda _, given: residual.append(given[0])
        ),
    ]
    with recorded(model, [site]) as seen:
        model(IDS)
    for hook in hooks:
        hook.remove()
    before, after = residual
    after = after[0] if isinstance(after, tuple) else after
    # The block's output is what the MLP found, and what it added.
    assert torch.allclose(before + seen[1].wrote, after, atol=1e-5)
    # The MLP is given what is read, times the gain of its norm.
    factor = 1 + gain if "Gemma" in type(model).__name__ else gain
    assert torch.allclose(seen[1].read * factor, mlp_inputs[0], atol=1e-5)
    assert seen[1].read.square().mean(-1) == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_a_block_replaced_by_itself_changes_no_logit(model):
    expected = model(IDS).logits
    for layer in range(n_layers(model)):
        with replaced(model, site_of(model, layer), lambda read, wrote: wrote, skip_ids=[1]):
            assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, expected)


@torch.no_grad()
def test_passes_are_repeated_from_a_block_upwards(model):
    batches, blocks, ran = (IDS, IDS[:1, :3]), model.model.layers, []
    for i, block in enumerate(blocks):
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
    for layer in range(n_layers(model)):
        site, below = site_of(model, layer), Below(model, layer)
        for change in range(3):
            instead = partial(lambda change, read, wrote: wrote + change * read, change)
            with replaced(model, site, instead, skip_ids=[1]):
                expected = [model(ids, use_cache=False).logits for ids in batches]
            ran.clear()
            with below.passes(), replaced(model, site, instead, skip_ids=[1]):
                found = [model(ids, use_cache=False).logits for ids in batches]
            assert all(map(torch.equal, found, expected))
            first = layer if change else 0
            assert ran == 2 * list(range(first, len(blocks)))
        assert not left_behind(model)


def left_behind(model) -> list[torch.nn.Module]:
    """Blocks that still have a hook for what comes into them, or a forward pass of their own."""
    return [
        block
        for block in model.model.layers
        if block._forward_pre_hooks or "forward" in vars(block)
    ]


@torch.no_grad()
def test_a_pass_that_is_no_repetition_is_refused_and_an_interruption_leaves_nothing(model):
    below = Below(model, 1)
    expected = model(IDS, use_cache=False).logits

    def interrupted() -> None:
        with below.passes():
            model(IDS[:, :3], use_cache=False)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not left_behind(model)
    with below.passes():  # the series begins anew
        model(IDS, use_cache=False)
    for other in (IDS + 1, IDS[:1], IDS[:, :3]):
        with pytest.raises(ValueError, match="Pass 0 is no repetition"), below.passes():
            model(other, use_cache=False)
        assert not left_behind(model)
    with below.passes():
        assert torch.equal(model(IDS, use_cache=False).logits, expected)
        with pytest.raises(ValueError, match="Pass 1 is no repetition"):
            model(IDS, use_cache=False)
    with pytest.raises(ValueError, match="Pass 0 is no repetition"), below.passes():
        model.bfloat16()(IDS, use_cache=False)


@torch.no_grad()
def test_a_replaced_block_adds_what_it_is_told_but_where_a_text_begins(model):
    site = site_of(model, 1)
    given = torch.arange(float(D_MODEL))
    with recorded(model, [site]) as before:
        model(IDS)
        own = before[1].wrote
    with (
        replaced(model, site, lambda read, wrote: given.expand_as(wrote), skip_ids=[1]),
        recorded(model, [site]) as seen,
    ):
        model(IDS)
    assert torch.equal(seen[1].wrote[:, 0], own[:, 0])
    assert torch.allclose(seen[1].wrote[:, 1:], given.expand(2, 4, D_MODEL), atol=1e-5)


def test_an_intervention_acts_at_every_step_with_a_cache_as_without(model):
    torch.manual_seed(1)
    weight = torch.randn(D_MODEL, D_MODEL)

    def instead(read, wrote):
        return read @ weight

    begin = [1, 4, 8, 12, 16, 20, 24, 28, 32]  # shared, and read once
    prompts = [[*begin, 5, 9], [*begin, 6, 10, 14, 18], [*begin, 7]]
    plain = continue_prompts(model, prompts, stop_ids=[2], max_new_tokens=12)
    with replaced(model, site_of(model, 1), instead, skip_ids=[1]):
        cached = continue_prompts(model, prompts, stop_ids=[2], max_new_tokens=12)
        for prompt, written in zip(prompts, cached, strict=True):
            ids = list(prompt)
            for expected in written:
                with torch.no_grad():
                    token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
                assert token == expected
                ids.append(token)
    assert cached != plain
    assert continue_prompts(model, prompts, stop_ids=[2], max_new_tokens=12) == plain


def test_a_fingerprint_tells_weights_not_their_dtype(model):
    first = fingerprint(model)
    assert fingerprint(model.to(torch.bfloat16)) == first
    with torch.no_grad():  # of a wide matrix, all columns but the first
        next(model.parameters())[:, 1:] += 1
    assert fingerprint(model) != first


def test_what_has_no_site_is_refused():
    with pytest.raises(ConfigError, match=r"There is no layer 3: the model has 3, from 0\."):
        site_of(decoder("llama"), 3)
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no list of blocks"):
        site_of(gpt, 0)
    for config in (
        Olmo2Config(**SIZES),  # whose norms are behind attention and MLP
        StableLmConfig(**SIZES),  # whose norms subtract the mean
        Glm4Config(**SIZES, head_dim=8),  # which has norms behind both besides
    ):
        with pytest.raises(
            ConfigError, match=r"no norm before its MLP|is no RMS norm but LayerNorm"
        ):
            site_of(AutoModelForCausalLM.from_config(config), 0)
    odd = decoder("llama")
    del odd.model.layers[1].mlp
    with pytest.raises(ConfigError, match="no norm before its MLP that is known here, but input_"):
        site_of(odd, 1)
