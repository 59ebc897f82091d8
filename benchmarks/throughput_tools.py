"""How fast the tools are and the tasks that call them, against what a user would pick instead.

    itl bench run throughput-tools --out DIR

Writes `throughput-tools.json` and `throughput-tools.md`. The sides of a comparison do the same
calls, of generated samples, and take turns in one process; both are shown to give the same. What
stands alone is made in a process of its own that is kept on one core.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
from simpleeval import SimpleEval, simple_eval  # type: ignore[import-untyped]

from benchmarks.machine import machine
from benchmarks.study_report import publish, results_folder
from benchmarks.timing import absolute, absolutes_table, compare, comparisons_table, race, say
from itl_env.actions import Final, JsonAction, ToolCall, parse_json_turn
from itl_env.calculator import calculate
from itl_env.errors import EnvironmentFailure
from itl_env.executor import MontyExecutor
from itl_env.generated import generate
from itl_env.samples import Category
from itl_env.subprocess_executor import SubprocessExecutor
from itl_env.tool_call import ToolCallTask
from itl_env.tool_data import Mix, make_data

ENV = "itl_env:ITL/ToolCall-v0"
LEVEL = 4  # of the arithmetic: the longest expressions, and the fewest prompts that repeat
WITHOUT_PYTHON: tuple[Category, ...] = ("calculator", "no_tool", "multi_turn")
PYTHON: tuple[Category, ...] = ("python_exec",)
TARGET_S = 60  # for 100,000 tasks


@dataclass(frozen=True)
class ThroughputToolsConfig:
    """Time tools and their tasks against what one would use instead, in turns, in one process."""

    out: Path = Path("runs/throughput-tools")  # folder for throughput-tools.json and .md
    preset: Literal["smoke", "laptop"] = "laptop"  # laptop: minutes; smoke: does it run at all
    seed: int = 0  # drives the samples


class Sizes(NamedTuple):
    """How much each part does a round."""

    rounds: int
    n_calls: int  # of the calculator; also steps with it, and turns that are parsed
    n_programs: int  # also steps with Python
    n_processes: int  # programs that get a process each
    lanes: int
    n_tasks: int  # made of each kind, and made into a data set
    n_verified: int  # Python tasks made into a data set


SIZES = {
    "smoke": Sizes(
        rounds=1, n_calls=60, n_programs=20, n_processes=3, lanes=8, n_tasks=60, n_verified=20
    ),
    "laptop": Sizes(
        rounds=3, n_calls=20_000, n_programs=4_000, n_processes=100, lanes=256, n_tasks=100_000,
        n_verified=20_000,
    ),
}  # fmt: skip


def throughput_tools(
    config: ThroughputToolsConfig, show: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure everything, write the two files into `config.out` and return the first's content.

    show: given the table at the end.
    """
    sizes, seed, rounds = SIZES[config.preset], config.seed, SIZES[config.preset].rounds
    out = results_folder(config.out)
    began = time.perf_counter()
    comparisons = calculations(seed, sizes.n_calls, rounds)
    comparisons += programs(seed, sizes)
    comparisons += env_steps("calculator", seed, sizes.n_calls, sizes.lanes, rounds)
    comparisons += env_steps("python_exec", seed, sizes.n_programs, sizes.lanes, rounds)
    comparisons += parsing(seed, sizes.n_calls, rounds)
    results = {
        "preset": config.preset,
        "seed": seed,
        "comparisons": comparisons,
        "absolutes": tasks(seed, sizes),
        "machine": {
            **machine(),
            "simpleeval": version("simpleeval"),
            "pydantic-monty": version("pydantic-monty"),
        },
        "seconds": round(time.perf_counter() - began, 1),
    }
    publish(out, "throughput-tools", results, report(results), show)
    return results


# -- tools alone -----------------------------------------------------------------------------------


