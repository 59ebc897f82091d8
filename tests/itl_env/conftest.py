"""A PostgreSQL server for the tests: the one at ITL_TEST_POSTGRES, by default the local one."""

import os
import uuid

import pytest
import sqlalchemy as sa

DEFAULT = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"


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
