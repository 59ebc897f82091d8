"""The command line: help for everything, and errors that a person can act on."""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks import cli
from benchmarks.cli import main, without_password
from benchmarks.commands import COMMANDS, STUDIES
from itl_env.errors import ITLError

from .command_line import ROOT, TINY, sentence

pytestmark = pytest.mark.usefixtures("one_thread")


def entries(help_text: str) -> list[str]:
    """What help says of each flag and each positional argument."""
    found: list[str] = []
    for line in help_text.replace("│", " ").splitlines():
        if re.match(r" {1,3}(--[a-z]|\[?[A-Z]+\]? )", line):
            found.append(line)
        elif found and line.startswith("    "):
            found[-1] += line
    return found


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_and_flag_has_help(run, words: str) -> None:
    status, out, err = run(*words.split(), "--help")
    assert (status, err) == (0, "")
    about = out.split("options")[0].splitlines()
    assert any(len(line.split()) > 3 for line in about[1:]), "the command says nothing of itself"
    said = entries(out)
    assert len(said) == len(dataclasses.fields(cli._load(COMMANDS[words].config)))
    for entry in said:
        explained = re.sub(r"^ *(--\S+( \S+)?|\[?[A-Z]+\]?) |\((default|required).*", "", entry)
        assert len(explained.split()) > 1, f"no help for {entry}"


