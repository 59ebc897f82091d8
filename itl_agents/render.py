"""The only place that turns a dialogue into token ids, and says which of them are trained.

A dialogue becomes::

    <|user|>question<|assistant|>call<|database|>reply<|assistant|>statement<|eod|>

What the model must write is trained: its own text, the `<|database|>` mark that ends a call (the
model decides to hand over) and the `<|eod|>` after its answer. The user's text, the reply and the
`<|assistant|>` marks that the environment puts are not.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

from itl_env.dialogue import Message
from itl_env.episode import Completion, Episode

IGNORED = -100
"""The label of a token that is not trained (the value PyTorch's cross-entropy skips)."""


class DialogueTokenizer(Protocol):
    """A tokenizer with the four marks of a dialogue."""

    vocabulary_size: int
    user_id: int
    assistant_id: int
    database_id: int
    end_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of content; whatever the text spells, never one of the marks."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; marks are shown by their names."""
        ...


class Rendered(NamedTuple):
    """Token ids and, for each, its own id if it is trained, else IGNORED. Labels are unshifted."""

    input_ids: list[int]
    labels: list[int]


def render(episode: Episode, tokenizer: DialogueTokenizer) -> Rendered:
    """The whole episode; raises ValueError if nothing in it is trained."""
    rendered = render_messages(episode.messages, tokenizer, episode.completions)
    if rendered.labels.count(IGNORED) == len(rendered.labels):
        raise ValueError(f"Episode {episode.index} holds no assistant turn to train on.")
    return rendered


def render_prompt(
    messages: Sequence[Message],
    tokenizer: DialogueTokenizer,
    completions: Sequence[Completion] = (),
) -> list[int]:
    """Ids of the dialogue so far and the mark after which the assistant writes."""
    return [*render_messages(messages, tokenizer, completions).input_ids, tokenizer.assistant_id]


def render_messages(
    messages: Sequence[Message],
    tokenizer: DialogueTokenizer,
    completions: Sequence[Completion] = (),
) -> Rendered:
    """Ids and labels of messages.

    completions: the assistant's turns in order; one with token ids is taken as it was sampled
        instead of being encoded again from text.
    """
    ids: list[int] = []
    labels: list[int] = []
    turns = iter(completions)
    for place, message in enumerate(messages):
        if message.role != "assistant":
            mark = tokenizer.user_id if message.role == "user" else tokenizer.database_id
            # The mark that ends a call belongs to the assistant's turn.
            new = tokenizer.encode(message.content)
            new = [mark, *new] if message.role == "user" else new
            ids += new
            labels += [IGNORED] * len(new)
            continue
        ends_call = place + 1 < len(messages) and messages[place + 1].role == "database"
        end = tokenizer.database_id if ends_call else tokenizer.end_id
        turn = next(turns, None)
        written = _written(message, turn, tokenizer)
        if not written or written[-1] not in (tokenizer.database_id, tokenizer.end_id):
            written = [*written, end]
        elif written[-1] != end:
            # The task took the turn otherwise than the model marked it: show what followed.
            written = [*written[:-1], end]
        ids += [tokenizer.assistant_id, *written]
        labels += [IGNORED, *written]
    return Rendered(ids, labels)


def _written(message: Message, turn: Completion | None, tokenizer: DialogueTokenizer) -> list[int]:
    if turn is not None and turn.token_ids is not None:
        return turn.token_ids
    return tokenizer.encode(message.content)


def spans(rendered: Rendered, tokenizer: DialogueTokenizer) -> Iterator[tuple[str, bool]]:
    """The dialogue in pieces: their text, and whether it is trained.

    Line breaks stay; other characters that a terminal would act on are shown as escapes.
    """
    pairs = zip(rendered.input_ids, rendered.labels, strict=True)
    for trained, piece in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        text = tokenizer.decode([token for token, _ in piece])
        yield "".join(map(_visible, text)), trained


def _visible(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    return character.encode("unicode_escape").decode()


def coloured(rendered: Rendered, tokenizer: DialogueTokenizer) -> str:
    """The dialogue for a terminal: what is trained in green, the rest in grey."""
    return "".join(
        f"\033[{32 if trained else 90}m{text}\033[0m"
        for text, trained in spans(rendered, tokenizer)
    )


def bracketed(rendered: Rendered, tokenizer: DialogueTokenizer) -> str:
    """The dialogue as plain text: what is trained in [brackets]."""
    return "".join(f"[{text}]" if trained else text for text, trained in spans(rendered, tokenizer))
