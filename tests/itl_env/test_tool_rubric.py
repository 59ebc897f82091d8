"""Rewards of tool calling: the published rules with their holes, and the outcome without them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itl_env import Rubric, ToolCallTask
from itl_env.actions import call_turn
from itl_env.generated import generate
from itl_env.python_code import is_constant_code
from itl_env.samples import Step
from itl_env.tool_rubric import came, is_spelled, read_number, says
from itl_env.tools import Calculator, Python

from .test_tool_call import CODE, DAY, STEPS, SUM, play

CALL = '{"tool": "calculator", "args": {"expression": "%s"}}'
RUN = '{"tool": "python", "args": {"code": "%s"}}'


@pytest.fixture(scope="module")
def task():
    task = ToolCallTask([SUM, CODE, DAY], tools=[Calculator(), Python()], rubric="classic")
    yield task
    task.close()


# format, tool, args, length; then the outcome: form and outcome.
CASES = [
    (SUM, CALL % "2 + 3", (1, 0.5, 1, 0), (0, 1)),
    (SUM, CALL % "3+2", (1, 0.5, 1, 0), (0, 1)),
    (SUM, CALL % "5.0000001 * 1", (1, 0.5, 1, 0), (0, 1)),
    (SUM, CALL % "2 * 3", (1, 0.5, 0, 0), (0, 0)),
    (SUM, CALL % "5", (1, 0.5, 1, 0), (0, 0)),  # the published rules pay for a spelled result
    (SUM, CALL % "2 +", (1, 0.5, 0, 0), (0, 0)),
    (SUM, "It is " + CALL % "2 + 3", (1, 0.5, 1, -0.2), (0, 1)),
    (SUM, RUN % "print(2 + 3)", (1, -0.5, 0, 0), (0, 1)),
    (SUM, RUN % "print(5)", (1, -0.5, 0, 0), (0, 0)),
    (SUM, '{"tool": "abacus", "args": {"expression": "2 + 3"}}', (1, -0.5, 0, 0), (0, 0)),
    (SUM, '{"final": "5"}', (1, -0.5, 0, 0), (0, 0)),  # right, but not computed
    (SUM, "5", (0, 0, 0, -0.2), (-1, 0)),
    (SUM, '{"final": 5}', (0, 0, 0, 0), (-1, 0)),
    (SUM, "", (0, 0, 0, -0.2), (-1, 0)),
    (SUM, "{six}", (0, 0, 0, -0.2), (-1, 0)),  # no JSON at all
    (CODE, RUN % "print( 'abc'[::-1] )  # so", (1, 0.5, 1, 0), (0, 1)),
    (CODE, RUN % "print(''.join(reversed('abc')))", (1, 0.5, 0, 0), (0, 1)),
    (CODE, RUN % "print('cba')", (1, 0.5, 0, 0), (0, 0)),
    (CODE, RUN % "print('abc'[", (1, 0.5, 0, 0), (0, 0)),
    (DAY, '{"final": "Tuesday"}', (1, 0.5, 0, 0), (0, 1)),
    (DAY, '{"final": ""}', (1, 0.5, 0, 0), (0, 0)),  # the published rules do not read answers
    (DAY, CALL % "1 + 1", (1, -0.5, 0, 0), (0, 0)),
    (DAY, RUN % "print('Tues' + 'day')", (1, -0.5, 0, 0), (0, 0)),  # it is to be answered
]


@pytest.mark.parametrize(("sample", "turn", "classic", "outcome"), CASES)
def test_both_rubrics_pay_by_their_rules(task, sample, turn, classic, outcome):
    reply = play(task, sample, turn)
    assert tuple(reply.rewards.values()) == pytest.approx(classic)
    assert list(reply.rewards) == ["format", "tool", "args", "length"]
    assert reply.reward == pytest.approx(sum(classic))
    total, parts = Rubric.outcome()(reply.state)
    assert tuple(parts.values()) == pytest.approx(outcome)
    assert total == pytest.approx(0.1 * outcome[0] + outcome[1])


def test_an_expression_without_a_value_counts_if_it_is_spelled_alike(task):
    odd = SUM._replace(steps=(Step("calculator", {"expression": "2 / 0"}),))
    assert play(task, odd, CALL % "2 / 0").rewards["args"] == 1.0
    assert play(task, odd, CALL % "2/0").rewards["args"] == 0.0


def test_several_turns_are_compared_with_what_was_due_at_each():
    task = ToolCallTask([STEPS], max_turns=4, rubric="classic")
    right = [CALL % "2 + 3", CALL % "5 * 2", '{"final": "10"}']
    reply = play(task, STEPS, *right)
    assert reply.rewards == pytest.approx({"format": 1, "tool": 0.5, "args": 2 / 3, "length": 0})
    early = play(task, STEPS, CALL % "2 + 3", '{"final": "10"}')
    # A final answer where a call was due, and a last turn that never came.
    assert early.rewards == pytest.approx({"format": 1, "tool": 0, "args": 1 / 3, "length": 0})
    # No call came to 10, so that the answer was guessed.
    assert Rubric.outcome()(early.state).total == 0.0
    shorter = play(task, STEPS, CALL % "(2 + 3) * 2", '{"final": "10"}')
    assert Rubric.outcome()(shorter.state).total == 1.0
    wordy = play(task, STEPS, CALL % "(2 + 3) * 2", "?", '{"final": "10."}')
    assert Rubric.outcome()(wordy.state).total == pytest.approx(1.0 - 0.1 / 3)
    guessed = play(task, STEPS, '{"final": "10"}')
    assert Rubric.outcome()(guessed.state).parts["outcome"] == 0.0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("5", True), ("5.0", True), (" 5. ", True), ("$5", True), ("+5", True), ("5.0000001", True),
        ("5.1", False), ("15", False), ("five", False), ("5 apples", False), ("", False),
        ("-5", False), ("5e0", True), ("nan", False), ("٥", False), ("5" * 500, False),
        ("1e999", False), ("5,000", False),
    ],
)  # fmt: skip
def test_numbers_are_read_as_a_whole(answer, right):
    assert says(answer, SUM) == right


def test_whole_numbers_are_right_to_the_unit():
    big = SUM._replace(expected_answer="80779853376")
    assert says("80,779,853,376", big)
    assert not says("80779853377", big)
    assert not says("80779853369", big._replace(tolerance=0.0))
    assert says("80779853377", big._replace(tolerance=1e-3))


def test_a_whole_number_is_no_other_one_written_as_a_float(task):
    big = SUM._replace(expected_answer="2000000")
    assert says("2000000.0", big)
    assert says("2,000,000.0000001", big)
    assert not says("2000001.0", big)
    for turn in (CALL % "2000000 + 1.5", RUN % "print(1e6*2+1)"):
        assert Rubric.outcome()(play(task, big, turn).state).parts["outcome"] == 0.0
    for turn in (CALL % "2000000 / 1", RUN % "print(1e6*2)"):
        assert Rubric.outcome()(play(task, big, turn).state).parts["outcome"] == 1.0
    assert says("2000001.0", big._replace(tolerance=1e-3))
    assert says("2000001.5", big._replace(expected_answer="2000001.4"))


def test_results_are_compared_letter_by_letter_and_answers_are_not():
    shout = CODE._replace(expected_answer="ABC")
    assert came("ABC\n", shout)
    assert not came("abc", shout)
    assert says("abc.", shout)


def test_an_episode_that_is_cut_after_a_call_earns_no_more_than_one_that_goes_on():
    task = ToolCallTask([STEPS], max_turns=4, rubric="classic")
    cut = task.rubric(play(task, STEPS, CALL % "2 + 3").state)
    whole = play(task, STEPS, CALL % "2 + 3", CALL % "5 * 2", '{"final": "10"}')
    assert cut.total < whole.reward


def test_numbers_may_be_written_in_several_ways():
    numbers = {"1,234.5": 1234.5, "-$3": -3.0, "1,23": None, "1e3": 1000.0, "--1": None, ".5": None}
    assert {text: read_number(text) for text in numbers} == numbers
    big = SUM._replace(expected_answer="1000000", tolerance=1e-3)
    assert says("1,000,500", big)
    assert not says("1,002,000", big)


def test_text_is_compared_as_facts_are():
    assert says(" tuesday. ", DAY)
    assert not says("It is Tuesday", DAY)


def test_what_is_spelled_is_told_from_what_is_computed():
    spelled = {
        ("calculator", "6"): True, ("calculator", "(-6)"): True, ("calculator", "2 * 3"): False,
        ("python", "print(6)"): True, ("python", "x = [6]\nprint(x, sep='')"): True,
        ("python", "print(f'{6}')"): True, ("python", "print(2 * 3)"): False,
        ("python", "import math\nif 1:\n    print(str(6))"): True, ("python", "pass\n6"): True,
        ("python", "print(len('abc'))"): False, ("python", "print('ab'[0])"): False,
    }  # fmt: skip
    names = {"calculator": "expression", "python": "code"}
    for (tool, text), expected in spelled.items():
        assert is_spelled(Step(tool, {names[tool]: text})) == expected, text
    assert not is_spelled(None)


SPELLED = [
    "x: int = 6\nprint(x)",
    "print(*[6])",
    "print((y:=6))",
    "for _ in [1]: print(6)",
    "assert 1\nprint(6)",
    "while True:\n print(6)\n break",
    "print(6 or 0)",
    "def f():\n return 6\nprint(f())",
    "def f(x: int) -> list[int]:\n return x\nprint(f(6))",
    "class A:\n def f(self): return 6\nprint(A().f())",
    "class A:\n x = 6\nprint(A.x)",
    "class A:\n def __init__(self): self.x = 6\nprint(A().x)",
    "p = print\np(6)",
    "print((lambda: 6)())",
    "max = 6\nprint(max)",
    "x: list[int] = [6]\nprint(x)",
    "x = []\nx.append(6)\nprint(x)",
    "print('{}'.format(6))",
    "print('it is %d' % 6)",
    "print(format(6))",
    "import sys\nsys.stdout.write('6')",
    "if __name__ == '__main__':\n print(6)",
    "try:\n print(6)\nexcept ValueError as e:\n print(e)",
    "def g():\n yield 6\nprint(*g())",
    "match 6:\n case 6: print(6)",
    "print(6)\nexit()",
]
COMPUTED = [
    "print(format(24, 'b'))",
    "print('%x' % 255)",
    "print('{:b}'.format(24))",
    "print(int('ff', 16))",
    "import math\nprint(math.pi)",
    "from math import gcd\nprint(gcd(4, 6))",
    "import datetime\nprint(datetime.datetime(2020, 1, 1))",
    "count = 'banana'.count('a')\nprint(count)",
    "sum = sum([1, 2])\nprint(sum)",
    "def upper(s): return s.upper()\nprint(upper('a'))",
    "f = len\nprint(f('abc'))",
    "x = 1\nx += 5\nprint(x)",
    "print(6 == 6)",
    "print([n for n in [6]])",
    "for i in range(3): print(i)",
    "class A:\n def f(self): return 2 * 3\nprint(A().f())",
    # A word problem, as models solve it.
    "eggs = 16\neaten = 3\nbaked = 4\nleft = eggs - eaten - baked\nprint(left * 2)",
    "def solve():\n    total = sum([48, 48 // 2])\n    return total\nprint(solve())",
]


@pytest.mark.parametrize("code", SPELLED)
def test_code_that_only_shows_what_it_holds_earns_nothing(task, code):
    six = SUM._replace(expected_answer="6")
    assert is_spelled(Step("python", {"code": code}))
    assert Rubric.outcome()(play(task, six, call_turn("python", {"code": code})).state).total == 0.0


@pytest.mark.parametrize("code", COMPUTED)
def test_code_that_computes_is_not_said_to_spell(code):
    assert not is_spelled(Step("python", {"code": code}))


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_generated_code_computes(level, task):
    samples = generate(
        150, level, categories=("python_exec",), level=level, executor=task.tools["python"].executor
    )
    assert [sample.id for sample in samples if is_spelled(sample.steps[0])] == []


@given(st.text(max_size=60))
def test_whether_any_text_spells_can_be_told(text):
    assert is_constant_code(text) in (True, False)
    assert not is_spelled(Step("find", {"attribute": "a", "name": "b"}))
