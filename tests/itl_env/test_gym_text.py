"""Texts as spaces: UnicodeText, what processes share of it, and what TextActions may wrap."""

import copy
import pickle

import gymnasium
import pytest
from gymnasium.vector import AsyncVectorEnv

from itl_env import ConfigError, TextActions, UnicodeText

pytestmark = pytest.mark.filterwarnings("error")


def test_unicode_text_contains_any_text_up_to_its_length():
    space = UnicodeText(5, seed=0)
    assert all(text in space for text in ("", "12345", "😀😀😀😀😀", "\ud800\0\n"))
    assert not any(text in space for text in ("123456", None, 5, b"12345"))
    assert repr(space) == "UnicodeText(5)"
    assert space == UnicodeText(5) != UnicodeText(6)
    assert space != gymnasium.spaces.Text(5)
    samples = [space.sample() for _ in range(50)]
    assert all(sample in space and sample.isprintable() for sample in samples)
    for other in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert other == space
        state = copy.deepcopy(space)
        assert other.sample() == state.sample()


class Echo(gymnasium.Env):
    """Observations are a fixed list of awkward texts, then the action."""

    texts = ("", "plain", "😀 東京", "\ud800 lone", "\0 nul", "x" * 20, "é")

    def __init__(self):
        self.observation_space = self.action_space = UnicodeText(20)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turn = 0
        return self.texts[0], {}

    def step(self, action):
        self.turn += 1
        return self.texts[self.turn % len(self.texts)], 0.0, action == "end", False, {}


@pytest.mark.parametrize("shared_memory", [True, False])
def test_processes_share_awkward_texts(shared_memory):
    envs = AsyncVectorEnv([Echo, Echo], shared_memory=shared_memory)
    try:
        seen = [envs.reset()[0]]
        for turn in range(1, len(Echo.texts)):
            seen.append(envs.step(("go", "end" if turn == 3 else "go"))[0])
    finally:
        envs.close()
    second = [*Echo.texts[:4], "", *Echo.texts[1:3]]  # ended at step 3, reset at step 4
    # Earlier observations are not overwritten by later ones.
    assert seen == list(zip(Echo.texts, second, strict=True))


def test_text_actions_wrap_fact_recall_only():
    with pytest.raises(ConfigError):
        TextActions(Echo())
