"""Database addresses: from what a user types to a SQLAlchemy engine, without leaking a password.

A `sqlalchemy.URL` may carry a password and is kept private by whoever holds one; `public_url`
gives the string that may enter specs, configs, logs and messages. It has no password at all (rather
than "***"), so it opens the same database again wherever libpq finds the password itself, in
PGPASSWORD or ~/.pgpass.
"""

import os
import sqlite3
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from itl_env.errors import DatabaseError

# Enough for the hot pages of a few million people; SQLite's default of 2 MB halves the lookup rate.
SQLITE_CACHE_KIB = 64 * 1024
CONNECT_TIMEOUT_S = 10


def parse_url(database: str | os.PathLike[str] | sa.URL) -> sa.URL:
    """A URL from a URL, a string like `sqlite:///facts.db` or the path of a SQLite file.

    PostgreSQL gets the psycopg 3 driver where none is named.
    """
    if isinstance(database, sa.URL):
        url = database
    elif isinstance(database, os.PathLike) or "://" not in database:
        url = sa.URL.create("sqlite", database=os.fspath(database))
    else:
        try:
            url = sa.make_url(database)
        except (sa.exc.ArgumentError, ValueError):
            # Neither the text nor the parser's message: both may hold a password.
            raise DatabaseError(
                "the database address is no valid URL; write it like sqlite:///facts.db or "
                "postgresql://user@host:5432/name"
            ) from None
    if "@" in (url.host or ""):
        raise DatabaseError(
            "the user or password in the database address holds a bare '@'; write it as %40"
        )
    if "password" in url.query:
        # libpq takes it there as well, but SQLAlchemy hides only the one before the host.
        password = str(url.query["password"])
        url = url.difference_update_query(["password"]).set(password=password)
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if is_sqlite(url) and (url.query or (url.database or "").startswith("file:")):
        raise DatabaseError(
            f"SQLite options in an address are not supported ({public_url(url)}); give a plain path"
        )
    return url


def public_url(url: sa.URL) -> str:
    """The address without any password, nor options that hold one such as `sslpassword`."""
    query = {name: value for name, value in url.query.items() if not _is_secret(name)}
    return sa.URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database, query
    ).render_as_string()


def lasting_url(database: str | os.PathLike[str] | sa.URL) -> str:
    """`public_url` as it may be kept: a file's path in full, for whoever reads it elsewhere."""
    url = parse_url(database)
    path = sqlite_path(url)
    return public_url(url if path is None else url.set(database=str(path.absolute())))


def holds_password(url: sa.URL) -> bool:
    """Whether the address must not be shown as it is."""
    return url.password is not None or any(map(_is_secret, url.query))


def _is_secret(option: str) -> bool:
    return "password" in option.lower()


def is_sqlite(url: sa.URL) -> bool:
    """Whether the address is that of a SQLite database, in a file or in memory."""
    return url.get_backend_name() == "sqlite"


def sqlite_path(url: sa.URL) -> Path | None:
    """The absolute path of a SQLite file; None for an in-memory database or a server."""
    if not is_sqlite(url) or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database)).absolute()


def connect_sqlite(path: Path) -> sqlite3.Connection:
    """A read-only connection; a missing file is an error and never becomes a new database."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
    connection.execute(f"PRAGMA cache_size = -{SQLITE_CACHE_KIB}")
    return connection


def make_engine(url: sa.URL, path: Path | None) -> sa.Engine:
    """An engine that only reads, with a pool that threads may share; connects at first use."""
    if is_sqlite(url) and path is None:
        raise DatabaseError(
            "an in-memory database is empty when it is opened; fill one with FactDatabase.create"
        )
    try:
        if path is not None:
            # The URL only names the dialect.
            return sa.create_engine(
                "sqlite:///facts.db",
                creator=lambda: connect_sqlite(path),
                pool_reset_on_return=None,
                hide_parameters=True,
            )
        arguments = {}
        if url.drivername == "postgresql+psycopg" and "connect_timeout" not in url.query:
            arguments["connect_timeout"] = CONNECT_TIMEOUT_S
        # Single statements that only read: a transaction around each would cost round trips.
        return sa.create_engine(
            url,
            connect_args=arguments,
            isolation_level="AUTOCOMMIT",
            pool_reset_on_return=None,
            hide_parameters=True,
        )
    except ModuleNotFoundError as error:
        remedy = "see SQLAlchemy's list of drivers; SQLite and PostgreSQL are what is tested"
        if error.name == "psycopg":
            remedy = "run: pip install 'psycopg[binary]'"
        raise DatabaseError(
            f"the driver {error.name} for {public_url(url)} is not installed; {remedy}"
        ) from error
    except sa.exc.NoSuchModuleError as error:
        raise DatabaseError(f"SQLAlchemy knows no database for {public_url(url)}") from error
    except sa.exc.ArgumentError as error:
        raise DatabaseError(
            f"SQLAlchemy refuses the address {public_url(url)}: {reason(error, url)}"
        ) from error


def memory_engine(connection: sqlite3.Connection) -> sa.Engine:
    """An engine over one in-memory SQLite database, which lives as long as the connection."""
    return sa.create_engine(
        "sqlite://", creator=lambda: connection, poolclass=StaticPool, hide_parameters=True
    )


def reason(error: BaseException, url: sa.URL) -> str:
    """What a driver says, on one line and without the passwords."""
    message = " ".join(str(getattr(error, "orig", None) or error).split())
    secrets = [str(url.password or "")]
    for option, values in url.normalized_query.items():
        secrets += values if _is_secret(option) else []
    for secret in filter(None, secrets):
        message = message.replace(secret, "***")
    return message
