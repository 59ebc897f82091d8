"""Several processes train as one does; started as `accelerate launch` and torchrun start them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.cli import main
from itl_agents.nanollama import load_model
from itl_train.checkpoint import checkpoints

SETTINGS = (
    "--n-people 40 --n-unseen 10 --d-model 16 --n-layers 2 --n-heads 2 --d-hidden 32 "
    "--batch-size 8 --n-steps 12 --log-every 4 --n-threads 1 --n-evaluate 5 --checkpoint-every 6 "
    "--clip 0.5 --sources in-tool biographies --trackers tensorboard --probe-every 6"
)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ACCELERATE = (
    "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--main_process_port", "0", "--num_processes",
)  # fmt: skip


def command(world: str, out: Path, settings: str = SETTINGS) -> list[str]:
    return ["train", "memory", *settings.split(), "--database", world, "--out", str(out)]


def train(
    world: str,
    out: Path,
    n_processes: int,
    by: Sequence[str] = TORCHRUN,
    settings: str = SETTINGS,
) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, *by, str(n_processes), "-m", "benchmarks.cli"]
    return subprocess.run(
        [*launch, *command(world, out, settings)], capture_output=True, text=True, timeout=120
    )


def test_two_processes_take_the_steps_of_one(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(command(world, one)) == 0
    done = train(world, two, 2, ACCELERATE)
    assert done.returncode == 0, done.stderr
    for said in (capsys.readouterr().out, done.stdout):
        assert said.count("the run is in") == 1, "only one process speaks"
    rows = [
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (one, two)
    ]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for alone, together in zip(*rows, strict=True):
        if "loss" in alone:
            assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
            assert together["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-3)
    models = [load_model(checkpoints(out / "checkpoints")[-1]) for out in (one, two)]
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(a, b, atol=2e-3)

    again = train(world, two, 2, TORCHRUN)
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stdout


def test_processes_stop_together_once_the_facts_are_known(world: str, tmp_path: Path) -> None:
    """Only the first one asks; were the other not told, it would wait for ever."""
    done = train(
        world, tmp_path, 2,
        settings="--mode in-weight --n-people 2 --n-unseen 0 --d-model 32 --n-layers 1 --n-heads 2 "
        "--batch-size 8 --n-steps 2000 --evaluate-every 25 --stop-at 0.5 --n-threads 1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["recall_seen"] >= 0.5
    assert rows[-1]["step"] < 2000


def test_a_batch_that_cannot_be_shared_is_refused(world: str, tmp_path: Path) -> None:
    done = train(world, tmp_path, 2, settings=SETTINGS.replace("batch-size 8", "batch-size 7"))
    assert done.returncode != 0
    assert "batch_size 7 does not divide by the 2 processes" in done.stderr
    assert list(tmp_path.iterdir()) == []