def test_the_list_of_commands_names_all_of_them(run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for words, command in COMMANDS.items():
        assert re.search(rf"^  {words} +{re.escape(command.summary)}$", out, re.M)
    assert run()[0] == 2
    assert "facts build" in run("facts", "--help")[1]
    assert "quickstart" not in run("facts", "--help")[1]


def test_every_command_can_be_loaded() -> None:
    for command in COMMANDS.values():
        assert dataclasses.is_dataclass(cli._load(command.config))
        assert callable(cli._load(command.run))


def test_version(run) -> None:
    assert re.fullmatch(r"itl \d+\.\d+\.\d+\n", run("--version")[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fcats"], "did you mean 'facts'"),
        (["facts"], "one more word: build, trivia, query, export"),
        (["bench", "run", "nothing"], "throughput"),
        (["--frobnicate"], "has no command '--frobnicate'"),
    ],
)
def test_a_word_that_is_no_command_is_refused(run, arguments: list[str], said: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in sentence(err)


def test_a_flag_that_is_missing_or_wrong_is_refused(run, world: str) -> None:
    for arguments in (["--limit", "3"], ["--database", world, "--limit", "many"]):
        status, out, err = run("validate", *arguments)
        assert (status, out) == (2, "")
        assert "--database" in err or "--limit" in err


def test_studies_are_listed_and_run_by_name(run, monkeypatch, tmp_path: Path) -> None:
    assert [line.split()[0] for line in run("bench", "list")[1].splitlines()] == list(STUDIES)
    import benchmarks.throughput

    seen = []
    monkeypatch.setattr(benchmarks.throughput, "throughput", seen.append)
    options = ("throughput", "--preset", "smoke", "--out", tmp_path)
    assert run("bench", "run", *options)[0] == 0
    assert (seen[0].preset, seen[0].out) == ("smoke", tmp_path)


def test_the_package_runs_a_study() -> None:
    command = [sys.executable, "-m", "benchmarks", "throughput", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.startswith("usage: itl bench run throughput")


def test_a_database_that_is_not_there_is_named(run, world: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    for options, said in (
        (("--database", missing), "missing.db"),
        (("--database", world, "--table", "cats"), "no table 'cats'"),
        (("--database", world, "--key", "id_card"), "no key column 'id_card'"),
        (("--database", "nonsense://x"), "nonsense"),
    ):
        for words in ("validate", "play", "facts query Ada"):
            status, out, err = run(*words.split(), *options)
            assert (status, out) == (1, "")
            assert said in sentence(err)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused(run, world: str, tmp_path: Path) -> None:
    file = tmp_path / "facts.db"
    status, _, err = run("facts", "build", "--people", 200_000, "--database", file)
    assert status == 2
    assert "169,556" in sentence(err)
    status, _, err = run("facts", "query", "--database", world, "Ada", "shoe_size")
    assert status == 1
    assert "shoe_size" in sentence(err)
    status, _, err = run("show", world.removeprefix("sqlite:///"))
    assert status == 1
    assert "line 1 is not an episode" in sentence(err)
    assert "Cannot read episodes" in sentence(run("show", tmp_path / "none.jsonl")[2])
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(world: str) -> None:
    with pytest.raises(ITLError, match="no table"):
        main(["validate", "--database", world, "--debug", "--table", "cats"])


@pytest.mark.parametrize(
    ("words", "flags", "said"),
    [
        ("train memory", ("--database", "WORLD", "--out", "run"), "goes on"),
        ("validate", ("--database", "WORLD"), "starts again"),
        ("rollout", ("--database", "WORLD", "--agent", "expert", "--out", "e.jsonl"), "goes on"),
        ("eval", ("run", "--every"), "goes on"),
        ("eval", ("run",), "starts again"),
    ],
)
def test_ctrl_c_says_what_the_same_command_does(
    run,
    world: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    flags: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    module, _, function = COMMANDS[words].run.partition(":")

    def interrupt(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(module), function, interrupt)
    status, _, err = run(*words.split(), *(world if flag == "WORLD" else flag for flag in flags))
    assert status == 130
    assert said in sentence(err)


def test_a_reader_that_leaves_is_no_error(world: str, tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    options = ["--agent", "expert", "--questions", "all", "--n", "600", "--out", str(file)]
    assert main(["rollout", "--database", world, *options]) == 0
    show = f"'{sys.executable}' -m benchmarks.cli show '{file}' --n 600 | head -1"
    shown = subprocess.run(show, shell=True, capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout == "What is trained is in [brackets].\n"
    assert shown.stderr == ""


def test_a_full_disk_is_named() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "benchmarks.cli", "facts", "--help"]
    with full.open("w") as device:
        ended = subprocess.run(command, stdout=device, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.startswith("itl: The disk is full.")


def test_passwords_are_removed_from_text() -> None:
    for text in (
        "postgresql://ada:hunter2@host/db",
        "see postgresql+psycopg://ada:hun@ter2@host:5/db now",
        "postgresql://host/db?user=ada&password=hunter2&x=1",
        "postgresql://host/db?sslmode=require&sslpassword=hunter2",
        "postgresql://ada:hunter2@",
    ):
        assert "ter2" not in without_password(text)
    assert without_password("sqlite:///a:b.db") == "sqlite:///a:b.db"


def test_postgres_serves_and_its_password_is_never_shown(
    run, postgres: str, postgres_schema: str, tmp_path: Path
) -> None:
    secret = sa.make_url(postgres).password or "hunter2"
    url = sa.make_url(postgres).set(password=secret).render_as_string(hide_password=False)
    source = ("--database", url, "--table", f"{postgres_schema}.people")
    said = []
    for words, options in (
        ("facts build", ("--people", 60)),
        ("validate", ()),
        ("rollout", ("--agent", "expert", "--out", tmp_path / "episodes.jsonl")),
        ("train memory", (*TINY, "--out", tmp_path / "run")),
    ):
        status, out, err = run(*words.split(), *source, *options)
        assert status == 0, err
        said += [out, err]
    assert "60 names with 4 attributes each" in "".join(said)
    for words, options, status in (
        ("facts query", ("Nobody", *source), 1),
        ("facts build", ("--people", 60, *source), 1),
        ("validate", ("--database", url, "--table", "nothing_here"), 1),
        ("validate", (url,), 2),
        ("rollout", (*source, "--agent", "expert", "--out", tmp_path / "none/e.jsonl"), 2),
        (url, (), 2),
        ("validate", ("--database", url.replace("127.0.0.1", "127.0.0.1:1"), "--bad"), 2),
    ):
        failed, out, err = run(*words.split(), *options)
        assert failed == status
        said += [out, err]
    said += [file.read_text(errors="replace") for file in tmp_path.rglob("*.[jy]*")]
    assert not any(secret in text for text in said if secret != "postgres")
