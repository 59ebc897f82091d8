"""Episodes and their JSONL: what is written is what is read."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itl_env import (
    Completion,
    Episode,
    Fact,
    ITLError,
    Message,
    StopReason,
    read_episodes,
    write_episodes,
)

# Any string but a high surrogate before a low one, which JSON cannot tell from one character.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30).filter(
    lambda text: not re.search("[\ud800-\udbff][\udc00-\udfff]", text)
)
EPISODES = st.builds(
    Episode,
    fact=st.builds(Fact, ANY_TEXT, ANY_TEXT, ANY_TEXT),
    messages=st.lists(
        st.builds(Message, st.sampled_from(["user", "assistant", "database"]), ANY_TEXT)
    ).map(tuple),
    completions=st.lists(
        st.builds(
            Completion,
            ANY_TEXT,
            st.none() | st.lists(st.integers(0, 10**6)),
            st.sampled_from(["stop", "length", "error"]),
        )
    ).map(tuple),
    answer=st.none() | ANY_TEXT,
    reward=st.floats(allow_nan=False, allow_infinity=False),
    rewards=st.dictionaries(st.sampled_from(["exact", "style"]), st.floats(0, 1)),
    stop_reason=st.sampled_from(StopReason),
    n_queries=st.integers(0, 9),
    error=st.none() | st.just("malformed"),
    index=st.integers(0, 2**40),
    seed=st.integers(0, 2**63),
    agent=ANY_TEXT,
    versions=st.just({"itl": "0.1.0"}),
)


def episode(**changes):
    given = {
        "fact": Fact("Ann", "birth_place", "Rome"),
        "messages": (
            Message("user", "Where was Ann born?"),
            Message("assistant", "Rome 😀 \ud800"),
        ),
        "completions": (Completion("Rome 😀 \ud800", [3, 1], "stop"),),
        "answer": "Rome 😀 \ud800",
        "reward": 0.0,
        "rewards": {"exact": 0.0},
        "stop_reason": StopReason.ANSWERED,
        "n_queries": 0,
    }
    return Episode(**given | changes)


@given(EPISODES)
def test_an_episode_survives_json(one):
    row = json.loads(one.to_json())
    assert row.pop("schema") == 1
    again = Episode.from_dict(row)
    assert again == one
    assert isinstance(again.stop_reason, StopReason)


def test_episodes_survive_a_file(tmp_path):
    path = tmp_path / "episodes.jsonl"
    episodes = [episode(index=i, agent="a\u2028b\r\n\x85\0") for i in range(3)]
    assert write_episodes(iter(episodes), path) == 3
    assert list(read_episodes(path)) == episodes
    assert path.read_bytes().count(b"\n") == 3
    assert [file.name for file in tmp_path.iterdir()] == ["episodes.jsonl"]


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    def broken():
        yield episode()
        raise RuntimeError("stopped")

    path = tmp_path / "episodes.jsonl"
    with pytest.raises(RuntimeError):
        write_episodes(broken(), path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ITLError, match="folder"):
        write_episodes([], tmp_path / "missing" / "episodes.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json", "line 2 is not an episode"),
        (b"[1]", "line 2 is not an episode"),
        (b"\xff\xfe\xff", "line 2 is not an episode"),
        (b"", "line 2 is not an episode"),
        (b'{"schema": 99}', "line 2 has episode schema 99"),
        (b'{"schema": 1, "index": 0}', "line 2 is not a whole episode"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, line, message):
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(episode().to_json().encode("utf-8", "backslashreplace") + b"\n" + line + b"\n")
    with pytest.raises(ITLError, match=message):
        list(read_episodes(path))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ITLError, match="Cannot read"):
        list(read_episodes(tmp_path / "none.jsonl"))
