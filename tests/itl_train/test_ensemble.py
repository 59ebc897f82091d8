"""Ensembles in their folders: each member is a run of its own, and a kill costs nothing."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmarks
from itl_agents.nanollama import NanoLlama, load_model
from itl_env import FactDatabase, people
from itl_env.errors import ConfigError, ITLError
from itl_train.checkpoint import checkpoints
from itl_train.ensemble import EnsembleRun, fastest_size, may_join
from itl_train.memory import MemoryRun
from itl_train.memory_config import MemoryConfig
from itl_train.run_folder import RunFolder

pytestmark = pytest.mark.xdist_group("ensemble")  # so that what tests share is trained once


@pytest.fixture(scope="module")
def other_world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of other people."""
    path = tmp_path_factory.mktemp("world") / "others.db"
    FactDatabase.create(f"sqlite:///{path}", people(40, seed=99)).close()
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def configs(world: str, other_world: str) -> list[MemoryConfig]:
    first = MemoryConfig(
        database=world, mode="in-weight", n_people=4, n_unseen=8, d_model=32, n_layers=2,
        n_heads=2, d_hidden=32, batch_size=16, n_steps=120, log_every=20, checkpoint_every=30,
        n_threads=1,
    )  # fmt: skip
    return [
        first,
        dataclasses.replace(first, seed=1, lr=6e-3, database=other_world),
        dataclasses.replace(first, seed=2, n_steps=3),
    ]


