"""What all tests share: skipping is allowed to a person, not to the check of a release."""

import os
import uuid
from pathlib import Path

import pytest
import sqlalchemy as sa

from itl_env import FactDatabase, people

# Tests run side by side, one a core: more threads would only wait for each other. Set before any
# test imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The server of the PostgreSQL tests, unless ITL_TEST_POSTGRES names another.
DEFAULT = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"


def _require(condition: object, reason: str) -> None:
    if condition:
        return
    if os.environ.get("ITL_REQUIRE_ALL") == "1":
        pytest.fail(f"ITL_REQUIRE_ALL=1 is set, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def require():
    """`require(condition, reason)` skips the test without the condition, or fails it where
    ITL_REQUIRE_ALL=1 says that everything must run.
    """
    return _require


@pytest.fixture(scope="session")
def postgres(require) -> str:
    """The URL of a server that answers."""
    url = os.environ.get("ITL_TEST_POSTGRES", DEFAULT)
    problem = ""
    try:
        engine = sa.create_engine(url, connect_args={"connect_timeout": 3})
        engine.connect().close()
        engine.dispose()
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        problem = str(error).splitlines()[0]
    require(not problem, f"no PostgreSQL server answers (ITL_TEST_POSTGRES): {problem}")
    return url


@pytest.fixture
def postgres_schema(postgres: str):
    """The name of a schema of the test's own, dropped with all its tables at the end."""
    schema = f"itl_test_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        yield schema
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    engine.dispose()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a SQLite database of 400 people of the paper's world."""
    path: Path = tmp_path_factory.mktemp("world") / "facts.db"
    FactDatabase.create(f"sqlite:///{path}", people(400, seed=11)).close()
    return f"sqlite:///{path}"
