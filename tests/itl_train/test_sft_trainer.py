"""What the trainer leaves out changes neither the loss nor a gradient."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
)
from trl import SFTConfig, SFTTrainer

from itl_agents.pretrained import load_pretrained
from itl_agents.render import IGNORED
from itl_train.sft_trainer import DialogueTrainer, after_opening

from .test_sft import tiny_llama

OPENING = list(range(40, 60))


def dataset(*rows: tuple[list[int], int]) -> Dataset:
    """Rows of ids, of which those from a place on are trained."""
    return Dataset.from_dict(
        {
            "input_ids": [ids for ids, _ in rows],
            "labels": [[IGNORED] * start + ids[start:] for ids, start in rows],
        }
    )


ALIKE = dataset(
    ([*OPENING, 70, 71, 72, 73], 22), ([*OPENING, 70, 80, 81, 82, 83, 84], 23),
    ([*OPENING, 90, 91, 92], 21), ([*OPENING, 70, 71], 21),
)  # fmt: skip
OTHERWISE = dataset(([*OPENING, 70, 71], 21), ([99, *OPENING], 3))
TRAINED_EARLY = dataset(([*OPENING, 70], 12), ([*OPENING, 71, 72], 21))

OF_ONE_LENGTH = dataset(([*OPENING, 70, 71, 72], 21), ([*OPENING, 80, 81, 82], 21))
ALONE = dataset(([*OPENING, 70, 71, 72], 21))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def trainer(
    model: PreTrainedModel,
    data: Dataset,
    out: Path,
    way: type[SFTTrainer] = DialogueTrainer,
    peft_config: LoraConfig | None = None,
    batch_size: int = 0,
    **settings: Any,
) -> Any:
    arguments = SFTConfig(
        str(out), use_cpu=True, bf16=False, report_to="none", max_length=None,
        per_device_train_batch_size=batch_size or len(data), gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True}, **settings,
    )  # fmt: skip
    return way(
        model,
        args=arguments,
        train_dataset=data,
        processing_class=load_pretrained(out / "llama").tokenizer,
        peft_config=peft_config,
    )


def loss_and_gradients(
    made: DialogueTrainer, way: type[SFTTrainer], count: torch.Tensor | None
) -> tuple[float, list[torch.Tensor]]:
    (batch,) = made.get_train_dataloader()
    made.model.train()
    made.model.zero_grad()
    loss = way.compute_loss(made, made.model, dict(batch), num_items_in_batch=count)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in made.model.parameters() if p.grad is not None]


def assert_same(
    own: tuple[float, list[torch.Tensor]], theirs: tuple[float, list[torch.Tensor]]
) -> None:
    assert own[0] == pytest.approx(theirs[0], rel=1e-5)
    assert len(own[1]) == len(theirs[1]) > 0
    for gradient, expected in zip(own[1], theirs[1], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "shared"),
    [(ALIKE, 19), (OTHERWISE, 0), (TRAINED_EARLY, 11), (OF_ONE_LENGTH, 19), (ALONE, 0)],
    ids=["alike", "otherwise", "trained early", "of one length", "alone"],
)  # fmt: skip
@pytest.mark.parametrize("count", [None, torch.tensor(37)], ids=["mean", "of a larger batch"])
def test_loss_and_gradients_are_trls(
    llama: Path, tmp_path: Path, data: Dataset, shared: int, count: torch.Tensor | None
) -> None:
    (tmp_path / "llama").symlink_to(llama)
    made = trainer(load_pretrained(llama).model, data, tmp_path)
    (batch,) = made.get_train_dataloader()
    rest = after_opening(made.model, dict(batch))
    assert batch["input_ids"].shape[1] - rest["input_ids"].shape[1] == shared
    own = loss_and_gradients(made, DialogueTrainer, count)
    assert_same(own, loss_and_gradients(made, SFTTrainer, count))


def test_trl_goes_on_after_an_opening_as_well(llama: Path, tmp_path: Path) -> None:
    """As it does where there is a GPU, on which its own way of scoring is kept."""
    (tmp_path / "llama").symlink_to(llama)
    made = trainer(load_pretrained(llama).model, ALIKE, tmp_path)

    class Opened(SFTTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
            return SFTTrainer.compute_loss(self, model, after_opening(model, inputs), **settings)

    assert_same(loss_and_gradients(made, Opened, None), loss_and_gradients(made, SFTTrainer, None))


def test_bfloat16_differs_by_its_rounding_only(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").symlink_to(llama)
    made = trainer(load_pretrained(llama, dtype="bfloat16").model, ALIKE, tmp_path)
    loss, _ = loss_and_gradients(made, DialogueTrainer, None)
    expected, _ = loss_and_gradients(made, SFTTrainer, None)
    assert loss == pytest.approx(expected, rel=0.01)


def test_an_adapter_gets_the_same_gradients(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").symlink_to(llama)
    config = LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM")
    made = trainer(load_pretrained(llama).model, ALIKE, tmp_path, peft_config=config)
    assert made._can_share(made.model)
    own = loss_and_gradients(made, DialogueTrainer, None)
    assert len(own[1]) == 2 * 2 * 2, "two matrices for q and v in each layer"
    assert_same(own, loss_and_gradients(made, SFTTrainer, None))


def test_rows_share_no_mask_of_dropout(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").symlink_to(llama)
    config = LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False, task_type="CAUSAL_LM")
    made = trainer(load_pretrained(llama).model, ALIKE, tmp_path, peft_config=config)
    assert not made._can_share(made.model)
    attention = load_pretrained(llama).model
    attention.config.attention_dropout = 0.1
    assert not made._can_share(attention)


def test_experts_are_routed_as_in_trl(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").symlink_to(llama)
    torch.manual_seed(0)
    experts = OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=load_pretrained(llama).model.config.vocab_size, hidden_size=32,
            intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        )
    )  # fmt: skip
    made = trainer(experts, ALIKE, tmp_path)
    assert made.aux_loss_enabled
    own = loss_and_gradients(made, DialogueTrainer, None)
    assert_same(own, loss_and_gradients(made, SFTTrainer, None))


def test_gradients_that_add_up_give_trls_weights(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").symlink_to(llama)
    found = []
    for way in (DialogueTrainer, SFTTrainer):
        made = trainer(
            load_pretrained(llama).model, ALIKE, tmp_path, way, batch_size=2, max_steps=3,
            gradient_accumulation_steps=2, train_sampling_strategy="sequential",
        )  # fmt: skip
        made.train()
        found.append([weight.detach() for weight in made.model.parameters()])
    first = load_pretrained(llama).model.parameters()
    for own, theirs, before in zip(*found, first, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=2e-6)
        assert not torch.equal(own, before)


def test_models_that_keep_no_plain_cache_read_everything(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").symlink_to(llama)
    torch.manual_seed(0)
    vocabulary = load_pretrained(llama).model.config.vocab_size
    sliding = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8,
            attn_implementation="eager",
        )
    )  # fmt: skip
    made = trainer(sliding, ALIKE, tmp_path)
    assert not made._can_share(made.model)
    loss, _ = loss_and_gradients(made, DialogueTrainer, None)
    expected, _ = loss_and_gradients(made, SFTTrainer, None)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_all_tokens_of_the_dialogues_are_counted(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").symlink_to(llama)
    made = trainer(load_pretrained(llama).model, ALIKE, tmp_path, max_steps=2, logging_steps=1)
    made.train()
    assert made.state.log_history[1]["num_tokens"] == 2 * sum(map(len, ALIKE["input_ids"]))
