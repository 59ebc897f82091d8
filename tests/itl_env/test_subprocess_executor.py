"""The subprocess executor: full CPython, held by its limits."""

import pickle
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from itl_env import subprocess_executor
from itl_env.errors import ConfigError, EnvironmentFailure
from itl_env.executor import MAX_MESSAGE_CHARACTERS, Execution
from itl_env.subprocess_executor import SubprocessExecutor

from .hostile_tools import CPYTHON, Hostile, fill

TIME_LIMIT_S = 0.25
# What a run may take at most, on a busy machine; code that is not endless has nearly all of it.
DEADLINE_S = 15.0
PATIENCE_S = 10.0
CANARY = "green bird 60297"


@pytest.fixture(scope="module")
def executor(require) -> SubprocessExecutor:
    try:
        return SubprocessExecutor(time_limit=TIME_LIMIT_S)
    except EnvironmentFailure as failure:
        problem = str(failure)
    require(False, problem)
    raise AssertionError


@pytest.fixture
def patient(executor) -> SubprocessExecutor:
    """One with time for a start on a busy machine."""
    return SubprocessExecutor(time_limit=PATIENCE_S)


@pytest.fixture
def unharmed(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A folder in which a file stays alone, while the environment holds a secret."""
    path = tmp_path / "canary"
    path.write_text("file")
    monkeypatch.setenv("ITL_CANARY", CANARY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess_executor.tempfile, "tempdir", str(tmp_path))
    yield path
    assert path.read_text() == "file"
    assert list(tmp_path.iterdir()) == [path]


def processes(marker: str) -> list[str]:
    """The processes whose command line, which holds the code, has a marker in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("item", CPYTHON, ids=[item.id for item in CPYTHON])
def test_hostile_code_gets_a_code_in_time(executor, patient, unharmed, item: Hostile):
    chosen = executor if "time_limit" in item.codes else patient
    marker = uuid.uuid4().hex
    code = fill(item.text, str(unharmed), str(unharmed.parent))
    start = time.monotonic()
    result = chosen.run(f"{code}\n# {marker}" if code else code)
    assert time.monotonic() - start < DEADLINE_S
    assert result.error_code in item.codes, result
    assert CANARY not in result.output + result.message
    assert len(result.output) <= chosen.max_output
    assert len(result.message) <= MAX_MESSAGE_CHARACTERS
    assert bool(result.message) == (result.error_code is not None)
    # The kernel ends what is left of a namespace after its first process.
    until = time.monotonic() + 5
    while processes(marker) and time.monotonic() < until:
        time.sleep(0.01)
    assert not processes(marker)
    assert patient.run("print(6 * 7)") == Execution("42\n")


def test_full_python_runs(patient):
    code = "import fractions, sys\nclass A(int): pass\nprint(fractions.Fraction(A(1), 3), sys.argv)"
    assert patient.run(code) == Execution("1/3 ['-c']\n")


def test_output_is_kept_when_the_code_fails(patient):
    expected = "é\n", "exception", "ZeroDivisionError: division by zero"
    assert patient.run("print('é')\n1 / 0") == expected
    assert patient.run("raise ValueError('a\\nb: c')").message == "ValueError: a"
    result = SubprocessExecutor(time_limit=1).run("print('a')\nwhile True: pass")
    assert (result.error_code, result.output) == ("time_limit", "a\n")
    result = patient.run("print('√' * 5000)")
    assert (result.error_code, result.output) == ("output_limit", "√" * 2000)


def test_the_code_sees_no_environment_no_files_and_no_processes(patient, unharmed):
    code = "import os\nprint(sorted(os.environ), os.listdir('.'), os.getpid(), os.getuid())"
    assert patient.run(code).output == "['LC_CTYPE'] [] 1 65534\n"


def test_no_code_is_run_where_unshare_is_missing(executor, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EnvironmentFailure, match="unshare"):
        SubprocessExecutor()
    with pytest.raises(EnvironmentFailure, match="unshare"):
        executor.run("print(1)")


def test_no_code_is_run_where_unshare_is_refused(executor, monkeypatch, tmp_path):
    marker = tmp_path / "ran"
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare: unshare failed: not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(EnvironmentFailure, match="not permitted"):
        SubprocessExecutor()
    with pytest.raises(EnvironmentFailure, match="not permitted"):
        executor.run(f"open({str(marker)!r}, 'w')")
    assert not marker.exists()


def test_limits_in_which_python_does_not_start_are_an_environment_failure(executor):
    with pytest.raises(EnvironmentFailure, match="contained"):
        SubprocessExecutor(memory_mb=1)


def test_an_executor_can_be_pickled(patient):
    assert pickle.loads(pickle.dumps(patient)).run("print(1)") == Execution("1\n")


@pytest.mark.parametrize(
    "limits", [{"time_limit": 0}, {"max_code": 10**6}, {"memory_mb": -1}, {"max_processes": 0}]
)
def test_limits_must_be_possible(limits):
    with pytest.raises(ConfigError):
        SubprocessExecutor(**limits)
