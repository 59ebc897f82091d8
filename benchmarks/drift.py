"""How far a fine-tuned model has moved from its base: divergences over what the base would say.

The base model answers general prompts greedily; both models then read these answers, and at every
token of them their distributions over the whole vocabulary are compared (arXiv 2508.20755, section
6). Prompts are not about facts, so a model that has only learnt new ones would not move at all.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.statistics import clustered_mean
from itl_agents.agent import Conversation
from itl_agents.continuation import last_logits
from itl_agents.huggingface import HFAgent
from itl_agents.render import render_prompt
from itl_env.dialogue import Message
from itl_env.errors import ConfigError
from itl_env.files import read_json, write_text
from itl_train.sweep import digest

PROMPTS = Path(__file__).parent / "general_prompts.txt"


class Answer(NamedTuple):
    """A prompt of the base model and its answer, as token ids."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Drift:
    """Divergences from the base model to another, averaged over the tokens of its answers.

    kl: KL(base || model), in nats. tv: total variation, half the L1 distance. log_square: half the
    expected square of the log ratio, which is near KL where models are close (Schulman 2020,
    "Approximating KL Divergence", k2).

    `_error` is the standard error over answers, for tokens of one answer are alike; `_token_error`
    the one over tokens as if these were independent, as in the paper. tokens, tv_sums: of each
    answer, its length and its TV summed over tokens, so that models can be compared in pairs.
    """

    n_tokens: int
    kl: float
    kl_error: float
    kl_token_error: float
    tv: float
    tv_error: float
    tv_token_error: float
    log_square: float
    log_square_error: float
    log_square_token_error: float
    tokens: list[int]
    tv_sums: list[float]


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
    made_by: Mapping[str, Any],
    prompts: Sequence[str],
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
) -> list[Answer]:
    """The base model's greedy answers, those it has given before read from the folder.

    load: the agent that answers; only called if it must. made_by: all that answers hang on, such as
    the model's name and the length of turns; for each such the folder has a file of its own.

    Answers that are empty are left out. Raises ITLError if the file is damaged.
    """
    file = folder / f"answers-{digest(made_by)}.json"
    known: list[dict[str, Any]] = []
    if file.exists():
        known = read_json(file, "Remove it, and the base model answers again.")["answers"]
    there = {each["text"]: Answer(each["prompt"], each["answer"]) for each in known}
    missing = [text for text in prompts if text not in there]
    if missing:
        say(f"{made_by['model']} answers {len(missing)} general prompts")
        base = load()
        talks = [Conversation((Message("user", text),), (), 0) for text in missing]
        for text, talk, turn in zip(missing, talks, base.respond(talks), strict=True):
            there[text] = Answer(
                render_prompt(talk.messages, base.chat), list(turn.token_ids or ())
            )
        answers = [{"text": text, **answer._asdict()} for text, answer in there.items()]
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"made_by": made_by, "answers": answers}) + "\n")
    return [answer for text in prompts if (answer := there[text]).answer]


@torch.inference_mode()
def measure_drift(
    base: PreTrainedModel, model: PreTrainedModel, answers: Sequence[Answer]
) -> Drift:
    """Compare both models at every token of the answers, one answer at a time.

    So nothing is padded, and of each model the logits of one answer are held.

    They must share a vocabulary. Raises ConfigError if they do not, or there are no answers.
    """
    if not answers:
        raise ConfigError("The base model has answered nothing, so there is nothing to compare.")
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (base, model)]
    if sizes[0] != sizes[1]:
        raise ConfigError(f"The models know {sizes[0]:,} and {sizes[1]:,} tokens; they must agree.")
    found = [divergences(_logits(base, answer), _logits(model, answer)) for answer in answers]
    tokens = [len(answer.answer) for answer in answers]
    row: dict[str, float] = {}
    totals: dict[str, list[float]] = {}
    for name in ("kl", "tv", "log_square"):
        totals[name] = [float(each[name].double().sum()) for each in found]
        row[name], row[f"{name}_error"] = clustered_mean(totals[name], tokens)
        values = torch.cat([each[name].double() for each in found])
        row[f"{name}_token_error"] = float(values.std(correction=0)) / math.sqrt(len(values))
    return Drift(n_tokens=sum(tokens), tokens=tokens, tv_sums=totals["tv"], **row)


def _logits(model: PreTrainedModel, answer: Answer) -> Tensor:
    """What the model expects at each token of an answer: (tokens, vocabulary)."""
    ids = torch.tensor([[*answer.prompt, *answer.answer]], device=model.device)
    n = len(answer.answer) + 1
    logits = model(input_ids=ids, use_cache=False, **last_logits(model, n)).logits
    return logits[0, -n:-1]  # what is expected at a token is said at the one before it
