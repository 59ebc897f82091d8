"""Rollouts: the expert is always right, lanes change nothing, and what was sampled is kept."""

from collections.abc import Sequence

import gymnasium
import numpy as np
import pytest

from itl_agents import Conversation, ExpertAgent, NoToolAgent, RandomAgent, rollout
from itl_agents.evaluate import facts_to_ask, measure_recall, one_question_each
from itl_agents.nanollama import ByteTokenizer, NanoLlama, NanoLlamaAgent, NanoLlamaConfig
from itl_env import FactDatabase, RecallTask, StopReason
from itl_env.episode import Completion

SETTINGS = [
    {"style": "compact"},
    {"style": "fenced"},
    {"dialect": "sql"},
    {"max_queries": 0},
    {"max_queries": 3},
]


@pytest.fixture(scope="module")
def database(world: str) -> FactDatabase:
    return FactDatabase(world)


def small_model(seed: int = 0) -> NanoLlama:
    return NanoLlama(NanoLlamaConfig(d_model=16, n_layers=1, n_heads=2), seed=seed)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_expert_is_always_right(database: FactDatabase, settings: dict) -> None:
    task = RecallTask(database, **settings)
    episodes = list(rollout(ExpertAgent(task), task, task.facts(), lanes=100))
    assert len(episodes) == task.n_facts == 1600
    assert {episode.reward for episode in episodes} == {1.0}
    n_queries = min(1, task.max_queries)
    assert {(episode.n_queries, episode.error) for episode in episodes} == {(n_queries, None)}
    assert [episode.fact for episode in episodes] == list(task.facts())


def test_other_agents_are_near_chance(database: FactDatabase) -> None:
    task = RecallTask(database)
    guesser = measure_recall(NoToolAgent(task), task, task.facts())
    random = measure_recall(RandomAgent(task), task, task.facts())
    # A birth place is one of 7; the other attributes are rarely guessed.
    assert 0.02 < guesser.recall < 0.12
    assert random.recall < 0.12
    assert guesser.n_queried == 0
    assert 0.3 < random.n_queried / random.asked < 0.7


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_episode_does_not_depend_on_the_number_of_lanes(
    database: FactDatabase, temperature: float
) -> None:
    task = RecallTask(database, max_turns=3)
    agents = [
        RandomAgent(task),
        NanoLlamaAgent(small_model(), temperature=temperature, max_new_tokens=12),
    ]
    for agent in agents:
        facts = list(task.facts())[:30]
        one, few, many = (
            list(rollout(agent, task, facts, seed=5, lanes=lanes)) for lanes in (1, 7, 64)
        )
        assert one == few == many
        assert [episode.index for episode in one] == list(range(30))


