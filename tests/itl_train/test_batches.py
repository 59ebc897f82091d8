"""Batches hold what the renderer says, pad little, and follow from (seed, step) alone."""

import numpy as np
import pytest
import torch

from itl_agents import ExpertAgent, rollout
from itl_agents.nanollama import ByteTokenizer
from itl_agents.render import IGNORED, render
from itl_env import FactDatabase, RecallTask
from itl_train.batches import BatchPlan, Dialogues

TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module", params=[{"max_queries": 0}, {"style": "fenced"}, {}])
def episodes(request: pytest.FixtureRequest, world: str):
    task = RecallTask(FactDatabase(world), **request.param)
    return list(rollout(ExpertAgent(task), task, task.facts()))


def rendered(episodes) -> Dialogues:
    return Dialogues.of(render(episode, TOKENIZER) for episode in episodes)


def test_a_batch_trains_exactly_what_the_renderer_says(episodes) -> None:
    dialogues = rendered(episodes)
    rows = torch.tensor([3, 0, 250, 17])
    batch = dialogues.batch(rows)
    targets = torch.full(batch.input_ids.shape, IGNORED).flatten()
    targets[batch.positions] = batch.targets
    targets = targets.view(batch.input_ids.shape)
    for place, row in enumerate(rows.tolist()):
        ids, labels = render(episodes[row], TOKENIZER)
        n = len(ids) - 1
        assert batch.input_ids[place, :n].tolist() == ids[:-1]
        assert targets[place, :n].tolist() == labels[1:]
        assert (targets[place, n:] == IGNORED).all()
    assert batch.n_tokens == sum(len(render(episodes[r], TOKENIZER)[0]) - 1 for r in rows.tolist())


def test_little_is_padded(episodes) -> None:
    plan = BatchPlan(rendered(episodes), 16, seed=0)
    batches = [plan.batch(step) for step in range(plan.group)]
    padded = sum(batch.input_ids.numel() for batch in batches)
    assert sum(batch.n_tokens for batch in batches) / padded > 0.95


@pytest.mark.parametrize("n_tokens", [1, 300, 10**6])
def test_the_parts_of_a_batch_are_the_batch(episodes, n_tokens: int) -> None:
    batch = BatchPlan(rendered(episodes), 7, seed=0).batch(0)
    parts = batch.parts(n_tokens)
    assert len(parts) == {1: 7, 10**6: 1}.get(n_tokens, len(parts))
    assert max(part.input_ids.numel() for part in parts) <= n_tokens + batch.input_ids.shape[1]
    assert torch.equal(torch.cat([part.input_ids for part in parts]), batch.input_ids)
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    said = torch.cat([part.input_ids.flatten()[part.positions] for part in parts])
    assert torch.equal(said, batch.input_ids.flatten()[batch.positions])


def test_every_dialogue_is_seen_once_an_epoch(episodes) -> None:
    dialogues = rendered(episodes[:1024])
    plan = BatchPlan(dialogues, 8, seed=2)
    seen = torch.cat([plan.rows(step) for step in range(2 * 1024 // 8)])
    assert torch.equal(torch.bincount(seen), torch.full((1024,), 2))
    first = torch.cat([plan.rows(step) for step in range(64)])
    assert len(first.unique()) == len(first)


def test_a_batch_of_a_small_world_holds_no_dialogue_twice(episodes) -> None:
    """Else most of a step would go into one or two dialogues."""
    plan = BatchPlan(rendered(episodes[:70]), 32, seed=0)
    for step in range(100):
        counts = torch.bincount(plan.rows(step))
        # A group that lies across two epochs may draw a dialogue in both.
        assert counts.max() <= 2
        assert (counts == 2).sum() < 16
    assert BatchPlan(rendered(episodes[:8]), 32, seed=0).rows(3).shape == (32,)


def test_seeds_meet_short_and_long_batches_together(episodes) -> None:
    dialogues = rendered(episodes)
    plans = [BatchPlan(dialogues, 16, seed) for seed in range(3)]
    lengths = [[int(dialogues.lengths[p.rows(s)].max()) for s in range(64)] for p in plans]
    assert lengths[0] != lengths[1]
    for other in lengths[1:]:
        assert np.corrcoef(lengths[0], other)[0, 1] > 0.95


def test_a_step_needs_no_steps_before_it(episodes) -> None:
    dialogues = rendered(episodes)
    whole = BatchPlan(dialogues, 16, seed=3)
    steps = [whole.rows(step) for step in range(150)]
    for step in (149, 70, 3):
        assert torch.equal(BatchPlan(dialogues, 16, seed=3).rows(step), steps[step])
    assert not torch.equal(BatchPlan(dialogues, 16, seed=4).rows(3), steps[3])


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no dialogues"):
        rendered([])
