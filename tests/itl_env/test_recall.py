"""The recall task: one lookup a step, budgets, endings and error codes."""

import copy
import pickle

import pytest

from itl_env import (
    Answer,
    ConfigError,
    EnvironmentFailure,
    FactDatabase,
    Query,
    RecallTask,
    StopReason,
    people,
)
from itl_env.dialogue import NO_RESULT


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("recall") / "facts.db"
    return FactDatabase.create(path, people(40, seed=1))


@pytest.fixture
def lookups(database, monkeypatch):
    """The queries of each lookup statement, as they are sent."""
    calls = []
    lookup = database.lookup
    monkeypatch.setattr(
        database, "lookup", lambda queries: calls.append(queries) or lookup(queries)
    )
    return calls


def play(task, fact, *actions):
    (state,) = task.start([fact])
    for action in actions:
        (reply,) = task.advance([state], [action])
        state = reply.state
    return reply


def test_one_lookup_serves_any_mixture_of_lanes(database, lookups):
    task = RecallTask(database, max_queries=2)
    facts = [task.fact(i) for i in range(8)]  # two people, all four attributes
    actions = [Query(task.query(fact.attribute, fact.name)) for fact in facts]
    actions += [Answer("x"), Query("FIND occupation FOR Nobody"), task.parse(""), Query("FIND")]
    replies = task.advance(task.start([*facts, *facts[:4]]), actions)
    assert [reply.observation for reply in replies[:8]] == [fact.value for fact in facts]
    assert [len(queries) for queries in lookups] == [9]
    assert [reply.error_code for reply in replies[8:]] == [None, None, "empty", "malformed"]


def test_lanes_do_not_touch_each_other(database):
    task = RecallTask(database, max_queries=2)
    facts = [task.fact(i) for i in (0, 5, 9)]
    states = task.start(facts)
    before = copy.deepcopy(states)
    actions = [Query(task.query(fact.attribute, fact.name)) for fact in facts]
    together = task.advance(states, actions)
    assert states == before
    assert together == [task.advance([s], [a])[0] for s, a in zip(states, actions, strict=True)]


@pytest.mark.parametrize("style", ["compact", "fenced"])
@pytest.mark.parametrize("dialect", ["lookup", "sql"])
def test_an_expert_is_right_about_every_fact(database, dialect, style):
    task = RecallTask(database, dialect=dialect, style=style, keys=slice(0, 10))
    facts = list(task.facts())
    assert len(facts) == task.n_facts == 40
    calls = [task.call(fact.attribute, fact.name) for fact in facts]
    replies = task.advance(task.start(facts), [task.parse(call) for call in calls], calls)
    assert [reply.observation for reply in replies] == [fact.value for fact in facts]
    statements = [
        task.statement(fact._replace(value=reply.observation))
        for fact, reply in zip(facts, replies, strict=True)
    ]
    states = [reply.state for reply in replies]
    ends = task.advance(states, [task.parse(text) for text in statements], statements)
    assert all(end.reward == 1.0 and end.done for end in ends)
    assert [message.role for message in ends[0].state.messages] == [
        "user",
        "assistant",
        "database",
        "assistant",
    ]


def test_without_a_tool_only_answers_count(database, lookups):
    task = RecallTask(database, max_queries=0)
    fact = task.fact(0)
    lookups.clear()
    assert play(task, fact, Answer(fact.value)).reward == 1.0
    refused = play(task, fact, Query(task.query(fact.attribute, fact.name)))
    assert refused.error_code == "no_tool"
    assert (refused.done, refused.reward) == (True, 0.0)
    assert refused.state.stop_reason is StopReason.OUT_OF_TURNS
    assert refused.state.n_queries == 0
    assert not any(lookups)


