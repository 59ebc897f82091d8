"""The tool-calling task: calls are run, errors are told and the episode goes on, budgets end it."""

import copy
import doctest
import pickle

import pytest

import itl_env.tool_call
from itl_env import ConfigError, FactDatabase, Final, StopReason, ToolCall, ToolCallTask, people
from itl_env.episode import Completion, read_episodes, write_episodes
from itl_env.executor import MontyExecutor
from itl_env.generated import ages, generate
from itl_env.samples import Sample, Step
from itl_env.tools import Calculator, Find, Python

SUM = Sample(
    "sum", "mine", "calculator", "What is 2 plus 3?",
    (Step("calculator", {"expression": "2 + 3"}),), "5", "number",
)  # fmt: skip
CODE = Sample(
    "code", "mine", "python_exec", "Print abc backwards.",
    (Step("python", {"code": "print('abc'[::-1])"}),), "cba",
)  # fmt: skip
DAY = Sample("day", "mine", "no_tool", "Which day comes after Monday?", (), "Tuesday")
STEPS = Sample(
    "steps", "mine", "multi_turn", "Add 2 and 3, then double it.",
    (Step("calculator", {"expression": "2 + 3"}), Step("calculator", {"expression": "5 * 2"})),
    "10", "number",
)  # fmt: skip


@pytest.fixture(scope="module")
def python():
    tool = Python(MontyExecutor(time_limit=0.5))
    yield tool
    tool.close()


@pytest.fixture(scope="module")
def single(python):
    return ToolCallTask([SUM, CODE, DAY], tools=[Calculator(), python])


@pytest.fixture(scope="module")
def several(python):
    return ToolCallTask([SUM, DAY, STEPS], tools=[Calculator(), python], max_turns=4)


def play(task, sample, *turns):
    """The last reply after raw turns."""
    (state,) = task.start([sample])
    for turn in turns:
        (reply,) = task.advance([state], [task.parse(turn)], [turn])
        state = reply.state
    return reply


def call(tool, **args):
    return ToolCall(tool, args)


def test_the_example_in_the_docstring_is_true():
    result = doctest.testmod(itl_env.tool_call)
    assert result.attempted
    assert not result.failed


def test_the_one_turn_of_a_single_turn_task_is_run_and_ends_it(single):
    states = single.start([SUM, CODE, DAY, DAY])
    actions = [
        call("calculator", expression="2+3"),
        call("python", code="print('cba')"),
        Final("Tuesday."),
        Final("Wednesday"),
    ]
    replies = single.advance(states, actions)
    assert [reply.observation for reply in replies] == ["5", "cba", "", ""]
    assert [reply.state.answer for reply in replies] == ["5", "cba", "Tuesday.", "Wednesday"]
    # What is only printed as it was spelled is no computation.
    assert [reply.reward for reply in replies] == [1.0, 0.0, 1.0, 0.0]
    assert all(reply.done for reply in replies)
    assert {reply.state.stop_reason for reply in replies} == {StopReason.ANSWERED}
    assert [len(reply.state.messages) for reply in replies] == [2, 2, 2, 2]


def test_results_are_shown_until_the_final_answer(several):
    first = play(several, STEPS, '{"tool": "calculator", "args": {"expression": "2 + 3"}}')
    assert (first.observation, first.done, first.state.n_queries) == ("5", False, 1)
    assert first.state.messages[-1] == ("database", "5")
    last = play(
        several,
        STEPS,
        '{"tool": "calculator", "args": {"expression": "2 + 3"}}',
        '{"tool": "calculator", "args": {"expression": "5 * 2"}}',
        '{"final": "10"}',
    )
    assert (last.observation, last.done, last.reward) == ("", True, 1.0)
    assert [message.role for message in last.state.messages] == [
        "user", "assistant", "database", "assistant", "database", "assistant"
    ]  # fmt: skip


def test_an_error_is_told_and_the_episode_goes_on(several):
    told = {
        "nonsense": ("no_json", "error: there is no JSON object; write"),
        '{"final": 5}': ("wrong_form", "error: the JSON has neither form"),
        '{"tool": "abacus", "args": {}}': ("unknown_tool", "error: unknown tool; there is calcul"),
        '{"tool": "calculator", "args": {}}': ("bad_arguments", "error: calculator takes express"),
        '{"tool": "calculator", "args": {"expression": 5}}': ("bad_arguments", "error: calculat"),
        '{"tool": "calculator", "args": {"expression": "1/0"}}': ("division_by_zero", "error: "),
        '{"tool": "python", "args": {"code": "1/0"}}': ("exception", "error: ZeroDivisionError"),
        '{"tool": "python", "args": {"code": "while True: pass"}}': ("time_limit", "error: "),
        '{"tool": "python", "args": {"code": "x ="}}': ("malformed", "error: "),
    }
    for turn, (code, words) in told.items():
        reply = play(several, DAY, turn)
        assert reply.error_code == reply.state.error == code
        assert reply.observation.startswith(words)
        assert not reply.done
        end = play(several, DAY, turn, '{"final": "Tuesday"}')
        assert (end.state.answer, end.done, end.state.error) == ("Tuesday", True, code)


def test_spent_turns_end_an_episode_without_an_answer(single, several):
    for task, turns in ((single, 1), (several, 4)):
        reply = play(task, DAY, *["?"] * turns)
        assert (reply.done, reply.state.answer) == (True, None)
        assert reply.state.stop_reason is StopReason.OUT_OF_TURNS
        assert reply.reward == pytest.approx(-0.1)
    failed = play(single, SUM, '{"tool": "calculator", "args": {"expression": "2 +"}}')
    assert (failed.state.stop_reason, failed.reward) == (StopReason.OUT_OF_TURNS, 0.0)


