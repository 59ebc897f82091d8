"""Rows of `itl_env.toolformer` as token ids: for training, cross-entropy and generation alike.

A row is the model's BOS, the prompt, a line break, the target, and the model's end token. There is
no chat template: what a model is asked with is, token by token, what it was trained on.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itl_agents.continuation import continue_prompts, last_logits, own_stops
from itl_agents.render import IGNORED, Rendered
from itl_env.errors import ConfigError
from itl_train.activations import padded


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token by which every row begins; none if the tokenizer has no such."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def format_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of what stands before a target: BOS, if the tokenizer has one, prompt and line break."""
    return [*bos_ids(tokenizer), *_encode(prompt + "\n", tokenizer, first=True)]


def format_example(prompt: str, target: str, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """A whole row, of which the target and the end token are trained.

    Whatever prompt and target spell, it is text: no control token but BOS and the end token is ever
    among the ids. Raises ConfigError for a tokenizer without an end token.
    """
    before = format_prompt(prompt, tokenizer)
    written = [*_encode(target, tokenizer, first=False), end_id(tokenizer)]
    return Rendered(before + written, [IGNORED] * len(before) + written)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a row; raises ConfigError if there is none."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"The tokenizer of {tokenizer.name_or_path} has no end token, so a model could not "
            "learn where to stop; set its eos_token."
        )
    return int(tokenizer.eos_token_id)


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 96,
    batch_size: int = 32,
) -> list[str]:
    """What a model writes after each prompt, greedily, up to its end token, which is left out.

    prompts: as they are in rows. max_new_tokens: at which a text is cut.

    Raises ConfigError for a prompt that leaves no room for another token in the model.
    """
    stops = sorted({end_id(tokenizer), *own_stops(model)})
    ids = [format_prompt(prompt, tokenizer) for prompt in prompts]
    room = getattr(model.config, "max_position_embeddings", None) or 2**31
    if ids and (longest := max(map(len, ids))) >= room:
        raise ConfigError(
            f"A prompt has {longest:,} tokens, which leaves no room in the {room:,} of the model."
        )
    texts = [""] * len(ids)
    for places in batches_by_length(ids, batch_size):
        asked = [ids[place] for place in places]
        most = min(max_new_tokens, room - max(map(len, asked)))
        written = continue_prompts(model, asked, stop_ids=stops, max_new_tokens=most)
        for place, tokens in zip(places, written, strict=True):
            texts[place] = _decode(tokens[:-1] if tokens[-1] in stops else tokens, tokenizer)
    return texts


class Score(NamedTuple):
    """Of a row: the mean negative log-likelihood of its labels in nats, and whether each label is
    the likeliest token at its place.

    If it is, the target is what the model writes greedily after the prompt, and need not be
    written to be known.
    """

    loss: float
    is_likeliest: bool


@torch.inference_mode()
def score_targets(
    model: PreTrainedModel, rows: Sequence[Rendered], batch_size: int = 32
) -> list[Score]:
    """How likely the labels of each row are, from one forward pass a batch."""
    scores = [Score(0.0, False)] * len(rows)
    for places in batches_by_length([row.input_ids for row in rows], batch_size):
        for place, score in zip(places, _scores(model, [rows[p] for p in places]), strict=True):
            scores[place] = score
    return scores


def written_after(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    rows: Sequence[Rendered],
    scores: Sequence[Score],
    *,
    room: int = 0,
    batch_size: int = 32,
) -> list[str]:
    """What `generate_texts` gives for prompts whose rows have been scored; only where a target is
    not what is written must the model write.

    room: tokens that may be written beyond the longest target. Rows must fit into the model, and
    no token at which it stops may be in a target but at its end, as it is with `format_example`.
    """
    targets = [[label for label in row.labels if label != IGNORED] for row in rows]
    texts = [_decode(ids[:-1], tokenizer) for ids in targets]  # but for the end token
    others = [i for i, score in enumerate(scores) if not score.is_likeliest]
    most = max(map(len, targets), default=0) + room
    asked = [prompts[i] for i in others]
    written = generate_texts(model, tokenizer, asked, most, batch_size)
    for i, text in zip(others, written, strict=True):
        texts[i] = text
    return texts


def _scores(model: PreTrainedModel, rows: Sequence[Rendered]) -> list[Score]:
    """The same of rows side by side."""
    ids, seen = (each.to(model.device) for each in padded([row.input_ids for row in rows]))
    labels = [torch.tensor(row.labels, device=model.device) for row in rows]
    targets = pad_sequence(labels, batch_first=True, padding_value=IGNORED)[:, 1:]
    # Logits of nothing before the first target.
    n = int((targets != IGNORED).any(0).flip(0).nonzero()[-1]) + 1
    keep = last_logits(model, n + 1)
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False, **keep).logits
    is_target = targets[:, -n:] != IGNORED
    picked, wanted = logits[:, -n - 1 : -1][is_target], targets[:, -n:][is_target]
    nats = F.cross_entropy(picked.float(), wanted, reduction="none")
    counts = is_target.sum(1).tolist()
    by_row = zip(nats.split(counts), (picked.argmax(-1) == wanted).split(counts), strict=True)
    return [Score(float(own.mean()), bool(hits.all())) for own, hits in by_row]


def batches_by_length(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of rows, so many a batch, those of nearly one length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return (order[start : start + size] for start in range(0, len(order), size))


def _encode(text: str, tokenizer: PreTrainedTokenizerBase, *, first: bool) -> list[int]:
    """Ids of a text, which none of the control tokens that it spells are among.

    first: whether nothing stands before it. A lone surrogate, which no one can encode, is escaped.
    """
    text = text.encode("utf-8", errors="backslashreplace").decode()
    names = {token.content for token in tokenizer.added_tokens_decoder.values()}
    names = {name for name in names if name.strip()}
    spelled = re.compile("|".join(map(re.escape, sorted(names))) or r"(?!)")
    pieces: list[str] = []
    start = 0
    # What spells a control token is cut behind its first letter.
    while found := spelled.search(text, start):
        pieces.append(text[start : found.start() + 1])
        start = found.start() + 1
    ids: list[int] = []
    for place, piece in enumerate((*pieces, text[start:])):
        ids += _plain(piece, tokenizer) if first and not place else _inside(piece, tokenizer)
    return ids


def _plain(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _inside(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a piece before which there is something, even of a tokenizer that puts a space before
    every text.
    """
    before = _plain("\n", tokenizer)
    behind = _plain("\n" + text, tokenizer)
    is_behind = behind[: len(before)] == before
    return behind[len(before) :] if is_behind else _plain(text, tokenizer)


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text
