"""A calculator for expressions written by a language model.

    calculate("12 * (3 + 4)")  # 84
    number_text(calculate("0.1 + 0.2"))  # "0.3"

The expression is taken to be hostile. Only digits, operators, parentheses and the names of four
functions reach Python's parser; its tree is evaluated by `simpleeval` with nothing left in it but
arithmetic, where every operation is bounded before it is done.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Literal, NoReturn

from simpleeval import InvalidExpression, SimpleEval  # type: ignore[import-untyped]

from itl_env.text import unstorable

# The longest expression, in characters. It also bounds how deep one can be nested.
MAX_LENGTH = 200
# No whole number on the way to the result is larger, so each is also within the range of a float.
MAX_BITS = 1000
MAX_ROUND_DIGITS = 300

Number = int | float

CalculatorCode = Literal[
    "too_long",  # over MAX_LENGTH characters, or nested too deep
    "invalid_text",  # NUL or a lone surrogate: no text at all
    "empty",
    "malformed",  # unfinished, or a function with the wrong arguments
    "forbidden",  # anything but numbers, operators, parentheses and the four functions
    "too_large",  # a number of more than MAX_BITS bits, or over the range of a float
    "division_by_zero",
    "not_finite",  # infinite, or not a real number
]


class CalculatorError(Exception):
    """An expression without a result; `str()` is a sentence fit for the model to read."""

    def __init__(self, code: CalculatorCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


# What an expression can be made of. The groups are possessive, so that there is nothing to try
# again: the match takes time in proportion to the text.
_TOKENS = re.compile(
    r"(?:[-+*/%(), \t\n]"
    r"|[0-9.][0-9_.]*+(?:[eE][-+]?[0-9]++)?+"
    r"|(?:abs|round|min|max)(?![a-z0-9_]))*+"
)
_ALLOWED = "numbers, + - * / // % **, parentheses, abs, round, min and max"


def calculate(expression: str) -> Number:
    """The value of an arithmetic expression: an int, or a finite float.

    Numbers are decimal; the operators are + - * / // % ** and the signs; the functions abs, round,
    min and max. Raises CalculatorError, and nothing else, within a few milliseconds.
    """
    return _value(expression, _tree(expression))


def is_constant(expression: str) -> bool:
    """Whether an expression has a value without computing anything: "6", "-6", "((6))", "abs(6)".

    An expression computes if it has a binary operator or a function of two arguments. So "6 * 1"
    does: such steps are in real solutions, and no rule tells them from an evasion. False for an
    expression that has no value.
    """
    try:
        tree = _tree(expression)
        if any(
            isinstance(node, ast.BinOp) or (isinstance(node, ast.Call) and len(node.args) > 1)
            for node in ast.walk(tree)
        ):
            return False
        _value(expression, tree)
    except CalculatorError:
        return False
    return True


def number_text(value: Number) -> str:
    """How a result is shown: "4" for 4.0, "0.3" for 0.1 + 0.2, "1e+20" for 1e20.

    Floats are rounded to 12 significant digits, from 1e12 on to 15, and shown as whole numbers
    where they then are, up to 1e15.
    """
    if isinstance(value, int):
        return str(value)
    rounded = float(f"{value:.{12 if abs(value) < 1e12 else 15}g}")
    if rounded.is_integer() and abs(rounded) < 1e15:
        return str(int(rounded))
    return repr(rounded)


def same_number(a: Number, b: Number, tolerance: float | None = None) -> bool:
    """Whether `a` is the number `b`, up to `tolerance`: relative to b, absolute where |b| < 1.

    Without a tolerance it is 1e-6, absolute where b is whole: 2000001.0 is not 2000000.
    """
    is_whole = isinstance(b, int) or b.is_integer()
    scale = 1 if tolerance is None and is_whole else max(1, abs(b))
    try:
        return abs(a - b) <= (1e-6 if tolerance is None else tolerance) * scale < math.inf
    except OverflowError:  # a whole number over the range of a float, and a float
        return False


def _tree(expression: str) -> ast.expr:
    """The tree of an expression, whose parts are not checked yet."""
    if len(expression) > MAX_LENGTH:
        raise CalculatorError("too_long", f"the expression has over {MAX_LENGTH} characters")
    if problem := unstorable(expression):
        raise CalculatorError("invalid_text", f"the expression holds {problem}")
    text = expression.strip()
    if not text:
        raise CalculatorError("empty", "the expression is empty")
    if not _TOKENS.fullmatch(text):
        _forbid()
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        message = f"the expression cannot be read: {error.msg}"
        raise CalculatorError("malformed", message) from None
    except (RecursionError, MemoryError):
        _too_deep()


def _value(expression: str, tree: ast.expr) -> Number:
    """The value of the tree of an expression."""
    try:
        value: Number = _EVALUATOR.eval(expression.strip(), previously_parsed=tree)
    except InvalidExpression:
        _forbid()
    except ZeroDivisionError:
        raise CalculatorError("division_by_zero", "the expression divides by zero") from None
    except OverflowError:
        raise CalculatorError("too_large", "a number in the expression is too large") from None
    except (RecursionError, MemoryError):
        _too_deep()
    return value


def _too_deep() -> NoReturn:
    raise CalculatorError("too_long", "the expression is nested too deep") from None


def _forbid() -> NoReturn:
    raise CalculatorError("forbidden", f"an expression may have only {_ALLOWED}") from None


def _checked(value: object) -> Number:
    """A value that may be calculated with further."""
    if type(value) is int:
        if value.bit_length() > MAX_BITS:
            raise OverflowError
        return value
    if type(value) is not float or not math.isfinite(value):
        raise CalculatorError("not_finite", "a number in the expression is not finite or not real")
    return value


def _constant(node: ast.Constant) -> Number:
    if type(node.value) not in (int, float):
        _forbid()
    return _checked(node.value)


def _bounded(function: Callable[..., object]) -> Callable[..., Number]:
    """An operation that is short for any two numbers, but may leave their range."""
    return lambda a, b: _checked(function(a, b))


def _power(base: Number, exponent: Number) -> Number:
    # A power has at least this many bits, and takes at most twice as many to compute.
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and (base.bit_length() - 1) * exponent > MAX_BITS
    ):
        raise OverflowError
    return _checked(base**exponent)


def _round(number: Number, digits: Number | None = None) -> Number:
    if digits is None:
        return round(number)
    # `round` makes a power of ten of its digits, however many they are.
    if type(digits) is not int or abs(digits) > MAX_ROUND_DIGITS:
        raise CalculatorError("malformed", "round takes a small whole number of digits")
    return round(number, digits)


def _function(
    name: str, function: Callable[..., Number], least: int, most: int
) -> Callable[..., Number]:
    """A function that refuses too few and too many arguments."""

    def call(*numbers: Number) -> Number:
        if not least <= len(numbers) <= most:
            raise CalculatorError("malformed", f"{name} has the wrong number of arguments")
        return _checked(function(*numbers))

    return call


def _evaluator() -> SimpleEval:
    evaluator = SimpleEval(
        operators={
            ast.Add: _bounded(operator.add),
            ast.Sub: _bounded(operator.sub),
            ast.Mult: _bounded(operator.mul),
            ast.Div: _bounded(operator.truediv),
            ast.FloorDiv: _bounded(operator.floordiv),
            ast.Mod: _bounded(operator.mod),
            ast.Pow: _power,
            ast.USub: operator.neg,
            ast.UAdd: operator.pos,
        },
        functions={
            "abs": _function("abs", abs, 1, 1),
            "round": _function("round", _round, 1, 2),
            "min": _function("min", min, 2, MAX_LENGTH),
            "max": _function("max", max, 2, MAX_LENGTH),
        },
        names={},
    )
    # Every other kind of node is refused: names, attributes, subscripts, comparisons, strings, ...
    kept = (ast.BinOp, ast.UnaryOp, ast.Call)
    evaluator.nodes = {kind: evaluator.nodes[kind] for kind in kept}
    evaluator.nodes[ast.Constant] = _constant
    return evaluator


# One for all threads: an evaluation keeps nothing in it but the text for simpleeval's messages.
_EVALUATOR = _evaluator()
