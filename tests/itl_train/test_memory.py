"""A training run: it learns, it resumes to the same bits, and it refuses what cannot work."""

import dataclasses
import json
import multiprocessing
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from itl_agents.nanollama import ByteTokenizer, load_model
from itl_env import FactDatabase, people
from itl_env.errors import ConfigError, DatabaseError, ITLError
from itl_train import checkpoint
from itl_train.batches import BatchPlan
from itl_train.checkpoint import checkpoints
from itl_train.memory import MemoryConfig, MemoryRun, Tasks, train_memory
from itl_train.sources import expert_dialogues


def tiny(world: str, **changes: object) -> MemoryConfig:
    base = MemoryConfig(
        database=world,
        n_people=40,
        n_unseen=10,
        d_model=16,
        n_layers=2,
        n_heads=2,
        d_hidden=32,
        batch_size=4,
        n_steps=30,
        log_every=5,
        checkpoint_every=10,
        evaluate_every=1000,
        n_evaluate=5,
        n_threads=1,
    )
    return dataclasses.replace(base, **changes)


def weights(out: Path) -> list[torch.Tensor]:
    return list(load_model(checkpoints(out / "checkpoints")[-1]).state_dict().values())


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("mode", ["in-tool", "in-weight"])
def test_the_loss_falls(world: str, tmp_path: Path, mode: str, optimizer: str) -> None:
    config = tiny(world, mode=mode, optimizer=optimizer, n_steps=80)
    losses = []
    train_memory(config, tmp_path, lambda row: losses.append(row.get("loss")))
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < 0.7 * losses[0]


def test_a_small_model_memorises_a_few_people(world: str, tmp_path: Path) -> None:
    config = tiny(
        world, mode="in-weight", n_people=4, n_unseen=20, d_model=32, n_steps=250, batch_size=16
    )
    last = train_memory(dataclasses.replace(config, n_evaluate=16), tmp_path)
    assert last["recall_seen"] == 1.0
    assert last["recall_unseen"] < 0.5
    assert (last["asked_seen"], last["asked_unseen"]) == (16, 16), "all four facts of four"


def test_a_run_folder_tells_what_ran(world: str, tmp_path: Path) -> None:
    config = tiny(world)
    train_memory(config, tmp_path)
    there = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert there == {**dataclasses.asdict(config), "sources": []}
    assert "torch" in json.loads((tmp_path / "versions.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [5, 10, 15, 20, 25, 30]
    assert [row["step"] for row in rows if "recall_seen" in row] == [30]
    kept = checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in kept] == ["step-0000020", "step-0000030"]
    llama = AutoModelForCausalLM.from_pretrained(kept[-1])
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.allclose(load_model(kept[-1])(ids), llama(ids).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    world: str, tmp_path: Path, dtype: str
) -> None:
    config = tiny(world, dtype=dtype)
    train_memory(config, tmp_path / "whole")

    def interrupt(row: dict) -> None:
        if row["step"] == 15:  # between two checkpoints
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_memory(config, tmp_path / "broken", interrupt)
    assert MemoryRun(config, tmp_path / "broken").step == 15
    train_memory(config, tmp_path / "broken")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    whole, broken = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    )
    for row in (*whole, *broken):
        for cost in ("tokens_per_s", "tflops", "mfu", "memory_mb"):
            row.pop(cost, None)
    assert whole == broken


def test_a_compiled_run_takes_the_same_steps_and_goes_on_to_the_same_bits(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(world, compile=True, n_layers=1, n_steps=6, log_every=2)
    train_memory(config, tmp_path / "whole")
    plain = train_memory(dataclasses.replace(config, compile=False), tmp_path / "plain")
    assert plain["step"] == 6
    pairs = zip(weights(tmp_path / "whole"), weights(tmp_path / "plain"), strict=True)
    assert all((a - b).norm() < 0.02 * b.norm() for a, b in pairs)

    def interrupt(row: dict) -> None:
        if row["step"] == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_memory(config, tmp_path / "broken", interrupt)
    train_memory(config, tmp_path / "broken")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="compile needs a C"):
        train_memory(config, tmp_path / "refused")


