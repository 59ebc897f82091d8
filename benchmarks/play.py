"""A person in the agent's seat: the same task, the same replies, the same reward.

itl play --database sqlite:///facts.db
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np

from itl_env import streams
from itl_env.facts import Fact
from itl_env.recall import RecallTask


def facts_in_random_order(task: RecallTask, seed: int) -> Iterator[Fact]:
    """Every fact of the task once, in an order drawn with the seed."""
    order = streams.key(seed, "play")
    for place in range(task.n_facts):
        (index,) = streams.permute(np.array([place]), task.n_facts, order).tolist()
        yield task.fact(index)


def play(
    task: RecallTask,
    *,
    seed: int = 0,
    n: int | None = None,
    read: Callable[[], str],
    say: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Ask a person n questions (all by default); returns (questions finished, answered right).

    read: one turn as the person typed it; EOFError or KeyboardInterrupt ends the game.
    say: shows a line.
    """
    asked = right = 0
    how = "Type the answer."
    if task.max_queries:
        example = task.query(task.attributes[0], "NAME")
        how = f"Type a query, such as {example}, or the answer; queries: {task.max_queries}."
    say(f"{how} Ctrl-D ends.")
    try:
        for fact in facts_in_random_order(task, seed):
            if n is not None and asked >= n:
                break
            state = task.start([fact])[0]
            say(f"\n{state.messages[0].content}")
            while True:
                turn = read()
                if not turn.strip():
                    continue
                reply = task.advance([state], [task.parse(turn)], [turn])[0]
                if reply.done:
                    break
                state = reply.state
                say(f"database: {reply.observation}")
            asked += 1
            right += reply.reward == 1.0
            if reply.observation:
                say(f"database: {reply.observation}")
            verdict = "right" if reply.reward == 1.0 else f"wrong, it is {fact.value}"
            say(f"reward {reply.reward:g} ({verdict}); score {right}/{asked}")
    except (EOFError, KeyboardInterrupt):
        say("")
    say(f"You answered {right} of {asked} right.")
    return asked, right


def read_line() -> str:
    """A line of standard input; what was piped in is shown, as a terminal shows what is typed."""
    line = input("> ")
    if not sys.stdin.isatty():
        print(line)
    return line
