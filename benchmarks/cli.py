"""The `itl` command: finds the command that was meant, reads its flags, runs it, fails politely.

What commands there are is said in `benchmarks.commands`. Their modules are loaded only when they
run, so that help comes at once. The exit status is 0 on success, 1 on failure, 2 for bad arguments,
130 after Ctrl-C, 143 after SIGTERM, and 141 if the reader of the output has gone.
"""

import argparse
import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TextIO

from benchmarks.commands import COMMANDS, Command

LARGE_SCALE = ("trl", "peft", "lm_eval", "gguf", "openai")
"""Packages that only work with pretrained models needs."""

ABOUT = "Facts in weights or behind a tool: databases as environments, language models as agents."
FOOT = """\
`itl COMMAND --help` tells what a command takes. Anywhere on the line, `--debug` shows the traceback
of an error. `itl --version` tells the version."""


class UsageError(Exception):
    """The words name no command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit status."""
    # Threads of torch that wait for one another spin, by default for so long that a busy core makes
    # them many times slower; alone, this is as fast. It is read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress is shown by this library
    arguments, debug = _take_debug(list(sys.argv[1:] if argv is None else argv))
    _accept_any_text()
    command, config = None, None
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            if not arguments or arguments[0] in ("-h", "--help"):
                print(commands_help([]))
                return 0 if arguments else 2
            if arguments[0] == "--version":
                print(f"itl {metadata.version('itl')}")
                return 0
            words, rest = split_words(arguments)
            if words not in COMMANDS:
                print(commands_help(words.split()))
                return 0
            command = COMMANDS[words]
            config = parse(words, command, rest)
            _load(command.run)(config)
            sys.stdout.flush()
        except UsageError as error:
            return _fail(str(error), 2)
        except SystemExit as stop:
            if isinstance(stop.code, int) and stop.code > 128:  # a sweep was asked to end
                return _fail(f"ended; the same command {_then(command, config)}.", stop.code)
            # tyro has printed help or what is wrong.
            return stop.code if isinstance(stop.code, int) else 2
        except BrokenPipeError:
            # The reader has seen enough (`itl show | head`); nothing is left to flush at exit.
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
            return 141
        except KeyboardInterrupt:
            if debug:
                raise
            return _fail(f"interrupted; the same command {_then(command, config)}.", 130)
        except ModuleNotFoundError as error:
            if debug or error.name not in LARGE_SCALE:
                raise
            return _fail(f"This needs the package {error.name}; install itl[large-scale].", 1)
        except Exception as error:
            from itl_env.errors import ConfigError, ITLError

            if debug or not isinstance(error, ITLError | OSError):
                raise
            said = _of_system(error) if isinstance(error, OSError) else str(error)
            return _fail(said, 2 if isinstance(error, ConfigError) else 1)
    return 0


def _then(command: Command | None, config: Any) -> str:
    """What a command that was interrupted does when it is given again; its flags may decide."""
    goes_on = command is not None and getattr(config, "resumes", command.resumes)
    return "goes on from where it stopped" if goes_on else "starts again"


def _of_system(error: OSError) -> str:
    """What the system refused, and where if it says so."""
    if error.errno == errno.ENOSPC:
        return "The disk is full. Make room, and give the same command again."
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."


def _accept_any_text() -> None:
    """What a model wrote, or a person typed, must not fail on a terminal's encoding."""
    streams = {sys.stdout: "backslashreplace", sys.stderr: "backslashreplace"}
    for stream, errors in {**streams, sys.stdin: "surrogateescape"}.items():
        if isinstance(stream, io.TextIOWrapper):
            with suppress(io.UnsupportedOperation):  # it has been read from
                stream.reconfigure(errors=errors)


def split_words(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The words of a command and the rest of the line; of a group of commands, with --help only.

    Raises UsageError that says which words there are.
    """
    for n in (3, 2, 1):
        words = " ".join(arguments[:n])
        if words in COMMANDS and len(arguments) >= n:
            return words, list(arguments[n:])
    group: list[str] = []
    for word in arguments:
        known = _next_words(group)
        if word in ("-h", "--help"):
            return " ".join(group), []
        if word not in known:
            from difflib import get_close_matches

            command = " ".join(["itl", *group])
            close = get_close_matches(word, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
            raise UsageError(f"`{command}` has no command {word!r}; {hint}")
        group.append(word)
    known = _next_words(group)
    raise UsageError(f"`itl {' '.join(group)}` needs one more word: {', '.join(known)}.")


def _next_words(group: Sequence[str]) -> list[str]:
    n = len(group)
    splits = [words.split() for words in COMMANDS]
    return list(dict.fromkeys(split[n] for split in splits if split[:n] == list(group)))


def commands_help(group: Sequence[str]) -> str:
    """The commands that begin with the words of `group`, with their summaries."""
    chosen = {w: c for w, c in COMMANDS.items() if w.split()[: len(group)] == list(group)}
    width = max(map(len, chosen))
    usage = " ".join(["usage: itl", *group, "COMMAND [OPTIONS]"])
    lines = [f"  {words:<{width}}  {command.summary}" for words, command in chosen.items()]
    return "\n".join([usage, "", *([] if group else [ABOUT, ""]), *lines, "", FOOT])


def parse(words: str, command: Command, arguments: Sequence[str]) -> Any:
    """The command's dataclass from its flags; SystemExit after help or an error is printed."""
    import tyro

    config = _load(command.config)
    defaults = {field.name: field.default for field in fields(config)}
    if "config" in defaults:
        arguments = [*_settings(arguments, defaults, config.RECIPES), *arguments]

    def read(arguments: Sequence[str]) -> Any:
        return tyro.cli(config, prog=f"itl {words}", args=arguments)

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return read(arguments)
    except SystemExit:
        # Once more, to print: messages repeat arguments, and an address may hold a password.
        read([without_password(argument) for argument in arguments])
        raise


def _settings(
    arguments: Sequence[str],
    defaults: Mapping[str, Any],
    recipes: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """The settings of --recipe, then those of the YAML file at --config, as flags.

    Later flags override earlier ones, and those of the command line come last. defaults: of every
    setting there is.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    parser.add_argument("--recipe")
    try:
        given = parser.parse_known_args(list(arguments))[0]
    except argparse.ArgumentError:
        return []  # left to tyro
    from itl_env.errors import ConfigError
    from itl_train.run_folder import read_yaml

    flags = _flags(recipes.get(given.recipe, {}), defaults)  # an unknown one is left to tyro
    if given.config is not None:
        settings = read_yaml(Path(given.config))
        if unknown := sorted(str(name) for name in settings if name not in defaults):
            raise ConfigError(
                f"{given.config} has the setting {unknown[0]!r}, which does not exist."
            )
        flags += _flags(settings, defaults)
    return flags


def _flags(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool) and isinstance(defaults[name], bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    before = [argument for argument in arguments[:end] if argument != "--debug"]
    return before + arguments[end:], len(before) < end


def without_password(text: str) -> str:
    """The text with the passwords of database addresses in it replaced by ***."""
    text = re.sub(r"(://[^\s:/@]*):\S*@", r"\1:***@", text)
    return re.sub(r"(?i)([?&][^\s=&]*password[^\s=&]*=)[^\s&]*", r"\1***", text)


def _fail(message: str, status: int) -> int:
    print(f"itl: {without_password(message)}", file=sys.stderr)
    return status


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if not issubclass(category, FutureWarning | DeprecationWarning):  # for developers
        print(f"itl: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
