"""Watching a run: costs are counted right, layers are looked into, traces and trackers are kept."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from itl_agents import nanollama
from itl_agents.nanollama import ByteTokenizer, NanoLlama
from itl_env import FactDatabase, RecallTask
from itl_env.errors import ConfigError
from itl_train.batches import BatchPlan, stacked
from itl_train.memory import MemoryConfig, train_memory
from itl_train.sources import expert_dialogues
from itl_train.step import learning_rates, make_optimizers, train_step
from itl_train.watch import Probe, matmul_rate, step_flops
from itl_train.watch_config import WatchConfig


def tiny(world: str) -> MemoryConfig:
    return MemoryConfig(
        database=world, n_people=20, n_unseen=0, d_model=32, n_layers=2, n_heads=2, d_hidden=64,
        batch_size=8, n_steps=12, log_every=4, checkpoint_every=6, n_evaluate=2, n_threads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plan(world: str) -> BatchPlan:
    task = RecallTask(FactDatabase(world), keys=slice(0, 20))
    return BatchPlan(expert_dialogues(task, ByteTokenizer()), 8, seed=0)


def test_operations_are_those_that_torch_counts(world: str, plan: BatchPlan) -> None:
    model = NanoLlama(tiny(world).model_config())
    batch = plan.batch(0)
    # torch counts the products of plain attention, not those of its fused kernel on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(batch.input_ids, positions=batch.positions)
        torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    by_operation = counter.get_flop_counts()["Global"]
    counted = {str(operation): n for operation, n in by_operation.items()}
    # Plain attention multiplies all pairs of tokens, of which causal attention needs half.
    needed = counted["aten.mm"] + counted["aten.bmm"] / 2
    assert counted["aten.bmm"] > 0.1 * counted["aten.mm"], "else attention would not be tested"
    ours = step_flops(model.config, batch)
    assert ours == pytest.approx(needed, rel=0.03), "torch counts the little padding there is too"


def test_operations_of_an_ensemble_are_those_of_its_members(world: str, plan: BatchPlan) -> None:
    shape = tiny(world).model_config()
    batches = [plan.batch(step) for step in range(3)]
    assert len({len(batch.targets) for batch in batches}) > 1, "else no targets would be padded"
    apart = sum(step_flops(shape, batch) for batch in batches)
    assert step_flops(shape, stacked(batches)) == pytest.approx(apart, rel=0.01)


@pytest.mark.parametrize("numbers", [10**9, 1])  # at once: the whole batch, or a row at a time
def test_a_probe_sees_what_flows(
    world: str, plan: BatchPlan, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nanollama.model, "NUMBERS_AT_ONCE", numbers)
    config = tiny(world)
    model = NanoLlama(config.model_config(), seed=1)
    batch = plan.batch(0)
    expected = float(model.embedding.detach()[batch.input_ids].square().mean().sqrt())
    stepped = train_step(
        model, make_optimizers(model, config), learning_rates(config, 0), batch,
        probe=Probe(), measure=True,
    )  # fmt: skip
    assert stepped.probed is not None
    seen, gradients = stepped.probed["activation_rms"], stepped.probed["gradient_norms"]
    assert seen["embedding"] == pytest.approx(expected)
    assert list(seen) == [
        "embedding",
        *(f"blocks.{i}{part}" for i in (0, 1) for part in (".attention", ".feed_forward", "")),
    ]
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    assert stepped.gradient_norm == pytest.approx(sum(g**2 for g in gradients.values()) ** 0.5)


def test_a_watched_run_trains_the_same_and_leaves_its_traces(world: str, tmp_path: Path) -> None:
    config, rows, watched = tiny(world), [], []
    train_memory(config, tmp_path / "plain", rows.append)
    watch = WatchConfig(probe_every=6, profile=2, peak_tflops=1.0, trackers=("tensorboard",))
    out = tmp_path / "watched"
    train_memory(config, out, watched.append, watch)
    costs = [row for row in watched if "mfu" in row]
    assert [row["loss"] for row in costs] == [row["loss"] for row in rows if "loss" in row]
    assert [row["step"] for row in watched if "activation_rms" in row] == [6, 12]
    for row in costs:
        assert row["mfu"] == pytest.approx(row["tflops"]), "of a peak of 1 TFLOP/s"
        assert row["tokens_per_s"] > 0
        assert row["memory_mb"] > 50

    trace = json.loads((out / "profile" / "trace.json").read_text())
    assert any("_scaled_dot_product" in str(event.get("name")) for event in trace["traceEvents"])
    assert "aten::mm" in (out / "profile" / "operations.txt").read_text()
    # Files end in how many the process has written before; those of settings lie one level deeper.
    files = (out / "trackers").rglob("events.out.tfevents.*")
    events = min(files, key=lambda file: len(file.parts))
    accumulator = EventAccumulator(str(events.parent)).Reload()
    logged = [event.value for event in accumulator.Scalars("loss")]
    assert logged == pytest.approx([row["loss"] for row in costs])
    assert "activation_rms/blocks.1" in accumulator.Tags()["scalars"]
    recalls = [(row["step"], row["recall_seen"]) for row in watched if "recall_seen" in row]
    assert recalls[-1][0] == 12
    assert [(e.step, e.value) for e in accumulator.Scalars("recall_seen")] == recalls


def test_a_run_goes_on_under_another_watch(world: str, tmp_path: Path) -> None:
    def stop(row: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_memory(tiny(world), tmp_path, stop)
    rows: list[dict] = []
    train_memory(tiny(world), tmp_path, rows.append, WatchConfig(probe_every=12))
    assert [row["step"] for row in rows if "activation_rms" in row] == [12]


def test_a_machine_multiplies_at_some_rate() -> None:
    assert 1e8 < matmul_rate("cpu", torch.float32, size=256) < 1e15


def test_bad_watches_are_refused(world: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="profile is -1"):
        WatchConfig(profile=-1)
    with pytest.raises(ConfigError, match="The tracker 'nothing' is not installed; install it, or"):
        train_memory(tiny(world), tmp_path / "run", watch=WatchConfig(trackers=("nothing",)))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError):
        dataclasses.replace(WatchConfig(), peak_tflops=-2.0)
