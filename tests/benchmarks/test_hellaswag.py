"""HellaSwag through lm-eval, against likelihoods computed by hand."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from benchmarks.hellaswag import hellaswag
from itl_env.errors import ConfigError, ITLError

from ..itl_agents.chat_models import chat_tokenizer
from .test_drift import llama

pytestmark = pytest.mark.xdist_group("lm-eval")  # which is slow to import

ITEMS = [
    {
        "query": f"Baking: A person puts {n} eggs into a bowl. They",
        "choices": [f"eat {n} chairs.", "stir them with flour and water.", "fly.", "run away now."],
        "gold": n % 4,
    }
    for n in range(6)
]


def likelihoods(query: str, choice: str) -> tuple[float, float]:
    """The log likelihood of an ending, as it is and for each of its bytes."""
    tokenizer, model = chat_tokenizer("smollm"), llama(0)
    whole = tokenizer(f"{query} {choice}", add_special_tokens=False).input_ids
    context = tokenizer(query, add_special_tokens=False).input_ids
    assert whole[: len(context)] == context
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    total = sum(float(logits[at - 1, whole[at]]) for at in range(len(context), len(whole)))
    return total, total / len(choice)


def test_an_item_is_right_if_its_ending_is_the_likeliest(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl.gz"
    with gzip.open(file, "wt") as out:
        out.writelines(json.dumps(item) + "\n" for item in ITEMS)
    found = hellaswag(llama(0), chat_tokenizer("smollm"), file=file, batch_size=3)
    assert len(found.acc) == len(found.acc_norm) == 6
    for place, item in enumerate(ITEMS):
        each = [likelihoods(item["query"], choice) for choice in item["choices"]]
        for kind, right in ((0, found.acc), (1, found.acc_norm)):
            best = max(range(4), key=lambda choice: each[choice][kind])
            assert right[place] == (best == item["gold"])
    first = hellaswag(llama(0), chat_tokenizer("smollm"), file=file, limit=2)
    assert (first.acc, first.acc_norm) == (found.acc[:2], found.acc_norm[:2])


def test_what_cannot_be_asked_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*nothing.jsonl of HellaSwag items"):
        hellaswag(llama(0), chat_tokenizer("smollm"), file=tmp_path / "nothing.jsonl")
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(ITLError, match=r"HellaSwag cannot be asked: .*\.$"):
        hellaswag(llama(0), chat_tokenizer("smollm"), file=tmp_path / "broken.jsonl")
    with pytest.raises(ConfigError, match="limit is 0"):
        hellaswag(llama(0), chat_tokenizer("smollm"), limit=0)
