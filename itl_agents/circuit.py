"""A transformer built by hand that looks up any fact: theorem 4.2 of arXiv 2508.20755, running.

The theorem says that a transformer of at most 8 blocks, whose size hangs on the attributes and not
on the number of names, can answer every question about a fact through a database. `build_circuit`
writes its weights down from the attributes and their phrasing; nothing is trained, and no name is
ever seen. It has 4 blocks:

1. **Marks.** Three heads look at the marks of a dialogue, the tokens that are no bytes: where the
   question ended, where this turn began, and whether and where a call has ended, which tells a call
   from an answer.
2. **Reading.** A head for each letter that tells the attributes apart looks at it in the question
   (`itl_agents.circuit_questions`). What to say about one attribute in a call, or in an answer, is
   a program (`itl_agents.circuit_scripts`); a hidden unit for each fires when it is meant, and
   writes down the lengths of its parts.
3. **Counting.** One head finds the length of the name. Hidden units compare the place in this turn
   with where name and value begin and end: they count fixed text written so far, and open the gates
   of the copying heads.
4. **Writing.** One head copies the next letter of the name from the question, one the next letter
   of the value from the reply, both by their place (letters repeat, places do not). Otherwise, a
   third brings the square of the count, and with both a hidden unit for each letter of fixed text
   fires at its place in its program, and writes it.

After "Where was Bo born?" has been asked, at place 19, the call "FIND birth_place FOR Bo" is
written. Its first 21 letters are the program's, so the 22nd is the name's; as there are 10 letters
before the name in the question, it is looked for at place 22 + (10 - 21) = 11. The 24th would be
beyond the 2 letters of the name, so it is the program's 22nd, the mark that ends the call.

What makes it exact is that each whole number n is held as two: n and n^2. All points of a parabola
are corners of it, so that, for whole numbers,

- a head finds place n: its score 2 n p - p^2 = n^2 - (n - p)^2 is largest at p = n, by 1 at least;
- a ReLU recognises n: 1 - (n - c)^2 is 1 where n is c, and 0 or less elsewhere;
- a logit decodes n: 2 n t - t^2 is largest for the token t = n, by 1 at least.

One trick so serves for tokens, places, programs and counts. All its numbers are whole, and so
small that float32 holds them and their sums exactly; this bounds dialogues to 4,096 tokens, and is
checked for phrasings. Softmax, made sharp enough, gives 1 to one place and 0 to all others, and the
largest logit is 1 above the next. The width of the stream depends neither on the number of names
nor, but for the letters that must be read, on that of the attributes; the hidden units of the last
block grow with the text of all programs.

    >>> from itl_agents import rollout
    >>> from itl_agents.circuit import CircuitAgent
    >>> from itl_env import FactDatabase, RecallTask, people
    >>> task = RecallTask(FactDatabase.create("sqlite://", people(3)))
    >>> agent = CircuitAgent(task)
    >>> sum(episode.reward for episode in rollout(agent, task, task.facts()))
    12.0
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from itl_agents.agent import Conversation
from itl_agents.circuit_model import Circuit, Head, Linear, Plan, Unit, constant, register
from itl_agents.circuit_questions import MOST_ALIKE, Letter, Reading, readings, unreadable
from itl_agents.circuit_scripts import (
    CALL_ENDS,
    DIALOGUE_ENDS,
    OPENS,
    TURN_BEGINS,
    Scripts,
    in_bytes,
)
from itl_agents.nanollama.agent import NanoLlamaAgent
from itl_agents.nanollama.tokenizer import ByteTokenizer
from itl_agents.render import IGNORED, Rendered
from itl_agents.scripted import read_question
from itl_env.dialogue import (
    ERROR_PREFIX,
    NO_RESULT,
    STYLES,
    VOWELS,
    Phrasing,
    Style,
    phrasings,
)
from itl_env.episode import Completion
from itl_env.errors import ConfigError, ITLError
from itl_env.recall import RecallTask
from itl_env.text import unstorable

SHARP = 128.0
"""What scores are multiplied by: a place that is off by one gets exp(-128) of the attention, which
is 0 in float32."""
MAX_LENGTH = 2**12
"""Tokens up to which float32 holds the squares of places."""
WHOLE = 2**24
"""Up to it, float32 holds every whole number."""
FAR = 2.0 * MAX_LENGTH
"""Farther than any place: what is to look at nothing looks before the dialogue, at its first mark,
which carries a 0."""

token, token_squared = register("token"), register("token^2")
place, place_squared = register("place"), register("place^2")
asked = register("end of question")  # the place of the first turn's mark
turn = register("turn")  # the place of this turn's mark
called = register("end of call")  # the place of its mark; 0 where there is none
answering = register("answering")  # 1 in the second turn
vowel = register("vowel")  # in that turn: whether the value begins with one
program, program_squared = register("program"), register("program^2")
lead = register("lead")  # letters before the name, in this turn
around = register("around")  # letters around the name in the question, and its two marks
# Until block 3 adds FAR to both, except while name or value are copied: letters between name and
# value in this turn, and from the place in this turn to that of the name in the question.
middle, shift = register("middle"), register("shift")
name_length = register("name length")
script, script_squared = register("script"), register("script^2")  # the place in fixed text
written = register("written")  # the next token, and 1

offset = place + 1 - turn  # of the next token in this turn, from 1


class OutsideFamily(ITLError):  # noqa: N818 - it says what the question is
    """A question, or a reply, that a circuit was not built for."""


def build_circuit(
    attributes: Sequence[str],
    phrasing: Mapping[str, Phrasing] | None = None,
    max_name_length: int = 60,
    *,
    style: Style = "compact",
    max_value_length: int = 200,
) -> Circuit:
    """The circuit that looks up these attributes of any name.

    phrasing: of each attribute; by default those of `itl_env.dialogue`. max_name_length,
    max_value_length: bytes; they bound the length of a dialogue, not the weights.

    Raises ConfigError for another style, for dialogues longer than `MAX_LENGTH` tokens, for
    phrasings of which too many fit the same questions, and for so much text to read or so many
    attributes that sums would not be exact.
    """
    phrasing = phrasings(tuple(attributes)) if phrasing is None else phrasing
    if missing := [attribute for attribute in attributes if attribute not in phrasing]:
        raise ConfigError(f"The attribute {missing[0]!r} has no phrasing.")
    if style not in STYLES:
        raise ConfigError(f"style is {style!r}; it must be one of {', '.join(STYLES)}.")
    words = {attribute: phrasing[attribute] for attribute in attributes}
    if not words or min(max_name_length, max_value_length) < 1:
        raise ConfigError("A circuit needs an attribute, and room for a name and a value.")
    scripts = Scripts(words, style)
    n_letters = len(scripts.letters())
    questions = [len(in_bytes(each.ask(""))) for each in words.values()]
    length = 2 * n_letters + max(questions) + 3 * max_name_length + 2 * max_value_length + 3
    if length > MAX_LENGTH:
        raise ConfigError(
            f"A dialogue can take {length:,} tokens, more than the {MAX_LENGTH:,} of a circuit; "
            "allow shorter names or values."
        )
    return Circuit.of(
        embedding=_embedding(),
        reads=(token, token_squared, place, place_squared),
        plans=(
            _marks(scripts),
            _reading(scripts, words),
            _counting(scripts),
            _writing(scripts),
        ),
        # The logit of the token t is 2 n t - t^2 for n = written - 1.
        writes=(2 * written - 2, constant(-1)),
        max_length=length,
    )


def _embedding() -> torch.Tensor:
    """The number of each token and its square, (260, 2)."""
    tokenizer = ByteTokenizer()
    numbers = torch.arange(tokenizer.vocabulary_size, dtype=torch.float32)
    for mark, number in (
        (tokenizer.user_id, OPENS),
        (tokenizer.assistant_id, TURN_BEGINS),
        (tokenizer.database_id, CALL_ENDS),
        (tokenizer.end_id, DIALOGUE_ENDS),
    ):
        numbers[mark] = number
    return torch.stack((numbers, numbers.square()), dim=1)


def looks_at(target: Linear) -> dict[str, tuple[Linear, Linear]]:
    """Query and key of a head that looks at the place `target`."""
    query = (2 * SHARP * target, constant(-SHARP))
    return {"query": query, "key": (place, place_squared)}


def is_number(number: Linear, squared: Linear, c: float) -> Linear:
    """0 where a whole number n is c, and -1 or less where it is another: -(n - c)^2."""
    return 2 * c * number - squared - c * c


def is_number_or_next(number: Linear, squared: Linear, c: float) -> Linear:
    """0 where a whole number n is c or c + 1, else -2 or less: -(n - c)(n - c - 1)."""
    return (2 * c + 1) * number - squared - c * (c + 1)


def _letter(letter: Letter) -> tuple[Linear, Linear]:
    """The registers of a letter of the question."""
    name = f"{letter.n} from the {letter.side}"
    return register(name), register(f"{name}^2")


def _marks(scripts: Scripts) -> Plan:
    """Block 1. Of all tokens the marks agree most, and of equal marks the first or the last."""

    def towards(number_weight: float, place_weight: float) -> dict[str, tuple[Linear, Linear]]:
        query = (constant(SHARP * number_weight), constant(SHARP * place_weight))
        return {"query": query, "key": (token, place)}

    heads = [
        Head("first turn", **towards(FAR, -1), value=[place], adds=[asked]),
        Head("this turn", **towards(FAR, 1), value=[place], adds=[turn]),
        Head("call", **towards(-FAR, 0), value=[place, OPENS - token], adds=[called, answering]),
    ]
    # Only right behind a call (nothing reads it before), so that it is empty where it is brought.
    behind_call = FAR * (place - called - 1)
    units = [
        Unit(1 + is_number(token, token_squared, letter) - behind_call, vowel)
        for letter in ((VOWELS + VOWELS.upper()).encode() if scripts.articles else b"")
    ]
    return Plan(heads, units)


def _reading(scripts: Scripts, words: Mapping[str, Phrasing]) -> Plan:
    """Block 2.

    A unit fires for each program of each reading that fits. Where several fit, their signs leave
    what the one that is meant writes (see `circuit_questions.Reading`).
    """
    how = readings(words)
    _check_sums(how, len(scripts.programs))
    heads = []
    for letter in dict.fromkeys(letter for reading in how for letter in reading.letters):
        where = constant(letter.n) if letter.side == "start" else asked - letter.n
        name = f"letter {letter.n} from the {letter.side}"
        heads.append(
            Head(name, **looks_at(where), value=[token, token_squared], adds=_letter(letter))
        )
    if scripts.articles:
        heads.append(Head("first of value", **looks_at(called + 1), value=[vowel], adds=[vowel]))
    units = []
    for reading in how:
        matches = constant(0)
        for letter, byte in reading.letters.items():
            matches += is_number(*_letter(letter), byte)
        before, after = (len(part.encode()) for part in words[reading.attribute].around_name)
        for number, each in scripts.numbered(reading.attribute):
            fits = 1 + matches + (answering - 1 if each.answers else -1 * answering)
            if each.vowel is not None:
                fits += vowel - 1 if each.vowel else -1 * vowel
            n_lead = len(each.lead)
            adds = (
                number * program
                + number**2 * program_squared
                + n_lead * lead
                + (before + after + 1 if each.named else FAR) * around
                + (len(each.middle) if each.answers else FAR) * middle
                + (before - n_lead) * shift
            )
            units.append(Unit(fits, reading.sign * adds))
    return Plan(heads, units)


def _check_sums(how: Sequence[Reading], n_programs: int) -> None:
    """Raise ConfigError if block 2 would add up numbers beyond what float32 holds exactly."""
    # Of (letter - c)^2, sums may reach twice that of c^2 on the way.
    read = max(sum(c * c for c in each.letters.values()) for each in how)
    # All readings of a question fire at once, and write squares of their programs' numbers.
    at_once = 2**MOST_ALIKE * n_programs**2
    for what, most in (("text around the name", 2 * read), ("attributes", at_once)):
        if most > WHOLE:
            raise ConfigError(
                f"There is too much to tell apart ({what}) for a circuit in float32; use shorter "
                "phrasings, or fewer attributes."
            )


def _counting(scripts: Scripts) -> Plan:
    """Block 3. Of a turn without a name the length is 0, for `around` is FAR.

    Where the next token is one of the name, `shift` stays what it was, else it becomes FAR less;
    where it is one of the value, `middle` stays, else it becomes FAR more: the copying heads then
    look before the dialogue. In either case `script` leaves the numbers that texts have; elsewhere
    it is the place in this turn without what was copied, and behind a call's attribute the jump.
    """
    head = Head("length of name", **looks_at(asked - around), value=[place], adds=[name_length])
    name_ends = lead + name_length
    value_begins = name_ends + middle
    value_ends = value_begins + turn - called - 1
    # Of each of four ends: what is added to the gate behind it.
    in_name, in_value = FAR * shift, -FAR * middle
    ends = (
        (lead, 1, in_name), (name_ends, -1, in_name),
        (value_begins, 1, in_value), (value_ends, -1, in_value),
    )  # fmt: skip
    out = 2.0 ** len(scripts.letters()).bit_length()  # more than any number in a script
    units = [Unit(offset, script)]
    if scripts.jumps:  # by min(out n, widest - lead) = relu(out n) - relu(out n - (widest - lead))
        behind = out * (offset - lead + scripts.ending - FAR * answering)
        units.append(Unit(behind, script))
        units.append(Unit(behind - scripts.widest + lead, -1 * script))
    for end, sign, gate in ends:
        behind = offset - end
        opens = sign * (gate - out * script)  # no text while something is copied
        # relu(n) - relu(n - 1) is 1 for a whole number n above 0, else 0.
        units.append(Unit(behind, opens - sign * script))
        units.append(Unit(behind - 1, -1 * opens))
    return Plan([head], units, always=FAR * middle - FAR * shift)


def _writing(scripts: Scripts) -> Plan:
    """Block 4. `written` is 1 more than the token, so that the first mark's place writes 0."""
    copy = partial(Head, value=[token - OPENS], adds=[written])
    value = called + offset - lead - name_length - middle
    heads = [
        copy("next of name", **looks_at(offset + shift)),
        copy("next of value", **looks_at(value)),
        Head("square", **looks_at(script), value=[place_squared], adds=[script_squared]),
    ]
    units = []
    calls = range(1, 1 + sum(not each.answers for each in scripts.programs))
    for n, letters in enumerate(scripts.letters(), 1):
        here = 1 + is_number(script, script_squared, n)
        if len({letters.get(number) for number in calls}) == 1:  # what all calls say
            if calls[0] in letters:
                units.append(Unit(here - answering, (letters[calls[0]] + 1) * written))
            letters = {number: letter for number, letter in letters.items() if number > calls[-1]}
        while letters:
            number, letter = letters.popitem()
            says = is_number(program, program_squared, number)
            if letters.get(number - 1) == letter:  # one unit for both neighbours
                says = is_number_or_next(program, program_squared, number - 1)
                del letters[number - 1]
            units.append(Unit(here + says, (letter + 1) * written))
    return Plan(heads, units)


