"""The transformer built by hand: exact for any names and values, small, and it knows its limits."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itl_agents import ExpertAgent, rollout
from itl_agents.agent import Conversation
from itl_agents.circuit import (
    CircuitAgent,
    OutsideFamily,
    build_circuit,
    is_number,
    is_number_or_next,
    margin,
)
from itl_agents.circuit_model import Linear, register
from itl_agents.circuit_questions import unreadable
from itl_agents.nanollama import ByteTokenizer, generate
from itl_agents.render import render
from itl_agents.scripted import read_question
from itl_env import FactDatabase, RecallTask, Vocabulary, people
from itl_env.dialogue import Message, Phrasing, phrasings
from itl_env.errors import ConfigError
from itl_env.facts import ATTRIBUTES

STYLES = ["compact", "fenced"]
SIXTEEN = (
    *ATTRIBUTES, "age", "employer", "favourite_colour", "mother", "mother_of_mother", "phone",
    "e-mail", "hobby", "Größe", "blood_type", "pet", "occupation_of_father",
)  # fmt: skip
MIXED = (*ATTRIBUTES, "age", "mother", "mother_of_mother", "Größe")
# What is asked and stated is text of any kind, but a whole one: no lone surrogates.
LETTERS = st.characters(exclude_categories=["Cs"])


def text(most: int, letters=LETTERS) -> st.SearchStrategy[str]:
    """Text of 1 to `most` bytes."""
    found = st.text(letters, min_size=1, max_size=most)
    return found.filter(lambda name: len(name.encode()) <= most)


def task_of(rows, **settings) -> RecallTask:
    return RecallTask(FactDatabase.create("sqlite://", rows), **settings)


def say(agent: CircuitAgent, *dialogues: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """What the agent writes after questions, or after question, call and reply."""
    roles = ("user", "assistant", "database", "assistant", "database")
    talks = [Conversation(tuple(map(Message, roles, said)), (), 0) for said in dialogues]
    written = agent.respond(talks)
    assert all(done.finish_reason == "stop" for done in written)
    return [(done.text, done.kind) for done in written]


@pytest.fixture(scope="module", params=STYLES)
def task(request) -> RecallTask:
    return task_of(people(1), style=request.param)


@pytest.fixture(scope="module")
def mixed_task() -> RecallTask:
    """Of attributes some of which a name can confuse."""
    return task_of([{"name": "Ann", **dict.fromkeys(MIXED, "x")}])


@pytest.fixture(scope="module")
def agent(task) -> CircuitAgent:
    return CircuitAgent(task)


@pytest.fixture(scope="module")
def mixed_agent(mixed_task) -> CircuitAgent:
    return CircuitAgent(mixed_task)


# -- exact recall ----------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_recalls_every_fact_of_a_world(style, correlation):
    world = people(40, seed=3, vocabulary="ood", correlation=correlation)
    task = task_of(world, style=style)
    episodes = list(rollout(CircuitAgent(task), task, task.facts()))
    expert = list(rollout(ExpertAgent(task), task, task.facts()))
    assert len(episodes) == 160
    assert all(episode.reward == 1.0 for episode in episodes)
    assert [e.messages for e in episodes] == [e.messages for e in expert]


NAMES = [
    "a", "aa", "aaaaaaaaaaaaaaaaaaaaaa", "Anna Hannah", "Jean-Luc O'Neill-Smith", "Zoë Ñuñez-Å",
    "李小龙", "Ann Lee born", "FOR", "FIND occupation FOR Ann", "When was", "is 's job?", " ",
    "x" * 60, "ab" * 30, "é" * 30, "🧪" * 15, "0", "born? born?", "error", "<|eod|>", "\t'\"\\",
]  # fmt: skip
VALUES = [*NAMES, "actor", "Österreicher", "u", "Ann Lee was born on 1/1/1990.", "no result at all"]


def test_looks_up_any_name_and_states_any_value(task, agent):
    asked = [(attribute, name) for attribute in ATTRIBUTES for name in NAMES]
    questions = [agent.phrasings[attribute].ask(name) for attribute, name in asked]
    calls = [task.call(attribute, name) for attribute, name in asked]
    assert say(agent, *((each,) for each in questions)) == [(call, "query") for call in calls]
    for n in range(3):  # each question with other values
        values = [VALUES[(7 * n + place) % len(VALUES)] for place in range(len(asked))]
        dialogues = zip(questions, calls, values, strict=True)
        stated = [
            (agent.phrasings[attribute].state(name, value), "answer")
            for (attribute, name), value in zip(asked, values, strict=True)
        ]
        assert say(agent, *dialogues) == stated


FACTS = st.lists(
    st.tuples(st.sampled_from(ATTRIBUTES), text(60), text(120)), min_size=1, max_size=8
)


@settings(max_examples=20, deadline=None)
@given(facts=FACTS)
def test_names_and_values_are_any_text(task, agent, facts):
    words = task.phrasings
    questions = [words[attribute].ask(name) for attribute, name, _ in facts]
    questions = [each for each in questions if each not in agent.unreadable]
    meant = [read_question(words, question) for question in questions]
    calls = [task.call(*pair) for pair in meant]
    assert [text for text, _ in say(agent, *((each,) for each in questions))] == calls
    values = [value.removeprefix("error: ") or "x" for *_, value in facts][: len(calls)]
    stated = [
        words[attribute].state(name, v) for (attribute, name), v in zip(meant, values, strict=True)
    ]
    written = say(agent, *zip(questions, calls, values, strict=True))
    assert [text for text, _ in written] == stated


@pytest.mark.parametrize("attributes", [("occupation",), ATTRIBUTES, SIXTEEN])
@pytest.mark.parametrize("style", STYLES)
def test_sets_of_1_4_and_16_attributes(attributes, style):
    names = ("Ann Lee", "Bo-Åsa X", "the age of Ann Lee", "mother of Bo")
    rows = [{"name": name, **{each: f"{each} of {name}" for each in attributes}} for name in names]
    task = task_of(rows, style=style)
    agent = CircuitAgent(task)
    assert agent.circuit.config.n_blocks <= 8
    asked = [
        fact
        for fact in task.facts()
        if read_question(task.phrasings, task.question(fact)) == (fact.attribute, fact.name)
    ]
    assert len(asked) >= 3 * len(attributes)
    episodes = list(rollout(agent, task, asked))
    assert [episode.reward for episode in episodes] == [1.0] * len(asked)


@pytest.mark.parametrize("style", STYLES)
def test_families_of_names_that_share_their_words(style):
    vocabulary = Vocabulary(
        "twins",
        ("Ann", "AnnAnn", "Ann-Ann"),
        ("Ann", "nAnn"),
        ("Ann", "An"),
        ("Ann Ann",),
        ("actor", "baker"),
    )
    task = task_of(people(6, vocabulary=vocabulary, correlation=0.5), style=style)
    assert [e.reward for e in rollout(CircuitAgent(task), task, task.facts())] == [1.0] * 24


# -- telling questions apart -----------------------------------------------------------------------

PIECES = [
    "the ",
    "age",
    " of ",
    "mother",
    "'s occupation",
    "?",
    "What is ",
    "occupation of father",
    "x",
]


CONFUSING = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)


@settings(max_examples=10, deadline=None)
@given(names=st.lists(CONFUSING, min_size=1, max_size=4))
def test_a_question_with_several_readings_is_read_as_the_expert_reads_it(
    mixed_task, mixed_agent, names
):
    words = mixed_task.phrasings
    questions = {each.ask(name[:60]) for each in words.values() for name in names}
    questions = sorted(questions - mixed_agent.unreadable)
    expected = [mixed_task.call(*read_question(words, question)) for question in questions]
    assert [text for text, _ in say(mixed_agent, *((q,) for q in questions))] == expected


# Of phrasings: all that tells attributes apart, or fails to; braces are those of text.
FRAGMENTS = [
    "a",
    "b",
    "ab",
    "é",
    "李",
    " ",
    "?",
    "{{",
    "}}",
    "FOR",
    "FIND ",
    "an ",
    "A",
    "\n",
    "'s",
]


@st.composite
def any_phrasing(draw) -> Phrasing:
    def words(most: int) -> str:
        return "".join(draw(st.lists(st.sampled_from(FRAGMENTS), max_size=most)))

    named = draw(st.sampled_from(["{name}", ""]))
    value = draw(st.sampled_from(["{value}", "{a_value}"]))
    question = f"{words(4)}{{name}}{words(4)}"
    return Phrasing(question, f"{words(3)}{named}{words(3)}{value}{words(3)}")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(any_phrasing(), min_size=1, max_size=4, unique_by=lambda each: each.question),
    st.lists(st.text("abé李 ?A{", min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(st.sampled_from([*VALUES, "", "\0", "İx", "ORANGE"]), min_size=4, max_size=4),
    st.sampled_from(STYLES),
)
def test_any_phrasings_are_told_apart_and_stated(phrased, names, values, style):
    words = {"attribute"[: 1 + 4 * n] + "s" * n: each for n, each in enumerate(phrased)}
    own = {name: vars(each) for name, each in words.items()}
    own = {name: {k: each[k] for k in ("question", "statement")} for name, each in own.items()}
    row = {"name": "x", **dict.fromkeys(words, "x")}
    task = task_of([row], own_phrasings=own, style=style)
    agent = CircuitAgent(task)
    questions = {each.ask(name) for each in words.values() for name in names}
    questions = sorted(questions - agent.unreadable)
    meant = [read_question(words, question) for question in questions]
    calls = [task.call(*pair) for pair in meant]
    assert say(agent, *((question,) for question in questions)) == [(c, "query") for c in calls]
    replies = [values[place % len(values)] for place in range(len(questions))]
    stated = [
        (words[attribute].state(name, value), "answer")
        for (attribute, name), value in zip(meant, replies, strict=True)
    ]
    assert say(agent, *zip(questions, calls, replies, strict=True)) == stated


def test_one_letter_tells_the_four_attributes_apart():
    heads = build_circuit(ATTRIBUTES).config.heads[1]
    assert [name for name in heads if name.startswith("letter")] == ["letter 7 from the start"]


def test_a_short_question_and_a_long_attribute():
    rows = [{"name": "X", "a": "1", "b" * 45: "2"}, {"name": "Y", "a": "3", "b" * 45: "4"}]
    for style in STYLES:
        task = task_of(rows, style=style)
        assert [e.reward for e in rollout(CircuitAgent(task), task, task.facts())] == [1.0] * 4


def test_what_looks_like_a_question_without_a_name_is_refused():
    task = task_of([{"name": "birth of ", "date": "x", "date_of_birth": "y"}])
    question = "What is the date of birth of ?"
    assert unreadable(task.phrasings) == {question}
    with pytest.raises(OutsideFamily, match="without a name"):
        say(CircuitAgent(task), (question,))


def test_attributes_of_which_too_many_are_alike_are_refused():
    words = {f"a{n}": Phrasing("x" * n + "{name}", "{name}: {value}") for n in range(15)}
    with pytest.raises(ConfigError, match="can be read in too many ways"):
        build_circuit(tuple(words), words)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "style"), [(ATTRIBUTES, "compact"), (ATTRIBUTES, "fenced"), (MIXED, "fenced")]
)
def test_the_margin_is_exactly_one_in_float32_and_float64(attributes, style):
    said = [("x" * 60, "y" * 200), ("Zoë", "Ann"), ("é", "actor"), ("Ann", "\U0010ffff" * 50)]
    rows = [{"name": name, **dict.fromkeys(attributes, value)} for name, value in said]
    task = task_of(rows, style=style)
    circuit = CircuitAgent(task).circuit
    exact = copy.deepcopy(circuit).double()
    for episode in rollout(ExpertAgent(task), task, list(task.facts())[::3]):
        rendered = render(episode, ByteTokenizer())
        assert margin(circuit, rendered) == margin(exact, rendered) == 1.0


def test_the_margin_is_one_in_the_longest_dialogue():
    row = {"name": "Ann " * 250 + "Lee", **dict.fromkeys(ATTRIBUTES, "Lee " * 90)}
    task = task_of([row])
    circuit = CircuitAgent(task, max_name_length=1_003, max_value_length=500).circuit
    assert 4_000 < circuit.config.max_length <= 4_096
    (episode,) = rollout(ExpertAgent(task), task, list(task.facts())[3:])
    assert margin(circuit, render(episode, ByteTokenizer())) == 1.0


@pytest.mark.parametrize("style", ["compact", "fenced"])
def test_every_head_looks_at_one_place_and_at_no_other(style):
    task = task_of(people(2), style=style)
    circuit = CircuitAgent(task).circuit
    for episode in rollout(ExpertAgent(task), task, task.facts()):
        ids = torch.tensor([render(episode, ByteTokenizer()).input_ids])
        for weights in circuit.attention(ids):
            assert set(weights.unique().tolist()) == {0.0, 1.0}
            assert (weights.sum(dim=-1) == 1).all()


def test_the_margin_of_a_wrong_dialogue_is_negative():
    task = task_of(people(1))
    (episode, *_) = rollout(ExpertAgent(task), task, task.facts())
    rendered = render(episode, ByteTokenizer())
    wrong = [ord("z") if label == ord("F") else label for label in rendered.labels]
    assert margin(build_circuit(ATTRIBUTES), rendered._replace(labels=wrong)) < 0


def test_generation_with_a_cache_writes_what_a_whole_pass_does():
    circuit = build_circuit(ATTRIBUTES)
    ids = [256, *b"Where does Ann Lee live?", 257]
    for _ in range(40):
        ids.append(int(circuit(torch.tensor([ids]))[0, -1].argmax()))
    (new,) = generate(circuit, [ids[:26]], stop_ids=(258,), max_new_tokens=40)
    assert ids[26 : 26 + len(new.token_ids)] == new.token_ids
    assert new.stopped


def test_batches_of_any_lengths_write_the_same():
    agent = CircuitAgent(task_of(people(1)))
    questions = [agent.phrasings["birth_date"].ask(name) for name in NAMES]
    talks = [Conversation((Message("user", question),), (), 0) for question in questions]
    together = agent.respond(talks)
    assert [each.text for each in together] == [agent.respond([t])[0].text for t in talks]


@given(st.integers(-50, 5000), st.integers(-50, 5000))
def test_a_parabola_recognises_whole_numbers(number, c):
    squared = {"n": number, "n^2": number**2, "": 1}

    def value(sums: Linear) -> float:
        return float(
            np.dot(*zip(*((w, squared[name]) for name, w in sums.terms.items()), strict=True))
        )

    n, n_squared = register("n"), register("n^2")
    assert (value(is_number(n, n_squared, c)) == 0) == (number == c)
    assert (value(is_number_or_next(n, n_squared, c)) == 0) == (number in (c, c + 1))
    assert value(is_number_or_next(n, n_squared, c)) <= 0


# -- size ------------------------------------------------------------------------------------------


def test_four_attributes_take_fewer_parameters_than_the_smallest_trained_model():
    compact, fenced = (build_circuit(ATTRIBUTES, style=style) for style in STYLES)
    assert (compact.n_nonzero, compact.n_parameters) == (1_376, 7_673)
    assert (fenced.n_nonzero, fenced.n_parameters) == (1_756, 10_941)
    assert compact.config.n_blocks == fenced.config.n_blocks == 4


def test_size_does_not_hang_on_names_or_their_length():
    short, long = build_circuit(ATTRIBUTES, None, 1), build_circuit(ATTRIBUTES, None, 900)
    for a, b in zip(short.parameters(), long.parameters(), strict=True):
        assert torch.equal(a, b)
    agent = CircuitAgent(task_of(people(1)), max_name_length=900, max_value_length=400)
    name, value = "Ann " * 224 + "Lee", "Lee " * 100
    question, call = f"Where was {name} born?", f"FIND birth_place FOR {name}"
    assert say(agent, (question,)) == [(call, "query")]
    assert say(agent, (question, call, value)) == [(f"{name} was born in {value}.", "answer")]


def test_the_stream_is_as_wide_for_64_attributes_as_for_8_that_are_asked_for_alike():
    names = [f"{n:02} attribute" for n in range(64)]
    widths = [build_circuit(names[:n]).config.d_model for n in (8, 64)]
    assert widths[1] - widths[0] <= 2 * 2  # two letters to be read


# -- outside the family ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (["Who is Ann Lee?"], "asks for none of birth_date"),
        (["When was  born"], "asks for none of birth_date"),
        (["Where was " + "é" * 31 + " born?"], "has 62 bytes, more than the 60"),
        (
            ["When was Ann born?", "FIND birth_date FOR Ann", "no result"],
            "about 'Ann' says that there is no value",
        ),
        (["When was Ann born?", "FIND x FOR Ann", "error: unknown attribute"], "no value"),
        (["When was Ann born?", "FIND birth_date FOR Ann", "1" * 201], "has 201 bytes"),
        (["When was Ann born?", "FIND birth_date FOR Ann", "\udc80"], "lone surrogate"),
        (["When was A\ud800 born?"], "lone surrogate"),
        (["When was Ann born?", "x", "y", "x", "y"], "after its first query"),
    ],
)
def test_what_it_was_not_built_for_is_refused(agent, said, problem):
    with pytest.raises(OutsideFamily, match=problem):
        say(agent, tuple(said))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_queries": 0}, "dialect lookup and 0 queries"),
        ({"own_phrasings": {"name_of_dog": {}}}, "no attribute"),
    ],
)
def test_tasks_it_cannot_play_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        CircuitAgent(task_of(people(1), **settings))


def test_dialogues_too_long_for_whole_numbers_in_float32_are_refused():
    with pytest.raises(ConfigError, match=r"more than the 4,096"):
        build_circuit(ATTRIBUTES, max_name_length=1_300)
    long = Phrasing("ж" * 300 + "{name}", "{value}")
    with pytest.raises(ConfigError, match="too much to tell apart"):
        build_circuit(("a", "b"), {"a": long, "b": Phrasing("{name}?", "{value}")})
    with pytest.raises(ConfigError, match="lone surrogate"):
        build_circuit(("a",), {"a": Phrasing("\ud800{name}", "{value}")})
    with pytest.raises(ConfigError, match="needs an attribute"):
        build_circuit(())
    with pytest.raises(ConfigError, match="'b' has no phrasing"):
        build_circuit(("a", "b"), phrasings(("a",)))
    with pytest.raises(ConfigError, match="style is 'plain'; it must be one of compact, fenced"):
        build_circuit(("a",), style="plain")
