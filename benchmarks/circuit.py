"""The theorem of in-tool learning, measured: a transformer built by hand against trained ones.

    itl bench run circuit --out runs/circuit

Asks the circuit of `itl_agents.circuit` about people of the paper's world, about names that are in
no word list, and about names and values that are any text; counts its parameters against the number
of attributes and of names (theorem 4.2 of arXiv 2508.20755); and trains NanoLlamas from nothing on
the same task, to show how far what is learned is from what can be built.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cells import World, make_cell
from benchmarks.generalisation import summary
from benchmarks.reference import BOUNDS_IN_TOOL, RECALL
from benchmarks.statistics import interval, percent
from benchmarks.studies import Study, StudyConfig
from benchmarks.study_report import finish, line_fit, number, table
from itl_env import streams
from itl_env.database import FactDatabase
from itl_env.dialogue import STYLES, Style
from itl_env.facts import ATTRIBUTES, people
from itl_env.files import read_json, write_text
from itl_env.recall import RecallTask
from itl_train.sweep import Cell, Row

PERSONAL = (
    "age", "height", "weight", "eye_colour", "hair_colour", "shoe_size", "blood_type",
    "nationality", "religion", "hometown", "phone_number", "email_address", "website",
    "employer", "salary", "job_title", "department", "office", "manager", "mentor", "mother",
    "father", "eldest_sibling", "spouse", "best_friend", "landlord", "dentist", "lawyer",
    "neighbour", "pet", "favourite_book", "favourite_film", "favourite_song",
    "favourite_colour", "favourite_food", "favourite_city", "favourite_season",
    "favourite_sport", "favourite_team", "first_language", "second_language", "school",
    "university", "degree", "thesis", "hobby", "instrument", "club", "vehicle", "licence_plate",
    "passport_number", "bank", "insurance", "doctor", "allergy", "vaccine", "diet", "motto",
    "birthstone", "zodiac_sign", "nickname", "tailor", "ringtone", "locker",
)  # fmt: skip
"""Attributes that are all asked for alike, in the neutral phrasing."""
WIDE = (*ATTRIBUTES, *PERSONAL[:60])
FAMILIES = {"the world's four first": WIDE, "all asked for alike": PERSONAL}
ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz", "aab", "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", "-'.,?!&()",
    "àáâãäåæçèéêëìíîïñòóôõöøùúûüýþÿ", "абвгдежзийклмнопрстуфхцчшщъыьэюя", "αβγδεζηθικλμνξοπρστυφχω",
    "李王张刘陈杨黄赵吴周", "🧪🦉🌍🎲🪐",
)  # fmt: skip


COUNTED = ("attributes", "nonzero", "parameters", "d_model", "blocks", "heads", "units")


class Sizes(NamedTuple):
    """How much a preset runs."""

    n_people: int  # of each world
    n_facts: int  # questions about the first world, at most; of others, one a person
    n_texts: int  # names that are any text
    n_attributes: tuple[int, ...]  # sizes of circuits
    n_names: tuple[int, ...]  # sizes of worlds that are sampled
    n_sampled: int  # names of each
    twin_widths: tuple[int, ...]
    twin_people: int
    twin_steps: int
    n_seeds: int
    n_unseen: int


PRESETS = {
    "smoke": Sizes(10, 20, 8, (1, 2, 4), (1, 1_000), 5, (8,), 40, 20, 1, 20),
    "laptop": Sizes(
        10_000, 40_000, 2_000, (1, 2, 4, 8, 16, 32, 64),
        (1, 100, 10_000, 1_000_000, 10_000_000), 250, (16, 24, 32, 48, 64), 16_384, 1_500, 3, 1_000,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CircuitConfig(StudyConfig):
    """Measure the transformer that is built by hand, and train models to compare it with.

    The same command goes on with an interrupted study.
    """


def circuit(config: CircuitConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run what is left; writes `report.md`, `runs.csv`, `study.json` and two figures."""
    from benchmarks.circuit_plots import attention_figure, circuit_figure

    sizes = PRESETS["smoke" if config.preset == "smoke" else "laptop"]
    study: Study[None] = Study("circuit", config)
    # The default recipe of `itl train memory`, made for looking things up.
    model = {"mode": "in-tool", "style": "compact", "n_steps": sizes.twin_steps}
    model |= {"evaluate_every": sizes.twin_steps, "n_evaluate": 100, "device": config.device}
    trained = study.run(list(twins(sizes, model)))
    recalls = [kept(config.out, place, case, say) for place, case in enumerate(cases(sizes))]
    result = {
        "sizes": sizes._asdict(),
        "recalls": recalls,
        "counts": [
            {"family": name, **every_attribute(family[:n], style)}
            for name, family in FAMILIES.items()
            for style in STYLES
            for n in sizes.n_attributes
        ],
        "worlds": [sampled(n, sizes.n_sampled) for n in sizes.n_names],
        "twins": [
            summary([row for row in trained if row["d_model"] == width])
            for width in sizes.twin_widths
        ],
    }
    circuit_figure(result, config.out / "circuit.png")
    attention_figure(config.out / "attention.png")
    return finish(study, result, report(result), say, model=model)


