"""Throughput of training, against transformers' Llama of equal weights in rows padded to 257."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils import logging

from benchmarks.timing import absolute, compare, race, say
from itl_agents.nanollama import ByteTokenizer, NanoLlama, save_model
from itl_agents.render import IGNORED
from itl_env import FactDatabase
from itl_env.dialogue import Style
from itl_env.recall import Mode
from itl_train.batches import BatchPlan, Dialogues
from itl_train.memory_config import MemoryConfig
from itl_train.sources import expert_dialogues
from itl_train.step import compiled, make_optimizers, train_step
from itl_train.watch import step_flops

TARGETS = {"in-weight": 6.0, "in-tool fenced": 2.0}  # what training is meant to gain
TARGET_BFLOAT16 = {**TARGETS, "in-tool fenced": 3.0}
PADDED = 257  # tokens: the fixed row length of the plain loop, enough for every dialogue
KINDS: dict[str, tuple[Mode, Style]] = {
    "in-tool compact": ("in-tool", "compact"),
    "in-tool fenced": ("in-tool", "fenced"),
    "in-weight": ("in-weight", "compact"),
}


class Load(NamedTuple):
    """What is trained in a race, and how often."""

    seed: int
    n_people: int  # whose dialogues are trained on
    batch_size: int
    n_steps: int  # a round
    rounds: int
    with_compiled: bool  # whether compiled ways are tried, too


def load_llama(folder: Path) -> Any:
    """The same weights in transformers' own model."""
    logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(folder)


def memory_config(path: Path, **changes: Any) -> MemoryConfig:
    """The model of this benchmark: 2 layers, 2 heads, d 64, feed-forward of 4 d."""
    shape: dict[str, Any] = {
        "d_model": 64, "n_layers": 2, "n_heads": 2, "d_hidden": None, "n_unseen": 0,
    }  # fmt: skip
    return MemoryConfig(database=str(path), **(shape | changes))


def training(path: Path, folder: Path, load: Load) -> list[dict[str, Any]]:
    """Dialogues trained a second, for the three kinds of dialogue and five ways of ours.

    Ours is the inner step of `itl train memory`: with AdamW or Muon, with products in bfloat16,
    with the model compiled. The reference is what a user would write first with transformers: rows
    padded to 257 tokens, labels -100 where nothing is learned, full logits, `torch.optim.AdamW`, no
    compilation. Same weights, same dialogues, same batches, the same in every round: kernels that
    are made for each length of rows are there once the first round, which is not timed, is over.
    """
    ways: dict[str, dict[str, Any]] = {"AdamW": {"optimizer": "adamw"}, "Muon": {}}
    ways |= _ways(load.with_compiled)
    rows = []
    for kind, (mode, style) in KINDS.items():
        say(f"training dialogues: {kind}")
        config = memory_config(path, mode=mode, style=style, n_people=load.n_people, seed=load.seed)
        plan = _plan(config, load.batch_size)
        rows += _train_race(kind, config, ways, plan, folder / kind, load)
    return rows


def _plan(config: MemoryConfig, batch_size: int) -> BatchPlan:
    with FactDatabase(config.database) as database:
        task = config.task(database, slice(0, config.n_people))
        return BatchPlan(expert_dialogues(task, ByteTokenizer()), batch_size, config.seed)


def padding(path: Path, load: Load) -> list[dict[str, Any]]:
    """The share of a batch that is padding, for the three kinds of dialogue."""
    rows = []
    for kind, (mode, style) in KINDS.items():
        config = memory_config(path, mode=mode, style=style, n_people=load.n_people, seed=load.seed)
        plan = _plan(config, load.batch_size)
        shares = []
        for group in range(3):
            batches = [plan.batch(group * plan.group + place) for place in range(plan.group)]
            n_tokens = sum(batch.n_tokens for batch in batches)
            shares.append(100 * (1 - n_tokens / sum(b.input_ids.numel() for b in batches)))
        what = f"padding in batches of {load.batch_size}, {kind}"
        rows.append(absolute(what, "%", shares, "below 5%"))
    return rows


def _ways(with_compiled: bool) -> dict[str, dict[str, Any]]:
    """Settings, by name, that may make a step faster."""
    ways: dict[str, dict[str, Any]] = {"bfloat16": {"dtype": "bfloat16"}}
    if with_compiled:
        ways["compiled"] = {"compile": True}
        ways["bfloat16, compiled"] = {"dtype": "bfloat16", "compile": True}
    return ways


