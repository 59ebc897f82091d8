"""How far a fine-tuned model has moved from its base: divergences over what the base would say.

The base model answers general prompts greedily; both models then read these answers, and at every
token of them their distributions over the whole vocabulary are compared (arXiv 2508.20755, section
6). Prompts are not about facts, so a model that has only learnt new ones would not move at all.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from itl_agents.agent import Conversation
from itl_agents.huggingface import HFAgent
from itl_agents.render import render_prompt
from itl_env.dialogue import Message
from itl_env.errors import ConfigError
from itl_env.files import read_json, write_text

PROMPTS = Path(__file__).parent / "general_prompts.txt"
LOGITS_AT_ONCE = 2**26
"""Numbers in a batch of logits of one model (256 MiB); no more than one is held of each."""


class Answer(NamedTuple):
    """A prompt of the base model and its answer, as token ids."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Drift:
    """Divergences from the base model to another, in nats, averaged over tokens.

    kl: KL(base || model). tv: total variation, half the L1 distance. log_square: half the expected
    square of the log ratio, which is near KL where models are close (Schulman 2020, "Approximating
    KL Divergence", k2). `_error` is the standard error over tokens, as if these were independent.
    """

    n_tokens: int
    kl: float
    kl_error: float
    tv: float
    tv_error: float
    log_square: float
    log_square_error: float


def divergences(base: Tensor, other: Tensor) -> dict[str, Tensor]:
    """KL, TV and the log-square form of two sets of logits (tokens, vocabulary), each (tokens,)."""
    log_p, log_q = (F.log_softmax(logits.float(), dim=-1) for logits in (base, other))
    p, ratio = log_p.exp(), log_p - log_q
    return {
        "kl": (p * ratio).sum(-1),
        "tv": (p - log_q.exp()).abs().sum(-1) / 2,
        "log_square": (p * ratio.square()).sum(-1) / 2,
    }


def general_prompts(n: int) -> list[str]:
    """The first n of the general prompts; raises ConfigError if there are fewer."""
    found = PROMPTS.read_text(encoding="utf-8").splitlines()
    if not 1 <= n <= len(found):
        raise ConfigError(f"There are {len(found)} general prompts; ask for 1 to {len(found)}.")
    return found[:n]


def base_answers(
    load: Callable[[], HFAgent],
    name: str,
    max_new_tokens: int,
    prompts: Sequence[str],
    file: Path,
    say: Callable[[str], None] = lambda line: None,
) -> list[Answer]:
    """The base model's greedy answers, read from `file` if they are there already.

    load: the agent that answers, with this name and length of turns; only called if it must.

    Raises ITLError if the file is damaged, and ConfigError if it is of another model or prompts.
    """
    made_by = {
        "model": name,
        "max_new_tokens": max_new_tokens,
        "prompts": hashlib.blake2b("\n".join(prompts).encode(), digest_size=8).hexdigest(),
    }
    if file.exists():
        there = read_json(file, "Remove it, and the base model answers again.")
        if there["made_by"] != made_by:
            raise ConfigError(
                f"{file} holds answers of {there['made_by']['model']} to other prompts or of "
                "another length; name another folder."
            )
        return [Answer(*pair) for pair in there["answers"]]
    say(f"{name} answers {len(prompts)} general prompts")
    base = load()
    talks = [Conversation((Message("user", text),), (), 0) for text in prompts]
    written = base.respond(talks)
    answers = [
        Answer(render_prompt(talk.messages, base.chat), turn.token_ids)
        for talk, turn in zip(talks, written, strict=True)
        if turn.token_ids
    ]
    write_text(file, json.dumps({"made_by": made_by, "answers": answers}) + "\n")
    return answers


@torch.inference_mode()
def measure_drift(
    base: PreTrainedModel, model: PreTrainedModel, answers: Sequence[Answer]
) -> Drift:
    """Compare both models at every token of the answers.

    They must share a vocabulary. Raises ConfigError if they do not, or there are no answers.
    """
    if not answers:
        raise ConfigError("The base model has answered nothing, so there is nothing to compare.")
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (base, model)]
    if sizes[0] != sizes[1]:
        raise ConfigError(f"The models know {sizes[0]:,} and {sizes[1]:,} tokens; they must agree.")
    sums: dict[str, float] = {}
    squares: dict[str, float] = {}
    n_tokens = 0
    for batch in _batches(answers, LOGITS_AT_ONCE // sizes[0]):
        found = divergences(_logits(base, batch), _logits(model, batch))
        n_tokens += sum(len(answer) for _, answer in batch)
        for name, values in found.items():
            exact = values.double()
            sums[name] = sums.get(name, 0.0) + float(exact.sum())
            squares[name] = squares.get(name, 0.0) + float(exact.square().sum())
    row: dict[str, float] = {}
    for name, total in sums.items():
        mean = total / n_tokens
        variance = max(0.0, squares[name] / n_tokens - mean**2)
        row[name], row[f"{name}_error"] = mean, math.sqrt(variance / n_tokens)
    return Drift(n_tokens=n_tokens, **row)


def _batches(answers: Sequence[Answer], n_tokens: int) -> Iterator[list[Answer]]:
    """The answers, those of nearly one length together, at most n tokens at a time or one row."""
    batch: list[Answer] = []
    for answer in sorted(answers, key=lambda each: len(each.prompt) + len(each.answer)):
        width = len(answer.prompt) + len(answer.answer)
        if batch and width * (len(batch) + 1) > n_tokens:
            yield batch
            batch = []
        batch.append(answer)
    yield batch


def _logits(model: PreTrainedModel, batch: Sequence[Answer]) -> Tensor:
    """What the model expects at each token of the answers: (tokens, vocabulary).

    Rows are padded on the right, where causal attention lets nobody look, so that tokens have the
    positions that they would have alone.
    """
    rows = [[*prompt, *answer] for prompt, answer in batch]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    seen = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=model.device)
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
    # What is expected at a token is said at the one before it.
    return torch.cat(
        [
            logits[place, len(prompt) - 1 : len(prompt) + len(answer) - 1]
            for place, (prompt, answer) in enumerate(batch)
        ]
    )


def drift_row(drift: Drift) -> Mapping[str, Any]:
    """The columns of a table."""
    return vars(drift)
