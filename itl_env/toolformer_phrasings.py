"""The words in which `itl_env.toolformer` asks for a calculation.

`{a}` and `{b}` are the operands, in the order of the expression, and `{op}` is the operator as its
sign or its word. Nothing here tells a story: sentences that do are to be copied.
"""

from collections.abc import Mapping
from typing import NamedTuple

OPERATORS = "+-*/"

WORDS: Mapping[str, str] = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


class Phrasings(NamedTuple):
    """What a prompt is made of.

    own: of each operator. generic: of any, with `{op}`. contexts: put before a prompt.
    """

    own: Mapping[str, tuple[str, ...]]
    generic: tuple[str, ...]
    contexts: tuple[str, ...]

    @property
    def templates(self) -> tuple[str, ...]:
        """All of them but the contexts."""
        return (*(each for some in self.own.values() for each in some), *self.generic)


TRAINING = Phrasings(
    own={
        "+": (
            "What is the sum of {a} and {b}?",
            "Add {a} and {b}.",
            "Add {b} to {a}.",
            "What do you get when you add {a} and {b}?",
            "Find the total of {a} and {b}.",
            "How much is {a} increased by {b}?",
            "If {b} is added to {a}, what is the result?",
        ),
        "-": (
            "What is the difference between {a} and {b}?",
            "Subtract {b} from {a}.",
            "Take {b} away from {a}.",
            "What do you get when you subtract {b} from {a}?",
            "How much is {a} decreased by {b}?",
            "If {b} is taken from {a}, what is left?",
            "Reduce {a} by {b}.",
        ),
        "*": (
            "What is the product of {a} and {b}?",
            "Multiply {a} by {b}.",
            "Multiply {a} and {b} together.",
            "What do you get when you multiply {a} by {b}?",
            "Find the product of {a} and {b}.",
            "How much is {a} multiplied by {b}?",
            "If {a} is multiplied by {b}, what is the result?",
        ),
        "/": (
            "What is the quotient of {a} and {b}?",
            "Divide {a} by {b}.",
            "What do you get when you divide {a} by {b}?",
            "How many times does {b} go into {a}?",
            "Find the ratio of {a} to {b}.",
            "If {a} is divided by {b}, what is the result?",
        ),
    },
    generic=(
        "What is {a} {op} {b}?",
        "Work out {a} {op} {b}.",
        "Calculate {a} {op} {b}.",
        "Compute {a} {op} {b}.",
        "How much is {a} {op} {b}?",
        "Evaluate {a} {op} {b}.",
        "Tell me what {a} {op} {b} is.",
        "What does {a} {op} {b} equal?",
        "Solve {a} {op} {b}.",
        "Find the value of {a} {op} {b}.",
        "Give me the result of {a} {op} {b}.",
        "Can you do {a} {op} {b}?",
    ),
    contexts=(
        "I am doing my homework.",
        "Please help me with this one.",
        "Here is a quick question.",
        "I need to check a number.",
        "My calculator is broken.",
        "I am working on a spreadsheet.",
        "This is for a maths test.",
        "I have one more problem to solve.",
        "We are practising arithmetic.",
        "Let us do some sums.",
    ),
)

UNSEEN = Phrasings(
    own={
        "+": (
            "Put {a} and {b} together; what does that make?",
            "Sum up {a} and {b} for me.",
            "By adding {b} onto {a}, I arrive at which number?",
            "Which number is {b} more than {a}?",
        ),
        "-": (
            "Start at {a} and count back {b}; where do you end?",
            "Deduct {b} from {a}, please.",
            "Which number is {b} less than {a}?",
            "With {b} removed from {a}, what remains?",
        ),
        "*": (
            "{a} taken {b} times makes what?",
            "Scale {a} up by a factor of {b}.",
            "I would like {a} and {b} multiplied, please.",
            "By multiplying {a} with {b}, I arrive at which number?",
        ),
        "/": (
            "Split {a} into {b} equal parts; how big is each one?",
            "{a} over {b} gives what?",
            "I would like {a} divided by {b}, please.",
            "By dividing {a} by {b}, I arrive at which number?",
        ),
    },
    generic=(
        "Kindly determine {a} {op} {b}.",
        "I wonder what {a} {op} {b} comes to.",
        "The answer to {a} {op} {b} would be what?",
        "Could somebody figure out {a} {op} {b}?",
    ),
    contexts=(
        "Good morning!",
        "Sorry to bother you again.",
        "A colleague has asked me this.",
        "I cannot do it in my head.",
        "It is for the report that is due today.",
        "Nobody here could say.",
    ),
)
"""Of what a model is not trained on; none of it is in `TRAINING`."""