def calculations(seed: int, n: int, rounds: int) -> list[dict[str, Any]]:
    """Expressions a second of the calculator, and of what it could be replaced by."""
    say("calculator")
    expressions = _arguments("calculator", "expression", seed, n)
    values: dict[str, list[Any]] = {}

    def counted(name: str, evaluate: Callable[[str], Any]) -> Callable[[], int]:
        def run() -> int:
            values[name] = [evaluate(expression) for expression in expressions]
            return n

        return run

    nothing: dict[str, Any] = {"__builtins__": {}}
    what = "calculate"
    sides: dict[str, Callable[[str], Any]] = {
        what: calculate,
        "simpleeval.simple_eval": simple_eval,
        "simpleeval, one SimpleEval for all": SimpleEval().eval,
        "eval with empty builtins (unsafe)": lambda expression: eval(expression, nothing),
    }
    rates = race({name: counted(name, side) for name, side in sides.items()}, rounds)
    return [
        compare(
            rates, what, name, "calls/s",
            equal=list(map(repr, values[what])) == list(map(repr, values[name])),
            checked=f"{n:,} values",
        )
        for name in sides
        if name != what
    ]  # fmt: skip


def programs(seed: int, sizes: Sizes) -> list[dict[str, Any]]:
    """Programs a second of both executors, and of a process that nothing contains.

    A system that refuses `unshare` has no `SubprocessExecutor`, whose rows are left out.
    """
    say("Python")
    codes = _arguments("python_exec", "code", seed, sizes.n_programs)
    some = codes[: sizes.n_processes]
    printed: dict[str, list[str]] = {}

    def counted(name: str, run: Callable[[str], str], given: Sequence[str]) -> Callable[[], int]:
        def play() -> int:
            printed[name] = [run(code) for code in given]
            return len(given)

        return play

    monty, contained, bare = "MontyExecutor.run", "SubprocessExecutor.run", "subprocess.run"
    bare += "([sys.executable, '-I', '-c', code])"
    pairs = [(monty, contained), (monty, bare), (contained, bare)]
    with MontyExecutor() as executor:
        sides = {monty: counted(monty, lambda code: executor.run(code).output, codes)}
        try:
            other = SubprocessExecutor()
            sides[contained] = counted(contained, lambda code: other.run(code).output, some)
        except EnvironmentFailure as failure:
            say(f"  without SubprocessExecutor: {failure}")
            pairs = [(monty, bare)]
        sides[bare] = counted(bare, _run_bare, some)
        rates = race(sides, sizes.rounds)
    return [
        compare(
            rates, what, against, "programs/s",
            equal=printed[what][: len(some)] == printed[against],
            checked=f"output of {len(some):,} programs",
        )
        for what, against in pairs
    ]  # fmt: skip


def _run_bare(code: str) -> str:
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _arguments(category: Category, name: str, seed: int, n: int) -> list[str]:
    """The argument of the one call of each of n samples."""
    samples = generate(n, seed, categories=(category,), level=LEVEL)
    return [sample.steps[0].args[name] for sample in samples]


# -- turns and steps -------------------------------------------------------------------------------


def env_steps(
    category: Category, seed: int, n: int, lanes: int, rounds: int
) -> list[dict[str, Any]]:
    """Steps a second of an expert, which are one episode each, against its tool calls alone.

    What is beyond the calls is the environment: the reset, reading the turn, the reward.
    """
    say(f"environment steps, {category}")
    env = gymnasium.make(ENV, categories=[category], level=LEVEL, n=n, data_seed=seed)
    task: ToolCallTask = env.unwrapped.task  # type: ignore[attr-defined]
    asked = [(sample, task.expert_turn(sample, 0)) for sample in task.samples]
    seen: dict[str, list[tuple[str, float]]] = {}

    def single(name: str) -> int:
        seen[name] = []
        for sample, turn in asked:
            env.reset(options={"sample": sample.id})
            reply, reward, *_ = env.step(turn)
            seen[name].append((reply, float(reward)))
        return n

    def batched(name: str) -> int:
        seen[name] = []
        for start in range(0, n, lanes):
            samples, turns = zip(*asked[start : start + lanes], strict=True)
            replies = task.advance(task.start(samples), list(map(task.parse, turns)), turns)
            seen[name] += [(reply.observation, reply.reward) for reply in replies]
        return n

    def alone(name: str) -> int:
        calls = (sample.steps[0] for sample, _ in asked)
        seen[name] = [(task.tools[tool].run([args])[0].text, 1.0) for tool, args in calls]
        return n

    tool = task.samples[0].steps[0].tool
    reference = f"the tool {tool} alone"
    sides = {
        f"ToolCallEnv, {tool}": single,
        f"ToolCallTask.advance, {tool}, {lanes} lanes": batched,
        reference: alone,
    }
    rates = race({name: partial(play, name) for name, play in sides.items()}, rounds)
    env.close()
    return [
        compare(
            rates, name, reference, "steps/s", equal=seen[name] == seen[reference],
            checked=f"{n:,} results, each rewarded with 1",
        )
        for name in sides
        if name != reference
    ]  # fmt: skip


