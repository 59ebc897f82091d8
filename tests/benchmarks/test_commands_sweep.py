"""`itl sweep`: a grid of runs, executed by real local jobs, or here."""

import json
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import yaml
from rich.console import Console

from benchmarks.board import Board
from benchmarks.commands_sweep import parse_axis, recall_table
from itl_env.errors import ConfigError
from itl_train.runs import load_runs

from .command_line import sentence


def test_axes_are_lists_or_ranges_of_settings() -> None:
    assert parse_axis("seed=0:3") == ("seed", [0, 1, 2])
    assert parse_axis("lr=1e-3,0.004") == ("lr", [0.001, 0.004])
    assert parse_axis("mode=in-tool,in-weight") == ("mode", ["in-tool", "in-weight"])
    assert parse_axis("zero_residual=true,false") == ("zero_residual", [True, False])
    assert parse_axis("d_hidden=null,64") == ("d_hidden", [None, 64])
    lists = parse_axis("sources=[[in-tool], [in-tool=2, biographies]]")
    assert lists == ("sources", [["in-tool"], ["in-tool=2", "biographies"]])
    for text, said in (("seed", "no axis"), ("seed=", "no axis"), ("sead=1", "no setting 'sead'")):
        with pytest.raises(ConfigError, match=said):
            parse_axis(text)


def test_a_sweep_runs_its_grid_and_says_how_it_stands(run, world: str, tmp_path: Path) -> None:
    base = {
        "database": world, "mode": "in-weight", "n_people": 4, "n_unseen": 0, "d_model": 8,
        "n_layers": 1, "n_heads": 2, "d_hidden": 8, "batch_size": 4, "n_steps": 2, "n_evaluate": 2,
    }  # fmt: skip
    file, out = tmp_path / "base.yaml", tmp_path / "sweep"
    file.write_text(yaml.safe_dump(base))
    status, _, err = run("sweep", "memory", "n_people=4,9999", "--base", file, "--out", out)
    assert status == 2
    assert "fewer than 9,999" in sentence(err)
    assert not out.exists(), "nothing has begun"
    # A rate that is too high is seen only when its run has begun.
    status, _, err = run("sweep", "memory", "lr=1e-3,1e30", "--base", file, "--out", out)
    assert status == 1
    assert "1 of 2 runs failed" in err
    status, said, _ = run("sweep", "status", out)
    assert status == 0
    failed, counts = said.splitlines()
    assert failed == (
        "failed   lr=1e+30: The loss is nan at step 1; lower lr or muon_lr. There is no checkpoint "
        f"yet; see {out}/lr=1e+30/failure.txt"
    )
    assert counts == "1 done, 0 running, 0 waiting, 1 failed"

    # Another grid, of which one run is there under another name.
    here = ("--launcher", "here", "--out", out)
    grid = ("sweep", "memory", "seed=0:2", "lr=1e-3", "--base", file, *here)
    before = (out / "lr=0.001" / "row.json").stat().st_mtime_ns
    assert run(*grid)[0] == 0
    assert (out / "lr=0.001" / "row.json").stat().st_mtime_ns == before
    table = pd.read_csv(out / "runs.csv")
    assert table["cell"].tolist() == ["lr=0.001", "seed=1"]
    assert table["recall_seen"].between(0, 1).all()
    assert run("sweep", "status", out)[1].splitlines()[-1] == (
        "2 done, 0 running, 0 waiting, 1 failed"
    )

    # A third, whose rows are put before those of the others.
    status, said, _ = run("sweep", "memory", "seed=3", "--base", file, *here)
    assert status == 0
    assert said.splitlines()[0].split() == ["parameters", "step", "recall_seen"]
    assert pd.read_csv(out / "runs.csv")["seed"].tolist() == [3, 0, 1]

    file.write_text(yaml.safe_dump(base | {"n_steps": 3}))
    status, _, err = run(*grid)
    assert status == 2
    assert "n_steps=2, not 3" in sentence(err), "rows of other settings are not passed off"


def test_a_table_of_recalls_says_null_where_a_setting_is() -> None:
    rows = [{"parameters": 6_248, "step": 2, "recall_seen": 0.125}]
    assert recall_table(rows, ["d_hidden"]).split()[4:] == ["null", "6248", "2", "0.125"]
    rows.append({**rows[0], "d_hidden": 64})
    assert recall_table(rows, ["d_hidden"]).split()[8:] == ["64", "6248", "2", "0.125"]


def test_a_value_written_twice_is_refused(run, world: str, tmp_path: Path) -> None:
    axes = (f"database={world}", "lr=1e-3,0.001")
    status, _, err = run("sweep", "memory", *axes, "--out", tmp_path / "sweep")
    assert status == 2
    assert "The value 0.001 of lr is given twice." in sentence(err)


def one_step(world: str) -> tuple[str, ...]:
    """A sweep of one run that is soon over."""
    return (
        *("--launcher", "here", f"database={world}", "n_people=4", "n_unseen=0"),
        *("mode=in-weight", "d_model=8", "n_steps=1"),
    )


