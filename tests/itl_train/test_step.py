"""A step of an ensemble is a step of each of its members."""

import dataclasses

import pytest
import torch

from itl_agents import nanollama
from itl_agents.nanollama import ByteTokenizer, NanoLlama
from itl_env import FactDatabase
from itl_train.batches import BatchPlan, stacked
from itl_train.memory_config import MemoryConfig
from itl_train.sources import expert_dialogues
from itl_train.step import ensemble_step, learning_rates, make_optimizers, train_step

SEEDS = (3, 4, 5)


@pytest.fixture(params=["muon", "adamw"])
def config(request: pytest.FixtureRequest, world: str) -> MemoryConfig:
    return MemoryConfig(
        database=world, n_people=40, n_unseen=0, d_model=16, n_layers=2, n_heads=2, d_hidden=24,
        batch_size=4, n_steps=20, n_warmup=2, optimizer=request.param, weight_decay=0.1,
    )  # fmt: skip


@pytest.fixture
def plans(config: MemoryConfig) -> list[BatchPlan]:
    """Members have their own people, and so dialogues of other lengths."""
    database = FactDatabase(config.database)
    tasks = [config.task(database, slice(40 * i, 40 * i + 40)) for i in range(len(SEEDS))]
    dialogues = [expert_dialogues(task, ByteTokenizer()) for task in tasks]
    return [BatchPlan(d, config.batch_size, s) for d, s in zip(dialogues, SEEDS, strict=True)]


def test_an_ensembles_logits_are_its_members(config: MemoryConfig, plans: list[BatchPlan]) -> None:
    ensemble = NanoLlama(config.model_config(), SEEDS)
    batches = [plan.batch(0) for plan in plans]
    batch = stacked(batches)
    assert ensemble.embedding.shape[0] == len(SEEDS)
    with torch.inference_mode():
        all_logits = ensemble(batch.input_ids)
        chosen = ensemble(batch.input_ids, positions=batch.positions)
        for i, (seed, own) in enumerate(zip(SEEDS, batches, strict=True)):
            alone = NanoLlama(config.model_config(), seed)
            for mine, theirs in zip(
                ensemble.member(i).parameters(), alone.parameters(), strict=True
            ):
                assert torch.equal(mine, theirs)
            assert torch.allclose(all_logits[i], alone(batch.input_ids[i]), atol=1e-5)
            n = len(own.positions)
            expected = alone(own.input_ids, positions=own.positions)
            assert torch.allclose(chosen[i, :n], expected, atol=1e-5)
            assert torch.equal(batch.targets[i, :n], own.targets)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_members_learn_as_they_would_alone(
    config: MemoryConfig, plans: list[BatchPlan], clip: float
) -> None:
    configs = [
        dataclasses.replace(config, lr=lr, muon_lr=5 * lr, n_steps=n)
        for lr, n in ((4e-3, 8), (2e-3, 4), (1e-3, 8))
    ]
    ensemble = NanoLlama(config.model_config(), SEEDS, zero_residual=True)
    together = make_optimizers(ensemble, config)
    steps = []
    for step in range(8):
        rates = torch.tensor([learning_rates(own, step) for own in configs]).T
        batch = stacked([plan.batch(step) for plan in plans])
        steps.append(ensemble_step(ensemble, together, list(rates), batch, clip=clip, measure=True))
    for i, (seed, own, plan) in enumerate(zip(SEEDS, configs, plans, strict=True)):
        alone = NanoLlama(config.model_config(), seed, zero_residual=True)
        begun = [weights.detach().clone() for weights in alone.parameters()]
        optimizers = make_optimizers(alone, own)
        for step in range(own.n_steps):
            rates_alone = learning_rates(own, step)
            batch = plan.batch(step)
            stepped = train_step(alone, optimizers, rates_alone, batch, clip=clip, measure=True)
            assert stepped.loss == pytest.approx(float(steps[step].losses[i]), abs=1e-4)
            norms = steps[step].gradient_norms
            assert norms is not None
            assert stepped.gradient_norm == pytest.approx(float(norms[i]), rel=1e-2)
        mine = ensemble.member(i)
        for start, a, b in zip(begun, mine.parameters(), alone.parameters(), strict=True):
            assert (a - b).norm() < 2e-3 * (b - start).norm(), "after steps of its own number"


def test_a_member_that_goes_wrong_leaves_the_others_alone(
    config: MemoryConfig, plans: list[BatchPlan]
) -> None:
    ensemble = NanoLlama(config.model_config(), SEEDS)
    with torch.no_grad():
        ensemble.head[1, 0, 0] = float("nan")
    rates = torch.full((2, len(SEEDS)), 1e-3)
    optimizers = make_optimizers(ensemble, config)
    for step in range(3):
        batch = stacked([plan.batch(step) for plan in plans])
        stepped = ensemble_step(ensemble, optimizers, list(rates), batch)
    assert stepped.losses.isfinite().tolist() == [True, False, True]


def test_a_horizon_makes_a_run_the_beginning_of_a_longer_one(config: MemoryConfig) -> None:
    whole = dataclasses.replace(config, n_steps=100)
    part = dataclasses.replace(config, n_steps=10, horizon=100)
    assert [learning_rates(part, step) for step in range(10)] == [
        learning_rates(whole, step) for step in range(10)
    ]


def test_a_step_in_parts_is_the_whole_step(
    config: MemoryConfig, plans: list[BatchPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for numbers in (10**9, 2 * 24 * 100):  # tokens of all rows at once, or of about one row
        monkeypatch.setattr(nanollama.model, "NUMBERS_AT_ONCE", numbers)
        model = NanoLlama(config.model_config(), 1, zero_residual=True)
        optimizers = make_optimizers(model, config)
        stepped = train_step(model, optimizers, (0.0, 0.0), plans[0].batch(0), measure=True)
        found.append((stepped.loss, stepped.gradient_norm))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_bfloat16_comes_near_float32(config: MemoryConfig, plans: list[BatchPlan]) -> None:
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = NanoLlama(config.model_config(), 1, zero_residual=True)
        optimizers = make_optimizers(model, config)
        for step in range(5):
            rates = learning_rates(config, step)
            stepped = train_step(model, optimizers, rates, plans[0].batch(step), dtype=dtype)
            losses[dtype] = stepped.loss
        assert model.head.dtype == torch.float32
    assert losses[torch.bfloat16] != losses[torch.float32]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.02)
