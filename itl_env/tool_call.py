"""Tool calling as a task: each turn is one JSON object, a call of a tool or the final answer.

`ToolCallTask` is to tool calling what `RecallTask` is to fact recall: pure, batched, and the only
place that decides what happens in an episode.

    >>> from itl_env import ToolCallTask
    >>> from itl_env.actions import ToolCall
    >>> from itl_env.samples import Sample, Step
    >>> step = Step("calculator", {"expression": "2 + 3"})
    >>> sample = Sample("sum-1", "mine", "calculator", "What is 2 plus 3?", (step,), "5")
    >>> task = ToolCallTask([sample])
    >>> state = task.start([sample])[0]
    >>> reply = task.advance([state], [ToolCall("calculator", {"expression": "3 + 2"})])[0]
    >>> reply.observation, reply.reward, reply.done
    ('5', 1.0, True)
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from itl_env.actions import (
    Final,
    JsonAction,
    ParseError,
    ToolCall,
    call_turn,
    final_turn,
    is_bare,
    parse_json_turn,
)
from itl_env.dialogue import ERROR_PREFIX, Message
from itl_env.episode import Completion, Episode, StopReason, ToolTurn
from itl_env.errors import ConfigError
from itl_env.facts import Fact
from itl_env.rubric import Rubric
from itl_env.samples import Sample, Step
from itl_env.task import Reply, episode_of
from itl_env.tool_rubric import ToolTranscript, tool_rubric_named
from itl_env.tools import Find, Tool, ToolResult, check_arguments, standard_tools

INSTRUCTION = """\
Answer with one JSON object and nothing else, in one of these forms:
{forms}
Call a tool where the answer has to be computed; otherwise answer directly.

