"""The read-only gate for SQL written by a language model; SQLite only.

    with SqlGate("facts.db", tables=["people"]) as gate:
        gate.run("SELECT birth_place FROM people WHERE name = 'Ada Lovelace'")  # [("London",)]

The statement is taken to be hostile. It runs on a connection of its own that can only read
(`mode=ro`, `query_only`), whose authorizer knows the allowed tables and a list of harmless
functions and denies all else, whose limits keep any single step of SQLite short, and whose progress
handler stops it at a deadline. What SQLite cannot limit is refused before it sees the text: see
`_refuse`. Memory is bounded by what can be sorted before the deadline.

`SqlRejected` is the model's fault and has a code; a database that fails is `EnvironmentFailure`.
"""

import math
import os
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from itl_env.errors import ConfigError, DatabaseError, EnvironmentFailure
from itl_env.text import quote, unstorable


class SqlError(StrEnum):
    """Why a statement was rejected."""

    INVALID_TEXT = "invalid_text"  # NUL or a lone surrogate: no SQL text at all
    TOO_LONG = "too_long"  # the statement
    MULTIPLE_STATEMENTS = "multiple_statements"
    FORBIDDEN = "forbidden"  # anything but reading the allowed tables with harmless functions
    SQL_ERROR = "sql_error"  # syntax, unknown column, wrong argument, ...
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"  # the result, or a value or expression on the way to it


