"""Generated samples of tool calling: any number, offline, each a function of seed and place.

    samples = generate(1000, seed=0, categories=("calculator", "no_tool"), level=2)

Every call is executed for its label: what is expected is what the tool has replied. The wording is
simple and varied on purpose: a model of a hundred thousand parameters can learn it, and copying
operands into a call, choosing the tool and reading a reply is what is to be learnt.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from itl_env import streams
from itl_env.calculator import calculate, number_text
from itl_env.database import FactDatabase
from itl_env.errors import ConfigError
from itl_env.executor import Executor, MontyExecutor
from itl_env.facts import Vocabulary
from itl_env.samples import Category, Sample, Step
from itl_env.streams import Draws

SOURCE = "generated"


class Level(NamedTuple):
    """How hard arithmetic is.

    digits: of an operand at most; all lengths are as frequent. A dividend is a product of two, and
        longer. n_operations: of an expression.
    """

    digits: int
    n_operations: int


LEVELS = {1: Level(2, 1), 2: Level(4, 1), 3: Level(2, 2), 4: Level(6, 2)}

WORDS = (
    "apple", "basket", "candle", "dragon", "engine", "forest", "garden", "hammer", "island",
    "jacket", "kettle", "ladder", "marble", "needle", "orange", "pencil", "quiver", "ribbon",
    "saddle", "tunnel", "umbrella", "valley", "window", "yellow", "zipper", "bridge", "copper",
    "desert", "feather", "guitar", "harbor", "igloo", "jungle", "kitten", "lantern", "mirror",
    "nutmeg", "oyster", "pepper", "quartz", "rocket", "silver", "thunder", "velvet", "walnut",
)  # fmt: skip
THINGS = ("apples", "books", "coins", "marbles", "pencils", "stamps", "shells", "tickets")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("old", "new"), ("day", "night"), ("open", "closed"),
    ("fast", "slow"), ("light", "dark"), ("full", "empty"), ("wet", "dry"), ("loud", "quiet"),
)  # fmt: skip

Drawn = tuple[str, tuple[Step, ...], str]
"""A prompt, its calls, and what is expected."""


def generate(
    n: int,
    seed: int = 0,
    *,
    categories: Sequence[Category] = ("calculator", "python_exec", "no_tool"),
    level: int = 1,
    executor: Executor | None = None,
    start: int = 0,
) -> Iterator[Sample]:
    """Samples start, start + 1, ..., start + n - 1 under the seed; prompts may repeat.

    categories: of which they take turns.
    level: of the arithmetic, 1 to 4; see `LEVELS`.
    executor: of the code; by default one without files and network.

    Raises ConfigError for a level or a category that there is not.
    """
    if level not in LEVELS:
        raise ConfigError(f"There is no level {level}; choose among {', '.join(map(str, LEVELS))}.")
    for category in categories:
        if category not in _MAKERS:
            raise ConfigError(
                f"The category {category!r} is not generated; choose among {', '.join(_MAKERS)}."
            )
    if not categories:
        raise ConfigError("categories must name at least one category.")
    return _generate(range(start, start + n), seed, categories, level, executor)


def _generate(
    places: range,
    seed: int,
    categories: Sequence[Category],
    level: int,
    executor: Executor | None,
) -> Iterator[Sample]:
    own = executor or MontyExecutor()
    keys = {each: streams.key(seed, "generated", each, level) for each in categories}
    try:
        for place in places:
            category = categories[place % len(categories)]
            draws = Draws(keys[category], place)
            prompt, steps, expected = _MAKERS[category](draws, LEVELS[level], own)
            is_number = category in ("calculator", "multi_turn")
            yield Sample(
                id=f"{category}-{level}-{seed}-{place}",
                source=SOURCE,
                category=category,
                prompt=prompt,
                steps=steps,
                expected_answer=expected,
                answer_type="number" if is_number else "text",
            )
    finally:
        if executor is None:
            own.close()


# -- arithmetic ------------------------------------------------------------------------------------

# Per operation: whole prompts, how a chain of operations begins, and how it goes on.
_PROMPTS = {
    "+": (
        "What is {a} plus {b}?",
        "What is the sum of {a} and {b}?",
        "Ann has {a} {things} and gets {b} more. How many {things} does she have now?",
    ),
    "-": (
        "What is {a} minus {b}?",
        "What is the difference between {a} and {b}?",
        "Ben has {a} {things} and gives {b} away. How many {things} are left?",
    ),
    "*": (
        "What is {a} times {b}?",
        "What is the product of {a} and {b}?",
        "There are {a} boxes with {b} {things} each. How many {things} are there?",
    ),
    "/": (
        "What is {a} divided by {b}?",
        "How often does {b} go into {a}?",
        "A shop packs {a} {things} into {b} equal bags. How many {things} are in each?",
    ),
}
_OPENINGS = {
    "+": "Add {b} to {a}",
    "-": "Subtract {b} from {a}",
    "*": "Multiply {a} by {b}",
    "/": "Divide {a} by {b}",
}
_THEN = {"+": "add {b}", "-": "subtract {b}", "*": "multiply by {b}", "/": "divide by {b}"}


def _operation(draws: Draws, level: Level, value: int | None) -> tuple[str, int, int]:
    """An operator and its operands: `value`, or a number that is drawn, and another one.

    Quotients are whole, and no result is below zero.
    """
    a = _operand(draws, level) if value is None else value
    b = _operand(draws, level)
    operator = draws.choice("+-*/")
    if operator == "-" and b > a:
        if value is None:
            return "-", b, a
        operator = "+"
    if operator == "/":
        if value is None:
            a *= b
        elif a % b:
            operator = "*"
    return operator, a, b


def _operand(draws: Draws, level: Level) -> int:
    n_digits = draws.between(1, level.digits)
    return draws.between(10 ** (n_digits - 1), 10**n_digits - 1)


def _chain(draws: Draws, level: Level, n: int) -> list[tuple[str, int, int]]:
    """N operations, each on the result of the one before."""
    operations: list[tuple[str, int, int]] = []
    value = None
    for _ in range(n):
        operations.append(_operation(draws, level, value))
        operator, a, b = operations[-1]
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
    return operations


def _calculator(draws: Draws, level: Level, executor: Executor) -> Drawn:
    operations = _chain(draws, level, level.n_operations)
    operator, a, b = operations[0]
    if len(operations) == 1:
        words = draws.choice((*_PROMPTS[operator], _OPENINGS[operator] + "."))
        prompt = words.format(a=a, b=b, things=draws.choice(THINGS))
    else:
        parts = [_THEN[op].format(b=b) for op, _, b in operations[1:]]
        prompt = ", then ".join([_OPENINGS[operator].format(a=a, b=b), *parts]) + "."
    expression = f"{a} {operator} {b}"
    for operator, _, b in operations[1:]:
        expression = f"({expression}) {operator} {b}"
    step = Step("calculator", {"expression": expression})
    return prompt, (step,), number_text(calculate(expression))


def _multi_turn(draws: Draws, level: Level, executor: Executor) -> Drawn:
    operations = _chain(draws, level, draws.between(2, 3))
    start = operations[0][1]
    parts = [_THEN[operator].format(b=b).capitalize() for operator, _, b in operations]
    prompt = f"One step at a time: start with {start}. {'. '.join(parts)}."
    steps, shown = [], str(start)
    for operator, _, b in operations:
        expression = f"{shown} {operator} {b}"
        steps.append(Step("calculator", {"expression": expression}))
        shown = number_text(calculate(expression))
    return prompt, tuple(steps), shown


# -- code ------------------------------------------------------------------------------------------


def _python_exec(draws: Draws, level: Level, executor: Executor) -> Drawn:
    task, code = draws.choice(_PROGRAMS)(draws, 10**level.digits - 1)
    done = executor.run(code)
    # What fails here is our own code.
    assert done.error_code is None, (code, done)
    step = Step("python", {"code": code})
    return f"Use Python to {task}.", (step,), done.output.removesuffix("\n")


def _numbers(draws: Draws, largest: int) -> list[int]:
    return [draws.between(1, largest) for _ in range(draws.between(3, 5))]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _sum_of_range(draws: Draws, largest: int) -> tuple[str, str]:
    a = draws.between(1, min(largest, 999))
    b = a + draws.between(1, min(largest, 999))
    return f"add up the numbers from {a} to {b}", f"print(sum(range({a}, {b} + 1)))"


def _backwards(draws: Draws, largest: int) -> tuple[str, str]:
    word = draws.choice(WORDS) + draws.choice(WORDS)
    return f"print {word} backwards", f"print('{word}'[::-1])"


def _count_letter(draws: Draws, largest: int) -> tuple[str, str]:
    word = draws.choice(WORDS) + draws.choice(WORDS)
    letter = draws.choice(word)
    return f"count the letter {letter} in {word}", f"print('{word}'.count('{letter}'))"


def _sorted(draws: Draws, largest: int) -> tuple[str, str]:
    numbers = _numbers(draws, largest)
    return f"sort the numbers {_listed(numbers)}", f"print(sorted({numbers}))"


def _largest(draws: Draws, largest: int) -> tuple[str, str]:
    numbers = _numbers(draws, largest)
    return f"find the largest of {_listed(numbers)}", f"print(max({numbers}))"


def _squares(draws: Draws, largest: int) -> tuple[str, str]:
    numbers = _numbers(draws, min(largest, 999))
    return f"square the numbers {_listed(numbers)}", f"print([n * n for n in {numbers}])"


def _even(draws: Draws, largest: int) -> tuple[str, str]:
    numbers = _numbers(draws, largest)
    return (
        f"find the even ones of {_listed(numbers)}",
        f"print([n for n in {numbers} if n % 2 == 0])",
    )


def _divisor(draws: Draws, largest: int) -> tuple[str, str]:
    a, b = draws.between(1, largest), draws.between(1, largest)
    return (
        f"find the greatest common divisor of {a} and {b}",
        f"import math\nprint(math.gcd({a}, {b}))",
    )


def _binary(draws: Draws, largest: int) -> tuple[str, str]:
    a = draws.between(1, largest)
    return f"write {a} in binary", f"print(format({a}, 'b'))"


def _capitals(draws: Draws, largest: int) -> tuple[str, str]:
    words = f"{draws.choice(WORDS)} {draws.choice(WORDS)} {draws.choice(WORDS)}"
    return f"write {words} in capitals", f"print('{words}'.upper())"


_PROGRAMS: tuple[Callable[[Draws, int], tuple[str, str]], ...] = (
    _sum_of_range, _backwards, _count_letter, _sorted, _largest, _squares, _even, _divisor, _binary,
    _capitals,
)  # fmt: skip


# -- no tool ---------------------------------------------------------------------------------------


def _no_tool(draws: Draws, level: Level, executor: Executor) -> Drawn:
    kind = draws.below(8)
    if kind == 0:
        place = draws.below(7)
        return f"Which day comes after {DAYS[place]}?", (), DAYS[(place + 1) % 7]
    if kind == 1:
        pair = draws.choice(OPPOSITES)
        one, other = pair if draws.below(2) else pair[::-1]
        return f"What is the opposite of {one}?", (), other
    first, second = draws.choice(WORDS), draws.choice(WORDS)
    if kind < 4:
        third = draws.choice(WORDS)
        return f"Repeat these words: {first} {second} {third}", (), f"{first} {second} {third}"
    if kind < 6:
        names = Vocabulary.load("paper")
        name = f"{draws.choice(names.first_names)} {draws.choice(names.last_names)}"
        return f"Say hello to {name}.", (), f"Hello, {name}!"
    return f"Join {first} and {second} with a hyphen.", (), f"{first}-{second}"


_MAKERS: dict[Category, Callable[[Draws, Level, Executor], Drawn]] = {
    "calculator": _calculator,
    "python_exec": _python_exec,
    "no_tool": _no_tool,
    "multi_turn": _multi_turn,
}


# -- look up, then compute -------------------------------------------------------------------------


def ages(database: FactDatabase, n: int, seed: int = 0) -> Iterator[Sample]:
    """N samples that look a birth date up and compute with it; a person may be asked about twice.

    Raises ConfigError if the database has no attribute `birth_date` whose values end in a year.
    """
    if "birth_date" not in database.attributes:
        raise ConfigError(f"There is no attribute 'birth_date' in {database!r} to ask ages by.")
    stream = streams.key(seed, "generated", "mixed")
    for place in range(n):
        draws = Draws(stream, place)
        fact = database.fact(draws.below(len(database)), "birth_date")
        born = fact.value[-4:]
        if not (born.isascii() and born.isdecimal()):
            raise ConfigError(f"The birth_date of {fact.name!r} is {fact.value!r}, without a year.")
        year = int(born) + draws.between(1, 90)
        expression = f"{year} - {born}"
        yield Sample(
            id=f"mixed-{seed}-{place}",
            source=SOURCE,
            category="mixed",
            prompt=f"How old did {fact.name} turn in {year}?",
            steps=(
                Step("find", {"attribute": "birth_date", "name": fact.name}),
                Step("calculator", {"expression": expression}),
            ),
            expected_answer=number_text(calculate(expression)),
            answer_type="number",
        )