def twins(sizes: Sizes, model: Mapping[str, Any]) -> Iterator[Cell]:
    """Models of each width and seed, trained on the task that the circuit plays."""
    for seed in range(sizes.n_seeds):
        for width in sizes.twin_widths:
            world = World(sizes.twin_people, seed, n_unseen=sizes.n_unseen)
            yield make_cell(f"twin-d-{width}-seed-{seed}", world, {**model, "d_model": width})


class Case(NamedTuple):
    """Who is asked about what."""

    about: str
    style: Style
    attributes: Sequence[str]
    rows: Iterable[Any]
    most: int  # questions


def cases(sizes: Sizes) -> Iterator[Case]:
    """Everything that the circuit is asked."""
    n, n_texts = sizes.n_people, sizes.n_texts
    for style in STYLES:
        most = sizes.n_facts if style == "compact" else n
        yield Case("the paper's world", style, ATTRIBUTES, people(n), most)
        yield Case("first names of no word list", style, ATTRIBUTES, people(n, 1, "ood"), n)
        world = people(n, 2, "paper", correlation=1.0)
        yield Case("families that share all values", style, ATTRIBUTES, world, n)
        yield Case(
            "names and values that are any text", style, ATTRIBUTES, any_text(n_texts), n_texts
        )
        for attributes in (WIDE[3:4], WIDE[:16]):
            about = f"any text, {len(attributes)} attribute{'s' * (len(attributes) > 1)}"
            rows = any_text(max(1, n_texts // len(attributes)), attributes)
            yield Case(about, style, attributes, rows, n_texts)


def any_text(n: int, attributes: Sequence[str] = ATTRIBUTES) -> Iterator[dict[str, str]]:
    """Rows of random names of 1 to 60 bytes, none twice; values hold the name of another row."""
    draw = np.random.Generator(np.random.PCG64(streams.key(0, "any text")))
    names: dict[str, None] = {}
    while len(names) < n:
        letters = "".join(ALPHABETS[int(each)] for each in draw.integers(len(ALPHABETS), size=2))
        length = int(draw.integers(1, 61))
        text = "".join(letters[int(each) % len(letters)] for each in draw.integers(2**32, size=60))
        words = text[: length // 2] + " " * (length > 8) + text[length // 2 :]
        name = words.encode()[:length].decode(errors="ignore").strip()
        if name:
            names[name] = None
    listed = list(names)
    for place, name in enumerate(listed):
        other = listed[(place + 1) % n]
        before = ("", "a ", "é-")
        row = {
            each: f"{before[(place + k) % 3]}{other} {place}" for k, each in enumerate(attributes)
        }
        yield {"name": name, **row}


def every_attribute(attributes: Sequence[str], style: Style) -> Row:
    """Size and recall of a circuit that is asked for each of its attributes, some 64 questions."""
    n = max(1, 64 // len(attributes))
    rows = any_text(n, attributes)
    case = Case("", style, attributes, rows, n * len(attributes))
    return ask(case, lambda line: None)


def kept(out: Path, place: int, case: Case, say: Callable[[str], None]) -> Row:
    """What `ask` has found or finds of a case, which a study that goes on does not ask again."""
    from itl_agents.circuit import build_circuit

    file = out / "asked" / f"{place:02d}-{case.style}.json"
    case = case._replace(rows=list(case.rows))
    made_by = hashlib.blake2b(repr(case).encode(), digest_size=16)
    for name, weight in build_circuit(case.attributes, style=case.style).state_dict().items():
        made_by.update(name.encode() + weight.numpy().tobytes())
    if file.exists():
        there = read_json(file, "Remove it, and the circuit is asked anew.")
        if there["made_by"] == made_by.hexdigest():
            return dict(there["row"])
    row = ask(case, say)
    file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps({"made_by": made_by.hexdigest(), "row": row}, indent=1) + "\n")
    return row


def ask(case: Case, say: Callable[[str], None]) -> Row:
    """Recall, margin and speed of the circuit on a case."""
    from itl_agents.agent import rollout
    from itl_agents.circuit import CircuitAgent, margin
    from itl_agents.evaluate import facts_to_ask, measure_recall
    from itl_agents.render import render
    from itl_agents.scripted import ExpertAgent

    with FactDatabase.create("sqlite://", case.rows) as database:
        task = RecallTask(database, style=case.style)
        agent = CircuitAgent(task)
        asked = list(facts_to_ask(task, case.most))
        began = time.perf_counter()
        count = measure_recall(agent, task, asked, lanes=1_024)
        seconds = time.perf_counter() - began
        gold = rollout(ExpertAgent(task), task, asked[:: max(1, len(asked) // 200)])
        margins = [margin(agent.circuit, render(each, agent.tokenizer)) for each in gold]
    row = {
        "about": case.about,
        "style": case.style,
        "attributes": len(case.attributes),
        "names": len(count.by_person),
        "asked": count.asked,
        "right": count.right,
        "margin": min(margins),
        "dialogues": len(margins),
        "per_second": count.asked / seconds,
        **size_of(case.attributes, case.style),
    }
    say(f"{case.about}, {case.style}: {percent(count.right, count.asked)}")
    return row


def size_of(attributes: Sequence[str], style: Style) -> Row:
    """The size of the circuit of these attributes."""
    from itl_agents.circuit import build_circuit

    built = build_circuit(attributes, style=style)
    return {
        "parameters": built.n_parameters,
        "nonzero": built.n_nonzero,
        "d_model": built.config.d_model,
        "blocks": built.config.n_blocks,
        "heads": sum(map(len, built.config.heads)),
        "units": sum(built.config.units),
    }


def sampled_places(n_names: int, n: int) -> list[int]:
    """Places in a world of that many, drawn evenly, each once; fewer where draws meet."""
    draws = streams.uniform_index(
        streams.key(0, "sampled names"), np.arange(n, dtype=np.uint64), n_names
    )
    return sorted({int(draw) for draw in draws})


def sampled(n_names: int, n: int) -> Row:
    """Recall on people sampled from a world of that many, one question each.

    The world is not made: person i is a function of i alone.
    """
    rows = [next(people(1, 0, "large", start=place)) for place in sampled_places(n_names, n)]
    row = ask(Case(f"a world of {n_names:,}", "compact", ATTRIBUTES, rows, n), lambda line: None)
    return {"n_names": n_names, **row}


def learned(twins: Sequence[Row]) -> Row | None:
    """The smallest trained model whose mean recall on unseen people reaches `RECALL`."""
    return next((row for row in twins if row["unseen_recall"] >= RECALL), None)


def report(result: Mapping[str, Any]) -> str:
    """`report.md`: the figures and the tables."""
    asked = [
        (
            row["about"], row["style"], f"{row['names']:,}", f"{row['asked']:,}",
            percent(row["right"], row["asked"]), f"{row['margin']:g}", f"{row['per_second']:,.0f}",
        )
        for row in result["recalls"]
    ]  # fmt: skip
    counts = [
        (
            row["family"], row["style"], *(number(row[name]) for name in COUNTED),
            f"{row['right']} of {row['asked']}",
        )
        for row in result["counts"]
    ]  # fmt: skip
    worlds = [
        (
            f"{row['n_names']:,}", f"{row['names']:,}", percent(row["right"], row["asked"]),
            number(row["nonzero"]), number(row["parameters"]),
        )
        for row in result["worlds"]
    ]  # fmt: skip
    small = next(row for row in result["recalls"] if row["style"] == "compact")
    twin_rows = [
        (
            f"NanoLlama, d {row['d_model']}", number(row["parameters"]),
            f"{row['parameters'] / small['parameters']:.1f}",
            *(
                interval(row[f"{who}_recall"], row[f"{who}_lowest"], row[f"{who}_highest"])
                for who in ("seen", "unseen")
            ),
        )
        for row in result["twins"]
    ]  # fmt: skip
    built = percent(small["right"], small["asked"])
    twin_rows.append(("built by hand", number(small["parameters"]), "1.0", "-", built))
    n_seeds = result["sizes"]["n_seeds"]
    return f"""# A transformer that never forgets

![parameters and recall](circuit.png)

Built from the attributes and their phrasing, never trained, asked through the same rollout as every
agent. Questions are about people's facts in turn, about all facts where there are as many questions
as facts. Names that are any text have 1 to 60 bytes of Latin, Greek, Cyrillic and Chinese letters,
accents, digits, hyphens, emoji and letters that repeat; values hold another row's name. The margin
is the least amount by which the logit of the right token exceeds every other, in float32, over
{small["dialogues"]} dialogues. Intervals are Wilson's, at 95%.

{table(("about", "style", "names", "questions", "recall", "margin", "questions/s"), asked, left=2)}

Where each head looks while it writes call and answer (down) on one dialogue (across). A head that
has nothing to look at looks at the first mark, `[user]`, which brings nothing; `length of name` and
`square` look at the place whose number is the one they want, and bring it, or its square.

![where the heads of each block look](attention.png)

## Parameters against attributes

{
        table(
            (
                "family",
                "style",
                "attributes",
                "not zero",
                "all",
                "d",
                "blocks",
                "heads",
                "hidden units",
                "right",
            ),
            counts,
            left=2,
        )
    }

{growth(result["counts"])}

Attributes beyond the world's four are asked for in the neutral phrasing. Some names can confuse
"What is the age of ...?" and "What is ...'s occupation?", so where both are, whole phrasings are
read instead of a letter or a few, and the stream is as wide as the longest needs.

## Parameters against names

People sampled from worlds of the vocabulary `large`, one question each. The builder never sees a
name, so the weights are the same.

{table(("names in the world", "asked about", "recall", "not zero", "all"), worlds, left=0)}

## What is learned instead

NanoLlamas trained from nothing on the same task, {result["sizes"]["twin_people"]:,} people,
{result["sizes"]["twin_steps"]:,} steps; mean over {n_seeds} seed{"s" * (n_seeds > 1)} with the
lowest and the highest. Unseen are {result["sizes"]["n_unseen"]:,} other people of the same word
lists.

{
        table(
            ("model", "parameters", "times the circuit", "recall, trained on", "recall, unseen"),
            twin_rows,
            left=1,
        )
    }

{distance(result["twins"], small, result["sizes"]["twin_steps"])}
"""


def growth(counts: Sequence[Row]) -> str:
    """In words: how the counts grow with the attributes."""
    lines = []
    for family in FAMILIES:
        own = [row for row in counts if row["family"] == family and row["style"] == "compact"]
        for name, what in (("nonzero", "not zero"), ("parameters", "all")):
            points = [(row["attributes"], row[name]) for row in own]
            if fit := line_fit(points):
                last, before = points[-1], points[-2]
                power = np.log(last[1] / before[1]) / np.log(last[0] / before[0])
                lines.append(
                    f"- {family}, {what}: {fit['slope']:,.0f} |A| {fit['intercept']:+,.0f} "
                    f"(R^2 {fit['r2']:.3f}); at the end of the table like |A|^{power:.2f}"
                )
    return "Fitted lines, compact (the theorem allows |A|^2):\n\n" + "\n".join(lines)


def distance(twins: Sequence[Row], small: Row, n_steps: int) -> str:
    """In words: how far the learned minimum is from the built one."""
    nearest = learned(twins)
    published = min(BOUNDS_IN_TOOL.values())
    said = (
        f"None of these models recalls {RECALL:.0%} of unseen people after {n_steps:,} steps."
        if nearest is None
        else f"The smallest that recalls {RECALL:.0%} of unseen people after {n_steps:,} steps has "
        f"{nearest['parameters']:,} parameters, {nearest['parameters'] / small['parameters']:.1f} "
        f"times the {small['parameters']:,} of the circuit ({small['nonzero']:,} of which are not "
        "zero); in more steps smaller ones may learn it, too."
    )
    return (
        f"{said} The smallest in-tool model of the published table has {published:,} (calls in "
        "style fenced, recall on the people trained on)."
    )
