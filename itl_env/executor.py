"""Runs Python code written by a language model.

    with MontyExecutor() as executor:
        executor.run("print(6 * 7, end='')")  # Execution(output="42", error_code=None, message="")

The code is taken to be hostile. `MontyExecutor` gives it to pydantic-monty, an interpreter of a
part of Python that has no files, environment, network or processes to offer, in a worker process
with limits. The same code has the same output each time: nothing lasts from one run to the next,
the clock stands still, and random numbers start from a fixed seed.
"""

import atexit
import ctypes
import datetime
import importlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import weakref
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, Self

import pydantic_monty

from itl_env.errors import ConfigError, EnvironmentFailure
from itl_env.text import unstorable

ExecutionCode = Literal[
    "too_long",  # over `max_code` characters
    "invalid_text",  # NUL or a lone surrogate: no text at all
    "empty",
    "malformed",  # a syntax error
    "unsupported",  # Python that this interpreter lacks: the code may well be right
    "forbidden",  # reaching for a file, the environment or the network
    "exception",  # one that the code did not catch; the message names it
    "time_limit",
    "memory_limit",
    "output_limit",  # over `max_output` characters; `output` holds the first of them
    "crashed",  # the process that ran the code died
]

MAX_MESSAGE_CHARACTERS = 200
MAX_RECURSION = 1000
# What the code may take longer than its time limit, in seconds, before its worker is killed: most
# code is stopped at its limit, but some single operations have to end first.
GRACE_S = 1.0
# Seconds to wait for a worker while all are busy.
WAIT_S = 60.0
NOW = datetime.datetime(2026, 1, 1)
SEED = 0


class Execution(NamedTuple):
    """What came of running code: all it printed before its end, and why it failed, if it did."""

    output: str
    error_code: ExecutionCode | None = None
    message: str = ""  # one line for the model to read; empty without an error


class Executor(Protocol):
    """Runs code, each time from a clean state."""

    def run(self, code: str) -> Execution:
        """Run `code` as a program, and return what it printed to its standard output.

        Raises EnvironmentFailure if code cannot be run here at all, and nothing for what it does.
        """

    def close(self) -> None:
        """Release what is held; a later `run` takes it anew."""


def refuse(code: str, max_code: int) -> Execution | None:
    """The error of a text that no executor runs; None if it may be run."""
    if len(code) > max_code:
        return Execution("", "too_long", f"the code has over {max_code} characters")
    if problem := unstorable(code):
        return Execution("", "invalid_text", f"the code holds {problem}")
    if not code.strip():
        return Execution("", "empty", "the code is empty")
    return None