@pytest.fixture(scope="module")
def whole(configs: list[MemoryConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble that nobody disturbed."""
    folder = tmp_path_factory.mktemp("ensemble") / "whole"
    EnsembleRun(configs, folder).train()
    return folder


@pytest.fixture(scope="module")
def stopping(configs: list[MemoryConfig]) -> list[MemoryConfig]:
    """Two that stop once they know their facts; the second learns too slowly for that."""
    return [
        dataclasses.replace(config, stop_at=0.9, evaluate_every=10, log_every=10, lr=lr)
        for config, lr in zip(configs[:2], (4e-3, 1e-4), strict=True)
    ]


@pytest.fixture(scope="module")
def stopped(stopping: list[MemoryConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble one of whose members stopped before the other."""
    folder = tmp_path_factory.mktemp("ensemble") / "stopped"
    EnsembleRun(stopping, folder).train()
    return folder


def weights(run: Path) -> list[torch.Tensor]:
    return list(load_model(checkpoints(run / "checkpoints")[-1]).parameters())


def logged(run: Path) -> list[dict[str, float]]:
    """The lines about training in a run's metrics."""
    return [row for row in RunFolder(run).rows() if "loss" in row]


def assert_as_alone(found: list[torch.Tensor], alone: MemoryRun) -> None:
    """Weights of a member are those of the run alone, within a part of the way that they went."""
    config = alone.config
    begun = NanoLlama(
        config.model_config(), config.initial_seed, zero_residual=config.zero_residual
    ).parameters()
    for start, a, b in zip(begun, found, alone.model.parameters(), strict=True):
        assert (a - b).norm() < 2e-3 * (b - start).norm()


def assert_same_members(one: Path, other: Path, n: int) -> None:
    """Of two ensembles, to the last bit."""
    for index in range(n):
        pairs = zip(*(weights(run / f"member-{index}") for run in (one, other)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), index


def test_every_member_is_the_run_it_would_be_alone(
    configs: list[MemoryConfig], whole: Path, tmp_path: Path
) -> None:
    found = EnsembleRun(configs, whole).train()  # it is finished, and says how it ended
    for index, config in enumerate(configs):
        alone = MemoryRun(config, tmp_path / f"alone-{index}")
        last = alone.train()
        assert found[index] == last
        assert_as_alone(weights(whole / f"member-{index}"), alone)
        mine, theirs = (logged(run) for run in (whole / f"member-{index}", alone.folder.path))
        assert len(mine) == max(1, config.n_steps // config.log_every)
        assert [row["step"] for row in mine] == [row["step"] for row in theirs]
        for a, b in zip(mine, theirs, strict=True):
            assert {name: a[name] for name in ("lr", "exposures")} == {
                name: b[name] for name in ("lr", "exposures")
            }
            for name in ("loss", "gradient_norm"):
                assert a[name] == pytest.approx(b[name], rel=2e-3)
    costs = logged(whole)[-1]
    assert costs["step"] == 120
    assert min(costs[name] for name in ("tokens_per_s", "tflops", "mfu", "memory_mb")) > 0
    assert found[0]["recall_seen"] == found[1]["recall_seen"] == 1.0, "two learn"
    assert found[2]["recall_seen"] < 1.0, "the third stops early"


def test_an_interrupted_ensemble_goes_on_to_the_same_bits(
    configs: list[MemoryConfig], whole: Path, tmp_path: Path
) -> None:
    ended = EnsembleRun(configs, whole).train()

    def interrupt(row: dict) -> None:
        if row["step"] == 40:  # between two checkpoints
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        EnsembleRun(configs, tmp_path / "broken").train(interrupt)
    run = EnsembleRun(configs, tmp_path / "broken")
    assert run.step == 40
    assert run.train() == ended
    assert_same_members(whole, tmp_path / "broken", 3)
    again = EnsembleRun(configs, tmp_path / "broken")
    assert again.step == 120
    assert again.train() == ended


def test_a_member_that_knows_enough_stops_and_the_others_go_on(
    stopping: list[MemoryConfig], stopped: Path, tmp_path: Path
) -> None:
    quick, slow = EnsembleRun(stopping, stopped).train()
    assert quick["recall_seen"] >= 0.9
    assert quick["step"] < slow["step"]
    alone = MemoryRun(stopping[0], tmp_path / "alone")
    assert alone.train() == quick
    (kept,) = checkpoints(stopped / "member-0" / "checkpoints")
    assert kept.name == f"step-{quick['step']:07d}"
    assert_as_alone(list(load_model(kept).parameters()), alone)  # they stayed as they were then


def test_an_ensemble_that_is_killed_goes_on_to_the_same_bits(
    configs: list[MemoryConfig], whole: Path, tmp_path: Path
) -> None:
    script = (
        "import os, pathlib, signal, sys, yaml\n"
        "from itl_train.ensemble import EnsembleRun\n"
        "from itl_train.memory_config import MemoryConfig\n"
        "whole, killed = map(pathlib.Path, sys.argv[1:])\n"
        "def watch(event, arguments):\n"
        "    if event == 'os.rename' and str(killed / 'checkpoints') in str(arguments[0]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "def from_60(row):\n"
        "    if row['step'] == 60:\n"
        "        sys.addaudithook(watch)\n"
        "settings = yaml.safe_load((whole / 'config.yaml').read_text())['members']\n"
        "EnsembleRun([MemoryConfig(**own) for own in settings], killed).train(from_60)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, whole, tmp_path / "killed"], check=False)
    assert ended.returncode == -signal.SIGKILL
    names = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert len(names) == 2, "that of step 60 is there, but has not its name yet"
    run = EnsembleRun(configs, tmp_path / "killed")
    assert run.step == 30
    assert run.train() == EnsembleRun(configs, whole).train()
    assert_same_members(whole, tmp_path / "killed", 3)
    for index in range(3):  # lines of step 40 hold losses from before the checkpoint, too
        mine, theirs = (logged(run / f"member-{index}") for run in (whole, tmp_path / "killed"))
        assert mine == theirs


def test_an_ensemble_goes_on_to_the_same_bits_after_a_member_stopped(
    stopping: list[MemoryConfig], stopped: Path, tmp_path: Path
) -> None:
    ended = EnsembleRun(stopping, stopped).train()
    first, last = (row["step"] for row in ended)
    assert first + 10 < last

    def interrupt(row: dict) -> None:
        if row["step"] == first + 10:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        EnsembleRun(stopping, tmp_path / "broken").train(interrupt)
    assert EnsembleRun(stopping, tmp_path / "broken").train() == ended
    assert_same_members(stopped, tmp_path / "broken", 2)


def test_the_size_of_ensembles_is_one_that_was_measured_to_be_fast() -> None:
    results = Path(benchmarks.__file__).parent / "results" / "ensembles-one-thread"
    rows = json.loads((results / "ensembles.json").read_text())["rows"]
    shapes = {(row["batch_size"], row["d_model"]) for row in rows}
    assert len(shapes) == 8
    for batch_size, d in shapes:
        gains = {
            row["members"]: row["ratio"]
            for row in rows
            if (row["batch_size"], row["d_model"]) == (batch_size, d)
        } | {1: 1.0}  # alone means no ensemble
        config = MemoryConfig(
            database="", mode="in-weight", n_heads=2, batch_size=batch_size, d_model=d
        )
        assert gains[fastest_size(config)] > 0.85 * max(gains.values()), (batch_size, d)
        longer = dataclasses.replace(config, mode="in-tool", style="fenced")
        assert fastest_size(longer) <= fastest_size(config)


def test_runs_of_other_lengths_do_not_wait_for_one_another(world: str) -> None:
    config = MemoryConfig(database=world, n_steps=100)
    assert may_join(config) == may_join(dataclasses.replace(config, seed=1, lr=1e-3))
    assert may_join(config) != may_join(dataclasses.replace(config, n_steps=100_000))


def test_an_ensemble_notices_a_database_that_changed(
    configs: list[MemoryConfig], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'facts.db'}"
    FactDatabase.create(url, people(20, seed=1)).close()
    own = [dataclasses.replace(config, database=url) for config in configs[:2]]

    def interrupt(row: dict) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        EnsembleRun(own, tmp_path / "run").train(interrupt)
    FactDatabase.create(url, people(20, seed=2), replace=True).close()
    with pytest.raises(ConfigError, match="has changed since the ensemble"):
        EnsembleRun(own, tmp_path / "run")


def test_a_loss_that_is_not_finite_names_its_member(
    configs: list[MemoryConfig], tmp_path: Path
) -> None:
    wild = dataclasses.replace(configs[1], lr=1e30)
    with pytest.raises(ITLError, match=r"The loss of member 1 is (nan|inf) at step \d"):
        EnsembleRun([configs[0], wild], tmp_path / "run").train()


def test_a_member_is_asked_but_not_trained_on(configs: list[MemoryConfig], tmp_path: Path) -> None:
    short = [dataclasses.replace(config, n_steps=2) for config in configs[:2]]
    EnsembleRun(short, tmp_path / "run").train()
    member = tmp_path / "run" / "member-0"
    before = weights(member)
    with pytest.raises(ConfigError, match="was trained in an ensemble"):
        MemoryRun(short[0], member)
    assert all(torch.equal(a, b) for a, b in zip(weights(member), before, strict=True))


def test_a_folder_is_trained_in_by_one_ensemble(
    configs: list[MemoryConfig], tmp_path: Path
) -> None:
    short = [dataclasses.replace(config, n_steps=2, log_every=1) for config in configs[:2]]
    tried: list[int] = []

    def meanwhile(row: dict[str, object]) -> None:
        with pytest.raises(ITLError, match="Another process is training in"):
            EnsembleRun(short, tmp_path)
        tried.append(1)

    EnsembleRun(short, tmp_path).train(meanwhile)
    assert tried
    assert EnsembleRun(short, tmp_path).finished, "when it has ended, others may"


def test_members_that_do_not_fit_together_are_refused(
    configs: list[MemoryConfig], tmp_path: Path
) -> None:
    other = dataclasses.replace(configs[0], batch_size=8)
    with pytest.raises(ConfigError, match="Member 1 has batch_size=8, the first 16"):
        EnsembleRun([configs[0], other], tmp_path / "run")
    with pytest.raises(ConfigError, match="at least one member"):
        EnsembleRun([], tmp_path / "run")
    assert not (tmp_path / "run").exists()
