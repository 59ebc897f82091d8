"""A run that is killed in the midst of writing its files goes on to the same bits."""

import subprocess
import sys
from pathlib import Path

# Runs in a process of its own, which may fork: torch is loaded once for dozens of killed runs.
DRIVER = '''
import dataclasses, os, pathlib, signal, sys, warnings
import torch
from itl_agents.nanollama import load_model
from itl_train.checkpoint import checkpoints
from itl_train.memory import MemoryConfig, train_memory

world, root = sys.argv[1], pathlib.Path(sys.argv[2])
torch.set_num_threads(1)
config = MemoryConfig(
    database=world, mode="in-weight", n_people=8, n_unseen=0, d_model=8, n_layers=1, n_heads=2,
    d_hidden=8, max_length=128, batch_size=2, n_steps=4, checkpoint_every=2, keep_checkpoints=1,
    log_every=1, n_evaluate=1, n_threads=1,
)
WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def weights(out):
    return list(load_model(checkpoints(out / "checkpoints")[-1]).parameters())


def in_child(out, kill_at):
    """Train in a fork that kills itself before its kill_at-th operation on the run's files."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def watch(event, arguments):
            nonlocal seen
            if event in WATCHED and str(out) in str(arguments[0]):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        train_memory(config, out)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


train_memory(config, root / "whole")
expected = weights(root / "whole")
warnings.simplefilter("error")  # a broken checkpoint that is passed over would be one, too
kill_at = 1
while in_child(root / str(kill_at), kill_at):
    out = root / str(kill_at)
    train_memory(config, out)
    assert all(map(torch.equal, weights(out), expected)), f"killed at operation {kill_at}"
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-0000004"]
    kill_at += 1
print(kill_at)
'''


def test_a_kill_at_any_file_operation_of_a_run_costs_nothing(world: str, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    run = subprocess.run(
        [sys.executable, driver, world, tmp_path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 30, "two checkpoints of a dozen operations each, and more"
