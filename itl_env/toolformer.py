"""Calculator calls as text: prompts that are answered by a call, and sentences that are copied.

    make_toolformer_data(ToolformerMix(text=("questions.jsonl",)), "data")
    for row in load_toolformer_rows("data/train.jsonl"): ...

A row is a prompt and its target: `<tool_call>calculator(603+560)</tool_call>`, or the prompt again.
A folder holds `train.jsonl` and `validation.jsonl`, in which both kinds are mixed, and three
subsets to evaluate on: `tool.jsonl`, `copy.jsonl`, and `tool_ood.jsonl`, which asks in phrasings
that are nowhere else. No prompt, and no operator with its two operands, is in two of these files.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from itl_env import streams
from itl_env.calculator import CalculatorError, calculate, number_text, same_number
from itl_env.data_folder import check_data_folder
from itl_env.episode import package_versions
from itl_env.errors import ConfigError
from itl_env.files import whole_file, write_text
from itl_env.json_rows import read_json_rows
from itl_env.sentences import C4, collect, hub_texts, read_texts
from itl_env.streams import Draws
from itl_env.text import unstorable
from itl_env.toolformer_phrasings import OPERATORS, TRAINING, UNSEEN, WORDS, Phrasings

Kind = Literal["tool", "copy", "tool_ood"]
KINDS: tuple[Kind, ...] = get_args(Kind)

TRAIN, VALIDATION, REPORT, REPORT_TEXT = (
    "train.jsonl", "validation.jsonl", "report.json", "report.md",
)  # fmt: skip
SUBSETS: Mapping[Kind, str] = {kind: f"{kind}.jsonl" for kind in KINDS}
"""The files to evaluate on."""

LARGEST = 999  # of the operands, which begin at 1
POOL = 4  # times as many sentences as are needed are read from the hub, to choose among

OPENING = "<tool_call>"
_CALL = re.compile(r"\s*<tool_call>calculator\(([0-9]+[-+*/][0-9]+)\)</tool_call>\s*")

OnProgress = Callable[[int, int, str], None]
"""Told how much is done, of how much, and of what."""


# -- rows ------------------------------------------------------------------------------------------


class ToolformerRow(NamedTuple):
    """A prompt and what is to be written after it.

    kind: `tool_ood` is asked in phrasings that are not trained on.
    value: what the call comes to, as the calculator shows it; empty for a copy.
    """

    id: str
    kind: Kind
    prompt: str
    target: str
    value: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row as a file holds it."""
        return self._asdict()

    @classmethod
    def from_dict(cls, row: Any) -> "ToolformerRow":
        """The inverse of `to_dict`.

        Raises ConfigError that names the field which does not fit, and why.
        """
        if not isinstance(row, dict):
            raise ConfigError("it is no JSON object.")
        for name in cls._fields:
            if name not in row:
                raise ConfigError(f"field {name!r} is missing.")
            if not isinstance(row[name], str):
                raise ConfigError(f"field {name!r} must be text, not {row[name]!r}.")
            if problem := unstorable(row[name]):
                raise ConfigError(f"field {name!r} holds {problem}.")
            if not row[name].strip() and name != "value":
                raise ConfigError(f"field {name!r} is empty.")
        if unknown := sorted(row.keys() - set(cls._fields)):
            raise ConfigError(f"field {unknown[0]!r} is unknown.")
        found = cls(**row)
        if found.kind not in KINDS:
            raise ConfigError(f"field 'kind' is {found.kind!r}; it must be {', '.join(KINDS)}.")
        if found.kind == "copy" and found.value:
            raise ConfigError(f"field 'value' is {found.value!r}, but a copy has none.")
        if found.kind != "copy" and not is_right(found.target, found.value):
            raise ConfigError(
                f"field 'target' is no call of the calculator that comes to {found.value!r}."
            )
        return found


def read_toolformer_rows(path: str | Path) -> Iterator[ToolformerRow]:
    """The rows of a file, one at a time.

    Raises ConfigError that names the file, the line, the field and the reason; also for two rows of
    one id, and for a file without rows.
    """
    seen: set[str] = set()
    for where, row in read_json_rows(path):
        try:
            found = ToolformerRow.from_dict(row)
            if found.id in seen:
                raise ConfigError(f"field 'id' is {found.id!r}, as that of a row before it.")
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        seen.add(found.id)
        yield found
    if not seen:
        raise ConfigError(f"{path} holds no rows.")


def load_toolformer_rows(path: str | Path) -> list[ToolformerRow]:
    """All rows of a file; raises what `read_toolformer_rows` raises."""
    return list(read_toolformer_rows(path))