def test_queries_beyond_the_budget_are_refused(database, lookups):
    task = RecallTask(database, max_queries=2, max_turns=5)
    fact = task.fact(0)
    query = Query(task.query(fact.attribute, fact.name))
    lookups.clear()
    reply = play(task, fact, query, query, query)
    assert (reply.error_code, reply.done) == ("too_many_queries", False)
    assert reply.state.n_queries == 2
    assert sum(map(len, lookups)) == 2
    end = task.advance([reply.state], [Answer(fact.value)])[0]
    assert (end.reward, end.state.error) == (1.0, "too_many_queries")


def test_the_budget_of_turns_ends_an_episode(database):
    task = RecallTask(database, max_queries=5, max_turns=2)
    fact = task.fact(0)
    reply = play(task, fact, task.parse(""), Query("FIND"))
    assert (reply.done, reply.reward, reply.rewards) == (True, 0.0, {"exact": 0.0})
    assert reply.state.stop_reason is StopReason.OUT_OF_TURNS
    with pytest.raises(ValueError, match="over"):
        task.advance([reply.state], [Answer("x")])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("FIND birth_place FOR", "malformed"),
        ("find birth_place for Ann", "malformed"),
        ("FIND birth_place FOR Ann\nLee", "malformed"),
        ("FIND shoe_size FOR Ann", "unknown_attribute"),
        ("FIND birth_place FOR A\0n", "invalid_text"),
        ("FIND birth_place FOR \ud800", "invalid_text"),
        ("FIND birth_place FOR " + "x" * 100, "too_long"),
    ],
)
def test_a_wrong_query_gets_an_error_reply_with_a_code(database, text, code):
    task = RecallTask(database, max_length=100)
    reply = play(task, task.fact(0), Query(text))
    assert (reply.error_code, reply.done, reply.reward) == (code, False, 0.0)
    assert reply.observation.startswith("error: ")
    assert reply.state.messages[-1].content == reply.observation


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SELECT", "sql_error"),
        ("SELECT shoe_size FROM people", "sql_error"),
        ("SELECT 1; SELECT 2", "multiple_statements"),
        ("DROP TABLE people", "forbidden"),
        ("SELECT * FROM sqlite_master", "forbidden"),
        ("SELECT * FROM people", "too_large"),
        ("SELECT '\ud800'", "invalid_text"),
    ],
)
def test_a_wrong_select_gets_an_error_reply_with_a_code(database, text, code):
    task = RecallTask(database, dialect="sql")
    reply = play(task, task.fact(0), Query(text))
    assert (reply.error_code, reply.done) == (code, False)
    assert type(reply.error_code) is str


def test_an_unknown_name_is_an_ordinary_reply(database):
    for dialect in ("lookup", "sql"):
        task = RecallTask(database, dialect=dialect)
        reply = play(task, task.fact(0), Query(task.query("occupation", "Nobody O'Where")))
        assert (reply.observation, reply.error_code) == (NO_RESULT, None)


@pytest.mark.parametrize("dialect", ["lookup", "sql"])
def test_a_failing_database_is_nobodys_wrong_answer(tmp_path, dialect):
    path = tmp_path / "facts.db"
    FactDatabase.create(path, people(5)).close()
    task = RecallTask(FactDatabase(path), dialect=dialect)
    fact = task.fact(0)
    states = task.start([fact])
    task.close()
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(EnvironmentFailure):
        task.advance(states, [Query(task.query(fact.attribute, fact.name))])


def test_a_value_that_is_too_long_is_withheld(tmp_path):
    rows = [{"name": "Ann", "story": "x" * 101}, {"name": "Bob", "story": "x" * 100}]
    task = RecallTask(FactDatabase.create(tmp_path / "long.db", rows), max_length=100)
    ann, bob = (
        play(task, task.fact_about(name, "story"), Query(f"FIND story FOR {name}"))
        for name in ("Ann", "Bob")
    )
    assert ann.error_code == "too_large"
    assert "x" * 101 not in ann.observation
    assert (bob.error_code, bob.observation) == (None, "x" * 100)