@torch.inference_mode()
def margin(circuit: Circuit, dialogue: Rendered) -> float:
    """By how much logits of the tokens that the assistant writes in a dialogue exceed all others.

    The least of these gaps; it is negative if another token's logit is larger.
    """
    labels = torch.tensor(dialogue.labels[1:])
    logits = circuit(torch.tensor([dialogue.input_ids[:-1]]))[0][labels != IGNORED]
    right = labels[labels != IGNORED, None]
    others = logits.scatter(1, right, -torch.inf).amax(dim=1)
    return float((logits.gather(1, right)[:, 0] - others).min())


class CircuitAgent(NanoLlamaAgent):
    """Plays a recall task with the circuit that is built for its attributes and phrasings.

    max_name_length, max_value_length: bytes.

    What the circuit writes, it writes by itself; but whether it was built for what it is asked is
    checked before, by the phrasings and by counting bytes. A value that is spelt like the reply
    without one, or like an error, counts as none.

    Raises ConfigError for a task that is not played by one query of the dialect `lookup`, and see
    `build_circuit`.
    """

    def __init__(
        self, task: RecallTask, *, max_name_length: int = 60, max_value_length: int = 200
    ) -> None:
        if task.dialect != "lookup" or task.max_queries < 1:
            raise ConfigError(
                "A circuit plays in-tool, with a query of the dialect lookup; this task has the "
                f"dialect {task.dialect} and {task.max_queries} queries."
            )
        self.phrasings = task.phrasings
        self.unreadable = unreadable(task.phrasings)
        self.max_name_length, self.max_value_length = max_name_length, max_value_length
        self.circuit = build_circuit(
            task.attributes,
            task.phrasings,
            max_name_length,
            style=task.style,
            max_value_length=max_value_length,
        )
        most = self.circuit.config.max_length
        super().__init__(self.circuit, name="circuit", max_new_tokens=most)

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`.

        Raises OutsideFamily for what the circuit was not built for: a question about another
        attribute or a longer name, a longer value, a reply without one, or a second query. One such
        conversation ends them all.
        """
        for talk in conversations:
            self._check([message.content for message in talk.messages])
        return super().respond(conversations)

    def _check(self, said: Sequence[str]) -> None:
        question = said[0]
        if (reading := read_question(self.phrasings, question)) is None:
            raise OutsideFamily(
                f"The question {question!r} asks for none of {', '.join(self.phrasings)}."
            )
        if question in self.unreadable:
            raise OutsideFamily(
                f"The question {question!r} looks like one of another attribute without a name."
            )
        self._check_length("name", reading[1], self.max_name_length)
        if len(said) == 1:
            return
        if len(said) > 3:
            raise OutsideFamily("A circuit answers after its first query.")
        reply = said[-1]
        if reply == NO_RESULT or reply.startswith(ERROR_PREFIX):
            raise OutsideFamily(
                f"The reply {reply!r} about {reading[1]!r} says that there is no value, or is one "
                "that is spelt so; a circuit states neither."
            )
        self._check_length("value", reply, self.max_value_length)

    @staticmethod
    def _check_length(what: str, text: str, most: int) -> None:
        if unstorable(text) == "a lone surrogate":
            raise OutsideFamily(f"The {what} {text!r} holds a lone surrogate.")
        if (n_bytes := len(text.encode())) > most:
            raise OutsideFamily(
                f"The {what} {text!r} has {n_bytes} bytes, more than the {most} that the circuit "
                f"was built for; `CircuitAgent` takes a larger max_{what}_length."
            )