def test_a_scheduler_finds_the_run_saved_and_may_let_it_go_on(world: str, tmp_path: Path) -> None:
    config = tiny(world)
    numbers = (signal.SIGTERM, signal.SIGUSR2)  # of a preemption; submitit passes over the first
    handled: list[tuple[int, int]] = []

    def interrupt(row: dict) -> None:
        if row["step"] == 15 and "loss" in row:  # between two checkpoints
            for number in numbers:
                signal.raise_signal(number)

    def handler(number: int, frame: object) -> None:
        saved = checkpoints(tmp_path / "told" / "checkpoints")[-1]
        handled.append((number, int(saved.name.removeprefix("step-"))))

    before = [signal.signal(number, handler) for number in numbers]
    try:
        last = train_memory(config, tmp_path / "told", interrupt)
    finally:
        for number, its in zip(numbers, before, strict=True):
            signal.signal(number, its)
    assert handled == [(number, 15) for number in numbers], "each once, and after the checkpoint"
    assert last == train_memory(config, tmp_path / "whole")
    assert same(weights(tmp_path / "told"), weights(tmp_path / "whole"))


def test_training_stops_at_the_recall_that_is_asked_for(world: str, tmp_path: Path) -> None:
    config = tiny(
        world, mode="in-weight", n_people=4, n_unseen=0, d_model=32, batch_size=16, n_steps=400,
        evaluate_every=10, stop_at=0.5,
    )  # fmt: skip
    run = MemoryRun(config, tmp_path)
    last = run.train()
    assert run.finished
    assert last["recall_seen"] >= 0.5
    assert run.step == last["step"] < 400
    rows = run.folder.rows()
    assert all(row["recall_seen"] < 0.5 for row in rows[:-1] if "recall_seen" in row)
    again = MemoryRun(config, tmp_path)
    assert again.finished
    assert again.train() == last


def test_the_published_recipe_pads_every_row(world: str, tmp_path: Path) -> None:
    published = MemoryConfig.of("published", database=world, n_people=40, n_unseen=0)
    assert (published.optimizer, published.lr, published.n_steps) == ("adamw", 1e-3, 100_000)
    assert published.model_config().n_parameters == 32 * 64**2 + 525 * 64
    task = Tasks.open(published).seen
    plan = BatchPlan(expert_dialogues(task, ByteTokenizer()), 128, 0, published.pad_to)
    batches = [plan.batch(step) for step in range(3)]
    assert [batch.input_ids.shape for batch in batches] == [(128, 256)] * 3
    trimmed = plan.dialogues.batch(plan.rows(2))
    assert torch.equal(trimmed.targets, batches[-1].targets)


def test_a_killed_run_goes_on_to_the_same_bits(world: str, tmp_path: Path) -> None:
    """SIGKILL at several moments, whatever the run is doing then."""
    config = tiny(world, n_steps=300, checkpoint_every=7)
    train_memory(config, tmp_path / "whole")
    # Forks of a process that has loaded torch once.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["itl_train.memory", "torch._dynamo"])
    for lines in (2, 13, 4):
        ours, its = processes.Pipe(duplex=False)
        run = processes.Process(target=train_memory, args=(config, tmp_path / "killed", its.send))
        run.start()
        its.close()
        for _ in range(lines):
            ours.recv()
        time.sleep(0.003 * lines)
        run.kill()
        run.join()
        assert run.exitcode == -signal.SIGKILL, "it was not over yet"
    assert 0 < MemoryRun(config, tmp_path / "killed").step < 300
    train_memory(config, tmp_path / "killed")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_a_broken_checkpoint_is_passed_over(world: str, tmp_path: Path) -> None:
    config = tiny(world)
    train_memory(config, tmp_path)
    expected = weights(tmp_path)
    last = checkpoints(tmp_path / "checkpoints")[-1]
    names = sorted(path.name for path in last.iterdir())
    assert {"training.pt", "model.safetensors", "digests.json"} <= set(names)
    for name in names:
        content = bytearray((last / name).read_bytes())
        middle = len(content) // 2
        flipped = bytes([*content[:middle], content[middle] ^ 1, *content[middle + 1 :]])
        for broken in (bytes(content[:middle]), flipped):
            (last / name).write_bytes(broken)
            with pytest.warns(UserWarning, match="an earlier checkpoint is used"):
                run = MemoryRun(config, tmp_path)
            assert run.step == 20, name
            run.train()
            assert same(weights(tmp_path), expected)


