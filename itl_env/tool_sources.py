"""Where samples of tool calling come from; a row becomes a sample that was checked, or a refusal.

    from itl_env.tool_rows import read_rows
    from itl_env.tool_sources import Refusal, gsm8k_samples, verify
    for found in gsm8k_samples(read_rows("gsm8k.jsonl")):
        refusal = found if isinstance(found, Refusal) else verify(found, [Calculator()])

Nothing is guessed: a call is a label only if it is in the row and comes to the row's answer.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from itl_env.calculator import CalculatorError, calculate, is_constant, number_text, same_number
from itl_env.rubric import normalise
from itl_env.samples import Sample, Step
from itl_env.text import unstorable
from itl_env.tool_rows import Row
from itl_env.tool_rubric import came, is_spelled, read_number
from itl_env.tools import NO_OUTPUT, Tool, check_arguments

FIXTURE = Path(__file__).parent / "tool_fixture.jsonl"
"""A few instructions of our own that need no tool, to try things with."""


class Refusal(NamedTuple):
    """A row that is no sample: where it is, a stable code of the reason, and a sentence."""

    where: str
    reason: str
    message: str


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message


# -- GSM8K -----------------------------------------------------------------------------------------


def gsm8k_samples(rows: Iterable[Row]) -> Iterator[Sample | Refusal]:
    """Samples of grade-school mathematics (Cobbe et al. 2021, arXiv 2110.14168).

    rows: with `question` and `answer`, a solution with marks `<<expression=value>>` that ends with
        `#### number`. A mark is a call of the calculator: one makes the category `calculator`,
        several make `multi_turn`. Marks that compute nothing, such as `<<6=6>>`, are left out.

    Refused as bad_row, empty_prompt, bad_answer (no number at the end), no_marks, bad_mark (no
    arithmetic), ambiguous_mark, wrong_value (a mark that is not so), constant (no mark computes)
    and other_answer (the last call does not come to the answer).
    """
    return _samples(rows, _gsm8k)


def _gsm8k(row: Row) -> Sample:
    prompt, solution = _field(row, "question").strip(), _field(row, "answer")
    if not prompt:
        raise _Refused("empty_prompt", "the question is empty")
    said = solution.rpartition("####")[2].strip()
    answer = read_number(said) if "####" in solution else None
    if answer is None:
        raise _Refused("bad_answer", f"there is no number behind ####, but {_short(said)}")
    marks = re.findall(r"<<(.*?)>>", solution, re.DOTALL)
    if not marks:
        raise _Refused("no_marks", "the solution has no mark <<expression=value>>")
    steps, last = [], 0.0
    for mark in marks:
        expression, value = _read_mark(mark)
        if not is_constant(expression):
            steps.append(Step("calculator", {"expression": expression}))
            last = value
    if not steps:
        raise _Refused("constant", "no mark computes anything")
    if not same_number(last, answer):
        raise _Refused("other_answer", f"the last call comes to {number_text(last)}, not {said}")
    return Sample(
        id=f"gsm8k-{row.place}",
        source="gsm8k",
        category="calculator" if len(steps) == 1 else "multi_turn",
        prompt=prompt,
        steps=tuple(steps),
        expected_answer=number_text(answer),
        answer_type="number",
    )


def _read_mark(mark: str) -> tuple[str, float]:
    """The expression of a mark and its value."""
    expression, equals, stated = mark.partition("=")
    if not equals or "=" in stated:
        raise _Refused("bad_mark", f"the mark {_short(mark)} is not one expression = value")
    expression, stated = _plain(expression), _plain(stated)
    try:
        value, said = calculate(expression), calculate(stated)
    except CalculatorError as error:
        raise _Refused("bad_mark", f"the mark {_short(mark)} has no value: {error}") from None
    if not same_number(value, said):
        raise _Refused("wrong_value", f"the mark {_short(mark)} is {number_text(value)}")
    return expression, float(value)


def _plain(text: str) -> str:
    """Arithmetic as people write it, as the calculator reads it: `$1,200 x 5%` is `1200*(5/100)`.

    Raises the refusal ambiguous_mark where a comma or a percent sign may mean two things: `1,5`, or
    `7%-3`, a share less 3 or a remainder.
    """
    plain = re.sub(r"\$\s*(?=[\d.])", "", text.strip())
    plain = re.sub(
        r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m[0].replace(",", ""), plain
    )
    plain = re.sub(r"(?<=[\d)])\s*[x×]\s*(?=[\d(.])", "*", plain).replace("÷", "/")
    plain = re.sub(r"(\d+(?:\.\d*)?|\.\d+)\s*%(?=\s*(?:[*/)]|$))", r"(\1/100)", plain)
    if left := next((sign for sign in ",%" if sign in plain), None):
        raise _Refused("ambiguous_mark", f"{left} in {_short(text)} may mean two things")
    return plain


# -- code ------------------------------------------------------------------------------------------

# Code that two runs may differ in, even where an executor stops the clock and seeds the draws.
_CHANCE = re.compile(
    r"^\s*(?:import|from)\b.*\b(?:random|secrets|uuid|time)\b|\.(?:now|today|utcnow)\(",
    re.MULTILINE,
)


def python_samples(
    rows: Iterable[Row], tool: Tool, *, max_code: int = 2000, max_output: int = 500
) -> Iterator[Sample | Refusal]:
    """Samples of code that was run; what is expected is what it printed.

    rows: with `instruction` (and `input`, which is put below it) or `prompt`, and `code`. `output`
        is what the code must print; without `code` it is the code, as on the hub.
    tool: runs the code, twice. max_code, max_output: characters.

    Refused as bad_row, empty_prompt, long_code, by the tool's own code if it fails, no_output,
    long_output, not_deterministic and wrong_output.
    """
    return _samples(rows, lambda row: _python(row, tool, max_code, max_output))


def _python(row: Row, tool: Tool, max_code: int, max_output: int) -> Sample:
    prompt = _prompt(row)
    has_code = "code" in row.values
    code = _field(row, "code" if has_code else "output")
    if len(code) > max_code:
        raise _Refused("long_code", f"the code has {len(code):,} characters, over {max_code:,}")
    if _CHANCE.search(code):
        raise _Refused("not_deterministic", "the code reads the clock, or draws at random")
    first, second = tool.run([{"code": code}, {"code": code}])
    for result in (first, second):
        if result.error_code is not None:
            raise _Refused(result.error_code, f"the code fails: {_short(result.text)}")
    if first.text == NO_OUTPUT:
        raise _Refused("no_output", "the code prints nothing")
    if len(first.text) > max_output:
        raise _Refused("long_output", f"the code prints over {max_output:,} characters")
    if first != second:
        raise _Refused("not_deterministic", "the code prints something else when run again")
    if has_code and row.values.get("output") is not None:
        expected = _field(row, "output")
        if expected.rstrip() != first.text.rstrip():
            said = f"the code prints {_short(first.text)}, not {_short(expected)}"
            raise _Refused("wrong_output", said)
    return Sample(
        id=f"python-{row.place}",
        source="python",
        category="python_exec",
        prompt=prompt,
        steps=(Step(tool.name, {"code": code}),),
        expected_answer=first.text,
    )


# -- instructions ----------------------------------------------------------------------------------


def instruction_samples(
    rows: Iterable[Row], *, max_prompt: int = 1000, max_answer: int = 500
) -> Iterator[Sample | Refusal]:
    """Samples that need no tool.

    rows: with `instruction` (and `input`, which is put below it) or `prompt`, and `output`.
    max_prompt, max_answer: characters.

    Refused as bad_row, empty_prompt, long_prompt, empty_answer and long_answer.
    """
    return _samples(rows, lambda row: _instruction(row, max_prompt, max_answer))


def _instruction(row: Row, max_prompt: int, max_answer: int) -> Sample:
    prompt, answer = _prompt(row), _field(row, "output").strip()
    if len(prompt) > max_prompt:
        raise _Refused("long_prompt", f"the prompt has over {max_prompt:,} characters")
    if _is_nothing(answer):
        raise _Refused("empty_answer", "the answer is empty")
    if len(answer) > max_answer:
        raise _Refused("long_answer", f"the answer has over {max_answer:,} characters")
    return Sample(f"instruction-{row.place}", "instructions", "no_tool", prompt, (), answer)


def _prompt(row: Row) -> str:
    # The hub's rows also have a `prompt`, which holds the answer; it is for want of another.
    if not isinstance(row.values, Mapping) or "instruction" not in row.values:
        prompt, more = _field(row, "prompt").strip(), ""
    else:
        prompt = _field(row, "instruction").strip()
        more = _field(row, "input").strip() if row.values.get("input") is not None else ""
    if not prompt:
        raise _Refused("empty_prompt", "the prompt is empty")
    return prompt if _is_nothing(more) else f"{prompt}\n{more}"


def _is_nothing(text: str) -> bool:
    """Whether a text is empty, or Alpaca's words for that."""
    return normalise(text).strip("<>") in ("", "noinput", "no input", "nooutput", "no output")


