"""The split of a data set of tool calling, so that no call is in both parts."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from itl_env import streams
from itl_env.calculator import number_text
from itl_env.python_code import code_key
from itl_env.samples import Sample, Step


def split(samples: Sequence[Sample], share: float, seed: int) -> list[bool]:
    """Which samples are put aside for validation, so that no call is in both parts.

    Samples that share a call, and those that do so in turn, stay together; `call_key` says which
    calls are the same. Of samples that look something up, only the look-ups count. Of each source
    and category a share of `share` is put aside, or less where samples that stay together are too
    many. So samples whose calls are rare are put aside sooner.
    """
    kinds = [(sample.source, sample.category) for sample in samples]
    left: dict[tuple[str, str], int] = {}
    counted = given = 0
    for kind, n in Counter(kinds).items():
        counted += n
        left[kind] = round(counted * share) - given  # rounded so that they add up
        given += left[kind]
    groups = _groups(samples)
    aside = [False] * len(samples)
    for place in seeded_order(len(groups), seed):
        needed = Counter(kinds[member] for member in groups[place])
        if all(n <= left[kind] for kind, n in needed.items()):
            for kind, n in needed.items():
                left[kind] -= n
            for member in groups[place]:
                aside[member] = True
    return aside


def call_key(step: Step) -> tuple[str, ...]:
    """What identifies a call, however it is written.

    Of the calculator that is its numbers by their values and its operators, in any order; of Python
    the syntax tree of the code.
    """
    if step.tool == "calculator" and set(step.args) == {"expression"}:
        words = _WORDS.findall(step.args["expression"].lower())
        return (step.tool, *sorted(map(_plain_word, words)))
    if step.tool == "python" and set(step.args) == {"code"}:
        code = step.args["code"]
        return (step.tool, code_key(code) or code)
    return (step.tool, *(part for name in sorted(step.args) for part in (name, step.args[name])))


_WORDS = re.compile(r"[\d.][\d._]*(?:e[-+]?\d+)?|[a-z]+|[^\s()]")


def _plain_word(word: str) -> str:
    """A word of an expression; the same for numbers of the same value."""
    if word.isdecimal() and len(word) < 16 and word[0] != "0":
        return word
    try:
        return number_text(float(word))
    except (ValueError, OverflowError):
        return word


def _telling(sample: Sample) -> list[Step]:
    """The calls that tell a sample from others.

    Where something is looked up, that is who it is about, and not what is computed with it.
    """
    looked_up = [step for step in sample.steps if step.tool == "find"]
    return looked_up or list(sample.steps)


def _groups(samples: Sequence[Sample]) -> list[list[int]]:
    """The places of samples that stay together."""
    parents = list(range(len(samples)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    first: dict[tuple[str, ...], int] = {}
    for place, sample in enumerate(samples):
        keys = [call_key(step) for step in _telling(sample)] or [("", plain_prompt(sample.prompt))]
        for key in keys:
            parents[root(place)] = root(first.setdefault(key, place))
    groups: dict[int, list[int]] = {}
    for place in range(len(samples)):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())


def seeded_order(n: int, seed: int) -> list[int]:
    """0 to n - 1 in an order that only n and the seed decide."""
    order: list[int] = streams.permute(
        np.arange(n), n, streams.key(seed, "tool_data", "split")
    ).tolist()
    return order


def plain_prompt(prompt: str) -> str:
    """The form in which prompts are compared."""
    return " ".join(prompt.split())