class SqlRejected(Exception):  # noqa: N818 - the statement is at fault, not the program
    """A statement that the gate refuses; `str()` is a sentence fit for the model to read."""

    def __init__(self, code: SqlError, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


# Each takes little time for values of limited length, makes none longer than its arguments, touches
# nothing outside and gives the same result each time. Not here for these reasons: replace, printf,
# hex, quote, char, zeroblob, group_concat, trim (quadratic), glob, soundex, json_*, random, and
# date and time, which know 'now'.
# fmt: off
HARMLESS_FUNCTIONS = frozenset([
    "abs", "avg", "ceil", "ceiling", "coalesce", "count", "dense_rank", "floor", "ifnull",
    "iif", "instr", "length", "like", "lower", "max", "min", "mod", "nullif", "rank", "round",
    "row_number", "sign", "substr", "substring", "sum", "total", "trunc", "typeof", "unicode",
    "upper",
])
# fmt: on

# The progress handler runs between SQLite's instructions, so the deadline is kept only if the
# longest instruction, an `instr` of two values of this many bytes, is short.
MAX_VALUE_BYTES = 10_000
INSTRUCTIONS_PER_CHECK = 50
# One instruction has no such bound: sorting takes up to 1.5 times as long as gathering the rows. So
# a statement that is not done is stopped when this share of its time is over.
STOP_AFTER = 0.4
MAX_CTE_EXPANSIONS = 10_000
MAX_MESSAGE_CHARACTERS = 200

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_COLUMN: 256,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 10,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 16,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

# The only result codes that are a statement's fault. IOERR, CORRUPT, NOTADB, CANTOPEN, FULL, BUSY,
# LOCKED, PROTOCOL, ... are the database's.
_CHARGED = {
    sqlite3.SQLITE_ERROR: SqlError.SQL_ERROR,
    sqlite3.SQLITE_ERROR_MISSING_COLLSEQ: SqlError.SQL_ERROR,
    sqlite3.SQLITE_MISMATCH: SqlError.SQL_ERROR,
    sqlite3.SQLITE_RANGE: SqlError.SQL_ERROR,
    sqlite3.SQLITE_AUTH: SqlError.FORBIDDEN,
    sqlite3.SQLITE_READONLY: SqlError.FORBIDDEN,
    sqlite3.SQLITE_TOOBIG: SqlError.TOO_LARGE,
    sqlite3.SQLITE_INTERRUPT: SqlError.TIMEOUT,
}
# What the module itself says of a text or its parameters; these carry no result code.
_MODULE_ERRORS = (
    sqlite3.Warning,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    ValueError,
    OverflowError,
)


class SqlGate:
    """Runs one SELECT at a time over the allowed `tables` of the SQLite file at `path`.

    A statement ends within about `deadline_s` seconds (and is stopped earlier, see STOP_AFTER). It
    may have `max_sql_length` characters, and its result `max_rows` rows and `max_characters`
    characters as `format_rows` writes it; more is rejected, not cut. Raises DatabaseError if the
    file or a table is missing. May be pickled, forked and shared by threads, which take turns.
    """

    _connection: sqlite3.Connection | None
    _pid: int
    _lock: threading.Lock
    _allowed: frozenset[str]
    _others: frozenset[str]  # what exists beside the allowed tables
    _denied: str  # what the authorizer refused in the present statement
    _deadline: float

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tables: Sequence[str],
        deadline_s: float = 1.0,
        max_rows: int = 20,
        max_characters: int = 2000,
        max_sql_length: int = 1000,
    ) -> None:
        if isinstance(tables, str) or not tables:
            raise ConfigError("tables must be a list of the names of the tables that may be read")
        if not (deadline_s > 0 and max_rows > 0 and max_characters > 0 and max_sql_length > 0):
            raise ConfigError("the limits of a SQL gate must be greater than zero")
        self.path = Path(path).absolute()
        self.tables = tuple(tables)
        self.deadline_s = deadline_s
        self.max_rows = max_rows
        self.max_characters = max_characters
        self.max_sql_length = max_sql_length
        self._reset()
        if not self.path.is_file():
            raise DatabaseError(f"there is no database file {self.path}")
        try:
            self._connection = self._open()
        except sqlite3.Error as error:
            raise DatabaseError(f"cannot read {self.path}: {error}") from error

    def run(self, sql: str) -> list[tuple[str, ...]]:
        """The rows of one SELECT as text; NULL is "NULL", a blob x'..'.

        Raises SqlRejected for anything wrong with the statement within about the deadline, and
        EnvironmentFailure where the database cannot be read.
        """
        _refuse(sql, self.max_sql_length)
        with self._lock:
            self._denied = ""
            try:
                if self._connection is None or self._pid != os.getpid():
                    self._connection = self._open()
                return self._run(self._connection, sql)
            except SqlRejected:
                raise
            except MemoryError:
                # From the limit on a program's instructions, or the size of what it sorts.
                raise SqlRejected(SqlError.TOO_LARGE, "the statement is too large") from None
            except (*_MODULE_ERRORS, sqlite3.Error, DatabaseError) as error:
                verdict = self._verdict(self._connection, error)
                if isinstance(verdict, EnvironmentFailure):
                    self._connection = None  # so that a mended database is opened anew
                raise verdict from error
            finally:
                self._deadline = math.inf

    def close(self) -> None:
        """Close the connection; a later `run` opens a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._allowed = frozenset(table.lower() for table in self.tables)
        self._connection = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._denied = ""
        self._deadline = math.inf

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self.deadline_s,
        )
        for pragma in ("query_only = ON", "trusted_schema = OFF", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        # Text that is not UTF-8 can come of a cast, and is nothing to fail over.
        connection.text_factory = lambda data: data.decode(errors="replace").replace("\0", "\ufffd")
        # The schema is read here, since it may exceed the limits.
        _check_tables(connection, self.tables)
        names = connection.execute(
            "SELECT name FROM sqlite_master UNION ALL SELECT name FROM pragma_module_list"
        )
        self._others = frozenset(name.lower() for (name,) in names) - self._allowed
        for category, limit in _LIMITS.items():
            connection.setlimit(category, limit)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 4 * self.max_sql_length + 100)
        connection.set_authorizer(self._authorize)
        connection.set_progress_handler(self._is_late, INSTRUCTIONS_PER_CHECK)
        self._pid = os.getpid()
        return connection

    def _authorize(
        self, action: int, table: str | None, detail: str | None, schema: str | None, _: str | None
    ) -> int:
        """SQLite asks this for everything a statement would do, before it does any of it."""
        if self._is_late():
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_SELECT:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ and table is not None:
            name = table.lower()
            if name in self._allowed and schema in ("main", None):
                return sqlite3.SQLITE_OK
            # `SELECT count(*) FROM x` reads the column "" of x, even if x is a WITH table.
            exists = name in self._others or name.startswith(("sqlite_", "pragma_"))
            if detail == "" and schema is None and not exists:
                return sqlite3.SQLITE_OK
            self._denied = f"table {table} may not be read"
        elif action == sqlite3.SQLITE_FUNCTION and detail is not None:
            if detail.lower() in HARMLESS_FUNCTIONS:
                return sqlite3.SQLITE_OK
            self._denied = f"function {detail} may not be used"
        elif action == sqlite3.SQLITE_RECURSIVE:
            self._denied = "WITH RECURSIVE may not be used"
        else:
            self._denied = "only a SELECT may be run"
        return sqlite3.SQLITE_DENY

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _run(self, connection: sqlite3.Connection, sql: str) -> list[tuple[str, ...]]:
        self._deadline = time.monotonic() + STOP_AFTER * self.deadline_s
        cursor = connection.execute(sql)
        try:
            rows = [tuple(map(_as_text, row)) for row in cursor.fetchmany(self.max_rows + 1)]
        finally:
            cursor.close()  # an unfinished statement would hold its lock on the file
        if len(rows) > self.max_rows:
            raise SqlRejected(SqlError.TOO_LARGE, f"the result has over {self.max_rows} rows")
        if len(format_rows(rows)) > self.max_characters:
            limit = self.max_characters
            raise SqlRejected(SqlError.TOO_LARGE, f"the result has over {limit} characters")
        return rows

    def _verdict(
        self, connection: sqlite3.Connection | None, error: Exception
    ) -> SqlRejected | EnvironmentFailure:
        """Whose fault an error is."""
        message = str(error)[:MAX_MESSAGE_CHARACTERS]
        complaint = sqlite3.SQLITE_ERROR if isinstance(error, _MODULE_ERRORS) else -1
        charged = _CHARGED.get(getattr(error, "sqlite_errorcode", complaint))
        if charged is None or connection is None:
            return EnvironmentFailure(f"{self.path} cannot be read: {message}")
        if self._is_late():
            return SqlRejected(SqlError.TIMEOUT, "the statement takes too long")
        if self._denied:
            return SqlRejected(SqlError.FORBIDDEN, self._denied)
        if "one statement at a time" in message:
            return SqlRejected(SqlError.MULTIPLE_STATEMENTS, "give one statement, not several")
        # Tell a name that the model made up from a table that was dropped under us.
        self._deadline = math.inf
        try:
            _check_tables(connection, self.tables)
        except (sqlite3.Error, DatabaseError) as lost:
            return EnvironmentFailure(f"{self.path} cannot be read any more: {lost}")
        return SqlRejected(charged, message)


def format_rows(rows: Sequence[Sequence[str]]) -> str:
    """One row per line, values separated by " | "; a single value is the value itself."""
    return "\n".join(" | ".join(row) for row in rows)


def _as_text(value: Any) -> str:
    if value is None:
        return "NULL"
    return f"x'{value.hex()}'" if isinstance(value, bytes) else str(value)


def _check_tables(connection: sqlite3.Connection, tables: Sequence[str]) -> None:
    for table in tables:
        try:
            connection.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM {quote(table)} LIMIT 1)"
            ).close()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                raise DatabaseError(f"there is no table {table!r} to allow") from error
            raise


def _refuse(sql: str, max_length: int) -> None:
    """Reject what is no SELECT, and what SQLite would be busy with before it can be stopped."""
    if len(sql) > max_length:
        raise SqlRejected(SqlError.TOO_LONG, f"the statement has over {max_length} characters")
    if problem := unstorable(sql):
        raise SqlRejected(SqlError.INVALID_TEXT, f"the statement holds {problem}")
    tokens, names = _tokens(sql)
    if not tokens or tokens[0] not in ("select", "with"):
        if tokens and tokens[0] in _OTHER_STATEMENTS:
            raise SqlRejected(SqlError.FORBIDDEN, "only a SELECT may be run")
        raise SqlRejected(SqlError.SQL_ERROR, "a statement begins with SELECT")
    # Each use of a common table expression copies its definition, and the copies are made before
    # any handler is called: eighty words can ask for 2**40 of them. The product of how often each
    # definition can be used bounds their number.
    definitions = len(_DEFINITION.findall(" ".join(tokens)))
    if "with" in tokens and definitions:
        uses = max(Counter(names).values())
        if uses**definitions > MAX_CTE_EXPANSIONS:
            raise SqlRejected(SqlError.TOO_LARGE, "there are too many uses of WITH tables")


def _tokens(sql: str) -> tuple[list[str], list[str]]:
    """SQLite's tokens in lower case without comments and quotes, and those that can be names.

    What is delimited otherwise than by SQLite is text that SQLite cannot parse: an unfinished
    string, a parameter, or a number that runs into a word. Keywords, numbers and strings are among
    the names, which counts more uses and not less.
    """
    tokens, names = [], []
    for match in _TOKEN.finditer(sql):
        token = match[0].lower()
        if match.lastgroup == "quoted":
            token = token[1:-1].replace(token[-1] * 2, token[-1])
        if match.lastgroup in ("word", "quoted"):
            names.append(token)
        if match.lastgroup != "comment":
            tokens.append(token)
    return tokens, names


# As SQLite's tokenizer has it: space is ASCII, all else beyond ASCII belongs to words, and only a
# byte order mark where a token could begin is space too. (SQLite knows vertical tabs after other
# space alone, and fails at the rest.) Strings are among the quoted, since SQLite takes them for
# names where it needs one.
_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))"""
    r"""|(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^]]*\])"""
    r"""|(?P<word>(?!\ufeff)[\w$\x80-\U0010ffff]+)|[^\s\ufeff]""",
    re.ASCII | re.DOTALL,
)
_DEFINITION = re.compile(r"(?<!\S)as (?:not )?(?:materialized )?\((?!\S)")
# fmt: off
_OTHER_STATEMENTS = frozenset([
    "alter", "analyze", "attach", "begin", "commit", "create", "delete", "detach", "drop",
    "end", "explain", "insert", "pragma", "reindex", "release", "replace", "rollback",
    "savepoint", "update", "vacuum", "values",
])
# fmt: on