def matmul_share(path: Path, load: Load) -> list[dict[str, Any]]:
    """Operations a second of training steps at d 128, against those of a product in float32.

    Only operations that tokens need are counted; see `itl_train.watch.step_flops`.
    """
    say("operations at d 128")
    matrix = torch.randn(1024, 1024)

    def multiply() -> int:
        for _ in range(20):
            matrix @ matrix
        return 20 * 2 * 1024**3

    sides: dict[str, Callable[[], int]] = {"matrix product of 1,024 x 1,024, float32": multiply}
    for kind, (mode, style) in KINDS.items():
        shared = {
            "mode": mode,
            "style": style,
            "n_people": load.n_people,
            "seed": load.seed,
            "d_model": 128,
        }
        ways: dict[str, dict[str, Any]] = {"float32": {}} | _ways(load.with_compiled)
        for way, changes in ways.items():
            config = memory_config(path, **shared, **changes)
            name = f"training step, d 128, {way}, {kind}"
            sides[name] = _counted_steps(config, load.batch_size, load.n_steps)
    rates = race(sides, load.rounds)
    reference, *ours = sides
    return [
        compare(rates, name, reference, "operations/s", equal=True, checked="", target=0.5)
        for name in ours
    ]


def _counted_steps(config: MemoryConfig, batch_size: int, n_steps: int) -> Callable[[], int]:
    """Trains some steps, always the same, and returns how many operations they took."""
    plan = _plan(config, batch_size)
    model = NanoLlama(config.model_config(), seed=config.seed)
    step = our_step(model, plan, config)

    def run() -> int:
        for place in range(n_steps):
            step(place)
        return int(sum(step_flops(model.config, plan.batch(place)) for place in range(n_steps)))

    return run


def _train_race(
    kind: str,
    config: MemoryConfig,
    ways: dict[str, dict[str, Any]],
    plan: BatchPlan,
    folder: Path,
    load: Load,
) -> list[dict[str, Any]]:
    reference = f"padded LlamaForCausalLM loop, AdamW, {kind}"
    sides: dict[str, Callable[[int], float]] = {}
    for way, changes in ways.items():
        model = NanoLlama(config.model_config(), seed=config.seed)
        changed = memory_config(Path(config.database), **changes)
        sides[f"NanoLlama, {way}, {kind}"] = our_step(model, plan, changed)
    save_model(NanoLlama(config.model_config(), seed=config.seed), folder)
    llama = load_llama(folder).train()
    sides[reference] = plain_step(llama, plan, config.lr)
    losses: dict[str, list[float]] = {name: [] for name in sides}

    def train(name: str) -> Callable[[], int]:
        def run() -> int:
            losses[name] += [sides[name](step) for step in range(load.n_steps)]
            return load.n_steps * plan.batch_size

        return run

    rates = race({name: train(name) for name in sides}, load.rounds)
    # Weights are equal before the first step only: it is the one whose losses must be.
    theirs = losses[reference][0]
    return [
        compare(
            rates, name, reference, "dialogues/s",
            equal=abs(losses[name][0] - theirs) < (1e-2 if "bfloat16" in name else 1e-4) * theirs,
            checked=f"loss of the first batch: {losses[name][0]:.6f} and {theirs:.6f}",
            target=(TARGET_BFLOAT16 if "bfloat16" in name else TARGETS).get(kind),
        )
        for name in sides
        if name != reference
    ]  # fmt: skip


def our_step(model: NanoLlama, plan: BatchPlan, config: MemoryConfig) -> Callable[[int], float]:
    """The step of `itl_train.memory.MemoryRun` without its records, at full learning rates."""
    optimizers = make_optimizers(model, config)
    rates = (config.lr, config.muon_lr)
    dtype = getattr(torch, config.dtype)
    forward = compiled(model) if config.compile else model

    def step(index: int) -> float:
        return train_step(forward, optimizers, rates, plan.batch(index), dtype=dtype).loss

    return step


def plain_step(llama: Any, plan: BatchPlan, lr: float) -> Callable[[int], float]:
    """The loop that a user would write first."""
    ids, mask, labels = padded(plan.dialogues)
    optimizer = torch.optim.AdamW(llama.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)

    def step(index: int) -> float:
        rows = plan.rows(index)
        loss = llama(input_ids=ids[rows], attention_mask=mask[rows], labels=labels[rows]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def padded(dialogues: Dialogues) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels of all dialogues, each (n, 257)."""
    lengths = dialogues.lengths
    if int(lengths.max()) > PADDED:
        raise ValueError(f"A dialogue of {int(lengths.max())} tokens does not fit {PADDED}.")
    offsets = torch.arange(PADDED, device=lengths.device)
    mask = offsets < lengths[:, None]
    places = (dialogues.starts[:-1, None] + offsets).clamp_max(len(dialogues.ids) - 1)
    ids = torch.where(mask, dialogues.ids[places], 0).long()
    return ids, mask.long(), torch.where(mask & dialogues.trained[places], ids, IGNORED)
