"""Runs Python code in full CPython, in a process with limits: containment, not a sandbox.

    SubprocessExecutor().run("import fractions; print(fractions.Fraction(1, 3) * 2)")

The process has no network, no environment and no input, and is gone with all it started when its
time is over. Of the file system it sees the system's programs and libraries and the interpreter's
own folders, read-only, and an empty folder in memory that ends with it: no file of the user, no
`/proc`, no socket that lies anywhere else.

What it does not keep out: an error in the kernel, all of whose system calls the code can make;
what belongs to no namespace, such as AF_VSOCK sockets and the user's key rings; files and sockets
of whoever puts them beneath `/usr` or the interpreter's `bin` and `lib`. So use it only for code
that you would run anyway; `MontyExecutor` is for all other code.

Linux 5.12 or later only: the process runs under `unshare` of util-linux, and makes its own root
(see `itl_env.contain`). Where either is refused, no code is run.
"""

import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

from itl_env import contain
from itl_env.errors import ConfigError, EnvironmentFailure
from itl_env.executor import MAX_MESSAGE_CHARACTERS, Execution, ExecutionCode, refuse

# User, mount, network, process and IPC namespaces of its own: no network to reach and no process to
# signal but its own, all of which the kernel kills when the first one ends. The user inside is no
# root; the rights with which `contain.py` mounts are given up there.
_UNSHARE = ["--map-user=65534", "--map-group=65534", "--keep-caps", "--mount", "--net", "--ipc"]
_UNSHARE += ["--pid", "--fork", "--kill-child=SIGKILL"]
# What an interpreter needs of the system.
_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/localtime"),
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
)
_PYTHON_OPTIONS = ("-I", "-S", "-B")
# How much of the standard error output is kept, in bytes, from its end.
_KEPT_ERROR_BYTES = 4_096
_MAX_OPEN_FILES = 32
_CHUNK = 65_536
# How the messages begin of the programs that start the interpreter, and seconds that it may take.
_STARTERS = ("unshare:", contain.TROUBLE)
_START_S = 30
# The characters of one argument of a process, into which the code has to go.
_MAX_ARGUMENT = 30_000