def test_folders_of_many_runs_keep_to_their_command(run, world: str, tmp_path: Path) -> None:
    axes, out = one_step(world), tmp_path / "sweep"
    assert run("sweep", "memory", *axes, "--out", out)[0] == 0
    status, _, err = run("bench", "run", "bounds", "--preset", "smoke", "--out", out)
    assert status == 2
    assert "belongs to `itl sweep memory`, not to `itl bench run bounds --preset" in sentence(err)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("")
    status, _, err = run("sweep", "memory", *axes, "--out", tmp_path / "notes")
    assert status == 2
    assert "holds 'thesis.tex', but nothing of `itl sweep memory`" in sentence(err)


def test_damaged_files_of_a_sweep_are_named(run, world: str, tmp_path: Path) -> None:
    axes, out = one_step(world), tmp_path / "sweep"
    assert run("sweep", "memory", *axes, "--out", out)[0] == 0
    (out / "run" / "row.json").write_text('{"cell": ')
    status, _, err = run("sweep", "memory", *axes, "--out", out)
    assert status == 1
    assert f"{out}/run/row.json is damaged" in err.splitlines()[-1]
    (out / "run" / "row.json").unlink()
    assert run("sweep", "memory", *axes, "--out", out)[0] == 0
    (out / "cells.json").write_text("[")
    status, _, err = run("sweep", "status", out)
    assert status == 1
    assert f"{out}/cells.json is damaged" in sentence(err)
    other = ("sweep", "memory", *axes, "seed=0:2", "--out", out)
    assert run(*other)[0] == 0, "the next sweep writes it anew"
    assert len(pd.read_csv(out / "runs.csv")) == 2, "with the rows of all grids"
    assert run("sweep", "status", out)[1] == "2 done, 0 running, 0 waiting, 0 failed\n"
    (out / "run" / "config.yaml").write_text(f"database: {world}\nmomentum: 0.9\n")
    status, _, err = run("sweep", "memory", *axes, "--out", out)
    assert status == 2
    assert "'momentum'" in sentence(err)
    assert f"remove {out}/run, or name another folder." in sentence(err)


def test_a_sweep_of_small_batches_trains_ensembles(run, world: str, tmp_path: Path) -> None:
    base = {
        "database": world, "mode": "in-weight", "n_people": 4, "n_unseen": 0, "d_model": 16,
        "n_layers": 1, "n_heads": 2, "d_hidden": 16, "batch_size": 4, "n_steps": 300,
        "evaluate_every": 500, "n_evaluate": 4, "lr": 8e-3,
    }  # fmt: skip
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump(base))
    command = ("sweep", "memory", "--base", file, "--launcher", "here")
    joined, alone = tmp_path / "joined", tmp_path / "alone"
    assert run(*command, "seed=0:3", "--out", joined)[0] == 0
    (folder,) = joined.glob("ensemble-of-3-*")
    assert run("sweep", "status", joined)[1] == "3 done, 0 running, 0 waiting, 0 failed\n"
    assert run(*command, "seed=0:3", "--ensemble", "1", "--out", alone)[0] == 0
    assert not list(alone.glob("ensemble*"))
    ours, theirs = (pd.read_csv(out / "runs.csv") for out in (joined, alone))
    shared = [column for column in theirs if column != "seconds"]
    pd.testing.assert_frame_equal(ours[shared], theirs[shared])
    assert theirs["recall_seen"].max() > 0, "else nothing would be compared"
    assert run("eval", joined / ours["folder"][2], "--n", "4")[0] == 0
    status, _, err = run("eval", folder)
    assert status == 2
    assert "name one of its members" in sentence(err)

    table = load_runs(joined)
    assert table["seed"].tolist() == [0, 1, 2]
    assert table["recall_seen"].tolist() == ours["recall_seen"].tolist()
    assert table["run"][2] == ours["folder"][2]

    before = (folder / "row.json").stat().st_mtime_ns
    status, _, err = run(*command, "seed=0:4", "--out", joined)
    assert status == 0
    assert err.splitlines()[0] == "3 done, 0 running, 1 waiting, 0 failed"
    assert (folder / "row.json").stat().st_mtime_ns == before, "only the new run is trained"
    again = pd.read_csv(joined / "runs.csv")
    assert again["seed"].tolist() == [0, 1, 2, 3]

    file.write_text(yaml.safe_dump(base | {"lr": 1e-3}))
    status, _, err = run(*command, "seed=0:3", "--out", joined)
    assert status == 2
    assert "lr=0.008, not 0.001" in sentence(err), "rows of other settings are not passed off"


def test_an_axis_given_twice_is_refused(run, world: str, tmp_path: Path) -> None:
    command = ("sweep", "memory", f"database={world}", "lr=1e-3", "lr=2e-3", "--out", tmp_path)
    status, _, err = run(*command)
    assert status == 2
    assert "lr is given twice" in sentence(err)


def test_status_of_what_is_no_sweep(run, tmp_path: Path) -> None:
    status, _, err = run("sweep", "status", tmp_path)
    assert status == 2
    assert "holds no sweep" in sentence(err)


def test_a_terminal_sees_a_table_of_what_runs(tmp_path: Path) -> None:
    for name, row in (("one", {"step": 1_200, "loss": 0.25}), ("two", None)):
        (tmp_path / name).mkdir()
        if row:
            (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with Board(tmp_path, console) as board:
        board.show({"one": "running", "two": "running", "three": "waiting"})
    shown = console.file.getvalue()
    assert "step 1,200, loss 0.250" in shown
    assert "it has begun" in shown
    assert "0 done, 2 running, 1 waiting, 0 failed" in shown
    assert "three" not in shown