def test_a_folder_is_trained_in_by_one_process(world: str, tmp_path: Path) -> None:
    config = tiny(world)
    run = MemoryRun(config, tmp_path)
    tried: list[str] = []

    def meanwhile(row: dict[str, object]) -> None:
        if not tried:
            with pytest.raises(ITLError, match="Another process is training in") as refused:
                MemoryRun(config, tmp_path)
            tried.append(str(refused.value))

    run.train(meanwhile)
    assert tried
    assert MemoryRun(config, tmp_path).finished, "when it has ended, others may"


def test_a_checkpoint_of_unknown_digests_is_taken_as_it_is(world: str, tmp_path: Path) -> None:
    config = tiny(world)
    train_memory(config, tmp_path)
    last = checkpoints(tmp_path / "checkpoints")[-1]
    (last / "digests.json").unlink()
    assert MemoryRun(config, tmp_path).finished
    (last / "training.pt").write_bytes(b"no state")
    with pytest.raises(ITLError, match=r"Cannot read .*training.pt"):
        MemoryRun(config, tmp_path)
    assert (last / "training.pt").exists(), "nobody knows that it is not as it was written"


def test_a_whole_checkpoint_that_cannot_be_read_now_is_kept(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(world)
    train_memory(config, tmp_path)

    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", no_memory)
        with pytest.raises(ITLError, match=r"Cannot read .*training.pt: out of memory"):
            MemoryRun(config, tmp_path)
    assert MemoryRun(config, tmp_path).step == config.n_steps


def test_a_kill_while_a_broken_checkpoint_is_cleared_away_costs_nothing(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(world, n_steps=20, checkpoint_every=10)
    train_memory(config, tmp_path)
    (last,) = (tmp_path / "checkpoints").glob("step-0000020")
    (last / "model.safetensors").write_bytes(b"")

    def kill(folder: Path, *_: object, **__: object) -> None:
        if folder.exists():
            (folder / "digests.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", kill)
        with pytest.warns(UserWarning, match="broken"), pytest.raises(KeyboardInterrupt):
            MemoryRun(config, tmp_path)
    run = MemoryRun(config, tmp_path)  # which would fail, took it the rest for a whole one
    assert run.step == 10
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000010"]


def test_the_only_checkpoint_may_be_broken(world: str, tmp_path: Path) -> None:
    config = tiny(world, n_steps=10)
    train_memory(config, tmp_path / "whole")
    train_memory(config, tmp_path / "broken")
    (only,) = checkpoints(tmp_path / "broken" / "checkpoints")
    (only / "model.safetensors").write_bytes(b"cut off")
    with pytest.warns(UserWarning, match="whole") as warned:
        train_memory(config, tmp_path / "broken")
    first, second, third = (str(each.message) for each in warned if each.category is UserWarning)
    assert "model.safetensors is not as it was written" in first
    assert second == f"None of the checkpoints in {tmp_path / 'broken' / 'checkpoints'} is whole."
    assert third == "Training begins anew."
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_seeds_drive_initialisation_and_data(world: str, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        train_memory(tiny(world, seed=seed, n_steps=10), tmp_path / name)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "again"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_a_finished_run_is_not_run_again(world: str, tmp_path: Path) -> None:
    config = tiny(world)
    first = train_memory(config, tmp_path)
    rows: list[dict] = []
    assert train_memory(config, tmp_path, rows.append) == first
    assert rows == []


def test_a_loss_that_is_not_finite_stops_the_run(world: str, tmp_path: Path) -> None:
    run = MemoryRun(tiny(world), tmp_path)
    with torch.no_grad():
        run.model.head[0, 0] = float("nan")
    with pytest.raises(ITLError, match="loss is nan at step 0"):
        run.train()


def test_weights_that_are_not_finite_are_never_saved(world: str, tmp_path: Path) -> None:
    config = tiny(world, checkpoint_every=1, lr=1e30, optimizer="adamw", n_warmup=0)
    with pytest.raises(ITLError, match=r"not finite after step \d+|loss is \w+ at step"):
        train_memory(config, tmp_path)
    for path in checkpoints(tmp_path / "checkpoints"):
        assert all(w.isfinite().all() for w in load_model(path).parameters())


def test_a_disk_that_takes_no_more_costs_nothing(world: str, tmp_path: Path) -> None:
    config = tiny(world)
    train_memory(config, tmp_path / "whole")

    def interrupt(row: dict) -> None:
        if row["step"] == 10:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_memory(config, tmp_path / "full", interrupt)
    kept = {path.name for path in (tmp_path / "full" / "checkpoints").iterdir()}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system then refuses to let any file grow beyond it, as a full disk would.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ITLError, match=r"Cannot write the checkpoint .*; the one before it"):
            train_memory(config, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in (tmp_path / "full" / "checkpoints").iterdir()} == kept
    assert MemoryRun(config, tmp_path / "full").step == 10
    train_memory(config, tmp_path / "full")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "full"))


