"""Throughput of the model: rollouts and training, against transformers' Llama of equal weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils import logging

from benchmarks.timing import absolute, compare, race, say
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
from itl_train.watch import step_flops

_IN_WEIGHT = {"in-weight": 6}  # what training is meant to gain there
PADDED = 257  # tokens: the fixed row length of the plain loop, enough for every dialogue
KINDS: dict[str, tuple[Mode, Style]] = {
    "in-tool compact": ("in-tool", "compact"),
    "in-tool fenced": ("in-tool", "fenced"),
    "in-weight": ("in-weight", "compact"),
}


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
        ids, mask = self._padded(conversations)
        written = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=[marks.database_id, marks.end_id],
            pad_token_id=marks.end_id,
        )
        return [self._completion(row) for row in written[:, ids.shape[1] :].tolist()]

    def _padded(self, conversations: Sequence[Conversation]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of the prompts, padded on the left."""
        prompts = [
            render_prompt(talk.messages, self.tokenizer, talk.completions) for talk in conversations
        ]
        width = max(map(len, prompts))
        pads = [[0] * (width - len(prompt)) for prompt in prompts]
        pairs = list(zip(pads, prompts, strict=True))
        return (
            torch.tensor([[*pad, *prompt] for pad, prompt in pairs]),
            torch.tensor([[*pad, *[1] * len(prompt)] for pad, prompt in pairs]),
        )

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


