"""BPE tokenizers: the ids are those of the libraries whose files they read."""

import base64
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders
from transformers import AutoTokenizer

from itl_agents import ExpertAgent, rollout
from itl_agents.nanollama import BPETokenizer, ByteTokenizer, NanoLlamaAgent, open_tokenizer
from itl_agents.nanollama.bpe import CL100K, read_ranks
from itl_agents.nanollama.model import NanoLlama, NanoLlamaConfig
from itl_agents.nanollama.tokenizer import MARKS, byte_characters
from itl_agents.render import render
from itl_env import FactDatabase, RecallTask, people
from itl_env.errors import ConfigError, ITLError
from itl_env.export import biography

ODD = ["", " ", "\ud800", "<|user|>x<|eod|>", "<|endoftext|>", "Zoë\u0301 \U0001f600", "a\r\n\n b"]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A byte-level BPE of 600 tokens, one of them special, trained on biographies."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((biography(person) for person in people(300, seed=5)), trainer)
    return tokenizer


@pytest.fixture(scope="module")
def ranks_file(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokens as a file of ranks: bytes first, then merges in their order."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    merged = sorted(trained.get_vocab().items(), key=lambda pair: pair[1])
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(byte_of[c] for c in text) for text, _ in merged if 1 < len(text) < 13]
    file = tmp_path_factory.mktemp("ranks") / "small.tiktoken"
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    file.write_bytes(b"".join(lines))
    return file


@pytest.fixture(scope="module")
def json_file(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("json") / "tokenizer.json"
    trained.save(str(file))
    return file


@pytest.mark.parametrize("text", [*ODD, *(biography(person) for person in people(20, seed=6))])
def test_ranks_give_the_ids_of_tiktoken(ranks_file: Path, text: str) -> None:
    ours = open_tokenizer(ranks_file)
    theirs = tiktoken.Encoding(
        "small", pat_str=CL100K, mergeable_ranks=read_ranks(ranks_file), special_tokens={}
    )
    readable = text.encode("utf-8", errors="backslashreplace").decode()
    assert ours.encode(text) == theirs.encode_ordinary(readable)
    assert ours.decode(ours.encode(text)) == readable


@given(st.text())
def test_any_text_is_given_back_and_holds_no_mark(
    json_file: Path, ranks_file: Path, text: str
) -> None:
    for file in (json_file, ranks_file):
        tokenizer = open_tokenizer(file)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(range(tokenizer.user_id, tokenizer.vocabulary_size))


def test_special_tokens_of_the_file_are_text(json_file: Path, trained: Tokenizer) -> None:
    ours = open_tokenizer(json_file)
    special = trained.token_to_id("<|endoftext|>")
    assert trained.encode("<|endoftext|>").ids == [special]
    assert special not in ours.encode("<|endoftext|>")
    plain = "Ann Lee was born in France."
    assert ours.encode(plain) == trained.encode(plain).ids
    assert ours.vocabulary_size == 600 + len(MARKS)


def test_a_saved_tokenizer_is_read_back_and_by_transformers(
    json_file: Path, ranks_file: Path, tmp_path: Path
) -> None:
    for place, file in enumerate((json_file, ranks_file)):
        ours = open_tokenizer(file)
        assert isinstance(ours, BPETokenizer)
        folder = tmp_path / str(place)
        folder.mkdir()
        ours.save(folder)
        again, theirs = open_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        for person in people(5, seed=7):
            ids = ours.encode(biography(person))
            assert again.encode(biography(person)) == ids
            assert theirs.encode(biography(person), add_special_tokens=False) == ids
        assert again.end_id == ours.end_id == theirs.convert_tokens_to_ids("<|eod|>")
    ByteTokenizer().save(folder)
    assert isinstance(open_tokenizer(folder), ByteTokenizer)


def test_a_byte_tokenizer_may_be_cut_to_some_bytes(tmp_path: Path) -> None:
    cut = ByteTokenizer("Zoë asks.".encode())
    assert cut.vocabulary_size == len(set("Zoë asks.".encode())) + 4 == cut.end_id + 1
    ids = cut.encode("Zoë sass")
    assert max(ids) < cut.user_id
    assert cut.decode([*ids, cut.end_id]) == "Zoë sass<|eod|>"
    cut.save(tmp_path)
    again, theirs = open_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode("Zoë sass") == ids == theirs.encode("Zoë sass", add_special_tokens=False)
    assert again.end_id == cut.end_id == theirs.convert_tokens_to_ids("<|eod|>")
    with pytest.raises(ITLError, match="none for byte 98 in 'asb'"):
        cut.encode("asb")


def test_bytes_in_another_order_keep_it(tmp_path: Path) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    other = Tokenizer(models.BPE({token: place for place, token in enumerate(alphabet)}, []))
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.decoder = token_decoders.ByteLevel()
    other.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).encode("Zoë") == other.encode("Zoë").ids


def test_a_dialogue_gets_shorter_and_is_played(json_file: Path, world: str) -> None:
    tokenizer = open_tokenizer(json_file)
    task = RecallTask(FactDatabase(world))
    episode = next(iter(rollout(ExpertAgent(task), task, task.facts_at([0]))))
    assert len(render(episode, tokenizer).input_ids) < 0.7 * len(
        render(episode, ByteTokenizer())[0]
    )
    config = NanoLlamaConfig(d_model=8, n_heads=2, vocabulary_size=tokenizer.vocabulary_size)
    agent = NanoLlamaAgent(NanoLlama(config), tokenizer, max_new_tokens=4)
    assert next(iter(rollout(agent, task, task.facts_at([0])))).completions[0].token_ids


def test_what_cannot_serve_is_refused(tmp_path: Path, trained: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="There is no tokenizer at"):
        open_tokenizer(tmp_path)
    for name, content in (
        ("a.json", "{}"),
        ("b.json", "no json"),
        ("c.tiktoken", "no ranks"),
        ("d.tiktoken", "QQ== 0\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match=f"{name} is not a t"):
            open_tokenizer(tmp_path / name)
    lossy = Tokenizer.from_str(trained.to_str())
    lossy.normalizer = normalizers.Lowercase()
    lossy.save(str(tmp_path / "lossy.json"))
    with pytest.raises(ConfigError, match="does not give text back"):
        open_tokenizer(tmp_path / "lossy.json")
    marked = Tokenizer.from_str(trained.to_str())
    marked.add_special_tokens([*MARKS, "<|more|>"])
    marked.save(str(tmp_path / "marked.json"))
    with pytest.raises(ConfigError, match="but not as its last"):
        open_tokenizer(tmp_path / "marked.json")


def test_a_token_that_no_merge_makes_is_refused(ranks_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "odd.tiktoken"
    odd = base64.b64encode(b"\xff\xfe\xfd") + b" 9999\n"
    file.write_bytes(ranks_file.read_bytes() + odd)
    with pytest.raises(ConfigError, match="no merge of two tokens"):
        open_tokenizer(file)