class SubprocessExecutor:
    """Runs full CPython in a process with limits; see above for what they do not keep from it.

    time_limit: seconds per run, with the interpreter's start (about 0.05 s). memory_mb: megabytes
    of address space of each process. max_output, max_code: characters. max_processes: processes and
    threads at once; not kept by a process that root started. The order of a set of strings changes
    from run to run. Raises ConfigError for a limit that is not greater than zero (max_code is at
    most 30,000), and EnvironmentFailure where `unshare` or a mount is missing or refused, or the
    interpreter does not start within the limits.
    """

    def __init__(
        self,
        time_limit: float = 2.0,
        memory_mb: int = 256,
        max_output: int = 2_000,
        max_code: int = 10_000,
        max_processes: int = 16,
    ) -> None:
        if not min(time_limit, memory_mb, max_output, max_code, max_processes) > 0:
            raise ConfigError("the limits of an executor must be greater than zero")
        if max_code > _MAX_ARGUMENT:
            raise ConfigError(f"max_code must be at most {_MAX_ARGUMENT}, not {max_code}")
        self.time_limit = time_limit
        self.memory_mb = memory_mb
        self.max_output = max_output
        self.max_code = max_code
        self.max_processes = max_processes
        self._check()

    def run(self, code: str) -> Execution:
        """Run `code` as a program; see `Executor.run`. `output` is its standard output."""
        if refused := refuse(code, self.max_code):
            return refused
        try:
            process = subprocess.Popen(
                self._command(code),
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            with process:
                try:
                    return self._watch(process)
                finally:
                    _kill(process)
        except OSError as error:
            raise EnvironmentFailure(f"code cannot be run here: {error}") from error

    def close(self) -> None:
        """Nothing is held between runs."""

    def _command(self, code: str) -> list[str]:
        limits = {
            "cpu": math.ceil(self.time_limit) + 1,
            "as": self.memory_mb * 2**20,
            "fsize": 0,
            "nproc": self.max_processes,
            "nofile": _MAX_OPEN_FILES,
            "core": 0,
        }
        python = os.path.realpath(sys.executable)  # no link of a virtual environment
        return [
            *(_tool("unshare"), *_UNSHARE, "--", python, *_PYTHON_OPTIONS, contain.__file__),
            *(f"{name}={value}" for name, value in limits.items()),
            *(*_SYSTEM, *_folders(python), "--"),
            *(python, *_PYTHON_OPTIONS, "-u", "-X", "utf8", "-c", code),
        ]

    def _watch(self, process: "subprocess.Popen[bytes]") -> Execution:
        """Read what the process prints until it ends or has to be stopped."""
        deadline = time.monotonic() + self.time_limit
        printed, complaint = bytearray(), bytearray()
        code: ExecutionCode | None = None
        assert process.stdout is not None
        assert process.stderr is not None
        with selectors.DefaultSelector() as pipes:
            pipes.register(process.stdout, selectors.EVENT_READ, printed)
            pipes.register(process.stderr, selectors.EVENT_READ, complaint)
            while pipes.get_map() and code is None:
                for key, _ in pipes.select(max(0.0, deadline - time.monotonic())):
                    chunk = os.read(key.fd, _CHUNK)
                    if not chunk:
                        pipes.unregister(key.fileobj)
                    key.data.extend(chunk)
                del complaint[:-_KEPT_ERROR_BYTES]
                if len(printed) > self.max_output and len(_text(printed)) > self.max_output:
                    code = "output_limit"
                elif time.monotonic() > deadline:
                    code = "time_limit"
        if code is None:  # both pipes are closed, though not by an end of the process, perhaps
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = "time_limit"
        output = _text(printed)[: self.max_output]
        if code == "output_limit":
            message = f"the code printed over {self.max_output} characters"
            return Execution(output, code, message)
        if code == "time_limit":
            return Execution(output, code, "the code takes too long")
        error = _text(complaint)
        if process.returncode and error.startswith(_STARTERS):
            self._check()  # or the code wrote that
        return Execution(output, *_verdict(process.returncode, error))

    def _check(self) -> None:
        """Raise EnvironmentFailure unless the interpreter starts within its limits."""
        try:
            done = subprocess.run(
                self._command(""),
                env={},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_START_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentFailure(f"code cannot be contained here: {error}") from error
        if done.returncode:
            reason = " ".join(done.stderr.decode(errors="replace").split())
            raise EnvironmentFailure(f"code cannot be contained here: {reason}")


def _verdict(status: int, complaint: str) -> tuple[ExecutionCode | None, str]:
    """The code and message of a process that ended by itself."""
    if status == 0:
        return None, ""
    if -status in (signal.SIGXCPU, signal.SIGKILL):  # the latter from the kernel, too, for the CPU
        return "time_limit", "the code takes too long"
    if status < 0:
        return "crashed", "the code crashed its interpreter"
    message = _exception(complaint, status)[:MAX_MESSAGE_CHARACTERS]
    kind = message.partition(":")[0]
    if kind == "MemoryError":
        return "memory_limit", "the code needs too much memory"
    if kind in ("SyntaxError", "IndentationError", "TabError"):
        return "malformed", message
    return "exception", message


def _exception(complaint: str, status: int) -> str:
    """The first line of the exception that a traceback ends with, after the indented frames."""
    lines = complaint.rstrip().splitlines()
    frames = [number for number, line in enumerate(lines[:-1]) if line.startswith("  ")]
    if not frames:
        return f"SystemExit: {lines[-1] if lines else status}"
    return lines[frames[-1] + 1]


def _text(data: bytearray) -> str:
    return data.decode(errors="replace")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill the code with all it started, unless it has ended; never raises."""
    if process.poll() is not None:
        return
    # The child of `unshare` is the first process of the namespace. It is killed by its own id, as
    # code can free itself from its process group and from the signal of its parent's death.
    with suppress(OSError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        for child in children.split():
            os.kill(int(child), signal.SIGKILL)
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _folders(python: str) -> list[str]:
    """Where an interpreter lies with its standard library, but for what the system's folders hold.

    Each once as it is named and once without links.
    """
    homes = {Path(python).parent, Path(sysconfig.get_path("stdlib"))}
    homes |= {Path(prefix) / "lib" for prefix in (sys.base_prefix, sys.base_exec_prefix)}
    homes |= {home.resolve() for home in homes}
    kept = [Path(each) for each in _SYSTEM]
    for home in sorted(homes):
        if not any(home.is_relative_to(each) for each in kept):
            kept.append(home)
    return [str(each) for each in kept[len(_SYSTEM) :]]


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise EnvironmentFailure(f"code cannot be contained here: there is no `{name}`")
    return path