def toolformer_rows_in(folder: str | Path, name: str) -> list[ToolformerRow]:
    """The rows of a file of `itl toolformer data`; raises ConfigError if the folder lacks it."""
    path = Path(folder) / name
    if not path.is_file():
        raise ConfigError(f"There is no {name} in {folder}; `itl toolformer data` makes one.")
    return load_toolformer_rows(path)


def write_toolformer_rows(rows: Iterable[ToolformerRow], path: str | Path) -> None:
    """Write rows as JSON lines; see `whole_file` for what is raised."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row.to_dict(), ensure_ascii=False) + "\n")


# -- what a model has written ----------------------------------------------------------------------


def called(text: str) -> bool:
    """Whether a text begins with a call, finished or not."""
    return text.lstrip().startswith(OPENING)


def call_of(text: str) -> str | None:
    """The expression of a text that is one call, and nothing else but space around it.

    Two whole numbers and one operator, without spaces between them; None for any other text.
    """
    found = _CALL.fullmatch(text)
    return found.group(1) if found else None


def value_of(text: str) -> str | None:
    """What a call comes to, as the calculator shows it; None for a text that is no such call."""
    try:
        expression = call_of(text)
        return None if expression is None else number_text(calculate(expression))
    except CalculatorError:
        return None


def is_right(text: str, value: str) -> bool:
    """Whether a text is a call that comes to `value`, within 1e-6 (see `same_number`)."""
    expression = call_of(text)
    if expression is None:
        return False
    try:
        return same_number(calculate(expression), float(value))
    except (CalculatorError, ValueError):
        return False


# -- making data -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ToolformerMix:
    """Of what a data set is made.

    text: files that sentences are taken from, see `read_texts`; C4 from the hub without any.
    n_tool, n_copy: rows to train on. validation: as a share of them, rows besides.
    n_evaluate: rows of each subset to evaluate on.
    seed: draws, chooses and mixes.

    Raises ConfigError for what cannot be.
    """

    text: tuple[str, ...] = ()
    n_tool: int = 5_000
    n_copy: int = 5_000
    n_evaluate: int = 200
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_tool", "n_copy", "n_evaluate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.validation <= 1:
            raise ConfigError(f"validation is {self.validation}; it must be above 0, up to 1.")
        if self.n_expressions > LARGEST**2:
            raise ConfigError(
                f"n_tool is {self.n_tool:,}; at most {LARGEST**2:,} rows in all can be told apart."
            )

    def sizes(self, n: int) -> tuple[int, int, int]:
        """Of n rows to train on: these, those to validate on, and those to evaluate on."""
        return n, max(1, round(n * self.validation)), self.n_evaluate

    @property
    def n_expressions(self) -> int:
        """How many calculations are needed, all of them different."""
        return sum(self.sizes(self.n_tool)) + self.n_evaluate

    @property
    def n_sentences(self) -> int:
        """How many sentences are needed, all of them different."""
        return sum(self.sizes(self.n_copy))


class Expression(NamedTuple):
    """A calculation that is asked for."""

    a: int
    operator: str
    b: int

    def __str__(self) -> str:
        return f"{self.a}{self.operator}{self.b}"


def expressions(n: int, seed: int) -> list[Expression]:
    """N calculations, none of which has the operator and the two operands of another."""
    key = streams.key(seed, "toolformer", "expressions")
    found: dict[tuple[object, ...], Expression] = {}
    place = 0
    while len(found) < n:
        draws = Draws(key, place)
        a, b = draws.between(1, LARGEST), draws.between(1, LARGEST)
        one = Expression(a, draws.choice(OPERATORS), b)
        found.setdefault((one.operator, min(a, b), max(a, b)), one)
        place += 1
    return list(found.values())


def tool_row(expression: Expression, place: int, kind: Kind, seed: int) -> ToolformerRow:
    """The row that asks for a calculation; its place among rows of its kind draws the words."""
    draws = Draws(streams.key(seed, "toolformer", kind), place)
    phrasings: Phrasings = UNSEEN if kind == "tool_ood" else TRAINING
    a, operator, b = expression
    template = draws.choice((*phrasings.own[operator], *phrasings.generic))
    prompt = template.format(a=a, b=b, op=draws.choice((operator, WORDS[operator])))
    if draws.below(2):
        prompt = f"{draws.choice(phrasings.contexts)} {prompt}"
    return ToolformerRow(
        id=f"{kind}-{place}",
        kind=kind,
        prompt=prompt,
        target=f"{OPENING}calculator({expression})</tool_call>",
        value=number_text(calculate(str(expression))),
    )


def make_toolformer_data(
    mix: ToolformerMix,
    out: str | Path,
    *,
    on_progress: OnProgress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Write a data set to the folder `out`, and return the report that lies beside it.

    It depends on the mix and the texts only. A folder that holds the data of the same mix is
    written anew. Raises ConfigError for another folder, for bad files, and if there are too few
    sentences to copy; ITLError if the hub cannot be reached.
    """
    folder = Path(out)
    settings = json.loads(json.dumps(dataclasses.asdict(mix)))
    own = {TRAIN, VALIDATION, REPORT_TEXT, *SUBSETS.values()}
    check_data_folder(folder, own, folder / REPORT, settings)
    drawn = expressions(mix.n_expressions, mix.seed)
    tools = _tool_rows(drawn[: -mix.n_evaluate], "tool", mix.seed)
    unseen = _tool_rows(drawn[-mix.n_evaluate :], "tool_ood", mix.seed)
    prompts = {row.prompt for row in (*tools, *unseen)}
    copies, n_found = _copies(mix, prompts, on_progress)
    parts = {**_split(mix, tools, copies), SUBSETS["tool_ood"]: unseen}
    report = {
        "rows": {
            name: dict(sorted(Counter(row.kind for row in rows).items()))
            for name, rows in parts.items()
        },
        "sentences": n_found,
        "settings": settings,
        "versions": package_versions(("itl", "numpy", "simpleeval", "datasets")),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).unlink(missing_ok=True)  # it says that the rest is whole
    for name, rows in parts.items():
        write_toolformer_rows(rows, folder / name)
    write_text(folder / REPORT_TEXT, _page(report))
    write_text(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def _tool_rows(drawn: Sequence[Expression], kind: Kind, seed: int) -> list[ToolformerRow]:
    return [tool_row(expression, place, kind, seed) for place, expression in enumerate(drawn)]


def _copies(
    mix: ToolformerMix, prompts: set[str], on_progress: OnProgress
) -> tuple[list[ToolformerRow], int]:
    """Rows of as many sentences as are needed, and among how many they were chosen.

    prompts: of other rows, which are not copied.
    """
    needed = mix.n_sentences
    where = ", ".join(mix.text) or C4[0]

    def show(n: int) -> None:
        on_progress(min(n, needed), needed, f"sentences of {where}")

    if mix.text:
        found = collect(read_texts(mix.text), -1, show)
    else:
        found = collect(hub_texts(), POOL * needed, show)
    found = [sentence for sentence in found if sentence not in prompts]
    if len(found) < needed:
        raise ConfigError(
            f"{where} holds {len(found):,} sentences to copy, fewer than the {needed:,} that are "
            "needed; name more text, or lower n_copy or n_evaluate."
        )
    show(needed)
    order = _order(len(found), mix.seed, "sentences")[:needed]
    rows = [
        ToolformerRow(f"copy-{place}", "copy", found[chosen], found[chosen])
        for place, chosen in enumerate(order)
    ]
    return rows, len(found)


def _split(
    mix: ToolformerMix, tools: Sequence[ToolformerRow], copies: Sequence[ToolformerRow]
) -> dict[str, list[ToolformerRow]]:
    """The rows of each file but those in other words."""
    tool, copy = (
        _cut(rows, mix.sizes(n)) for rows, n in ((tools, mix.n_tool), (copies, mix.n_copy))
    )
    return {
        TRAIN: _mixed([*tool[0], *copy[0]], mix.seed, "train"),
        VALIDATION: _mixed([*tool[1], *copy[1]], mix.seed, "validation"),
        SUBSETS["tool"]: tool[2],
        SUBSETS["copy"]: copy[2],
    }


def _cut(rows: Sequence[ToolformerRow], sizes: tuple[int, int, int]) -> list[list[ToolformerRow]]:
    first, second, third = sizes
    return [
        list(rows[:first]),
        list(rows[first : first + second]),
        list(rows[first + second : first + second + third]),
    ]


def _mixed(rows: Sequence[ToolformerRow], seed: int, name: str) -> list[ToolformerRow]:
    return [rows[place] for place in _order(len(rows), seed, name)]


def _order(n: int, seed: int, name: str) -> list[int]:
    """0 to n - 1 in an order that only these decide."""
    key = streams.key(seed, "toolformer", "order", name)
    order: list[int] = streams.permute(np.arange(n), n, key).tolist()
    return order


def _page(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    rows = [
        (name, *(f"{counts.get(kind, 0):,}" for kind in KINDS))
        for name, counts in report["rows"].items()
    ]
    blocks = [
        "# Calculator calls as text",
        _table(("file", *KINDS), rows),
        f"The sentences to copy were chosen among {report['sentences']:,}. No prompt and no two "
        "operands with their operator are in more than one file.",
        _table(("setting", "value"), [(k, str(v)) for k, v in report["settings"].items()]),
        _table(("package", "version"), list(report["versions"].items())),
    ]
    return "\n\n".join(blocks) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