def parsing(seed: int, n: int, rounds: int) -> list[dict[str, Any]]:
    """Turns a second of the parser, which checks what JSON alone lets pass."""
    say("parsing")
    task = ToolCallTask(generate(n, seed, level=LEVEL))
    turns = [task.expert_turn(sample, 0) for sample in task.samples]
    actions: list[JsonAction] = []
    values: list[Any] = []

    def ours() -> int:
        actions[:] = [parse_json_turn(turn, task.max_length) for turn in turns]
        return n

    def plain() -> int:
        values[:] = [json.loads(turn) for turn in turns]
        return n

    what, against = "parse_json_turn", "json.loads"
    rates = race({what: ours, against: plain}, rounds)
    return [
        compare(
            rates, what, against, "turns/s", equal=[_as_json(each) for each in actions] == values,
            checked=f"{n:,} turns",
        )
    ]  # fmt: skip


def _as_json(action: JsonAction) -> dict[str, Any]:
    """The object that an action was read from."""
    if isinstance(action, ToolCall):
        return action._asdict()
    return {"final": action.text} if isinstance(action, Final) else {}


# -- tasks -----------------------------------------------------------------------------------------


def tasks(seed: int, sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds to make tasks, whose labels are executed, and data sets, which are verified."""
    n, rounds = sizes.n_tasks, sizes.rounds
    some = f"{n:,} tasks ({', '.join(WITHOUT_PYTHON)})"
    target = f"at most {TARGET_S}" if n == 100_000 else ""
    works: list[tuple[str, Callable[[], float], str]] = [
        (f"generate {some}", partial(_generate, n, seed, WITHOUT_PYTHON), target),
        (f"generate {n:,} Python tasks", partial(_generate, n, seed, PYTHON), target),
        (f"make_data of {some}", partial(_make_data, n, seed, WITHOUT_PYTHON), ""),
        (
            f"make_data of {sizes.n_verified:,} Python tasks",
            partial(_make_data, sizes.n_verified, seed, PYTHON),
            "",
        ),
    ]
    rows = []
    for what, work, at_most in works:
        say(what)
        rows.append(absolute(what, "s", [_on_one_core(work) for _ in range(rounds)], at_most))
    return rows


def _on_one_core(work: Callable[[], float]) -> float:
    """What `work` returns in a new process; the processes that it starts are on that core too."""
    with multiprocessing.get_context("spawn").Pool(1, _keep_to_one_core) as pool:
        return pool.apply(work)


def _keep_to_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):  # only Linux has it
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _generate(n: int, seed: int, categories: tuple[Category, ...]) -> float:
    began = time.perf_counter()
    deque(generate(n, seed, categories=categories, level=LEVEL), maxlen=0)
    return time.perf_counter() - began


def _make_data(n: int, seed: int, categories: tuple[Category, ...]) -> float:
    mix = Mix(generated=n, categories=categories, level=LEVEL, seed=seed)
    with tempfile.TemporaryDirectory(prefix="itl-throughput-tools-") as folder:
        began = time.perf_counter()
        make_data(mix, folder)
        return time.perf_counter() - began


def report(results: dict[str, Any]) -> str:
    """`throughput-tools.md`: the machine, the ratios, then the seconds that stand alone."""
    on = results["machine"]
    return f"""# Throughput of tools

Machine: {on["cpu"]}, {on["cores"]} cores, {on["system"]}, Python {on["python"]}, simpleeval
{on["simpleeval"]}, pydantic-monty {on["pydantic-monty"]}. Preset {results["preset"]}, seed
{results["seed"]}.

Figures are medians [lowest, highest] of the rounds; both sides take turns. A ratio above 1 means
that the library is faster; against a tool alone it is the share that an environment leaves of its
speed. `SubprocessExecutor` starts Python without its site packages (`-S`), which `subprocess.run`
does not.

{comparisons_table(results["comparisons"])}

On one core, with every label executed; `make_data` runs each call again, splits and writes:

{absolutes_table(results["absolutes"])}
"""
