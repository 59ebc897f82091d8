"""Generated samples: theirs is the seed, and what they expect is what comes of their calls."""

import ast
import operator
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest

from itl_env import ConfigError, FactDatabase, people
from itl_env.generated import LEVELS, ages, generate
from itl_env.streams import Draws, bits, key

EVERY = ("calculator", "python_exec", "no_tool", "multi_turn")
OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv
}  # fmt: skip


def value(node):
    """An expression's value by a walk of our own, without the calculator."""
    if isinstance(node, ast.Constant):
        return Decimal(node.value)
    return OPERATORS[type(node.op)](value(node.left), value(node.right))


def evaluated(expression):
    return value(ast.parse(expression, mode="eval").body)


@pytest.mark.parametrize("level", LEVELS)
def test_what_arithmetic_expects_is_what_it_comes_to(level):
    for sample in generate(300, 1, categories=("calculator", "multi_turn"), level=level):
        *_, last = [evaluated(step.args["expression"]) for step in sample.steps]
        assert Decimal(sample.expected_answer) == last
        assert last >= 0


def test_each_step_begins_with_what_the_one_before_came_to():
    for sample in generate(100, 1, categories=("multi_turn",), level=3):
        assert 2 <= len(sample.steps) <= 3
        shown = [f"{evaluated(step.args['expression']):g}" for step in sample.steps]
        begins = [step.args["expression"].split()[0] for step in sample.steps]
        assert list(map(float, begins[1:])) == list(map(float, shown[:-1]))


def test_code_prints_in_python_itself_what_is_expected():
    samples = list(generate(40, 2, categories=("python_exec",), level=2))
    program = "\n".join(f"{sample.steps[0].args['code']}\nprint('---')" for sample in samples)
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert printed.stdout.split("\n---\n")[:-1] == [sample.expected_answer for sample in samples]


def test_a_sample_depends_on_the_seed_and_its_place_only():
    whole = list(generate(60, 5, categories=EVERY))
    assert whole[20:] == list(generate(40, 5, categories=EVERY, start=20))
    other = list(generate(60, 6, categories=EVERY))
    assert sum(a.prompt == b.prompt for a, b in zip(whole, other, strict=True)) < 20
    assert [sample.category for sample in whole[:4]] == list(EVERY)


def test_levels_differ_in_digits_and_operations():
    for level, (digits, n_operations) in LEVELS.items():
        for sample in generate(50, 0, categories=("calculator",), level=level):
            expression = sample.steps[0].args["expression"]
            assert sum(expression.count(op) for op in "+-*/") == n_operations
            numbers = [int(each) for each in expression.replace("(", " ").replace(")", " ").split()
                       if each.isdecimal()]  # fmt: skip
            assert max(len(str(number)) for number in numbers) <= 2 * digits


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"level": 5}, "There is no level 5"),
        ({"categories": ("mixed",)}, "The category 'mixed' is not generated"),
        ({"categories": ()}, "at least one category"),
    ],
)
def test_what_there_is_not_is_refused(arguments, told):
    with pytest.raises(ConfigError, match=told):
        generate(1, **arguments)


def test_ages_follow_from_the_database():
    database = FactDatabase.create("sqlite://", people(20, seed=4))
    for sample in ages(database, 30, seed=1):
        find, compute = sample.steps
        born = database.lookup([(find.args["name"], "birth_date")])[0]
        year = int(sample.prompt.split()[-1].rstrip("?"))
        assert int(sample.expected_answer) == year - int(born[-4:])
        assert compute.args["expression"] == f"{year} - {born[-4:]}"


def test_ages_need_birth_dates_with_years():
    none = FactDatabase.create("sqlite://", [{"name": "Ann", "birth_date": "long ago"}])
    with pytest.raises(ConfigError, match="'long ago', without a year"):
        next(ages(none, 1))
    other = FactDatabase.create("sqlite://", [{"name": "Ann", "shoe": "42"}])
    with pytest.raises(ConfigError, match="no attribute 'birth_date'"):
        next(ages(other, 1))


def test_draws_are_those_of_the_stream():
    stream = key(7, "draws")
    draws = Draws(stream, 5)
    assert [draws.bits() for _ in range(4)] == bits(stream, np.arange(4) + (5 << 16)).tolist()
    many = Draws(stream, 6)
    assert {many.between(3, 5) for _ in range(100)} == {3, 4, 5}
    assert {many.choice("ab") for _ in range(100)} == {"a", "b"}
