"""The only place that turns a dialogue into token ids, and says which of them are trained.

NanoLlama's marks make it::

    <|user|>question<|assistant|>call<|database|>reply<|assistant|>statement<|eod|>

and the chat template of a pretrained model what that model is used to (`itl_agents.chat_template`).
What the model must write is trained: its own text and what ends its turn, such as `<|database|>`
after a call (the model decides to hand over) and `<|eod|>` after its answer. The user's text, the
reply, and what the environment puts around them are not.

Where a dialogue may take only so many tokens, what the user says first loses its left part; the
marks, replies and the assistant's turns stay whole.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

from itl_env.dialogue import Message, Role
from itl_env.episode import Completion, Episode
from itl_env.errors import ConfigError, ITLError

IGNORED = -100
"""The label of a token that is not trained (the value PyTorch's cross-entropy skips)."""


class Around(NamedTuple):
    """Ids between two messages, before the first one, or behind the last one.

    end: end the assistant's turn before. It must write them, so they are trained; the last one is
        the mark at which it stops.
    between: put by the environment.
    head: begin the assistant's turn that follows, and are trained as a part of it.
    """

    end: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    head: tuple[int, ...] = ()


class DialogueTokenizer(Protocol):
    """A tokenizer that knows what stands around the messages of a dialogue."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The marks at which the assistant's turns end."""
        ...

    def around(self, roles: tuple[Role, ...], prompt: bool) -> Sequence[Around]:
        """What stands around messages of these roles: one item more than there are messages.

        prompt: whether the assistant is to write next.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of content; whatever the text spells, never a mark."""
        ...

    def encode_reply(self, text: str) -> list[int]:
        """Ids of what the tool has replied."""
        ...

    def encode_turn(self, text: str, calls: bool) -> list[int]:
        """Ids of an assistant's turn without its head and end; `calls` if the tool will reply."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; marks are shown by their names."""
        ...


class Rendered(NamedTuple):
    """Token ids and, for each, its own id if it is trained, else IGNORED. Labels are unshifted."""

    input_ids: list[int]
    labels: list[int]


def render(episode: Episode, tokenizer: DialogueTokenizer, max_tokens: int = 0) -> Rendered:
    """The whole episode; see `render_messages` for `max_tokens`.

    Raises ITLError if nothing in it is trained, and ConfigError if it cannot be made to fit.
    """
    rendered = render_messages(
        episode.messages, tokenizer, episode.completions, max_tokens=max_tokens
    )
    if max_tokens and (n := len(rendered.input_ids)) > max_tokens:
        whose = f"Sample {episode.sample.id!r}" if episode.sample else f"Episode {episode.index}"
        raise ConfigError(
            f"{whose} takes {n} tokens even without its question, more than the {max_tokens} of "
            "max_tokens; raise it, or leave that one out."
        )
    if rendered.labels.count(IGNORED) == len(rendered.labels):
        raise ITLError(f"Episode {episode.index} holds no assistant turn to train on.")
    return rendered


def render_prompt(
    messages: Sequence[Message],
    tokenizer: DialogueTokenizer,
    completions: Sequence[Completion] = (),
    max_tokens: int = 0,
) -> list[int]:
    """Ids of the dialogue so far, up to where the assistant writes; see `render_messages`."""
    return render_messages(
        messages, tokenizer, completions, prompt=True, max_tokens=max_tokens
    ).input_ids


def render_messages(
    messages: Sequence[Message],
    tokenizer: DialogueTokenizer,
    completions: Sequence[Completion] = (),
    *,
    prompt: bool = False,
    max_tokens: int = 0,
) -> Rendered:
    """Ids and labels of messages.

    completions: the assistant's turns in order; one with token ids is taken as it was sampled
        instead of being encoded again from text.
    prompt: whether the assistant is to write next.
    max_tokens: if there are more, the first message of the user loses tokens from the left, all but
        its last one at most; what is longer even so is left so. 0 for no limit.
    """
    roles = tuple(message.role for message in messages)
    around = tokenizer.around(roles, prompt)
    ids = list(around[0].between)
    labels = [IGNORED] * len(ids)
    turns = iter(completions)
    question: slice | None = None  # of the user's first words
    for place, (role, text) in enumerate(messages):
        end, between, _ = around[place + 1]
        if role == "assistant":
            turn = next(turns, None)
            if turn is not None and turn.token_ids is not None:
                written = list(turn.token_ids)
                # The task may have taken the turn otherwise than the model marked it, and a turn
                # that was cut has no mark: show what followed.
                if written and written[-1] in tokenizer.stop_ids:
                    written.pop()
                written += end[-1:]
            else:
                calls = roles[place + 1 : place + 2] == ("database",)
                written = [*around[place].head, *tokenizer.encode_turn(text, calls), *end]
            ids += written
            labels += written
        else:
            replies = role == "database"
            content = tokenizer.encode_reply(text) if replies else tokenizer.encode(text)
            if question is None:
                question = slice(len(ids), len(ids) + len(content))
            ids += content
            labels += [IGNORED] * len(content)
        ids += between
        labels += [IGNORED] * len(between)
    if max_tokens and question is not None:
        n = min(len(ids) - max_tokens, question.stop - question.start - 1)
        if n > 0:
            cut = slice(question.start, question.start + n)
            del ids[cut], labels[cut]
    return Rendered(ids, labels)


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
