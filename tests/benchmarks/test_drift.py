"""Drift from the base model, against plain arithmetic in double precision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import drift
from benchmarks.drift import Answer, base_answers, divergences, general_prompts, measure_drift
from benchmarks.statistics import clustered_mean
from itl_agents.agent import Conversation
from itl_agents.huggingface import HFAgent
from itl_env.episode import Completion
from itl_env.errors import ConfigError, ITLError

from ..itl_agents.chat_models import chat_tokenizer


def llama(seed: int, vocabulary: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary or len(chat_tokenizer("smollm")), hidden_size=32,
        intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def reference(p_logits: np.ndarray, q_logits: np.ndarray) -> dict[str, np.ndarray]:
    log_p, log_q = (log_softmax(x.astype(np.float64), axis=-1) for x in (p_logits, q_logits))
    p, q = np.exp(log_p), np.exp(log_q)
    return {
        "kl": (p * (log_p - log_q)).sum(-1),
        "tv": np.abs(p - q).sum(-1) / 2,
        "log_square": (p * (log_p - log_q) ** 2 / 2).sum(-1),
        "bregman": (p * (q / p - 1 - np.log(q / p))).sum(-1),
    }


def test_divergences_are_those_of_plain_arithmetic() -> None:
    rng = np.random.default_rng(0)
    base, other = 3 * rng.normal(size=(2, 50, 300))
    found = divergences(torch.tensor(base), torch.tensor(other))
    expected = reference(base, other)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4)
    np.testing.assert_allclose(found["kl"], expected["bregman"], rtol=1e-4)
    assert all(float(v.abs().max()) < 1e-6 for v in divergences(*[torch.tensor(base)] * 2).values())
    near = divergences(torch.tensor(base), torch.tensor(base + 0.01 * other))
    torch.testing.assert_close(near["kl"], near["log_square"], rtol=0.05, atol=1e-7)


ANSWERS = [
    Answer([1, 2, 3], [4, 5]),
    Answer([7, 8, 9, 10, 11, 12], [13]),
    Answer([20], [21, 22, 23, 24, 25, 26, 27]),
]


def test_every_token_of_an_answer_is_compared_as_it_would_be_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, other = llama(0), llama(1)
    held: list[int] = []

    def noted(*logits: torch.Tensor) -> dict[str, torch.Tensor]:
        held.extend(len(each) for each in logits)
        return divergences(*logits)

    monkeypatch.setattr(drift, "divergences", noted)
    found = measure_drift(base, other, ANSWERS)
    assert held == [2, 2, 1, 1, 7, 7], "no more than an answer of each model"
    each: dict[str, list[float]] = {"kl": [], "tv": [], "log_square": []}
    for prompt, answer in ANSWERS:
        for place in range(len(answer)):  # what both expect after all that came before
            past = torch.tensor([[*prompt, *answer[:place]]])
            with torch.no_grad():
                logits = [model(past).logits[0, -1].numpy() for model in (base, other)]
            for name in each:
                each[name].append(float(reference(*logits)[name]))
    assert found.n_tokens == 10
    for name, values in each.items():
        assert getattr(found, name) == pytest.approx(np.mean(values), rel=1e-4)
        error = np.std(values) / np.sqrt(len(values))
        assert getattr(found, f"{name}_token_error") == pytest.approx(error, rel=1e-4)
        sums = [sum(values[:2]), values[2], sum(values[3:])]
        error = clustered_mean(sums, [2, 1, 7])[1]
        assert getattr(found, f"{name}_error") == pytest.approx(error, rel=1e-4)
    assert found.tokens == [2, 1, 7]
    assert found.tv_sums == pytest.approx([sum(each["tv"][:2]), each["tv"][2], sum(each["tv"][3:])])


def test_a_model_has_not_moved_from_itself() -> None:
    found = measure_drift(llama(0), llama(0), ANSWERS)
    assert abs(found.kl) < 1e-6
    assert found.tv < 1e-6


def test_models_of_other_vocabularies_are_not_compared() -> None:
    with pytest.raises(ConfigError, match="they must agree"):
        measure_drift(llama(0), llama(0, vocabulary=777), ANSWERS)
    with pytest.raises(ConfigError, match="answered nothing"):
        measure_drift(llama(0), llama(0), [])


def test_the_base_answers_once(tmp_path: Path) -> None:
    base = HFAgent(llama(0), chat_tokenizer("smollm"), name="base", max_new_tokens=5)
    prompts = general_prompts(3)
    made_by = {"model": "base", "max_new_tokens": 5}
    said: list[str] = []
    two = base_answers(lambda: base, made_by, prompts[:2], tmp_path, said.append)
    answers = base_answers(lambda: base, made_by, prompts, tmp_path, said.append)
    assert said == ["base answers 2 general prompts", "base answers 1 general prompts"]
    assert answers[:2] == two
    assert len(answers) == 3
    assert all(1 <= len(answer) <= 5 for _, answer in answers)
    text = base.chat.decode(answers[0].prompt)
    assert f"<|im_start|>user\n{prompts[0]}<|im_end|>\n<|im_start|>assistant\n" in text

    def refuse() -> HFAgent:
        raise AssertionError("it is loaded again")

    assert base_answers(refuse, made_by, prompts, tmp_path) == answers
    assert base_answers(refuse, made_by, prompts[1:], tmp_path) == answers[1:]
    with pytest.raises(AssertionError, match="loaded again"):
        base_answers(refuse, {**made_by, "max_new_tokens": 6}, prompts, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    with pytest.raises(ITLError, match="is damaged"):
        base_answers(refuse, made_by, prompts, tmp_path)


def test_an_empty_answer_is_left_out_and_shifts_no_other(tmp_path: Path) -> None:
    class Silent(HFAgent):
        def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
            return [Completion("", [], "stop"), *super().respond(conversations)[1:]]

    base = Silent(llama(0), chat_tokenizer("smollm"), name="base", max_new_tokens=3)
    made_by = {"model": "base"}
    prompts = general_prompts(3)
    found = base_answers(lambda: base, made_by, prompts, tmp_path)
    assert len(found) == 2
    assert base_answers(lambda: base, made_by, prompts[:2], tmp_path) == found[:1]


def test_there_are_a_hundred_different_prompts() -> None:
    assert len(set(general_prompts(100))) == 100
    with pytest.raises(ConfigError, match="100 general prompts; ask for 1 to 100"):
        general_prompts(101)