def test_calls_of_one_tool_are_run_together(several, monkeypatch):
    calls = []
    run = Calculator.run
    monkeypatch.setattr(
        Calculator, "run", lambda self, them: calls.append(len(them)) or run(self, them)
    )
    states = several.start([SUM] * 5)
    replies = several.advance(states, [call("calculator", expression=f"{i} + 1") for i in range(5)])
    assert [reply.observation for reply in replies] == ["1", "2", "3", "4", "5"]
    assert calls == [5]


def test_long_results_are_withheld_and_long_turns_refused(python):
    task = ToolCallTask([DAY], tools=[python], max_turns=2, max_length=100)
    reply = play(task, DAY, '{"tool": "python", "args": {"code": "print(\'a\' * 101)"}}')
    assert reply.error_code == "too_large"
    assert play(task, DAY, "{" * 101).error_code == "too_long"


def test_facts_are_looked_up_and_computed_with():
    database = FactDatabase.create("sqlite://", people(20, seed=4))
    samples = list(ages(database, 20))
    task = ToolCallTask(samples, tools=[Calculator(), Find(database)], max_turns=3)
    for sample in samples:
        turns = [task.expert_turn(sample, n) for n in range(3)]
        reply = play(task, sample, *turns)
        assert reply.reward == 1.0
        assert reply.state.messages[2].content.endswith(sample.steps[1].args["expression"][-4:])
    unknown = play(task, samples[0], '{"tool": "find", "args": {"attribute": "x", "name": "y"}}')
    assert unknown.error_code == "unknown_attribute"
    nobody = '{"tool": "find", "args": {"attribute": "birth_date", "name": "Nobody\' OR 1=1"}}'
    assert play(task, samples[0], nobody).observation == "no result"


def test_the_instruction_names_every_form(single):
    question = single.question(SUM)
    assert question.endswith("What is 2 plus 3?")
    for form in ('{"final": "..."}', '{"tool": "calculator", "args": {"expression": "..."}}',
                 '{"tool": "python", "args": {"code": "..."}}'):  # fmt: skip
        assert question.count(form) == 1
    assert ToolCallTask([SUM], instruction="").question(SUM) == SUM.prompt


@pytest.mark.parametrize(
    ("samples", "arguments", "told"),
    [
        ([], {}, "There are no samples"),
        ([SUM], {"max_turns": 0}, "must be at least 1"),
        ([SUM], {"rubric": "best"}, "There is no rubric 'best'; choose among outcome, classic"),
        ([SUM], {"tools": [Calculator(), Calculator()]}, "Two tools have one name"),
        ([CODE], {"tools": [Calculator()]}, "Sample 'code' needs the tool 'python'; there is calc"),
        ([STEPS], {}, "Sample 'steps' takes 3 turns, but max_turns is 1"),
        ([STEPS], {"max_turns": 2}, "Sample 'steps' takes 3 turns, but max_turns is 2"),
        (
            [SUM._replace(steps=(Step("calculator", {"code": "2"}),))],
            {},
            "Sample 'sum' has a call that does not fit: calculator takes expression",
        ),
    ],
)
def test_what_no_agent_could_do_is_refused(samples, arguments, told):
    with pytest.raises(ConfigError, match=told):
        ToolCallTask(samples, **arguments)


def test_lanes_that_are_over_or_do_not_match_are_a_mistake_of_the_caller(single):
    (state,) = single.start([DAY])
    (reply,) = single.advance([state], [Final("Tuesday")])
    with pytest.raises(ValueError, match="is over"):
        single.advance([reply.state], [Final("x")])
    with pytest.raises(ValueError, match="same length"):
        single.advance([state], [])
    with pytest.raises(ValueError, match="has not ended"):
        single.episode(reply._replace(state=state), [])


def test_episodes_come_back_from_a_file(several, tmp_path):
    turns = ["?", '{"tool": "python", "args": {"code": "print(2)"}}', '{"final": "10"}']
    reply = play(several, STEPS, *turns)
    episode = several.episode(reply, [Completion(turn) for turn in turns], agent="me")
    assert (episode.n_queries, episode.answer, episode.error) == (1, "10", "no_json")
    assert several.rubric(episode) == several.rubric(reply.state)
    write_episodes([episode], tmp_path / "e.jsonl")
    assert list(read_episodes(tmp_path / "e.jsonl")) == [episode]


def test_tasks_and_states_can_be_copied_and_pickled(single):
    single.advance(single.start([CODE]), [call("python", code="print(1)")])  # the pool is open
    for other in (copy.deepcopy(single), pickle.loads(pickle.dumps(single))):
        (reply,) = other.advance(other.start([CODE]), [call("python", code="print('cb' + 'a')")])
        assert reply.reward == 1.0
        other.close()


def test_the_expert_of_every_generated_sample_is_right(python):
    samples = list(
        generate(
            200,
            4,
            categories=("calculator", "python_exec", "no_tool", "multi_turn"),
            level=2,
            executor=python.executor,
        )
    )
    task = ToolCallTask(samples, tools=[Calculator(), python], max_turns=4)
    for sample in samples:
        n = len(sample.steps) + 1
        assert play(task, sample, *[task.expert_turn(sample, i) for i in range(n)]).reward == 1.0
