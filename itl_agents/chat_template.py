"""A pretrained model's chat template as a tokenizer of dialogues.

A template is a program: it may trim, drop or move what it is given, and what it writes may hang on
what is said. So it is never shown what is said. It is asked once for each sequence of roles, with
slots instead of words; what it writes around the slots are the marks of the dialogue, and the words
are encoded apart, so that none of them ever becomes a control token.

A dialogue is rendered as it is played: what stood before a turn when the model wrote it stays, even
where the template would write the past otherwise. So what a model is trained on is, token by token,
what it meets when it is asked.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from itl_agents.native_calls import FIND, read_call
from itl_agents.render import Around
from itl_env.actions import Lookup, parse_lookup
from itl_env.dialogue import Role, lookup_query
from itl_env.errors import ConfigError, ITLError

Calls = Literal["text", "native"]

OPTIONS: Mapping[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}
"""Variables that some templates use and others pass over: models that think first would else do so
at every question, and Llama 3 would be told another date every day."""

TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": FIND,
        "description": "Look one attribute of a person up in the database.",
        "parameters": {
            "type": "object",
            "properties": {
                "attribute": {"type": "string", "description": "what to look up"},
                "name": {"type": "string", "description": "whose it is"},
            },
            "required": ["attribute", "name"],
        },
    },
}


class ChatTokenizer:
    """A `DialogueTokenizer` made of a tokenizer of transformers and its chat template.

    calls: `text`, as the environment spells them, or `native`, as the model has learnt to call
        tools; the template then tells it of the tool `find`.
    system: a system message before every dialogue; where it is empty, what the template puts there
        by itself stays.
    name: what errors call the model.
    options: further variables of the template.

    Raises ConfigError if there is no template, or it does not show a question and an answer, and in
    `around` if it does not show the roles it is asked for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        calls: Calls = "text",
        system: str = "",
        name: str = "the model",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"{name} has no chat template; take its instruct variant, or set "
                "`tokenizer.chat_template`."
            )
        self.tokenizer = tokenizer
        self.calls: Calls = calls
        self.system = system
        self.name = name
        self.options = {**OPTIONS, **(options or {})}
        self._reply_role = "ipython" if "ipython" in str(tokenizer.chat_template) else "tool"
        special = {token.content for token in tokenizer.added_tokens_decoder.values()}
        self._control = {text for text in special if text.strip()}
        self._spelled = re.compile("|".join(map(re.escape, sorted(self._control))) or r"(?!)")
        self._special_ids = {
            id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        # Tokenizers that put a space before every text (Llama 2's, say) must not do so in mid-text.
        self._before = self._plain("\n")
        behind = self._plain("\nx")
        self._spaces = behind[: len(self._before)] == self._before and behind[
            len(self._before) :
        ] != self._plain("x")
        self._around: dict[tuple[tuple[Role, ...], bool], list[Around]] = {}
        self._inside: tuple[int, ...] = ()  # between the two arguments of a native call
        self._quoted = False  # whether these arguments are JSON strings
        self._reply_quoted = False
        self._answer_end = self.around(("user", "assistant"), False)[-1].end[-1]

    # -- what stands around messages -----------------------------------------------------------

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """See `DialogueTokenizer.stop_ids`; that of a call only where the template knows tools."""
        return tuple({self._answer_end, self._call_end()})

    def check_tool(self) -> None:
        """Raise ConfigError if the template cannot show a call and its reply."""
        self.around(("user", "assistant", "database"), True)
        if self.calls == "native":
            head = self.around(("user", "assistant", "database"), True)[1].head
            turn = self.encode_turn(lookup_query("some_attribute", "Some Name"), True)
            end = self.around(("user", "assistant", "database"), True)[2].end
            written = self.decode([*head, *turn, *end])
            if read_call(written) != ("some_attribute", "Some Name"):
                raise ConfigError(
                    f"{self.name} calls tools in a way that is not understood here ({written!r}); "
                    "take text calls."
                )

    def kind_of(self, end: int | None) -> Literal["query", "answer"] | None:
        """What a turn is that ends in this mark; None if the mark does not tell."""
        call = self._call_end()
        if call == self._answer_end or end not in (call, self._answer_end):
            return None
        return "query" if end == call else "answer"

    def _call_end(self) -> int:
        try:
            return self.around(("user", "assistant", "database"), True)[2].end[-1]
        except ConfigError:
            return self._answer_end

    def around(self, roles: tuple[Role, ...], prompt: bool) -> list[Around]:
        """See `DialogueTokenizer.around`."""
        if (known := self._around.get((roles, prompt))) is None:
            known = self._around[roles, prompt] = self._read(roles, prompt)
        return known

    def _read(self, roles: tuple[Role, ...], prompt: bool) -> list[Around]:
        written = self._written(roles, prompt)
        if "assistant" not in roles:
            return [Around(between=self._marks(text)) for text in written]
        last = len(roles) - 1 - roles[::-1].index("assistant")
        before = self.around(roles[:last], True)
        head = self._beyond(self._written(roles[:last], True)[-1], written[last])
        after = self._marks(written[last + 1])
        calls = roles[last + 1 : last + 2] == ("database",)
        n_end = self._end_of_turn(after, roles, native=calls and self.calls == "native")
        return [
            *before[:-1],
            before[-1]._replace(head=head),
            Around(end=after[:n_end], between=after[n_end:]),
            *(Around(between=self._marks(text)) for text in written[last + 2 :]),
        ]

    def _beyond(self, prompted: str, opening: str) -> tuple[int, ...]:
        """Ids of what stands before a turn beyond the prompt, which the assistant must write."""
        if opening.startswith(prompted):
            return self._marks(opening.removeprefix(prompted))
        # The template writes a prompt otherwise once it is past, say without a thought.
        asked, there = self._marks(prompted), self._marks(opening)
        pairs = zip(asked, there, strict=False)
        return there[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]

    def _end_of_turn(self, after: Sequence[int], roles: Sequence[Role], *, native: bool) -> int:
        """How many of the ids behind an assistant's turn it must write itself."""
        ends = {self._answer_end} if native else self._special_ids
        for place, id_ in enumerate(after):
            if id_ in ends:
                return place + 1
        raise ConfigError(
            f"The chat template of {self.name} puts no control token behind the assistant's turn "
            f"({' '.join(roles)}), so the model could not learn where to stop."
        )

    def _marks(self, text: str) -> tuple[int, ...]:
        """Ids of what the template writes, in which control tokens are meant."""
        starts = self._spelled.match(text)
        return tuple(self._plain(text) if starts else self._inside_text(text))

    def _plain(self, text: str) -> list[int]:
        """Ids of a text of its own."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _inside_text(self, text: str) -> list[int]:
        """Ids of a piece of a text, before which there is something."""
        if not self._spaces or not text:
            return self._plain(text)
        ids = self._plain("\n" + text)
        is_behind = ids[: len(self._before)] == self._before
        return ids[len(self._before) :] if is_behind else self._plain(text)

    def _written(self, roles: tuple[Role, ...], prompt: bool) -> list[str]:
        """What the template writes before, between and behind messages of these roles."""
        slots: list[str] = []  # of each message; a native call has two
        chat: list[dict[str, Any]] = []
        if self.system:
            chat.append({"role": "system", "content": self.system})

        def slot() -> str:
            slots.append(f"ZQ{len(slots)}QZ")
            return slots[-1]

        firsts, call = [], 0
        for place, role in enumerate(roles):
            firsts.append(len(slots))
            replied = roles[place + 1 : place + 2] == ("database",)
            if role == "assistant" and replied and self.calls == "native":
                call += 1
                function = {"name": FIND, "arguments": {"attribute": slot(), "name": slot()}}
                tool_call = {"type": "function", "id": _call_id(call), "function": function}
                chat.append({"role": role, "content": "", "tool_calls": [tool_call]})
            elif role == "database":
                reply = {"role": self._reply_role, "content": slot()}
                if self.calls == "native":
                    reply |= {"name": FIND, "tool_call_id": _call_id(call)}
                chat.append(reply)
            else:
                chat.append({"role": role, "content": slot()})
        try:
            whole = self.tokenizer.apply_chat_template(
                chat,
                tools=[dict(TOOL)] if self.calls == "native" else None,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.options,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ConfigError(self._cannot_show(roles, f"refuses it: {error}")) from None
        assert isinstance(whole, str)
        pieces = [whole]
        for number, text in enumerate(slots):
            head, found, tail = pieces[-1].partition(text)
            if not found or text in tail:
                role = roles[max(i for i, first in enumerate(firsts) if first <= number)]
                how = "repeats or moves" if text in whole else "drops"
                raise ConfigError(self._cannot_show(roles, f"{how} what the {role} says"))
            pieces[-1:] = [head, tail]
        return self._without_calls(pieces, firsts, roles)

    def _without_calls(
        self, pieces: list[str], firsts: Sequence[int], roles: Sequence[Role]
    ) -> list[str]:
        """The pieces around whole messages; what is inside of native calls is kept apart."""
        kept = []
        bounds = [*firsts, len(pieces) - 1]
        for place, first in enumerate(bounds[:-1]):
            kept.append(pieces[first])
            if bounds[place + 1] - first == 2:
                self._inside = self._marks(pieces[first + 1])
                self._quoted = pieces[first].endswith('"')
            elif roles[place] == "database":
                self._reply_quoted = pieces[first].endswith('"')
        return [*kept, pieces[-1]]

    def _cannot_show(self, roles: Sequence[Role], why: str) -> str:
        """An error for roles that the template does not know."""
        what = "a system message" if self.system else "a question and an answer"
        then = "take another model."
        if "database" in roles:
            what = "the tool's reply"
            other = "native" if self.calls == "text" else "text"
            then = f"take {other} calls, another model, or in-weight, without a tool."
        return (
            f"The chat template of {self.name} cannot show {what}, for it {why.rstrip('.')}; {then}"
        )

    # -- what is said ----------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """See `DialogueTokenizer.encode`; a lone surrogate, which no one can encode, is escaped."""
        text = text.encode("utf-8", errors="backslashreplace").decode()
        ids: list[int] = []
        start = place = 0
        # What spells a control token is cut behind its first letter.
        while found := self._spelled.search(text, place):
            place = found.start() + 1
            ids += self._inside_text(text[start:place])
            start = place
        return [*ids, *self._inside_text(text[start:])]

    def encode_reply(self, text: str) -> list[int]:
        """See `DialogueTokenizer.encode_reply`; some templates write replies as JSON."""
        return self.encode(_json(text) if self._reply_quoted else text)

    def encode_turn(self, text: str, calls: bool) -> list[int]:
        """See `DialogueTokenizer.encode_turn`.

        Raises ITLError for a native call that is not of the dialect `lookup`.
        """
        if not (calls and self.calls == "native"):
            return self.encode(text)
        request = parse_lookup(text)
        if not isinstance(request, Lookup):
            raise ITLError(f"{text!r} is no call of the tool {FIND}, as which it is to be shown.")
        attribute, name = (self.encode(_json(word) if self._quoted else word) for word in request)
        return [*attribute, *self._inside, *name]

    def decode(self, ids: Sequence[int]) -> str:
        """See `DialogueTokenizer.decode`."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


def _json(text: str) -> str:
    """The text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _call_id(number: int) -> str:
    return f"call{number:05}"  # nine letters and digits, as some templates demand