# -- every sample ----------------------------------------------------------------------------------


def verify(sample: Sample, tools: Iterable[Tool], where: str = "") -> Refusal | None:
    """Execute the calls of a sample; None if they come to what is expected of it.

    tools: all that its calls need. where: for the refusal; by default the sample's id.

    Refused as empty_id, empty_prompt, category (calls of another kind than it says), empty_answer,
    unknown_tool, bad_arguments, constant (no call computes what is expected), no_output,
    wrong_result, and by the tool's own code where a call fails.
    """
    try:
        _verify(sample, {tool.name: tool for tool in tools})
    except _Refused as refused:
        return Refusal(where or sample.id, refused.reason, refused.message + ".")
    return None


def _verify(sample: Sample, tools: Mapping[str, Tool]) -> None:
    for name in ("id", "prompt"):
        if not getattr(sample, name).strip():
            raise _Refused(f"empty_{name}", f"the {name} is empty")
    if not _fits(sample):
        called = ", ".join(step.tool for step in sample.steps) or "no tool"
        raise _Refused("category", f"a sample of {sample.category} calls {called}")
    if not normalise(sample.expected_answer):
        raise _Refused("empty_answer", "an empty answer would be right")
    result, computed = "", False
    for name, args in sample.steps:
        if name not in tools:
            raise _Refused("unknown_tool", f"there is no tool {name!r} here to verify it with")
        if problem := check_arguments(tools[name], args):
            raise _Refused("bad_arguments", problem)
        (done,) = tools[name].run([args])
        if done.error_code is not None:
            raise _Refused(done.error_code, f"{name} fails: {_short(done.text)}")
        result = done.text
        computed |= came(result, sample) and not is_spelled(Step(name, args))
    if not sample.steps:
        return
    if sample.steps[-1].tool == "python" and result == NO_OUTPUT:
        raise _Refused("no_output", "the code prints nothing")
    if not came(result, sample):
        said = f"it comes to {_short(result)}, not {_short(sample.expected_answer)}"
        raise _Refused("wrong_result", said)
    if not computed:
        raise _Refused("constant", "no call computes what is expected, but spells it")


def _fits(sample: Sample) -> bool:
    """Whether a sample has the calls that its category stands for."""
    called = [step.tool for step in sample.steps]
    match sample.category:
        case "calculator":
            return set(called) == {"calculator"}
        case "python_exec":
            return set(called) == {"python"}
        case "no_tool":
            return not called
    return len(called) > 1


def _samples(rows: Iterable[Row], read: Callable[[Row], Sample]) -> Iterator[Sample | Refusal]:
    for row in rows:
        try:
            yield read(row)
        except _Refused as refused:
            yield Refusal(row.where, refused.reason, refused.message + ".")


def _field(row: Row, name: str) -> str:
    value = row.values.get(name) if isinstance(row.values, Mapping) else None
    if not isinstance(value, str):
        raise _Refused("bad_row", f"field {name!r} is missing, or no text")
    if problem := unstorable(value):
        raise _Refused("bad_row", f"field {name!r} holds {problem}")
    return value


def _short(text: str) -> str:
    """A text in quotes, cut to fit a sentence."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
