"""The subprocess executor: full CPython, held by its limits."""

import ctypes
import json
import pickle
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    """A folder in which a file stays as it is, and alone, while the environment holds a secret."""
    path = tmp_path / "canary"
    path.write_text(CANARY)
    before = path.stat()
    monkeypatch.setenv("ITL_CANARY", CANARY)
    monkeypatch.chdir(tmp_path)
    yield path
    after = path.stat()
    assert path.read_text() == CANARY
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def listening() -> Iterator[str]:
    """The path of a socket that takes connections."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/socket")
        server.listen()
        yield f"{folder}/socket"


@pytest.fixture(scope="module")
def segment() -> Iterator[str]:
    """The key of a segment of shared memory of System V."""
    libc, key = ctypes.CDLL(None), uuid.uuid4().int % 2**31
    number = libc.shmget(key, 4096, 0o1666)  # made, with all rights
    assert number >= 0
    yield str(key)
    libc.shmctl(number, 0, None)


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
def test_hostile_code_gets_a_code_in_time(
    executor, patient, unharmed, listening, segment, item: Hostile
):
    chosen = executor if "time_limit" in item.codes else patient
    marker = uuid.uuid4().hex
    code = fill(
        item.text,
        canary=str(unharmed),
        folder=str(unharmed.parent),
        socket=listening,
        segment=segment,
    )
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


def test_what_hostile_code_reaches_for_is_there(listening, segment):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(listening)
    assert ctypes.CDLL(None).shmget(int(segment), 0, 0) >= 0


def test_the_code_sees_the_system_and_its_interpreter_and_nothing_else(patient, unharmed):
    code = """import json, os
seen = []
for folder, folders, files in os.walk('/', onerror=print):
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        folders.clear()  # what is seen of outside
    else:
        seen += [os.path.join(folder, each) for each in files]
print(json.dumps(seen))"""
    outside = {"/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/full"}
    outside |= {"/dev/random", "/dev/urandom"}
    assert set(json.loads(patient.run(code).output)) <= outside


def test_nothing_is_kept_of_the_files_that_code_makes(patient):
    assert patient.run("open('/tmp/new', 'w').close()\nprint(1)") == Execution("1\n")
    assert patient.run("import os\nprint(os.listdir('/tmp'))") == Execution("[]\n")


def test_the_code_has_no_rights_over_its_own_root(patient):
    code = "import ctypes\nprint(ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None))"
    assert patient.run(code) == Execution("-1\n")


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
    assert patient.run("import os\nprint(os.listdir('/proc'))") == Execution("[]\n")


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


def test_no_code_is_run_where_mounts_are_refused(executor, monkeypatch, tmp_path):
    marker = tmp_path / "ran"
    # As where a container lets `unshare` pass, but gives no right to mount.
    weaker = tmp_path / "unshare"
    weaker.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\n'
                      'exec /usr/bin/unshare --map-user=65534 --mount -- "$@"\n')  # fmt: skip
    weaker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(EnvironmentFailure, match="mount of tmpfs: Operation not permitted"):
        SubprocessExecutor()
    with pytest.raises(EnvironmentFailure, match="contained here"):
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
