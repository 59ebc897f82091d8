"""The byte tokenizer: ids 0-255 are bytes, 256-259 the marks of a dialogue, or fewer bytes.

Saved as a Hugging Face tokenizer, `transformers.AutoTokenizer.from_pretrained(folder)` gives the
same ids.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from itl_agents.render import Around
from itl_env.dialogue import Role
from itl_env.errors import ITLError

MARKS = ("<|user|>", "<|assistant|>", "<|database|>", "<|eod|>")

# For libraries that render through a chat template. Content there may spell a mark; only
# `itl_agents.render` keeps data from ever becoming a control token.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '<|user|>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<|assistant|>' }}"
    "{%- set calls = not loop.last and loop.nextitem['role'] not in ('user', 'assistant') -%}"
    "{%- generation -%}{{ message['content'] + ('<|database|>' if calls else '<|eod|>') }}"
    "{%- endgeneration -%}"
    "{%- else -%}{{ message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


class Marked(ABC):
    """The marks around the messages of a dialogue; see `itl_agents.render.DialogueTokenizer`."""

    vocabulary_size: int
    user_id: int
    assistant_id: int
    database_id: int
    end_id: int

    def __init__(self) -> None:
        self._around: dict[tuple[tuple[Role, ...], bool], list[Around]] = {}

    @property
    def stop_ids(self) -> tuple[int, int]:
        """The marks of a call and of an answer."""
        return self.database_id, self.end_id

    def around(self, roles: tuple[Role, ...], prompt: bool) -> list[Around]:
        """See `DialogueTokenizer.around`."""
        if (known := self._around.get((roles, prompt))) is not None:
            return known
        places: list[Role | None] = [None, *roles, "assistant" if prompt else None]
        around = [self._between(before, after) for before, after in pairwise(places)]
        self._around[roles, prompt] = around
        return around

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """See `DialogueTokenizer.encode`."""

    def encode_reply(self, text: str) -> list[int]:
        """See `DialogueTokenizer.encode_reply`."""
        return self.encode(text)

    def encode_turn(self, text: str, calls: bool) -> list[int]:
        """See `DialogueTokenizer.encode_turn`."""
        return self.encode(text)

    def _between(self, before: Role | None, after: Role | None) -> Around:
        """The mark that ends a call belongs to the assistant's turn; others open the next one."""
        end: tuple[int, ...] = ()
        if before == "assistant":
            end = (self.database_id if after == "database" else self.end_id,)
        opening = {"user": (self.user_id,), "assistant": (self.assistant_id,)}
        return Around(end, opening.get(after or "", ()))


class ByteTokenizer(Marked):
    """UTF-8 bytes and four marks; vocabulary size 260.

    alphabet: the only bytes that have a token, which makes the vocabulary smaller.
    """

    def __init__(self, alphabet: bytes = bytes(range(256))) -> None:
        super().__init__()
        self.alphabet = bytes(sorted(set(alphabet)))
        n = len(self.alphabet)
        self.vocabulary_size = n + len(MARKS)
        self.user_id, self.assistant_id, self.database_id, self.end_id = range(n, n + len(MARKS))
        self._spelt = [*(bytes([byte]) for byte in self.alphabet), *map(str.encode, MARKS)]
        self._ids = {byte: place for place, byte in enumerate(self.alphabet)}

    def encode(self, text: str) -> list[int]:
        """The bytes of the text; a lone surrogate, which has none, becomes its escape.

        Raises ITLError for a byte that is not in the alphabet.
        """
        written = text.encode("utf-8", errors="backslashreplace")
        if len(self.alphabet) == 256:
            return list(written)
        try:
            return [self._ids[byte] for byte in written]
        except KeyError as error:
            raise ITLError(
                f"The tokenizer, cut to the bytes of its training data, has none for byte {error} "
                f"in {text!r}."
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, marks their names."""
        return b"".join([self._spelt[token] for token in ids]).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the chat template."""
        description = json.dumps(_hugging_face(self.alphabet), ensure_ascii=False)
        (folder / "tokenizer.json").write_text(description)
        save_configuration(folder)


def save_configuration(folder: Path) -> None:
    """Write `tokenizer_config.json` and the chat template, which belong to the marks."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": MARKS[3],
        "pad_token": MARKS[3],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _hugging_face(alphabet: bytes) -> dict[str, Any]:
    """The `tokenizers` description: a byte-level BPE without merges."""
    characters = byte_characters()
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(alphabet) + place,
                "content": mark,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for place, mark in enumerate(MARKS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {characters[byte]: place for place, byte in enumerate(alphabet)},
            "merges": [],
        },
    }


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE files.

    Printable Latin-1 bytes stand for themselves, the others for code points from 256 upwards
    (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters, spare = [], 256
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(spare))
            spare += 1
    return characters