"""
"""What is put before a prompt; `{forms}` stands for a line for each form."""


class ToolState(NamedTuple):
    """Where one episode stands. A state is never changed; `advance` makes the next one."""

    sample: Sample
    messages: tuple[Message, ...]
    turns: tuple[ToolTurn, ...] = ()
    answer: str | None = None
    stop_reason: StopReason | None = None
    max_turns: int = 1

    def after(
        self,
        messages: tuple[Message, ...],
        turns: tuple[ToolTurn, ...],
        stop_reason: StopReason | None = None,
        answer: str | None = None,
    ) -> "ToolState":
        """The state after one more turn."""
        return ToolState(self.sample, messages, turns, answer, stop_reason, self.max_turns)

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self.stop_reason is not None

    @property
    def fact(self) -> Fact:
        """See `Sample.fact`."""
        return self.sample.fact

    @property
    def n_queries(self) -> int:
        """Calls of tools, also of refused ones."""
        return sum(turn.call is not None for turn in self.turns)

    @property
    def error(self) -> str | None:
        """The code of the last error."""
        return next((turn.error for turn in reversed(self.turns) if turn.error), None)


class ToolCallTask:
    """Tool calling over samples.

    samples: what is asked. tools: what can be called; by default a calculator and Python.
    max_turns: turns of an episode. With 1, what the one call gives is the answer; with more, the
        tool's result is shown, and the episode ends with `{"final": ...}`.
    rubric: the name of the reward: `outcome` or `classic`; see `itl_env.rubric`.
    instruction: put before each prompt. `{forms}` in it stands for the forms of a turn. Empty for
        models that are trained to know them.
    max_length: characters; a longer turn is an error, a longer result is withheld.

    Raises ConfigError for samples that the tools or the turns do not suffice for.
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        *,
        tools: Sequence[Tool] | None = None,
        max_turns: int = 1,
        rubric: str = "outcome",
        instruction: str = INSTRUCTION,
        max_length: int = 4000,
    ) -> None:
        self.samples = list(samples)
        chosen = standard_tools() if tools is None else tuple(tools)
        self.tools = {tool.name: tool for tool in chosen}
        self.max_turns = max_turns
        self.max_length = max_length
        self.rubric: Rubric[ToolTranscript] = tool_rubric_named(rubric)
        if max_turns < 1 or max_length < 1:
            raise ConfigError("max_turns and max_length must be at least 1.")
        if not self.samples:
            raise ConfigError("There are no samples.")
        if len(self.tools) < len(chosen):
            raise ConfigError("Two tools have one name.")
        self.instruction = instruction.replace("{forms}", "\n".join(self._forms()))
        for sample in self.samples:
            self._check(sample)

    def _forms(self) -> list[str]:
        """The turns that there are, a line each."""
        calls = [
            f"{call_turn(tool.name, dict.fromkeys(tool.parameters, '...'))}  {tool.description}"
            for tool in self.tools.values()
        ]
        return [f"{final_turn('...')}  answers", *calls]

    def _check(self, sample: Sample) -> None:
        """Raise ConfigError if no agent could do what the sample asks."""
        for name, args in sample.steps:
            if name not in self.tools:
                known = ", ".join(self.tools)
                raise ConfigError(
                    f"Sample {sample.id!r} needs the tool {name!r}; there is {known}."
                    + (" Name a database." if name == Find.name else "")
                )
            if problem := check_arguments(self.tools[name], args):
                raise ConfigError(f"Sample {sample.id!r} has a call that does not fit: {problem}.")
        needed = turns_needed(sample) if self.max_turns > 1 else max(1, len(sample.steps))
        if needed > self.max_turns:
            raise ConfigError(
                f"Sample {sample.id!r} takes {turns_needed(sample)} turns, but max_turns is "
                f"{self.max_turns}; raise it."
            )

    def close(self) -> None:
        """Let go of what the tools hold; a later use takes it again."""
        for tool in self.tools.values():
            tool.close()

    def __len__(self) -> int:
        return len(self.samples)

    # -- what is said ------------------------------------------------------------------------

    def question(self, sample: Sample) -> str:
        """The user's words: the instruction, then the prompt."""
        return self.instruction + sample.prompt

    def expert_turn(self, sample: Sample, n_turns: int) -> str:
        """What one who knows writes after `n_turns` turns."""
        if n_turns < len(sample.steps):
            return call_turn(*sample.steps[n_turns])
        return final_turn(sample.expected_answer)

    def parse(self, text: str) -> JsonAction:
        """Read a raw assistant turn."""
        return parse_json_turn(text, self.max_length)

    def read(self, completion: Completion) -> JsonAction:
        """The action a completion stands for."""
        return self.parse(completion.text)

    # -- the state machine -------------------------------------------------------------------

    def start(self, samples: Sequence[Sample]) -> list[ToolState]:
        """One state per sample: the prompt is given, nothing else has happened."""
        return [
            ToolState(each, (Message("user", self.question(each)),), max_turns=self.max_turns)
            for each in samples
        ]

    def advance(
        self,
        states: Sequence[ToolState],
        actions: Sequence[JsonAction],
        turns: Sequence[str] | None = None,
    ) -> list[Reply[ToolState]]:
        """Play one action in each lane; any subset of lanes may be given.

        turns: the assistant turns as they were written, for the record; by default the action as
            JSON.

        Raises ValueError for lanes whose episode is over, and EnvironmentFailure when a tool itself
        fails; what an action holds never raises.
        """
        if not len(states) == len(actions) == (len(actions) if turns is None else len(turns)):
            raise ValueError("states, actions and turns must have the same length.")
        if any(state.done for state in states):
            raise ValueError("An episode that is over cannot be advanced; start a new one.")
        results = self._run(actions)
        replies = []
        for lane, (state, action) in enumerate(zip(states, actions, strict=True)):
            turn = _turn(action) if turns is None else turns[lane]
            replies.append(self._reply(state, action, turn, results.get(lane)))
        return replies

    def _run(self, actions: Sequence[JsonAction]) -> dict[int, ToolResult]:
        """The result of each lane that calls a tool; calls of one tool are run together."""
        results: dict[int, ToolResult] = {}
        calls: defaultdict[str, list[tuple[int, Any]]] = defaultdict(list)
        for lane, action in enumerate(actions):
            if not isinstance(action, ToolCall):
                continue
            tool = self.tools.get(action.tool)
            if tool is None:
                known = ", ".join(self.tools)
                results[lane] = ToolResult(f"unknown tool; there is {known}", "unknown_tool")
            elif problem := check_arguments(tool, action.args):
                results[lane] = ToolResult(problem, "bad_arguments")
            else:
                calls[action.tool].append((lane, action.args))
        for name, wanted in calls.items():
            done = self.tools[name].run([args for _, args in wanted])
            for (lane, _), result in zip(wanted, done, strict=True):
                results[lane] = self._shown(result)
        return results

    def _shown(self, result: ToolResult) -> ToolResult:
        if len(result.text) <= self.max_length:
            return result
        if result.error_code is not None:
            return ToolResult(result.text[: self.max_length], result.error_code)
        return ToolResult(f"the result is longer than {self.max_length} characters", "too_large")

    def _reply(
        self, state: ToolState, action: JsonAction, turn: str, result: ToolResult | None
    ) -> Reply[ToolState]:
        record = _record(action, turn, result)
        turns = (*state.turns, record)
        messages = (*state.messages, Message("assistant", turn))
        observation = _observation(action, result)
        answer = record.result if record.final is None else record.final
        if record.error is None and (record.final is not None or self.max_turns == 1):
            after = state.after(messages, turns, StopReason.ANSWERED, answer)
        elif len(turns) >= self.max_turns:
            after = state.after(messages, turns, StopReason.OUT_OF_TURNS)
        else:
            messages = (*messages, Message("database", observation))
            after = state.after(messages, turns)
            return Reply(after, observation, 0.0, False, record.error, {})
        total, parts = self.rubric(after)
        return Reply(after, observation, total, True, record.error, parts)

    # -- the record --------------------------------------------------------------------------

    def episode(
        self,
        reply: Reply[ToolState],
        completions: Sequence[Completion],
        *,
        index: int = 0,
        seed: int = 0,
        agent: str = "",
    ) -> Episode:
        """The episode that ended with `reply`; raises ValueError if it has not ended."""
        state = reply.state
        return episode_of(
            reply,
            completions,
            index=index,
            seed=seed,
            agent=agent,
            sample=state.sample,
            turns=state.turns,
            max_turns=state.max_turns,
        )