def test_slices_of_the_keys_are_disjoint_and_whole(database):
    train = RecallTask(database, keys=slice(0, 30))
    unseen = RecallTask(database, keys=slice(30, None))
    names = [{fact.name for fact in task.facts()} for task in (train, unseen)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40
    assert [train.fact(i) for i in range(train.n_facts)] == list(train.facts())
    # Whoever is asked about, everyone can be looked up.
    other = unseen.fact(0)
    reply = play(train, train.fact(0), Query(train.query(other.attribute, other.name)))
    assert reply.observation == other.value
    for index in (-1, train.n_facts):
        with pytest.raises(IndexError):
            train.fact(index)


def test_a_fact_can_be_asked_for_by_name(database):
    task = RecallTask(database, attributes=["occupation"])
    fact = task.fact(3)
    assert task.fact_about(fact.name, "occupation") == fact
    for name, attribute in (("Nobody", "occupation"), (fact.name, "birth_place")):
        with pytest.raises(ConfigError):
            task.fact_about(name, attribute)


@pytest.mark.parametrize(
    "arguments",
    [
        {"style": "loud"},
        {"dialect": "graphql"},
        {"max_queries": -1},
        {"max_turns": 0},
        {"max_length": 0},
        {"attributes": []},
        {"attributes": ["occupation", "occupation"]},
        {"attributes": ["shoe_size"]},
        {"keys": slice(0, 10, 2)},
        {"keys": slice(40, 50)},
        {"rubric": "generous"},
        {"own_phrasings": {"shoe_size": {"question": "{name}?", "statement": "{name} {value}"}}},
    ],
)
def test_contradictory_arguments_are_refused(database, arguments):
    with pytest.raises(ConfigError):
        RecallTask(database, **arguments)


def test_sql_needs_a_file():
    with pytest.raises(ConfigError, match="SQLite file"):
        RecallTask(FactDatabase.create("sqlite://", people(3)), dialect="sql")


@pytest.mark.parametrize("dialect", ["lookup", "sql"])
def test_a_task_survives_pickling_and_closing(database, dialect):
    task = RecallTask(database, dialect=dialect)
    fact = task.fact(0)
    query = Query(task.query(fact.attribute, fact.name))
    other = pickle.loads(pickle.dumps(task))
    task.close()
    for one in (task, other):
        assert play(one, fact, query).observation == fact.value


def test_turns_are_recorded_as_written_else_as_an_expert_writes_them(database):
    task = RecallTask(database, style="fenced")
    fact = task.fact(0)
    query = task.query(fact.attribute, fact.name)
    (state,) = task.start([fact])
    by_default = task.advance([state], [Query(query)])[0].state.messages[1].content
    assert by_default == task.call(fact.attribute, fact.name)
    as_written = task.advance([state], [Query(query)], ["hm: " + query])[0].state.messages[1]
    assert as_written == ("assistant", "hm: " + query)


def test_only_a_finished_episode_is_one(database):
    task = RecallTask(database)
    fact = task.fact(0)
    with pytest.raises(ValueError, match="not ended"):
        task.episode(play(task, fact, Query("FIND")), [])
    episode = task.episode(play(task, fact, Answer(fact.value)), [], index=3, seed=7, agent="me")
    assert (episode.reward, episode.answer, episode.index, episode.seed) == (1.0, fact.value, 3, 7)
    assert "gymnasium" in episode.versions


def test_dialogues_are_as_long_as_the_published_ones(database):
    """Mean tokens of a byte tokenizer with a mark for each turn: arXiv 2508.20755, section 5."""

    def mean_tokens(style, with_tool):
        task = RecallTask(database, style=style)
        lengths = []
        for fact in task.facts():
            turns = [task.question(fact), task.statement(fact)]
            if with_tool:
                turns += [task.call(fact.attribute, fact.name), fact.value]
            # Each turn's mark, and the one that ends the dialogue.
            lengths.append(sum(len(turn.encode()) + 1 for turn in turns) + 1)
        return sum(lengths) / len(lengths)

    assert mean_tokens("compact", False) == pytest.approx(68, abs=3)
    assert mean_tokens("compact", True) == pytest.approx(114, abs=3)
    assert mean_tokens("fenced", True) == pytest.approx(187, abs=3)