def test_a_resumed_run_keeps_its_number_of_threads(world: str, tmp_path: Path) -> None:
    run = MemoryRun(tiny(world, n_threads=2), tmp_path)
    run.train()
    assert torch.get_num_threads() == 1, "a run gives back the threads it took"
    assert MemoryRun(tiny(world, n_threads=2), tmp_path).n_threads == 2
    automatic = MemoryRun(tiny(world, n_threads=0, n_steps=5), tmp_path / "automatic")
    automatic.train()
    torch.set_num_threads(2)
    try:
        assert MemoryRun(automatic.config, tmp_path / "automatic").n_threads == 1
    finally:
        torch.set_num_threads(1)


def test_a_database_that_changed_is_noticed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'facts.db'}"
    FactDatabase.create(url, people(60, seed=1)).close()

    def interrupt(row: dict) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_memory(tiny(url), tmp_path / "run", interrupt)
    FactDatabase.create(url, people(60, seed=2), replace=True).close()
    with pytest.raises(ConfigError, match="has changed since the run"):
        train_memory(tiny(url), tmp_path / "run")


def test_bad_configurations_fail_before_any_work(world: str, tmp_path: Path) -> None:
    bad = {
        "does not divide": {"n_heads": 3},
        "holds 400 people, fewer than 405: 395 to train on": {"n_people": 395},
        "n_steps is 0": {"n_steps": 0},
        "lr is -1": {"lr": -1.0},
        "shorter than": {"max_length": 64},
        "horizon is 5, fewer than the 30 steps": {"horizon": 5},
        "optimizer is 'sgd'; choose among muon, adamw": {"optimizer": "sgd"},
        "n_people is 10.0; it must be of type int": {"n_people": 10.0},
        "n_layers is True": {"n_layers": True},
        "zero_residual is 'maybe'; it must be of type bool": {"zero_residual": "maybe"},
        "d_hidden is 'x'; it must be of type int or null": {"d_hidden": "x"},
        "knows in-weight dialogues only": {"tokenizer": "used-bytes"},
        "but n_unseen is 0": {"stop_at": 0.5, "stop_on": "unseen", "n_unseen": 0},
    }
    for said, changes in bad.items():
        with pytest.raises(ConfigError, match=said):
            MemoryRun(tiny(world, **changes), tmp_path / "bad")
    with pytest.raises(DatabaseError):
        MemoryRun(tiny("sqlite:////nowhere/facts.db"), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_folder_with_another_run_is_left_alone(world: str, tmp_path: Path) -> None:
    train_memory(tiny(world), tmp_path)
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"holds a run with lr=0.004, not 0.001"):
        train_memory(tiny(world, lr=1e-3), tmp_path)
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == before