def turns_needed(sample: Sample) -> int:
    """Turns of an episode that shows results: the calls and the final answer."""
    return len(sample.steps) + 1


def _turn(action: JsonAction) -> str:
    """An action as one who means it writes it."""
    if isinstance(action, ToolCall):
        return call_turn(*action)
    return final_turn(action.text) if isinstance(action, Final) else ""


def _observation(action: JsonAction, result: ToolResult | None) -> str:
    """What the environment says to an action."""
    if isinstance(action, ParseError):
        return ERROR_PREFIX + action.message
    if result is None:
        return ""
    return ERROR_PREFIX + result.text if result.error_code else result.text


def _record(action: JsonAction, turn: str, result: ToolResult | None) -> ToolTurn:
    """What is kept of a turn."""
    bare = is_bare(turn)
    if isinstance(action, ParseError):
        # What is no JSON has nothing around it either, but is not the object that was asked for.
        return ToolTurn(error=action.code, bare=bare and action.code == "wrong_form")
    if isinstance(action, Final):
        return ToolTurn(final=action.text, bare=bare)
    assert result is not None
    call = Step(action.tool, action.args)
    if result.error_code is not None:
        return ToolTurn(call=call, error=result.error_code, bare=bare)
    return ToolTurn(call=call, result=result.text, bare=bare)
