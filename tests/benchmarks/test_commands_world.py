"""Commands on a world: build, query, export, validate, play, roll out and show episodes."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from itl_agents.agent import Conversation
from itl_agents.huggingface import HFAgent
from itl_env import FactDatabase, read_episodes
from itl_env.episode import Completion, unfinished

from ..itl_train.test_sft import tiny_llama
from .command_line import ROOT, sentence

pytestmark = pytest.mark.usefixtures("one_thread")


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
        ("circuit", "in-tool", "100.0%"),
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


def test_a_model_of_this_machine_is_told_the_protocol_too(
    run, world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    respond = HFAgent.respond

    def listen(agent: HFAgent, conversations: Sequence[Conversation]) -> list[Completion]:
        seen.append(agent.chat.system)
        return respond(agent, conversations)

    monkeypatch.setattr(HFAgent, "respond", listen)
    options = ("--database", world, "--n", 1, "--protocol", "--out", tmp_path / "e.jsonl")
    llama = tiny_llama(tmp_path / "llama")
    assert run("rollout", "--agent", llama, *options)[0] == 0
    assert "You answer questions with the help of a database." in seen[0]
    status, _, err = run("rollout", "--agent", "expert", *options[:-1], tmp_path / "f.jsonl")
    assert (status, "expert reads no system message" in sentence(err)) == (2, True)


def test_rollout_can_ask_for_every_attribute(run, world: str, tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    options = ("--agent", "expert", "--questions", "all", "--n", 10, "--out", out)
    assert run("rollout", "--database", world, *options)[0] == 0
    facts = [episode.fact for episode in read_episodes(out)]
    with FactDatabase(world) as database:
        assert facts == list(database.facts(0, 3))[:10]
    again = ("--agent", "expert", "--start", 390, "--out")
    status, _, err = run("rollout", "--database", world, *again, out)
    assert status == 2
    assert "all.jsonl exists" in sentence(err)
    _, _, err = run("rollout", "--database", world, *again, tmp_path / "rest.jsonl")
    assert "there are 10 questions, fewer than 1,000" in sentence(err)


def test_rollout_leaves_no_file_when_it_fails(run, world: str, tmp_path: Path) -> None:
    for options, said in (
        (("--agent", "nobody"), "expert, circuit, no-tool, random"),
        (("--agent", tmp_path), "no trained model"),
        (("--agent", "expert", "--start", 400), "none from index 400"),
        (("--agent", "expert", "--attributes", "shoe_size"), "shoe_size"),
    ):
        out = tmp_path / "episodes.jsonl"
        status, _, err = run("rollout", "--database", world, *options, "--out", out)
        assert status == 2
        assert said in sentence(err)
        assert list(tmp_path.iterdir()) == []


def test_a_question_that_the_agent_was_not_made_for_loses_no_episode(run, tmp_path: Path) -> None:
    file, database = tmp_path / "episodes.jsonl", tmp_path / "towns.db"
    rows = [{"name": name, "river": "Danube"} for name in ("Linz", "Passau", "U" * 301)]
    FactDatabase.create(database, rows).close()
    options = ("--agent", "circuit", "--questions", "all", "--n", 3, "--lanes", 1, "--out", file)
    status, _, err = run("rollout", "--database", database, *options)
    assert status == 1
    assert "has 301 bytes, more than the 300" in sentence(err)
    assert f"2 episodes are kept in {unfinished(file)}." in sentence(err)
    assert len(list(read_episodes(unfinished(file)))) == 2


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


def test_trivia_is_made_and_played(run, tmp_path: Path) -> None:
    database = tmp_path / "trivia.db"
    status, said, _ = run("facts", "trivia", "--database", database)
    assert status == 0
    assert "24 questions in " in said
    out = tmp_path / "episodes.jsonl"
    source = ("--database", database, "--trivia")
    for mode in ("in-tool", "in-weight"):
        file = tmp_path / f"{mode}.jsonl"
        command = ("rollout", *source, "--agent", "expert", "--mode", mode, "--n", 24)
        status, said, _ = run(*command, "--out", file)
        assert status == 0
        assert "recall 100.0%" in said
    assert run("validate", *source)[0] == 0
    status, _, err = run(
        "rollout", *source, "--agent", "expert", "--attributes", "answer", "--out", out
    )
    assert (status, sentence(err)) == (
        2, "itl: Trivia has one attribute, answer; leave out --attributes.",
    )  # fmt: skip
    status, _, err = run("facts", "trivia", "--database", database)
    assert status == 1
    assert "questions" in sentence(err)
    status, _, err = run("facts", "trivia", "--database", tmp_path / "x.db", "--source", "none")
    assert (status, sentence(err)) == (
        1, "itl: Cannot read questions from none: No such file or directory.",
    )  # fmt: skip


def test_an_export_replaces_nothing(run, world: str, tmp_path: Path) -> None:
    database = tmp_path / "copy.db"
    database.write_bytes(Path(world.removeprefix("sqlite:///")).read_bytes())
    for kind in ("jsonl", "parquet", "biographies", "dataset"):
        command = ("facts", "export", "--database", database, "--format", kind)
        status, _, err = run(*command, "--out", database)
        assert (status, sentence(err)) == (
            2, f"itl: {database} exists; name another one, or remove it.",
        )  # fmt: skip
    assert run("facts", "query", "--database", database, "Nobody")[0] == 1, "it still opens"
