"""Throughput of rollouts, against transformers' generation with equal weights and a plain loop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.throughput_training import KINDS, PADDED, load_llama, memory_config
from benchmarks.timing import compare, race, say
from itl_agents import Conversation, rollout
from itl_agents.evaluate import one_question_each
from itl_agents.nanollama import ByteTokenizer, NanoLlamaAgent, save_model
from itl_agents.render import render_prompt
from itl_env import Episode, FactDatabase
from itl_env.episode import Completion
from itl_train.memory import MemoryRun


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
