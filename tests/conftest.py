"""What all tests share: skipping is allowed to a person, not to the check of a release."""

import os

import pytest


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