class LoopAgent(GenerateAgent):
    """Plays with the loop that a user would write first.

    It has a key-value cache, takes the token of every lane in turn, keeps lanes that have ended in
    the batch, and decodes all of them up to 257 tokens.
    """

    name = "loop"

    @torch.inference_mode()
    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `itl_agents.agent.Agent.respond`."""
        ids, mask = self._padded(conversations)
        width = ids.shape[1]
        rows: list[list[int]] = [[] for _ in conversations]
        cache = None
        new = ids
        while width + len(rows[0]) < max(PADDED, width + 1):
            places = (mask.cumsum(-1) - 1).clamp_min(0)[:, -new.shape[1] :]
            out = self.model(
                new, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            new = out.logits[:, -1].argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(new)], dim=1)
            for lane, row in enumerate(rows):
                row.append(int(new[lane]))
        return [self._completion(row[: self.max_new_tokens]) for row in rows]


def rollouts(
    path: Path,
    folder: Path,
    *,
    kind: str,
    seed: int,
    n_steps: int,
    n_questions: int,
    lanes: int,
    max_new_tokens: int,
    rounds: int,
    against: Sequence[str] = ("generate",),
) -> list[dict[str, Any]]:
    """Questions answered a second by our generation and by others.

    The model is trained for a short while, so that turns end where they do in real use. All sides
    play the same questions through the same `rollout`, and every token they write is compared: the
    only difference left is how the tokens are generated.

    against: `generate`, transformers' own; `loop`, the plain loop of `LoopAgent`, which decodes to
        257 tokens.
    """
    mode, style = KINDS[kind]
    say(f"rollouts, {kind}, {lanes} lanes: training a model for {n_steps} steps")
    n_people = min(n_questions, len(FactDatabase(path)))
    config = memory_config(
        path, mode=mode, style=style, n_people=n_people, n_steps=n_steps, n_evaluate=16, seed=seed
    )
    run = MemoryRun(config, folder / f"rollout model, {kind}, {lanes}")
    run.train()
    save_model(run.model, folder / "rollout llama")
    llama = load_llama(folder / "rollout llama")
    task = run.tasks.seen
    facts = list(one_question_each(task, n_questions))
    agents: dict[str, Any] = {
        f"NanoLlamaAgent, {kind}, {lanes:,} lanes": NanoLlamaAgent(
            run.model, max_new_tokens=max_new_tokens
        )
    }
    if "generate" in against:
        generating = GenerateAgent(llama, max_new_tokens)
        agents[f"LlamaForCausalLM.generate, {kind}, {lanes:,} lanes"] = generating
    if "loop" in against:
        looping = LoopAgent(llama, max_new_tokens)
        agents[f"plain loop to {PADDED} tokens, {kind}, {lanes:,} lanes"] = looping
    played: dict[str, list[Episode]] = {}

    def play(name: str) -> Callable[[], int]:
        def run() -> int:
            played[name] = list(rollout(agents[name], task, facts, lanes=lanes))
            return len(facts)

        return run

    ours, *others = agents
    rates = race({name: play(name) for name in agents}, rounds)
    n_tokens = sum(len(turn) for episode in played[ours] for turn in _tokens(episode))
    rows = []
    for theirs in others:
        pairs = list(zip(played[ours], played[theirs], strict=True))
        same = sum(_tokens(a) == _tokens(b) and a.messages == b.messages for a, b in pairs)
        row = compare(
            rates, ours, theirs, "questions/s",
            equal=same == len(facts),
            checked=f"{same:,} of {len(facts):,} dialogues, {n_tokens:,} greedy tokens",
            target=2 if "generate" in theirs else 8 if mode == "in-weight" else 4,
        )  # fmt: skip
        row["recall"] = sum(episode.reward for episode in played[ours]) / len(facts)
        rows.append(row)
    task.close()
    return rows


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
    compiled: bool,
) -> list[dict[str, Any]]:
    """Dialogues trained a second, for the three kinds of dialogue and four ways of ours.

    Ours is the inner step of `itl train memory`: with AdamW, with Muon, with Muon and products in
    bfloat16, with Muon and the model compiled. The reference is what a user would write first with
    transformers: rows padded to 257 tokens, labels -100 where nothing is learned, full logits,
    `torch.optim.AdamW`, no compilation. Same weights, same dialogues, same batches.

    compiled: whether the last way is tried, whose compilation takes a minute.
    """
    ways: dict[str, dict[str, Any]] = {
        "adamw": {"optimizer": "adamw"},
        "muon": {},
        "muon, bfloat16": {"dtype": "bfloat16"},
    }
    if compiled:
        ways["muon, compiled"] = {}
    rows = []
    for kind, (mode, style) in KINDS.items():
        say(f"training dialogues: {kind}")
        config = memory_config(path, mode=mode, style=style, n_people=n_people, seed=seed)
        plan = _plan(config, batch_size)
        rows += _train_race(kind, config, ways, plan, folder / kind, n_steps, rounds)
    return rows


def _plan(config: MemoryConfig, batch_size: int) -> BatchPlan:
    with FactDatabase(config.database) as database:
        task = config.task(database, slice(0, config.n_people))
        return BatchPlan(expert_dialogues(task, ByteTokenizer()), batch_size, config.seed)


def padding(path: Path, *, seed: int, n_people: int, batch_size: int) -> list[dict[str, Any]]:
    """The share of a batch that is padding, for the three kinds of dialogue."""
    rows = []
    for kind, (mode, style) in KINDS.items():
        config = memory_config(path, mode=mode, style=style, n_people=n_people, seed=seed)
        plan = _plan(config, batch_size)
        shares = []
        for group in range(3):
            batches = [plan.batch(group * plan.group + place) for place in range(plan.group)]
            n_tokens = sum(batch.n_tokens for batch in batches)
            shares.append(100 * (1 - n_tokens / sum(b.input_ids.numel() for b in batches)))
        what = f"padding in batches of {batch_size}, {kind}"
        rows.append(absolute(what, "%", shares, "below 5%"))
    return rows


def matmul_share(
    path: Path, *, seed: int, n_people: int, batch_size: int, n_steps: int, rounds: int
) -> list[dict[str, Any]]:
    """Operations a second of training steps at d 128, against those of one matrix product.

    Only operations that tokens need are counted; see `itl_train.watch.step_flops`.
    """
    say("operations at d 128")
    matrix = torch.randn(1024, 1024)

    def multiply() -> int:
        for _ in range(20):
            matrix @ matrix
        return 20 * 2 * 1024**3

    sides: dict[str, Callable[[], int]] = {"matrix product of 1,024 x 1,024": multiply}
    for kind, (mode, style) in KINDS.items():
        config = memory_config(
            path, mode=mode, style=style, n_people=n_people, seed=seed, d_model=128
        )
        sides[f"training step, d 128, {kind}"] = _counted_steps(config, batch_size, n_steps)
    rates = race(sides, rounds)
    reference, *ours = sides
    return [
        compare(rates, name, reference, "operations/s", equal=True, checked="", target=0.5)
        for name in ours
    ]


def _counted_steps(config: MemoryConfig, batch_size: int, n_steps: int) -> Callable[[], int]:
    """Trains some steps and returns how many operations they took."""
    plan = _plan(config, batch_size)
    model = NanoLlama(config.model_config(), seed=config.seed)
    step = our_step(model, plan, config)
    done = 0

    def run() -> int:
        nonlocal done
        places = range(done, done + n_steps)
        done += n_steps
        for place in places:
            step(place)
        return int(sum(step_flops(model.config, plan.batch(place)) for place in places))

    return run


def _train_race(
    kind: str,
    config: MemoryConfig,
    ways: dict[str, dict[str, Any]],
    plan: BatchPlan,
    folder: Path,
    n_steps: int,
    rounds: int,
) -> list[dict[str, Any]]:
    reference = f"padded LlamaForCausalLM loop, AdamW, {kind}"
    sides: dict[str, Callable[[int], float]] = {}
    for way, changes in ways.items():
        model = NanoLlama(config.model_config(), seed=config.seed)
        changed = memory_config(Path(config.database), **changes)
        compiled = way.endswith("compiled")
        sides[f"NanoLlama, {way}, {kind}"] = our_step(model, plan, changed, compiled)
    save_model(NanoLlama(config.model_config(), seed=config.seed), folder)
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
            equal=abs(losses[name][0] - theirs) < (1e-2 if "bfloat16" in name else 1e-4) * theirs,
            checked=f"loss of the first batch: {losses[name][0]:.6f} and {theirs:.6f}",
            target=(3 if "bfloat16" in name else 2) if "fenced" in name else _IN_WEIGHT.get(kind),
        )
        for name in sides
        if name != reference
    ]  # fmt: skip


def our_step(
    model: NanoLlama, plan: BatchPlan, config: MemoryConfig, compiled: bool = False
) -> Callable[[int], float]:
    """The step of `itl_train.memory.MemoryRun` without its records, at full learning rates."""
    optimizers = make_optimizers(model, config)
    rates = (config.lr, config.muon_lr)
    dtype = getattr(torch, config.dtype)
    # Batches differ in length, for each of which it would be compiled anew.
    forward: Any = torch.compile(model, dynamic=True) if compiled else model

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
    offsets = torch.arange(PADDED)
    mask = offsets < lengths[:, None]
    places = (dialogues.starts[:-1, None] + offsets).clamp_max(len(dialogues.ids) - 1)
    ids = torch.where(mask, dialogues.ids[places], 0).long()
    return ids, mask.long(), torch.where(mask & dialogues.trained[places], ids, IGNORED)