def test_sampling_follows_the_seed(database: FactDatabase) -> None:
    task = RecallTask(database)
    agent = NanoLlamaAgent(small_model(), temperature=1.0, max_new_tokens=12)
    facts = list(task.facts())[:10]

    def texts(seed: int) -> list[str]:
        return [e.messages[1].content for e in rollout(agent, task, facts, seed=seed)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_facts_are_read_no_further_than_they_are_played(database: FactDatabase) -> None:
    task = RecallTask(database)
    taken = []

    def facts():
        for fact in task.facts():
            taken.append(fact)
            yield fact

    episodes = rollout(ExpertAgent(task), task, facts(), lanes=8)
    assert taken == []
    next(episodes)
    assert len(taken) == 8


def test_an_episode_is_the_same_through_the_environment(world: str) -> None:
    """The rollout, the single environment and the vector environment agree on every field."""
    settings = {"max_queries": 2, "max_turns": 3}
    database = FactDatabase(world)
    task = RecallTask(database, **settings)
    facts = [task.fact(index) for index in range(0, 60, 3)]
    agent = RandomAgent(task)
    played = list(rollout(agent, task, facts, seed=3))

    env = gymnasium.make("itl_env:ITL/FactRecall-v0", database=world, **settings).unwrapped
    envs = gymnasium.make_vec(
        "itl_env:ITL/FactRecall-v0",
        num_envs=len(facts),
        database=world,
        autoreset_mode="Disabled",
        **settings,
    ).unwrapped
    assert len({episode.n_queries for episode in played}) > 1

    for index, (fact, episode) in enumerate(zip(facts, played, strict=True)):
        env.reset(options={"fact": {"name": fact.name, "attribute": fact.attribute}})
        for completion in episode.completions:
            env.step(
                {
                    "kind": np.int64(completion.kind == "answer"),
                    "text": _bare(task, completion),
                }
            )
        again = task.episode(env.reply, episode.completions, index=index, seed=3, agent=agent.name)
        assert again == episode

    for lane, fact in enumerate(facts):
        mask = np.arange(len(facts)) == lane
        chosen = {"name": fact.name, "attribute": fact.attribute}
        envs.reset(options={"reset_mask": mask, "fact": chosen} if lane else {"fact": chosen})
    turns = [list(episode.completions) for episode in played]
    live = [True] * len(facts)
    while any(live):
        sent = [lane_turns.pop(0) if lane_turns else None for lane_turns in turns]
        # A lane that has ended is begun again before the step and not looked at.
        if not all(live):
            envs.reset(options={"reset_mask": ~np.array(live)})
        envs.step(
            {
                "kind": np.array([turn is None or turn.kind == "answer" for turn in sent], int),
                "text": tuple("" if turn is None else _bare(task, turn) for turn in sent),
            }
        )
        for lane, episode in enumerate(played):
            if live[lane] and envs.replies[lane].done:
                live[lane] = False
                again = task.episode(
                    envs.replies[lane], episode.completions, index=lane, seed=3, agent=agent.name
                )
                assert again == episode
    envs.close()


def _bare(task: RecallTask, completion: Completion) -> str:
    action = task.read(completion)
    assert hasattr(action, "text")
    return action.text


def test_what_was_sampled_is_kept(database: FactDatabase) -> None:
    task = RecallTask(database)
    agent = NanoLlamaAgent(small_model(), temperature=1.0, max_new_tokens=20)
    tokenizer = ByteTokenizer()
    for episode in rollout(agent, task, list(task.facts())[:40], seed=1):
        for completion, message in zip(episode.completions, episode.messages[1::2], strict=True):
            assert completion.text == message.content
            assert completion.token_ids is not None
            ended = completion.token_ids[-1] in (tokenizer.database_id, tokenizer.end_id)
            assert completion.finish_reason == ("stop" if ended else "length")
            content = completion.token_ids[:-1] if ended else completion.token_ids
            assert tokenizer.decode(content) == completion.text


def test_a_conversation_too_long_for_the_model_is_an_error_not_a_crash(
    database: FactDatabase,
) -> None:
    task = RecallTask(database)
    model = NanoLlama(NanoLlamaConfig(d_model=16, n_layers=1, n_heads=2, max_length=36))
    agent = NanoLlamaAgent(model, max_new_tokens=25)
    episodes = list(rollout(agent, task, list(task.facts())[:50]))
    reasons = {episode.completions[0].finish_reason for episode in episodes}
    assert "error" in reasons
    assert len(reasons) > 1
    failed = [e for e in episodes if e.completions[0].finish_reason == "error"]
    assert {episode.reward for episode in failed} == {0.0}


def test_an_agent_that_miscounts_is_reported(database: FactDatabase) -> None:
    class Silent:
        name = "silent"

        def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
            return []

    task = RecallTask(database)
    with pytest.raises(ValueError, match="silent gave 0 completions for 4 conversations"):
        list(rollout(Silent(), task, list(task.facts())[:4]))
    with pytest.raises(ValueError, match="lanes is 0"):
        list(rollout(ExpertAgent(task), task, task.facts(), lanes=0))


def test_the_expert_says_so_when_it_does_not_know(database: FactDatabase) -> None:
    task = RecallTask(database)
    stranger = task.fact(0)._replace(name="Nobody Atall")
    episode = next(rollout(ExpertAgent(task), task, [stranger]))
    assert episode.messages[2].content == "no result"
    assert episode.answer == "I do not know."
    in_weight = RecallTask(database, max_queries=0)
    silent = next(rollout(ExpertAgent(in_weight), in_weight, [stranger]))
    assert (silent.answer, silent.n_queries) == ("I do not know.", 0)
    assert episode.reward == 0.0
    assert episode.stop_reason == StopReason.ANSWERED


def test_recall_is_counted_by_attribute_and_person(database: FactDatabase) -> None:
    task = RecallTask(database, keys=slice(0, 10))
    count = measure_recall(ExpertAgent(task), task, task.facts())
    assert (count.asked, count.right, count.recall) == (40, 40, 1.0)
    assert count.by_attribute == dict.fromkeys(task.attributes, (10, 10))
    assert set(count.by_person.values()) == {(4, 4)}
    assert len(count.by_person) == 10
    each = list(one_question_each(task, 8))
    assert len({fact.name for fact in each}) == 8
    assert [fact.attribute for fact in each] == list(task.attributes) * 2
    assert list(facts_to_ask(task, 40)) == list(task.facts())
    assert list(facts_to_ask(task, 39)) == list(one_question_each(task, 39))
