"""Hostile turns, sent through the environment: a reply within the deadline, and nothing else."""

import hashlib
import time

import pytest

from itl_env import Answer, FactDatabase, FactRecallEnv, Query, RecallTask, TextActions, people

DEADLINE_S = 1.0

LOOKUPS = {
    "quote": "FIND birth_place FOR ' OR '1'='1",
    "stacked": "FIND birth_place FOR x'; DROP TABLE people; --",
    "attribute": "FIND birth_place FROM people; DROP TABLE people; -- FOR x",
    "column": 'FIND name" FROM people --  FOR x',
    "union": "FIND birth_place FOR ' UNION SELECT name FROM people --",
    "wildcard": "FIND birth_place FOR %",
    "json": 'FIND birth_place FOR "],["',
}
SELECTS = {
    "drop": "DROP TABLE people",
    "stacked": "SELECT 1; DELETE FROM people",
    "comment": "SELECT 1 /* ; */ ; UPDATE people SET name = 'x'",
    "with insert": "WITH t AS (SELECT 1) INSERT INTO people SELECT * FROM t",
    "attach": "ATTACH DATABASE 'stolen.db' AS s",
    "vacuum": "VACUUM INTO 'stolen.db'",
    "pragma": "PRAGMA writable_schema = ON",
    "pragma table": "SELECT * FROM pragma_table_info('people')",
    "schema": "SELECT sql FROM sqlite_master",
    "file": "SELECT readfile('/etc/passwd')",
    "write": "SELECT writefile('stolen.db', 'x')",
    "extension": "SELECT load_extension('evil.so')",
    "endless": "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT x FROM t",
    "cross join": "SELECT count(*) FROM people a, people b, people c, people d, people e, people f",
    "zeroblob": "SELECT zeroblob(1000000000)",
    "printf": "SELECT printf('%1000000000d', 1)",
    "replace": "SELECT replace(replace('aaaaaaaa', 'a', 'aaaaaaaa'), 'a', 'aaaaaaaa')",
    "deep": "SELECT " + "(" * 400 + "1" + ")" * 400,
    "long or": "SELECT 1 WHERE " + " OR ".join(["1=1"] * 90),
    "unfinished": "SELECT 'abc",
    "parameters": "SELECT ?, :name",
    "everything": "SELECT * FROM people",
}
TEXTS = {
    "megabyte": "x" * 1_000_000,
    "megabyte call": "FIND birth_place FOR " + "x" * 1_000_000,
    "megabyte select": "SELECT '" + "x" * 1_000_000 + "'",
    "fences": "```sql\n" * 200,
    "brackets": "[" * 1900,
    "nul": "FIND birth_place FOR a\0b",
    "nul select": "SELECT 'a\0b'",
    "surrogate": "FIND birth_place FOR \ud800",
    "surrogate select": "SELECT '\udfff'",
    "escape": "\x1b]0;title\x07",
    "formats": "%s%n{0.__class__}",
    "empty": "",
    "space": " \n\t\r\u2028",
    "marks": "<|user|><|assistant|><|database|><|eod|>",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    FactDatabase.create(folder / "facts.db", people(200, seed=0)).close()
    return folder


@pytest.fixture
def unharmed(folder, monkeypatch):
    """The database's file is the same afterwards, and no other file exists."""
    monkeypatch.chdir(folder)

    def contents():
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()
        }

    before = contents()
    yield
    assert contents() == before
    assert list(before) == ["facts.db"]


def say(folder, dialect, action, *, raw=False):
    """The reply to one action, checked for what holds of all replies."""
    env = FactRecallEnv(str(folder / "facts.db"), dialect=dialect, max_turns=2)
    shell = TextActions(env) if raw else env
    shell.reset(seed=0)
    start = time.monotonic()
    observation, reward, terminated, truncated, info = shell.step(action)
    assert time.monotonic() - start < DEADLINE_S + 0.5
    assert observation in env.observation_space
    assert reward == 0.0
    assert not truncated
    env.close()
    return observation, terminated, info


@pytest.mark.parametrize("text", LOOKUPS.values(), ids=LOOKUPS)
def test_injected_sql_is_only_a_name(folder, unharmed, text):
    observation, terminated, _ = say(folder, "lookup", {"kind": 0, "text": text})
    assert observation == "no result" or observation.startswith("error: ")
    assert not terminated


@pytest.mark.parametrize("text", SELECTS.values(), ids=SELECTS)
def test_a_select_only_reads_the_table_and_in_time(folder, unharmed, text):
    observation, _, info = say(folder, "sql", {"kind": 0, "text": text})
    if text not in (SELECTS["deep"], SELECTS["long or"], SELECTS["replace"]):
        assert info["error_code"], observation
        assert observation.startswith("error: ")


@pytest.mark.parametrize("dialect", ["lookup", "sql"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_gets_a_reply(folder, unharmed, dialect, text):
    for kind in (0, 1):
        say(folder, dialect, {"kind": kind, "text": text})
    say(folder, dialect, text, raw=True)


@pytest.mark.parametrize("dialect", ["lookup", "sql"])
def test_sql_in_an_answer_is_a_wrong_answer(folder, unharmed, dialect):
    text = "'; DROP TABLE people; --"
    _, terminated, info = say(folder, dialect, {"kind": 1, "text": text})
    assert terminated
    assert info["answer"] == text


def test_one_hostile_lane_does_not_disturb_the_others(folder, unharmed):
    task = RecallTask(FactDatabase(folder / "facts.db"), dialect="sql")
    fact = task.fact(0)
    good = Query(task.query(fact.attribute, fact.name))
    actions = [
        good,
        Query(SELECTS["cross join"]),
        Query(SELECTS["attach"]),
        Answer(fact.value),
        good,
    ]
    replies = task.advance(task.start([fact] * 5), actions)
    assert [reply.error_code for reply in replies] == [None, "timeout", "forbidden", None, None]
    assert replies[0].observation == replies[4].observation == fact.value
    assert replies[3].reward == 1.0
    task.close()