class MontyExecutor:
    """Runs a part of Python in a worker process without access to anything; the default.

    time_limit: seconds per run; code that cannot be stopped at once is killed GRACE_S later.
    memory_mb: megabytes of the code's data. max_output, max_code: characters. Raises ConfigError
    for a limit that is not greater than zero. May be pickled, copied, forked and shared by threads;
    the workers start at the first run.
    """

    _lock: threading.Lock
    _pool: Any  # an entered pydantic_monty.Monty

    def __init__(
        self,
        time_limit: float = 1.0,
        memory_mb: int = 64,
        max_output: int = 2_000,
        max_code: int = 10_000,
    ) -> None:
        if not (time_limit > 0 and memory_mb > 0 and max_output > 0 and max_code > 0):
            raise ConfigError("the limits of an executor must be greater than zero")
        self.time_limit = time_limit
        self.memory_mb = memory_mb
        self.max_output = max_output
        self.max_code = max_code
        self._reset()

    def run(self, code: str) -> Execution:
        """See `Executor.run`."""
        if refused := refuse(code, self.max_code):
            return refused
        session = self._session()
        printed = _Printed(self.max_output, session.worker_pid)
        try:
            # The value of a last expression would be sent here; nobody asked for it.
            session.feed_run(f"{code}\n\nNone", print_callback=printed)
            verdict: tuple[ExecutionCode | None, str] = (None, "")
        except _library().MontyError as error:
            verdict = _verdict(error)
        except Exception as error:
            raise EnvironmentFailure(f"pydantic-monty fails: {error}") from error
        finally:
            session.__exit__(None, None, None)
        if printed.full:
            verdict = "output_limit", f"the code printed over {self.max_output} characters"
        return Execution(printed.text, *verdict)

    def close(self) -> None:
        """Stop the workers; a later `run` starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.__exit__(None, None, None)

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
        self._lock = threading.Lock()
        self._pool = None
        _EXECUTORS.add(self)

    def _session(self) -> Any:
        """A new session with a worker of its own, entered."""
        try:
            with self._lock:
                if self._pool is None:
                    self._pool = self._open()
            session = self._pool.checkout(
                limits={
                    "max_feed_duration_secs": self.time_limit,
                    "max_memory": self.memory_mb * 2**20,
                    "max_recursion_depth": MAX_RECURSION,
                },
                os_policy={
                    "datetime": NOW,
                    "sleep": "zero",
                    "random_start": {"seed": SEED},
                },
            )
            return session.__enter__()
        except Exception as error:
            raise EnvironmentFailure(f"pydantic-monty does not start: {error}") from error

    def _open(self) -> Any:
        pool = _library().Monty(
            checkout_timeout=WAIT_S,
            request_timeout=self.time_limit + 2 * GRACE_S,
            feed_duration_limit_grace=GRACE_S,
        )
        return pool.__enter__()


class _Printed:
    """Gathers what a worker prints, and kills the worker when it is too much.

    An exception raised here would be seen only after the time limit.
    """

    def __init__(self, limit: int, worker: int) -> None:
        self.limit = limit
        self.worker = worker
        self.text = ""
        self.full = False

    def __call__(self, stream: str, text: str) -> None:
        if self.full or stream != "stdout":
            return
        self.text += text[: self.limit + 1 - len(self.text)]
        if len(self.text) > self.limit:
            self.text = self.text[: self.limit]
            self.full = True
            os.kill(self.worker, signal.SIGKILL)


def _verdict(error: Exception) -> tuple[ExecutionCode | None, str]:
    """The code and message of an error of pydantic-monty."""
    library = _library()
    text = " ".join(str(error).split())[:MAX_MESSAGE_CHARACTERS]
    if isinstance(error, library.MontyCrashedError):
        if error.timed_out:
            return "time_limit", "the code takes too long"
        return "crashed", "the code crashed its interpreter"
    if isinstance(error, library.MontySyntaxError):
        return "malformed", f"SyntaxError: {text}"
    kind, _, message = text.partition(": ")
    if kind == "SystemExit" and message in ("", "0", "None"):
        return None, ""
    if kind == "TimeoutError" and message.startswith("feed time limit exceeded"):
        return "time_limit", "the code takes too long"
    if kind == "MemoryError" and "memory limit" in message:
        return "memory_limit", "the code needs too much memory"
    if message.startswith("Permission denied: '") or message.endswith(
        "is not supported in this environment"
    ):
        return "forbidden", text
    if kind == "ModuleNotFoundError" or _UNSUPPORTED.search(message) or _is_python(message):
        return "unsupported", text
    return "exception", text


_UNSUPPORTED = re.compile(
    "not yet support|not supported by Monty|Internal error in monty|^Wildcard imports"
)
_MISSING = re.compile(
    r"name '(?P<name>\w+)' is not defined"
    r"|cannot import name '(?P<imported>\w+)' from '(?P<source>[\w.]+)'"
    r"|(?:module |type object )?'(?P<owner>[\w.]+)'(?: object)? has no attribute '(?P<member>\w+)'"
)
# The modules that pydantic-monty has, and where its built-in functions and classes are in Python.
# No others are looked into: the code can put any name into a message, and imports have effects.
# fmt: off
_MODULES = frozenset([
    "_io", "asyncio", "base64", "binascii", "bisect", "builtins", "collections", "copy", "csv",
    "dataclasses", "datetime", "decimal", "functools", "hashlib", "itertools", "json", "math", "os",
    "pathlib", "posixpath", "random", "re", "sys", "time", "tomllib", "typing", "unicodedata",
])
# fmt: on


def _is_python(message: str) -> bool:
    """Whether the name or attribute that an error misses is there in Python itself."""
    match = _MISSING.match(message)
    if match is None:
        return False
    owner = match["owner"] or match["source"] or "builtins"
    module, _, kind = owner.rpartition(".")
    if owner in _MODULES:
        holder: object = importlib.import_module(owner)
    else:
        home = module if module in _MODULES else "builtins"
        holder = getattr(importlib.import_module(home), kind, None)
    name: str = match["name"] or match["imported"] or match["member"]
    return name.startswith("__") or hasattr(holder, name)


_EXECUTORS: weakref.WeakSet[MontyExecutor] = weakref.WeakSet()
_forked = False
_copy: ModuleType | None = None


def _library() -> ModuleType:
    """The pydantic-monty to use in this process.

    It has threads, which no fork copies: a pool that is opened in a forked child waits for them for
    ever. So a child loads the library once more, under another file name, as a file of that kind
    is loaded but once.
    """
    global _copy
    if not _forked:
        return pydantic_monty
    if _copy is None:
        name = "pydantic_monty._monty"
        with tempfile.TemporaryDirectory() as folder:
            path = shutil.copy(sys.modules[name].__file__ or "", folder)
            loader = importlib.machinery.ExtensionFileLoader(name, path)
            spec = importlib.util.spec_from_loader(name, loader)
            assert spec is not None
            _copy = importlib.util.module_from_spec(spec)
            loader.exec_module(_copy)
    return _copy


def _after_fork() -> None:
    """Leave the parent's pools alone: if one were freed here, the parent's workers would die."""
    global _forked, _copy
    if _copy is not None:
        _leak(_copy)
    _forked, _copy = True, None
    for executor in list(_EXECUTORS):
        if executor._pool is not None:
            _leak(executor._pool)
        executor._reset()


def _leak(kept: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def _close_all() -> None:
    for executor in list(_EXECUTORS):
        executor.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_all)
