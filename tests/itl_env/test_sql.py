"""The SQL gate lets a model read facts, and lets it do nothing else."""

import hashlib
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itl_env.errors import ConfigError, DatabaseError, EnvironmentFailure
from itl_env.sql import _DEFINITION, SqlError, SqlGate, SqlRejected, _refuse, _tokens, format_rows

DEADLINE_S = 0.2
SLACK_S = 1.5  # of a busy machine


def make_database(path: Path, n: int = 20_000) -> Path:
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT UNIQUE, city TEXT, age INT)"
    )
    connection.executemany(
        "INSERT INTO people VALUES (?, ?, ?, ?)",
        ((i, f"Person {i}", f"City {i % 100}", i % 90) for i in range(n)),
    )
    connection.execute("CREATE TABLE secrets (word TEXT)")
    connection.execute("INSERT INTO secrets VALUES ('xyzzy')")
    connection.commit()
    connection.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_database(tmp_path_factory.mktemp("gate") / "facts.db")


@pytest.fixture
def gate(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SqlGate(path, tables=["people"], deadline_s=DEADLINE_S) as gate:
        yield gate


@pytest.fixture
def patient(path, tmp_path, monkeypatch):
    """A gate that keeps its results on a busy machine, too."""
    monkeypatch.chdir(tmp_path)
    with SqlGate(path, tables=["people"], deadline_s=60) as gate:
        yield gate


def fingerprint(path: Path) -> tuple[object, ...]:
    """The bytes of the database, and the files in its folder and the current one."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest, sorted(path.parent.iterdir()), sorted(Path().iterdir())


def code_of(gate: SqlGate, sql: str) -> SqlError:
    with pytest.raises(SqlRejected) as rejection:
        gate.run(sql)
    assert str(rejection.value)
    return rejection.value.code


def long_value(doublings: int) -> str:
    sql = f"SELECT '{'a' * 20}' AS x"
    for _ in range(doublings):
        sql = f"SELECT x||x AS x FROM ({sql})"
    return sql


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT city FROM people WHERE name = 'Person 7'", [("City 7",)]),
        (
            "select Age, name from PEOPLE where id in (3, 4);",
            [("3", "Person 3"), ("4", "Person 4")],
        ),
        ("SELECT count(*) FROM people", [("20000",)]),
        ("SELECT name FROM people WHERE name = 'nobody'", []),
        ("SELECT NULL, 1.5, x'00ff', 'é'", [("NULL", "1.5", "x'00ff'", "é")]),
        ("/* first */ SELECT 1 -- last", [("1",)]),
        ("SELECT max(age) FROM people WHERE city LIKE 'city 1_'", [("89",)]),
        ("WITH c AS (SELECT DISTINCT city FROM people) SELECT count(*) FROM c", [("100",)]),
        (
            "SELECT a.name FROM people a JOIN people b ON a.id = b.id + 1 WHERE b.id = 1",
            [("Person 2",)],
        ),
        ("SELECT CAST(x'ff00' AS TEXT)", [("\ufffd\ufffd",)]),
    ],
)
def test_a_select_gives_its_rows_as_text(patient, sql, rows):
    assert patient.run(sql) == rows


def test_one_value_is_written_bare_and_rows_on_lines():
    assert format_rows([("Paris",)]) == "Paris"
    assert format_rows([("a", "b"), ("c", "d")]) == "a | b\nc | d"
    assert format_rows([]) == ""


CTE_BOMB = "WITH a0 AS (SELECT 1 x)" + "".join(
    f", a{i} AS (SELECT x FROM a{i - 1} UNION SELECT x FROM a{i - 1})" for i in range(1, 18)
)
NESTED_CTE_BOMB = "SELECT 1"
for _ in range(12):
    NESTED_CTE_BOMB = f"WITH a AS \ufeff({NESTED_CTE_BOMB}) SELECT 1 FROM a,[a],`A`"
QUOTED_CTE_BOMB = 'WITH "b`""0" AS (SELECT 1 x)' + "".join(
    f', "b`""{i}"as/**/(SELECT a.x FROM `b``"{i - 1}`a,[b`"{i - 1}])' for i in range(1, 18)
)


def cte_tower(name: str, uses: int = 15, levels: int = 5) -> str:
    """WITH tables of one name, each defined by `uses` uses of the one in it."""
    sql = "SELECT 1"
    for _ in range(levels):
        sql = f"WITH {name} AS({sql})SELECT 1 FROM {','.join([name] * uses)}"
    return sql


SPACES = [chr(i) for i in range(0x80, 0x110000) if chr(i).isspace()]
# Names of which SQLite makes more than Python's idea of words and spaces does.
ODD_NAMES = ["\u3000", "\xa0", "\u2003\u2003", "\x80", "a\ufeff", "\U0001f600", "\u0301", "a$", "_"]
QUOTES = ["'{}'", '"{}"', "`{}`", "[{}]"]
CTE_TOWERS = [
    *(cte_tower(name) for name in ODD_NAMES),
    *(cte_tower(quote.format(name)) for quote in QUOTES for name in ("\u3000", ";", "(", " ", "")),
]

HOSTILE = [
    # writing
    ("INSERT INTO people VALUES (-1, 'x', 'y', 1)", "forbidden"),
    ("UPDATE people SET city = 'x'", "forbidden"),
    ("DELETE FROM people", "forbidden"),
    ("REPLACE INTO people VALUES (1, 'x', 'y', 1)", "forbidden"),
    ("DROP TABLE people", "forbidden"),
    ("ALTER TABLE people RENAME TO p", "forbidden"),
    ("CREATE TABLE t (x)", "forbidden"),
    ("CREATE TEMP TABLE t AS SELECT * FROM people", "forbidden"),
    ("CREATE VIEW v AS SELECT 1", "forbidden"),
    ("CREATE TRIGGER t AFTER INSERT ON people BEGIN SELECT 1; END", "forbidden"),
    ("CREATE VIRTUAL TABLE f USING fts5(x)", "forbidden"),
    ("CREATE INDEX i ON people (city)", "forbidden"),
    ("WITH a AS (SELECT 1) DELETE FROM people", "forbidden"),
    ("WITH a AS (SELECT 1) INSERT INTO people SELECT 9, 'x', 'y', 1", "forbidden"),
    # files, settings, transactions
    ("ATTACH DATABASE 'other.db' AS o", "forbidden"),
    ("DETACH DATABASE main", "forbidden"),
    ("VACUUM", "forbidden"),
    ("VACUUM INTO 'copy.db'", "forbidden"),
    ("PRAGMA query_only = OFF", "forbidden"),
    ("PRAGMA writable_schema = ON", "forbidden"),
    ("PRAGMA table_info(people)", "forbidden"),
    ("/* */ PRAGMA journal_mode = WAL", "forbidden"),
    ("BEGIN EXCLUSIVE", "forbidden"),
    ("SAVEPOINT s", "forbidden"),
    ("COMMIT", "forbidden"),
    ("ANALYZE", "forbidden"),
    ("REINDEX", "forbidden"),
    ("EXPLAIN SELECT 1", "forbidden"),
    ("EXPLAIN QUERY PLAN SELECT * FROM people", "forbidden"),
    ("VALUES (1)", "forbidden"),
    # what is not the allowed table
    ("SELECT * FROM secrets", "forbidden"),
    ("SELECT count(*) FROM secrets", "forbidden"),
    ("SELECT 1 FROM secrets", "forbidden"),
    ("SELECT (SELECT word FROM secrets) FROM people LIMIT 1", "forbidden"),
    ("SELECT name FROM people UNION SELECT word FROM secrets", "forbidden"),
    ("SELECT sql FROM sqlite_master", "forbidden"),
    ("SELECT count(*) FROM sqlite_schema", "forbidden"),
    ("SELECT * FROM sqlite_temp_master", "forbidden"),
    ("SELECT * FROM pragma_table_info('people')", "forbidden"),
    ("SELECT count(*) FROM pragma_database_list", "forbidden"),
    ("SELECT * FROM json_each('[1]')", "forbidden"),
    ("SELECT count(*) FROM json_tree('[1]')", "forbidden"),
    # functions
    ("SELECT load_extension('x.so')", "forbidden"),
    ("SELECT randomblob(1000000000)", "forbidden"),
    ("SELECT zeroblob(1000000000)", "forbidden"),
    ("SELECT hex(zeroblob(500000000))", "forbidden"),
    ("SELECT printf('%1000000000d', 1)", "forbidden"),
    ("SELECT format('%.*c', 1000000000, 'x')", "forbidden"),
    ("SELECT replace(replace('aaaa', 'a', 'aaaaaaaa'), 'a', 'aaaaaaaa')", "forbidden"),
    ("SELECT group_concat(name) FROM people", "forbidden"),
    ("SELECT 'a' GLOB '*a*a*a*a*b'", "forbidden"),
    ("SELECT trim(name, city) FROM people", "forbidden"),
    ("SELECT readfile('/etc/passwd')", "sql_error"),
    ("SELECT writefile('f', 'x')", "sql_error"),
    ("SELECT edit('x', 'sh')", "sql_error"),
    ("SELECT fts3_tokenizer('simple')", "forbidden"),
    ("SELECT sqlite_compileoption_get(0)", "forbidden"),
    ("SELECT random()", "forbidden"),
    ("SELECT datetime('now')", "forbidden"),
    ("SELECT CURRENT_TIMESTAMP", "forbidden"),
    ("SELECT name FROM people WHERE name MATCH 'x'", "forbidden"),
    ("SELECT 'a' REGEXP '(a+)+b'", "sql_error"),
    # several statements, injection, comments
    ("SELECT 1; DROP TABLE people", "multiple_statements"),
    ("SELECT 1; SELECT 2", "multiple_statements"),
    ("SELECT city FROM people WHERE name = ''; DELETE FROM people; --'", "multiple_statements"),
    ("SELECT 1;/* */;/**/ATTACH 'x' AS y", "multiple_statements"),
    ("", "sql_error"),
    ("-- nothing", "sql_error"),
    (";", "sql_error"),
    ("hello world", "sql_error"),
    ("SELECT", "sql_error"),
    ("SELECT 'unfinished", "sql_error"),
    ("SELECT nothing FROM people", "sql_error"),
    ("SELECT * FROM nowhere", "sql_error"),
    ("SELECT ?", "sql_error"),
    ("SELECT :name, $a(')", "sql_error"),
    ("SELECT abs(-9223372036854775808)", "sql_error"),
    ("SELECT name FROM people ORDER BY name COLLATE klingon", "sql_error"),
    # text
    ("SELECT 1\0", "invalid_text"),
    ("SELECT '\ud800'", "invalid_text"),
    ("SELECT '" + "a" * 1_000_000 + "'", "too_long"),
    ("SELECT " + "1+" * 10_000 + "1", "too_long"),
    # size
    ("SELECT * FROM people", "too_large"),
    ("SELECT name FROM people LIMIT 21", "too_large"),
    (long_value(7), "too_large"),
    (long_value(12), "too_large"),
    ("SELECT * FROM (SELECT *,*,*,*,* FROM (SELECT *,*,*,*,*,*,*,*,*,*,*,*,*,*,* FROM people))",
     "sql_error"),
    ("SELECT " + "(" * 400 + "1" + ")" * 400, "sql_error"),
    ("SELECT " + "-" * 3 + "1" + "+1" * 200, "sql_error"),
    ("SELECT 1" + " UNION SELECT 1" * 20, "sql_error"),
    ("SELECT 'a' LIKE '" + "%a" * 60 + "'", "sql_error"),
    (CTE_BOMB + " SELECT * FROM a17", "too_large"),
    (NESTED_CTE_BOMB, "too_large"),
    (QUOTED_CTE_BOMB + " SELECT 1", "too_large"),
    *((sql, "too_large") for sql in CTE_TOWERS),
    (cte_tower("a").replace(",", " \v,").replace("AS(", "AS \v("), "too_large"),
    # time
    ("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c",
     "forbidden"),
    ("SELECT count(*) FROM people a, people b, people c", "timeout"),
    ("SELECT a.name FROM people a, people b WHERE a.name || b.name LIKE '%q%q%q%'", "timeout"),
    ("SELECT a.id FROM people a, people b ORDER BY a.id * 7919 % 100003", "timeout"),
    ("SELECT count(DISTINCT a.name || b.name) FROM people a, people b", "timeout"),
    (f"WITH b AS MATERIALIZED ({long_value(8)}) SELECT sum(instr(x || c.name, substr(x, 1, 2500)"
     " || d.name) + instr(x, substr(x, 1, 2501) || c.city)) FROM b, people c, people d", "timeout"),
    (f"WITH b AS MATERIALIZED ({long_value(8)}) SELECT count(*) FROM b, people c, people d "
     f"WHERE x || c.name LIKE '%{'a_' * 45}b'", "timeout"),
    (f"WITH b AS MATERIALIZED ({long_value(8)}) SELECT x || c.name || d.name FROM b, people c, "
     "people d ORDER BY 1", "timeout"),
]  # fmt: skip


def test_hostile_statements_are_rejected_in_time_and_leave_no_trace(gate, path):
    before = fingerprint(path)
    for sql, code in HOSTILE:
        start = time.monotonic()
        assert code_of(gate, sql) == code, sql[:200]
        assert time.monotonic() - start < DEADLINE_S + SLACK_S, sql[:200]
    assert len(HOSTILE) >= 60
    assert fingerprint(path) == before
    assert gate.run("SELECT city FROM people WHERE id = 7") == [("City 7",)]


def counted_uses(sql: str) -> tuple[int, int]:
    """How often the commonest name is used, and the definitions of WITH tables."""
    tokens, names = _tokens(sql)
    return max(Counter(names).values()), len(_DEFINITION.findall(" ".join(tokens)))


@given(
    name=st.text(st.sampled_from([*SPACES, "a", "\ufeff", "\U0001f600"]), min_size=1, max_size=4),
    quote=st.sampled_from(["{}", *QUOTES]),
    uses=st.integers(1, 12),
    levels=st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_no_name_hides_the_uses_of_a_with_table(name, quote, uses, levels):
    plain, odd = (cte_tower(each, uses, levels) for each in ("plain", quote.format(name)))
    try:
        sqlite3.connect(":memory:").execute(cte_tower(quote.format(name), uses=1, levels=1))
    except sqlite3.Error:
        return  # no name to SQLite either
    counts = zip(counted_uses(odd), counted_uses(plain), strict=True)
    assert all(count >= expected for count, expected in counts)


@pytest.mark.parametrize("char", [*map(chr, range(1, 0x81)), *SPACES, "\ufeff"])
def test_space_is_what_sqlite_takes_for_space(char):
    try:
        names = sqlite3.connect(":memory:").execute(f"SELECT 1 AS {char}x").description
    except sqlite3.Error:
        names = [["?"]]
    assert (names[0][0] == "x") == (_tokens(f"SELECT 1 AS {char}x")[0][3:] == ["x"])


def test_hostile_with_tables_take_no_memory(path, require):
    require(Path("/proc/self/status").exists(), "there is no /proc to read peak memory from")
    code = """if True:
        import re, sys
        from itl_env.sql import SqlGate, SqlRejected
        def peak():
            return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
        with SqlGate(sys.argv[1], tables=["people"]) as gate:
            gate.run("SELECT count(*) FROM people")
            before = peak()
            for sql in sys.argv[2:]:
                try:
                    gate.run(sql)
                except SqlRejected:
                    pass
            print(peak() - before)
    """
    chain = "WITH a AS (SELECT 1)"
    for name, below in ("ba", "cb", "dc"):
        chain += f", {name} AS (SELECT 1 FROM {','.join(below * 9)})"
    chain += f" SELECT 1 FROM {','.join('d' * 9)}"
    _refuse(chain, 1000)  # as much as is let through
    bombs = [*CTE_TOWERS, chain]
    child = [sys.executable, "-c", code, str(path), *bombs]
    shown = subprocess.run(child, capture_output=True, text=True, check=True)
    assert int(shown.stdout) < 64 * 1024


PIECES = """SELECT FROM WHERE people secrets name city * , ( ) = 'Person 1' ; -- /* */ UNION ALL
WITH AS a count(*) 1 -1 x'ff' || LIKE '%' GROUP BY ORDER LIMIT JOIN ON PRAGMA ATTACH DELETE INSERT
INTO VALUES sqlite_master " ` [ ] ? :a $a(') RECURSIVE NOT MATERIALIZED IN CAST( TEXT) \ufeff"""
WORDS = st.sampled_from(PIECES.split())


@given(
    st.one_of(
        st.text(st.characters(exclude_categories=()), max_size=60),
        st.lists(WORDS, max_size=25).map(" ".join),
        st.lists(WORDS, max_size=25).map(lambda words: "SELECT " + " ".join(words)),
    )
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_gives_rows_or_a_rejection(gate, path, sql):
    try:
        rows = gate.run(sql)
    except SqlRejected as rejection:
        assert str(rejection)  # noqa: PT017 - rows are just as right
    else:
        assert "xyzzy" not in format_rows(rows)
    assert not list(path.parent.glob("*-journal"))


def test_the_property_test_above_left_the_file_as_it_was(gate, path, tmp_path):
    fresh = make_database(tmp_path / "fresh.db")
    assert path.read_bytes() == fresh.read_bytes()


def test_the_limits_of_a_result_are_those_asked_for(path):
    with SqlGate(path, tables=["people"], max_rows=2, max_characters=19) as gate:
        assert gate.run("SELECT name FROM people ORDER BY id LIMIT 2") == [
            ("Person 0",),
            ("Person 1",),
        ]
        assert code_of(gate, "SELECT name FROM people LIMIT 3") == SqlError.TOO_LARGE
        assert code_of(gate, "SELECT name, id FROM people LIMIT 2") == SqlError.TOO_LARGE


def test_several_tables_may_be_allowed(path):
    with SqlGate(path, tables=["people", "secrets"]) as gate:
        assert gate.run("SELECT word FROM secrets, people WHERE id = 1") == [("xyzzy",)]


def test_a_gate_needs_its_file_and_tables(tmp_path, path):
    with pytest.raises(DatabaseError, match="no database file"):
        SqlGate(tmp_path / "missing.db", tables=["people"])
    assert not (tmp_path / "missing.db").exists()
    with pytest.raises(DatabaseError, match="'animals'"):
        SqlGate(path, tables=["animals"])
    with pytest.raises(ConfigError):
        SqlGate(path, tables=[])
    (tmp_path / "text.db").write_text("no database at all, but long enough to have a header" * 20)
    with pytest.raises(DatabaseError, match="not a database"):
        SqlGate(tmp_path / "text.db", tables=["people"])


@pytest.mark.parametrize("damage", ["truncate", "overwrite", "drop"])
def test_a_database_that_breaks_is_not_the_fault_of_the_model(tmp_path, damage):
    path = make_database(tmp_path / "facts.db", n=5000)
    gate = SqlGate(path, tables=["people"])
    if damage == "truncate":
        os.truncate(path, 0)
    elif damage == "overwrite":
        path.write_bytes(b"x" * path.stat().st_size)
    else:
        connection = sqlite3.connect(path)
        connection.execute("DROP TABLE people")
        connection.close()
    with pytest.raises(EnvironmentFailure):
        gate.run("SELECT city FROM people WHERE name = 'Person 7'")


def test_a_lock_is_not_the_fault_of_the_model_and_passes(tmp_path):
    path = make_database(tmp_path / "facts.db", n=100)
    gate = SqlGate(path, tables=["people"], deadline_s=0.1)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(EnvironmentFailure, match="locked"):
        gate.run("SELECT city FROM people WHERE id = 7")
    other.rollback()
    assert gate.run("SELECT city FROM people WHERE id = 7") == [("City 7",)]


def test_a_gate_survives_pickling_and_reports_a_file_gone_since(tmp_path):
    path = make_database(tmp_path / "facts.db", n=100)
    copy = pickle.loads(pickle.dumps(SqlGate(path, tables=["people"], max_rows=3)))
    assert copy.max_rows == 3
    assert copy.run("SELECT city FROM people WHERE id = 7") == [("City 7",)]
    late = pickle.loads(pickle.dumps(copy))
    path.unlink()
    with pytest.raises(EnvironmentFailure):
        late.run("SELECT city FROM people WHERE id = 7")
    assert not path.exists()


def test_threads_may_share_a_gate(gate):
    wrong: list[int] = []

    def work(offset: int) -> None:
        for i in range(offset, 200, 4):
            if gate.run(f"SELECT name FROM people WHERE id = {i}") != [(f"Person {i}",)]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
