"""The Python executor: output and codes, and nothing else for hostile code."""

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from itl_env.errors import ConfigError, EnvironmentFailure
from itl_env.executor import MAX_MESSAGE_CHARACTERS, Execution, MontyExecutor

from .hostile_tools import MONTY, Hostile, fill

TIME_LIMIT_S = 0.2
# What a run may take at most, on a busy machine; code that is not endless has nearly all of it.
DEADLINE_S = 15.0
PATIENCE_S = 10.0
CANARY = "yellow bird 83514"
GOOD = "print(6 * 7)"


@pytest.fixture(scope="module")
def executor() -> Iterator[MontyExecutor]:
    with MontyExecutor(time_limit=PATIENCE_S, memory_mb=32) as executor:
        yield executor


@pytest.fixture(scope="module")
def impatient() -> Iterator[MontyExecutor]:
    with MontyExecutor(time_limit=TIME_LIMIT_S, memory_mb=32) as executor:
        yield executor


@pytest.fixture
def canary(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A file that no code may read or change, in a folder where no other may appear."""
    path = tmp_path / "canary"
    path.write_text(CANARY)
    monkeypatch.setenv("ITL_CANARY", CANARY)
    monkeypatch.chdir(tmp_path)
    yield path
    assert path.read_text() == CANARY
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("item", MONTY, ids=[item.id for item in MONTY])
def test_hostile_code_gets_a_code_in_time(executor, impatient, canary, item: Hostile):
    chosen = impatient if "time_limit" in item.codes else executor
    start = time.monotonic()
    result = chosen.run(fill(item.text, canary=str(canary), folder=str(canary.parent)))
    assert time.monotonic() - start < DEADLINE_S
    assert result.error_code in item.codes, result
    assert CANARY not in result.output + result.message
    assert len(result.output) <= chosen.max_output
    assert len(result.message) <= MAX_MESSAGE_CHARACTERS + len("SyntaxError: ")
    assert "\n" not in result.message
    assert bool(result.message) == (result.error_code is not None)
    assert chosen.run(GOOD) == Execution("42\n")


def test_output_is_what_the_code_printed():
    with MontyExecutor() as executor:
        assert executor.run("print('a')\nprint('é', 1, end='')\n2 + 2") == Execution("a\né 1")
        assert executor.run("x = 1") == Execution("")


def test_output_is_kept_when_the_code_fails(executor, impatient):
    result = executor.run("print('before')\n1 / 0")
    expected = "before\n", "exception", "ZeroDivisionError: division by zero"
    assert result == expected
    assert impatient.run("print('a')\nwhile True: pass").output == "a\n"


def test_output_up_to_the_limit_is_whole_and_over_it_is_cut_there():
    with MontyExecutor(max_output=10) as executor:
        assert executor.run("print('x' * 9)") == Execution("x" * 9 + "\n")
        result = executor.run("for i in range(100): print(i)")
        assert result.error_code == "output_limit"
        assert result.output == "0\n1\n2\n3\n4\n"


def test_nothing_lasts_from_one_run_to_the_next(executor):
    executor.run("x = 1\nimport math\nmath.pi = 3\nimport random\nrandom.seed(5)")
    assert executor.run("print(x)").error_code == "exception"
    assert executor.run("import math\nprint(math.pi)").output.startswith("3.14")


def test_the_same_code_prints_the_same_in_every_process():
    code = """import random, time, datetime
print(random.random(), random.Random().random(), random.sample(range(99), 5))
print(time.time(), time.perf_counter(), datetime.datetime.now())
print(hash('a'), {'x', 'y', 'z', 'word'}, id([]))"""
    outputs = set()
    for _ in range(2):
        with MontyExecutor() as executor:
            outputs |= {executor.run(code) for _ in range(3)}
    (result,) = outputs
    assert result.error_code is None


def test_python_that_is_not_supported_is_no_wrong_code(executor):
    for code in ("import fractions", "class A(int): pass", "import sys; sys.exit(0)", "input()"):
        assert executor.run(code).error_code == "unsupported"
    for code in ("import math; math.zero", "print(undefined)", "[].push(1)"):
        assert executor.run(code).error_code == "exception"


def test_a_worker_that_dies_is_replaced():
    with MontyExecutor(time_limit=10) as executor:
        executor.run(GOOD)
        with executor._pool.checkout() as session:
            worker = session.worker_pid
        threading.Timer(0.1, os.kill, (worker, signal.SIGKILL)).start()
        assert executor.run("while True: pass").error_code == "crashed"
        assert executor.run(GOOD).output == "42\n"


def test_a_closed_executor_starts_again():
    executor = MontyExecutor()
    executor.close()
    assert executor.run(GOOD).output == "42\n"
    executor.close()
    executor.close()
    assert executor.run(GOOD).output == "42\n"
    executor.close()


def test_copies_have_workers_of_their_own():
    with MontyExecutor(max_output=3) as executor:
        executor.run(GOOD)
        for other in (pickle.loads(pickle.dumps(executor)), copy.deepcopy(executor)):
            assert other.run("print(12345)").output == "123"
            other.close()
        assert executor.run(GOOD).output == "42\n"


def test_an_executor_that_is_forgotten_leaves_no_worker():
    executor = MontyExecutor()
    executor.run(GOOD)
    with executor._pool.checkout() as session:
        worker = session.worker_pid
    del executor, session
    gc.collect()
    status = Path(f"/proc/{worker}/stat")
    assert not status.exists() or ") Z " in status.read_text()


def test_forked_processes_have_workers_of_their_own(executor):
    executor.run(GOOD)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(executor.run, ["print(1)", "1 / 0", "print(3)"]).get(timeout=20)
    assert [result.output for result in results] == ["1\n", "", "3\n"]
    assert executor.run(GOOD).output == "42\n"


def test_a_forked_process_leaves_its_parents_workers_alone():
    with MontyExecutor() as executor:
        executor.run(GOOD)
        with executor._pool.checkout() as session:
            worker = session.worker_pid
        child = os.fork()
        if child == 0:
            executor.close()
            del executor, session
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        with executor._pool.checkout() as session:
            assert session.worker_pid == worker
        assert executor.run(GOOD).output == "42\n"


def test_threads_share_an_executor(executor):
    outputs: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: outputs.append(executor.run(f"print({i})").output))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == [f"{i}\n" for i in range(8)]


def test_a_missing_or_broken_interpreter_is_an_environment_failure(monkeypatch):
    for binary in ("/nonexistent", "/bin/false"):
        monkeypatch.setenv("MONTY_BIN", binary)
        with MontyExecutor() as executor, pytest.raises(EnvironmentFailure, match="monty"):
            executor.run(GOOD)


@pytest.mark.parametrize("limit", ["time_limit", "memory_mb", "max_output", "max_code"])
def test_limits_must_be_positive(limit):
    with pytest.raises(ConfigError, match="greater than zero"):
        MontyExecutor(**{limit: 0})


@given(st.text(max_size=100))
@settings(deadline=None, max_examples=50)
def test_any_text_has_a_result(executor, text):
    assert isinstance(executor.run(text), Execution)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100))
@settings(deadline=None, max_examples=50)
def test_any_text_is_printed_as_it_is(executor, text):
    assert executor.run(f"print({text!r}, end='')") == Execution(text)
