"""Byte-level BPE tokenizers from files: Hugging Face's `tokenizer.json`, or tiktoken's ranks.

The four marks of a dialogue are added behind the vocabulary of the file. Content never becomes one
of them, nor any other special token of the file, whatever it spells.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from itl_agents.nanollama.tokenizer import (
    MARKS,
    ByteTokenizer,
    Marked,
    byte_characters,
    save_configuration,
)
from itl_env.errors import ConfigError

# How tiktoken's cl100k_base cuts text before it merges; files of ranks do not say.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What a tokenizer must give back as it was: answers are compared as text.
PROBE = "  When was Zoë O'Neil-Ðạng born?\n\tOn 21/5/1990.  FIND birth_date FOR \u4e2d\U0001f600"


class BPETokenizer(Marked):
    """A tokenizer of `tokenizers` with the marks of a dialogue; see `DialogueTokenizer`."""

    def __init__(self, tokenizer: Tokenizer, source: str = "The tokenizer") -> None:
        """Raises ConfigError if the tokenizer does not give text back as it was.

        source: what an error calls it.
        """
        super().__init__()
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
        tokenizer.encode_special_tokens = True  # as the text they are, not as tokens
        self._tokenizer = tokenizer
        ids = [int(tokenizer.token_to_id(mark) or 0) for mark in MARKS]
        self.user_id, self.assistant_id, self.database_id, self.end_id = ids
        self.vocabulary_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        if ids != list(range(self.vocabulary_size - len(MARKS), self.vocabulary_size)):
            raise ConfigError(f"{source} holds {MARKS[0]} and other marks, but not as its last.")
        if self.decode(self.encode(PROBE)) != PROBE:
            raise ConfigError(
                f"{source} does not give text back as it was; NanoLlama needs a byte-level BPE."
            )

    def encode(self, text: str) -> list[int]:
        """Ids of the text; a lone surrogate, which has no UTF-8, becomes its escape."""
        text = text.encode("utf-8", errors="backslashreplace").decode()
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, marks their names."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the chat template."""
        self._tokenizer.save(str(folder / "tokenizer.json"))
        save_configuration(folder)


NanoTokenizer = ByteTokenizer | BPETokenizer


def open_tokenizer(path: str | Path) -> NanoTokenizer:
    """The tokenizer of a `tokenizer.json`, of a folder that holds one, or of a tiktoken file.

    Raises ConfigError if there is none, or it cannot serve.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"There is no tokenizer at {file}.")
    if file.suffix != ".json":
        return BPETokenizer(from_ranks(read_ranks(file)), str(file))
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        if (alphabet := _alphabet(description["model"])) is not None:
            return ByteTokenizer(alphabet)
        return BPETokenizer(Tokenizer.from_file(str(file)), str(file))
    except ConfigError:
        raise
    except Exception as error:  # `tokenizers` raises plain Exception
        raise ConfigError(f"{file} is not a tokenizer: {str(error).splitlines()[0]}.") from None


def _alphabet(model: Mapping[str, Any]) -> bytes | None:
    """The bytes of a tokenizer that `ByteTokenizer` saved; None for any other."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    found = bytes(byte_of[token] for token in model["vocab"] if token in byte_of)
    in_order = {byte_characters()[byte]: place for place, byte in enumerate(sorted(found))}
    return found if not model["merges"] and model["vocab"] == in_order else None


def read_ranks(file: Path) -> dict[bytes, int]:
    """The tokens of a tiktoken file: a line holds a token in base64 and its rank.

    Raises ConfigError for any other file.
    """
    ranks: dict[bytes, int] = {}
    try:
        for line in file.read_bytes().split(b"\n"):
            if line.strip():
                token, _, rank = line.strip().partition(b" ")
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not a tiktoken file: {error}.") from None
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ConfigError(f"{file} is not a tiktoken file: it has no token for byte {missing[0]}.")
    return ranks


def from_ranks(ranks: Mapping[bytes, int], pattern: str = CL100K) -> Tokenizer:
    """The BPE of tiktoken's ranks: of all neighbours, those of the lowest joint rank are merged.

    pattern: how text is cut before. Raises ConfigError if a token is no merge of two others.
    """
    characters = byte_characters()

    def spelt(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    longer = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    merges = [(spelt(left), spelt(right)) for left, right in (_halves(t, ranks) for t in longer)]
    vocabulary = {spelt(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens whose merge is this one: what lower ranks make of its bytes."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        joint = [ranks.get(a + b, math.inf) for a, b in pairwise(parts)]
        place = joint.index(min(joint))
        if joint[place] >= ranks[token]:
            raise ConfigError(f"The token {token!r} is no merge of two tokens of lower rank.")
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]
