"""Throughput of the model: rollouts and training, against transformers' Llama of equal weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils import logging

from benchmarks.timing import compare, race, say
from itl_agents import Conversation, rollout
from itl_agents.evaluate import one_question_each
from itl_agents.nanollama import ByteTokenizer, NanoLlama, NanoLlamaAgent, save_model
from itl_agents.render import IGNORED, render_prompt
from itl_env import Episode, FactDatabase
from itl_env.dialogue import Style
from itl_env.episode import Completion
from itl_env.recall import Mode
from itl_train.batches import BatchPlan, Dialogues
from itl_train.memory import MemoryConfig, MemoryRun
from itl_train.sources import expert_dialogues
from itl_train.step import make_optimizers, train_step

PADDED = 257  # tokens: the fixed row length of the plain loop, enough for every dialogue


def load_llama(folder: Path) -> Any:
    """The same weights in transformers' own model."""
    logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(folder)


def memory_config(path: Path, **changes: Any) -> MemoryConfig:
    """The model of this benchmark: 2 layers, d 64, feed-forward of 4 d."""
    shape: dict[str, Any] = {"d_model": 64, "n_layers": 2, "d_hidden": None, "n_unseen": 0}
    return MemoryConfig(database=str(path), **(shape | changes))


class GenerateAgent:
    """Plays with `LlamaForCausalLM.generate`: left-padded, batched, its cache on, greedy."""

    name = "transformers"

    def __init__(self, model: Any, max_new_tokens: int) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.tokenizer = ByteTokenizer()

    @torch.inference_mode()
    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `itl_agents.agent.Agent.respond`."""
        marks = self.tokenizer
        prompts = [render_prompt(talk.messages, marks, talk.completions) for talk in conversations]
        width = max(map(len, prompts))
        padding = [[0] * (width - len(prompt)) for prompt in prompts]
        ids = [[*pad, *prompt] for pad, prompt in zip(padding, prompts, strict=True)]
        mask = [[*pad, *[1] * len(prompt)] for pad, prompt in zip(padding, prompts, strict=True)]
        written = self.model.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=[marks.database_id, marks.end_id],
            pad_token_id=marks.end_id,
        )
        return [self._completion(row) for row in written[:, width:].tolist()]

    def _completion(self, row: list[int]) -> Completion:
        kinds: dict[int, Literal["query", "answer"]] = {
            self.tokenizer.database_id: "query",
            self.tokenizer.end_id: "answer",
        }
        for place, token in enumerate(row):
            if token in kinds:
                text = self.tokenizer.decode(row[:place])
                return Completion(text, row[: place + 1], "stop", kinds[token])
        return Completion(self.tokenizer.decode(row), row, "length")


def rollouts(
    path: Path,
    folder: Path,
    *,
    seed: int,
    n_steps: int,
    n_questions: int,
    lanes: int,
    max_new_tokens: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Questions answered a second, two turns and a lookup each, by our generation and by theirs.

    The model is trained for a short while to call the tool, so that turns end where they do in real
    use. Both sides play the same questions through the same `rollout`, and every token they write
    is compared: the only difference left is how the tokens are generated.
    """
    say(f"rollouts: training a model for {n_steps} steps")
    n_people = min(n_questions, len(FactDatabase(path)))
    config = memory_config(path, n_people=n_people, n_steps=n_steps, n_evaluate=16, seed=seed)
    run = MemoryRun(config, folder / "rollout model")
    run.train()
    save_model(run.model, folder / "rollout llama")
    llama = load_llama(folder / "rollout llama")
    task = run.tasks.seen
    facts = list(one_question_each(task, n_questions))
    agents: dict[str, Any] = {
        f"NanoLlamaAgent, {lanes} lanes": NanoLlamaAgent(run.model, max_new_tokens=max_new_tokens),
        f"LlamaForCausalLM.generate, {lanes} lanes": GenerateAgent(llama, max_new_tokens),
    }
    played: dict[str, list[Episode]] = {}

    def play(name: str) -> Callable[[], int]:
        def run() -> int:
            played[name] = list(rollout(agents[name], task, facts, lanes=lanes))
            return len(facts)

        return run

    ours, theirs = agents
    rates = race({name: play(name) for name in agents}, rounds)
    pairs = list(zip(played[ours], played[theirs], strict=True))
    same = sum(_tokens(a) == _tokens(b) and a.messages == b.messages for a, b in pairs)
    n_tokens = sum(len(turn) for episode in played[ours] for turn in _tokens(episode))
    row = compare(
        rates, ours, theirs, "questions/s",
        equal=same == len(facts),
        checked=f"{same:,} of {len(facts):,} dialogues, {n_tokens:,} greedy tokens",
    )  # fmt: skip
    row["recall"] = sum(episode.reward for episode in played[ours]) / len(facts)
    task.close()
    return [row]


