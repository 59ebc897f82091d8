"""The command line: real commands on real databases, and errors that a person can act on."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
import yaml

from benchmarks import cli
from benchmarks.cli import COMMANDS, STUDIES, main, without_password
from itl_agents.nanollama import NanoLlama, NanoLlamaConfig, save_model
from itl_env import FactDatabase, read_episodes
from itl_env.errors import ITLError

ROOT = Path(__file__).parent.parent.parent
TINY = (
    *("--n-people", "8", "--n-unseen", "4", "--d-model", "16", "--n-layers", "1", "--n-heads", "2"),
    *("--n-steps", "4", "--log-every", "2", "--n-evaluate", "2", "--checkpoint-every", "2"),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models here are too small for more, least of all on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """`run("validate", ...)` runs `itl validate ...`: (exit status, stdout, stderr)."""

    def go(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return go


def sentence(err: str) -> str:
    """The one line that a failed command says."""
    (line,) = err.splitlines()
    assert line.startswith("itl: ")
    return line


@pytest.fixture(scope="module")
def trained(world: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "memory", "--database", world, *TINY, "--out", str(out)]) == 0
    return out


# -- help ------------------------------------------------------------------------------------


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
        (["facts"], "one more word: build, query, export"),
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


# -- facts -----------------------------------------------------------------------------------


def test_a_folder_does_not_shadow_a_built_in_vocabulary(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").mkdir()
    build = ("facts", "build", "--people", 5, "--database", "facts.db", "--replace")
    assert run(*build)[0] == 0
    status, _, err = run(*build, "--vocabulary", "./paper")  # a path names the folder
    assert status == 2
    assert "paper/first_names.txt" in sentence(err)


def test_build_says_what_it_made_and_query_finds_it(run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'facts.db'}"
    status, out, _ = run("facts", "build", "--people", 200, "--database", url, "--seed", 4)
    assert status == 0
    figures = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert figures["people"] == "200"
    assert figures["facts"] == "800"
    assert figures["bits per fact"] == "7.81"
    assert figures["file size"].endswith(" MB")
    with FactDatabase(url) as database:
        fact = database.fact(123, "occupation")
        everything = database.lookup([(fact.name, name) for name in database.attributes])
    query = ("facts", "query", "--database", url, fact.name)
    assert run(*query, "occupation")[:2] == (0, f"{fact.value}\n")
    assert [line.split(maxsplit=1)[1] for line in run(*query)[1].splitlines()] == everything
    status, out, err = run("facts", "query", "--database", url, "Nobody")
    assert (status, out) == (1, "")
    assert "no result" in sentence(err)
    status, _, err = run("facts", "build", "--people", 5, "--database", url)
    assert status == 1
    assert "--replace" in sentence(err)
    assert run("facts", "build", "--people", 5, "--database", url, "--replace")[0] == 0


def test_build_takes_the_vocabulary_and_the_correlation(run, tmp_path: Path) -> None:
    file = tmp_path / "facts.db"
    arguments = ("--people", 500, "--database", file, "--vocabulary", "ood", "--correlation", 1)
    _, out, _ = run("facts", "build", *arguments)
    assert float(re.search(r"bits per fact +([\d.]+)", out)[1]) < 7
    status, _, err = run(
        "facts", "build", "--people", 5, "--database", file, "--vocabulary", "mine"
    )
    assert status == 2
    assert "paper, large, ood" in sentence(err)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "biographies", "dataset"])
def test_export_writes_every_row(run, world: str, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "people"
    arguments = ("facts", "export", "--database", world, "--format", kind, "--out", out)
    status, said, _ = run(*arguments)
    assert (status, said) == (0, f"400 rows in {out}\n")
    with FactDatabase(world) as database:
        rows = list(database.rows())
    if kind == "jsonl":
        assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    elif kind == "biographies":
        assert out.read_text().count("\n") == 400
        assert rows[399]["name"] in out.read_text().splitlines()[-1]
    else:
        import datasets

        load = datasets.Dataset.from_parquet if kind == "parquet" else datasets.load_from_disk
        assert load(str(out)).to_list() == rows
    assert [file.name for file in tmp_path.iterdir()] == ["people"]
    if kind == "dataset":
        assert run(*arguments)[0] == 2  # a folder is not written over


# -- the task --------------------------------------------------------------------------------


def test_validate_counts_and_passes(run, world: str) -> None:
    status, out, err = run("validate", "--database", world, "--limit", 50)
    assert (status, err) == (0, "")
    assert "50 names with 4 attributes each" in out
    assert re.search(r"in-weight +expert +200 +200 +100.00%", out)
    assert "valid:" in out
    columns = ("--attributes", "occupation", "birth_date", "--dialect", "sql", "--limit", 10)
    assert "10 names with 2 attributes each" in run("validate", "--database", world, *columns)[1]


def test_validate_fails_in_one_sentence(run, tmp_path: Path) -> None:
    file = tmp_path / "towns.db"
    FactDatabase.create(
        file, [{"name": "Ulm", "river": "Danube"}, {"name": "Rom", "river": "```"}], table="towns"
    ).close()
    status, out, err = run("validate", "--database", file, "--table", "towns")
    assert status == 1
    assert "valid:" not in out
    assert "river of 'Rom'" in sentence(err)


def test_play_takes_piped_lines(world: str) -> None:
    command = [sys.executable, "-m", "benchmarks.cli", "play", "--database", world, "--n", "5"]
    played = subprocess.run(
        command, input=b"FIND x\nParis\n\xff\n", capture_output=True, check=True, cwd=ROOT
    )
    assert played.stderr == b""
    out = played.stdout.decode()
    assert "> FIND x" in out
    assert "reward 0" in out
    assert re.search(r"You answered 0 of \d right\.\n$", out)


@pytest.mark.parametrize(
    ("agent", "mode", "recall"),
    [
        ("expert", "in-tool", "100.0%"),
        ("expert", "in-weight", "100.0%"),
        ("no-tool", "in-tool", None),
        ("random", "in-tool", None),
    ],
)
def test_rollout_writes_episodes_and_says_the_recall(
    run, world: str, tmp_path: Path, agent: str, mode: str, recall: str | None
) -> None:
    out = tmp_path / "episodes.jsonl"
    options = ("--agent", agent, "--mode", mode, "--n", 100, "--start", 50, "--out", out)
    status, said, _ = run("rollout", "--database", world, *options)
    assert status == 0
    episodes = list(read_episodes(out))
    assert len({episode.fact.name for episode in episodes}) == 100
    with FactDatabase(world) as database:
        assert episodes[0].fact.name == next(database.names(50, 51))
    right = sum(episode.reward == 1.0 for episode in episodes)
    assert f"({right} of 100 questions" in said
    assert recall is None or f"recall {recall} [9" in said
    assert recall is not None or right < 30


def test_rollout_can_ask_for_every_attribute(run, world: str, tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    options = ("--agent", "expert", "--questions", "all", "--n", 10, "--out", out)
    assert run("rollout", "--database", world, *options)[0] == 0
    facts = [episode.fact for episode in read_episodes(out)]
    with FactDatabase(world) as database:
        assert facts == list(database.facts(0, 3))[:10]
    _, _, err = run(
        "rollout", "--database", world, "--agent", "expert", "--start", 390, "--out", out
    )
    assert "there are 10 questions, fewer than 1,000" in sentence(err)


def test_rollout_leaves_no_file_when_it_fails(run, world: str, tmp_path: Path) -> None:
    for options, said in (
        (("--agent", "nobody"), "expert, no-tool, random"),
        (("--agent", tmp_path), "no trained model"),
        (("--agent", "expert", "--start", 400), "none from index 400"),
        (("--agent", "expert", "--attributes", "shoe_size"), "shoe_size"),
    ):
        out = tmp_path / "episodes.jsonl"
        status, _, err = run("rollout", "--database", world, *options, "--out", out)
        assert status == 2
        assert said in sentence(err)
        assert list(tmp_path.iterdir()) == []


def test_show_marks_what_is_trained(run, world: str, tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    run("rollout", "--database", world, "--agent", "expert", "--n", 5, "--out", file)
    third = list(read_episodes(file))[2]
    name, attribute, value = third.fact
    _, out, _ = run("show", file, "--index", 2, "--n", 1)
    assert "[brackets]" in out
    assert f"[FIND {attribute} FOR {name}<|database|>]{value}<|assistant|>[" in out
    assert out.count("<|eod|>") == 1
    _, out, _ = run("show", file, "--index", 2, "--n", 1, "--color", "always")
    assert f"\033[32mFIND {attribute} FOR {name}<|database|>\033[0m" in out
    assert run("show", file)[1].count("<|eod|>") == 3
    status, _, err = run("show", file, "--index", 5)
    assert status == 1
    assert "holds 5 episodes, so none at 5" in sentence(err)
    (tmp_path / "facts.jsonl").write_text('{"name": "Ann Lee"}\n')
    status, _, err = run("show", tmp_path / "facts.jsonl")
    assert status == 1
    assert "names no schema" in sentence(err)


def test_show_lets_no_text_act_on_the_terminal(run, tmp_path: Path) -> None:
    file, database = tmp_path / "episodes.jsonl", tmp_path / "towns.db"
    FactDatabase.create(database, [{"name": "Ulm", "river": "\033[2JDanube"}]).close()
    run("rollout", "--database", database, "--agent", "expert", "--out", file)
    _, out, _ = run("show", file)
    assert "\033" not in out
    assert "\\x1b[2JDanube" in out


# -- training and evaluation -----------------------------------------------------------------


def test_training_says_the_recall_and_goes_on_from_a_finished_run(run, trained, world) -> None:
    again = ("train", "memory", "--database", world, *TINY, "--out", trained)
    status, out, _ = run(*again)
    assert status == 0
    assert re.search(r"step 4: recall [\d.]+% \[.*\] on unseen people", out)
    assert len(FactDatabase(world)) == 400


def test_settings_come_from_a_file_and_flags_override_them(run, trained, tmp_path: Path) -> None:
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert settings["n_steps"] == 4
    settings |= {"d_hidden": None, "n_steps": 3}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    out = tmp_path / "run"
    status, _, err = run("train", "memory", "--config", file, "--n-steps", 2, "--out", out)
    assert status == 0, err
    used = yaml.safe_load((out / "config.yaml").read_text())
    assert used == settings | {"n_steps": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [("n_stepz: 3", "n_stepz"), ("[1, 2]", "mapping"), ("a: b: c", "is not YAML"), (None, "Cann")],
)
def test_a_settings_file_that_is_wrong_is_named(run, tmp_path, text: str | None, said: str) -> None:
    file = tmp_path / "settings.yaml"
    if text is not None:
        file.write_text(text)
    status, _, err = run("train", "memory", f"--config={file}", "--out", tmp_path / "run")
    assert status == 2
    assert said in sentence(err)
    assert "settings.yaml" in err


def test_training_refuses_what_cannot_work(run, trained: Path, world: str, tmp_path: Path) -> None:
    base = ("train", "memory", "--database", world, *TINY)
    for options, said in (
        (("--out", trained, "--seed", 7), "seed=0, not 7"),
        (("--out", tmp_path / "new", "--n-people", 500), "holds 400 people"),
        (("--out", tmp_path / "new", "--device", "abacus"), "abacus"),
    ):
        status, _, err = run(*base, *options)
        assert status == 2
        assert said in sentence(err)
    status, _, err = run(*base, "--out", tmp_path / "new", "--d-model", 17)
    assert status == 2
    assert err.count("does not divide by n_heads") == 1
    assert list(tmp_path.iterdir()) == []


def test_training_leaves_a_folder_of_something_else_alone(run, world: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    status, _, err = run("train", "memory", "--database", world, *TINY, "--out", tmp_path)
    assert status == 2
    assert "holds 'thesis.tex' but no run" in sentence(err)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_eval_asks_about_people_the_run_did_not_train_on(run, trained, world, tmp_path) -> None:
    out = tmp_path / "answers.jsonl"
    status, said, _ = run("eval", trained, "--n", 6, "--out", out)
    assert status == 0
    assert re.search(r"in-tool, people from index 8: recall [\d.]+% \[.*of 6 questions", said)
    assert said.count("it is") + said.count("right\n") == 3  # the sample answers
    with FactDatabase(world) as database:
        asked = [episode.fact.name for episode in read_episodes(out)]
        assert asked == list(database.names(8, 14))
    (checkpoint,) = (trained / "checkpoints").glob("step-*4")
    options = ("--mode", "in-weight", "--start", 0, "--n", 2, "--database", world)
    assert "in-weight, people from index 0" in run("eval", checkpoint, *options)[1]


def test_eval_refuses_fewer_than_no_samples(run, trained: Path) -> None:
    status, _, err = run("eval", trained, "--samples", -1)
    assert status == 2
    assert "samples is -1" in err


def test_eval_needs_a_model(run, tmp_path: Path, world: str) -> None:
    status, _, err = run("eval", tmp_path, "--database", world)
    assert status == 2
    assert "no trained model" in sentence(err)
    save_model(NanoLlama(NanoLlamaConfig(d_model=16, n_heads=2)), tmp_path)
    assert "name a database" in run("eval", tmp_path)[2]


def test_a_trained_model_plays_as_an_agent(run, trained: Path, world: str, tmp_path: Path) -> None:
    out = tmp_path / "episodes.jsonl"
    options = ("--agent", trained, "--n", 2, "--temperature", 0.5, "--out", out)
    assert run("rollout", "--database", world, *options)[0] == 0
    assert run("show", out)[1].count("episode ") == 2


def test_quickstart_runs_small(run, tmp_path: Path) -> None:
    sizes = ("--n-people", 3, "--n-unseen", 1, "--n-memorised", 1)
    sizes = (*sizes, "--n-steps", 3, "--n-twin-steps", 3)
    status, out, err = run("quickstart", "--out", tmp_path / "quick", *sizes)
    assert status == 0
    assert "| in-tool | never seen |" in out
    assert "in-tool 3/3" in err
    assert (tmp_path / "quick/report.md").exists()


# -- studies ---------------------------------------------------------------------------------


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


# -- failing politely ------------------------------------------------------------------------


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
    ("words", "said"), [("train memory", "goes on"), ("validate", "starts again")]
)
def test_ctrl_c_says_what_the_same_command_does(
    run, world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    module, _, function = COMMANDS[words].run.partition(":")

    def interrupt(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(module), function, interrupt)
    out = ("--out", tmp_path / "run") if words == "train memory" else ()
    status, _, err = run(*words.split(), "--database", world, *out)
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