def _tokens(episode: Episode) -> list[list[int]]:
    return [turn.token_ids or [] for turn in episode.completions]


def training(
    path: Path,
    folder: Path,
    *,
    seed: int,
    n_people: int,
    batch_size: int,
    n_steps: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Dialogues trained a second, for the three kinds of dialogue and both optimizers of ours.

    Ours is the inner step of `itl train memory`. The reference is what a user would write first
    with transformers: rows padded to 257 tokens, labels -100 where nothing is learned, full logits,
    `torch.optim.AdamW`, no compilation. Same weights, same dialogues, same batches.
    """
    rows = []
    kinds: dict[str, tuple[Mode, Style]] = {
        "in-tool compact": ("in-tool", "compact"),
        "in-tool fenced": ("in-tool", "fenced"),
        "in-weight": ("in-weight", "compact"),
    }
    for kind, (mode, style) in kinds.items():
        say(f"training dialogues: {kind}")
        config = memory_config(path, mode=mode, style=style, n_people=n_people, seed=seed)
        task = config.task(FactDatabase(path), slice(0, n_people))
        dialogues = expert_dialogues(task, ByteTokenizer())
        plan = BatchPlan(dialogues, batch_size, seed)
        task.close()
        rows += _train_race(kind, config, plan, folder / kind, n_steps, rounds)
    return rows


def _train_race(
    kind: str, config: MemoryConfig, plan: BatchPlan, folder: Path, n_steps: int, rounds: int
) -> list[dict[str, Any]]:
    reference = f"padded LlamaForCausalLM loop, AdamW, {kind}"
    sides: dict[str, Callable[[int], float]] = {}
    for optimizer in ("adamw", "muon"):
        model = NanoLlama(config.model_config(), seed=config.seed)
        changed = memory_config(Path(config.database), optimizer=optimizer)
        sides[f"NanoLlama, {optimizer}, {kind}"] = our_step(model, plan, changed)
    save_model(model, folder)
    llama = load_llama(folder).train()
    sides[reference] = plain_step(llama, plan, config.lr)
    losses: dict[str, list[float]] = {name: [] for name in sides}

    def train(name: str) -> Callable[[], int]:
        def run() -> int:
            done = len(losses[name])
            losses[name] += [sides[name](step) for step in range(done, done + n_steps)]
            return n_steps * plan.batch_size

        return run

    rates = race({name: train(name) for name in sides}, rounds)
    # Weights are equal before the first step only: it is the one whose losses must be.
    theirs = losses[reference][0]
    return [
        compare(
            rates, name, reference, "dialogues/s",
            equal=abs(losses[name][0] - theirs) < 1e-4 * theirs,
            checked=f"loss of the first batch: {losses[name][0]:.6f} and {theirs:.6f}",
        )
        for name in sides
        if name != reference
    ]  # fmt: skip


def our_step(model: NanoLlama, plan: BatchPlan, config: MemoryConfig) -> Callable[[int], float]:
    """The step of `itl_train.memory.MemoryRun` without its records, at full learning rates."""
    optimizers = make_optimizers(model, config)
    rates = (config.lr, config.muon_lr)

    def step(index: int) -> float:
        return train_step(model, optimizers, rates, plan.batch(index)).loss

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
    offsets = torch.arange(PADDED)
    mask = offsets < lengths[:, None]
    places = (dialogues.starts[:-1, None] + offsets).clamp_max(len(dialogues.ids) - 1)
    ids = torch.where(mask, dialogues.ids[places], 0).long()
    return ids, mask.long(), torch.where(mask & dialogues.trained[places], ids, IGNORED)
