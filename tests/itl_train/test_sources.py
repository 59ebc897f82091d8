"""Sources of training data: what is read is what is trained, in the shares that are asked for."""

import gzip
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itl_agents import ExpertAgent, rollout
from itl_agents.nanollama import ByteTokenizer
from itl_env import FactDatabase, RecallTask, write_episodes
from itl_env.errors import ConfigError
from itl_env.export import biography, to_dataset
from itl_env.recall import max_queries_of
from itl_train.batches import BatchPlan, Dialogues, apportion
from itl_train.memory import MemoryConfig, MemoryRun, train_memory
from itl_train.sources import (
    Source,
    expert_dialogues,
    parse_source,
    read_sources,
    text_pieces,
)

TOKENIZER = ByteTokenizer()


def task_in(world: str, mode: str) -> RecallTask:
    return RecallTask(FactDatabase(world), keys=slice(0, 30), max_queries=max_queries_of(mode))


def read(world: str, *kinds: str, max_length: int = 256) -> list[Dialogues]:
    sources = [Source(kind, 1.0) for kind in kinds]
    return read_sources(sources, lambda mode: task_in(world, mode), TOKENIZER, max_length)


def texts(dialogues: Dialogues) -> list[str]:
    ids = dialogues.ids.tolist()
    starts = dialogues.starts.tolist()
    return [TOKENIZER.decode(ids[a:b]) for a, b in pairwise(starts)]


def test_a_source_is_a_kind_and_a_weight() -> None:
    assert parse_source("in-tool") == Source("in-tool", 1.0)
    assert parse_source("data/a=b.jsonl=2.5") == Source("data/a=b.jsonl", 2.5)
    assert parse_source("data/a=b.jsonl") == Source("data/a=b.jsonl", 1.0)
    for weight in ("0", "-1", "inf", "nan"):
        with pytest.raises(ConfigError, match="must be positive"):
            parse_source(f"in-tool={weight}")


def test_episodes_of_both_modes_are_those_of_the_expert(world: str) -> None:
    modes = ("in-tool", "in-weight")
    for mode, dialogues in zip(modes, read(world, *modes), strict=True):
        assert dialogues.digest() == expert_dialogues(task_in(world, mode), TOKENIZER).digest()


def test_biographies_are_trained_to_the_last_byte(world: str) -> None:
    (dialogues,) = read(world, "biographies")
    rows = list(FactDatabase(world).rows(0, 30))
    assert texts(dialogues) == [f"<|eod|>{biography(row)}<|eod|>" for row in rows]
    first = dialogues.starts[:-1]
    assert not dialogues.trained[first].any()
    assert int(dialogues.trained.sum()) == len(dialogues.ids) - len(dialogues)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "arrow", "txt", "folder"])
def test_any_file_that_datasets_reads_is_a_source(world: str, tmp_path: Path, ending: str) -> None:
    rows = [{"text": f"Text {place}, Zoë."} for place in range(5)]
    made, path = to_dataset(rows), tmp_path / f"texts.{ending}"
    if ending == "jsonl":
        made.to_json(path)
    elif ending == "csv":
        made.to_csv(path)
    elif ending == "parquet":
        made.to_parquet(path)
    elif ending == "txt":
        path.write_text("".join(row["text"] + "\n" for row in rows))
    else:
        made.save_to_disk(path)
        if ending == "arrow":
            path = next(path.glob("*.arrow"))
    (dialogues,) = read(world, str(path))
    assert texts(dialogues) == [f"<|eod|>{row['text']}<|eod|>" for row in rows]


def test_a_file_of_messages_trains_what_the_assistant_says(world: str, tmp_path: Path) -> None:
    task = task_in(world, "in-tool")
    file = tmp_path / "episodes.jsonl"
    write_episodes(rollout(ExpertAgent(task), task, task.facts()), file)
    (dialogues,) = read(world, str(file))
    expert = expert_dialogues(task, TOKENIZER)
    assert torch.equal(dialogues.ids, expert.ids)
    assert torch.equal(dialogues.trained, expert.trained)


def test_a_chat_ends_its_turns_and_only_calls_are_handed_over(world: str, tmp_path: Path) -> None:
    turns = [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("database", "e"),
    ]
    messages = [
        {"role": role, "content": content} for role, content in [*turns, ("assistant", "f")]
    ]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (dialogues,) = read(world, str(tmp_path / "chat.jsonl"))
    assert texts(dialogues) == [
        "<|user|>a<|assistant|>b<|eod|><|user|>c<|assistant|>d<|database|>e<|assistant|>f<|eod|>"
    ]


def test_files_of_any_kind_and_folders_of_them_are_read(world: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "packed"}) + "\n")
    (tmp_path / "b.tsv").write_text("text\tnumber\nin a table\t2\n")
    (tmp_path / "c.txt").write_text("a line\n")
    for name, text in (("folder", "packed"), ("folder/a.jsonl.gz", "packed"),
                       ("b.tsv", "in a table"), ("c.txt", "a line")):  # fmt: skip
        (dialogues,) = read(world, str(tmp_path / name))
        assert texts(dialogues) == [f"<|eod|>{text}<|eod|>"], name


def test_a_file_may_be_in_the_folder_one_works_in(
    world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.jsonl").write_text('{"text": "Tea is at four."}\n')
    monkeypatch.chdir(tmp_path)
    for name in ("notes.jsonl", "./notes.jsonl"):
        assert "Tea is at four." in texts(*read(world, name))[0]


@given(text=st.text(max_size=200), max_length=st.integers(2, 40))
def test_long_text_is_cut_so_that_every_token_is_predicted_once(text: str, max_length: int) -> None:
    pieces = list(text_pieces(text, TOKENIZER, max_length))
    whole = [TOKENIZER.end_id, *TOKENIZER.encode(text), TOKENIZER.end_id]
    assert max(len(piece.input_ids) for piece in pieces) <= max_length
    assert [label for piece in pieces for label in piece.labels[1:]] == whole[1:]


def test_bad_sources_are_named(world: str, tmp_path: Path) -> None:
    def write(name: str, *rows: object) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    for name, said in (
        (write("a.jsonl", {"prompt": "x"}), "neither `messages` nor a `text` .* it has prompt"),
        (
            write("f.jsonl", {"text": 3}),
            "neither `messages` nor a `text` that is text; it has text",
        ),
        (write("g.jsonl"), "Cannot read the source .*g.jsonl: it is empty"),
        (write("b.jsonl", {"messages": [{"role": "system", "content": "x"}]}), "do not fit"),
        (write("c.jsonl", {"messages": [{"role": "user", "content": "x"}]}), "nothing to train on"),
        (write("d.weird", {}), "Cannot read the source .*any supported extension"),
        (write("e.parquet", {}), "Cannot read the source"),
    ):
        with pytest.raises(ConfigError, match=said):
            read(world, name)
    with pytest.raises(ConfigError, match="There is no source 'intool': it is neither in-tool"):
        read(world, "intool")
    with pytest.raises(ConfigError, match="max_length is 40, shorter than the longest dialogue"):
        read(world, "in-tool", max_length=40)


def test_a_data_set_that_is_nowhere_is_named(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="Cannot read the source nobody/nothing"):
        read(world, "nobody/nothing")


@given(weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), n=st.integers(0, 10_000))
def test_draws_are_in_proportion_and_never_fall(weights: Sequence[float], n: int) -> None:
    shares = np.array(weights) / sum(weights)
    now, then = apportion(shares, n), apportion(shares, n + 1)
    assert sum(now) == n
    assert sorted(b - a for a, b in zip(now, then, strict=True)) == [0] * (len(weights) - 1) + [1]
    # Webster's method strays from a proportional share by little more than half a draw.
    assert max(abs(np.array(now) - n * shares)) <= len(weights)


def test_a_mixture_draws_each_source_by_its_weight_and_in_epochs(world: str) -> None:
    parts = read(world, "in-tool", "in-weight", "biographies")
    plan = BatchPlan(parts, 16, seed=1, weights=(1, 2, 1))
    n_steps = 4 * plan.group
    rows = torch.cat([plan.rows(step) for step in range(n_steps)])
    bounds = torch.tensor([0, *np.cumsum([len(part) for part in parts])])
    drawn = [rows[(rows >= a) & (rows < b)] for a, b in pairwise(bounds)]
    for part, own, weight, epochs in zip(
        parts, drawn, (0.25, 0.5, 0.25), plan.epochs(n_steps), strict=True
    ):
        assert len(own) == pytest.approx(weight * len(rows), abs=1)
        each = torch.bincount(own - own.min(), minlength=len(part))
        assert int(each.max() - each.min()) <= 1, "no dialogue comes again before all have come"
        assert epochs == len(own) / len(part)
    again = BatchPlan(parts, 16, seed=1, weights=(1, 2, 1))
    assert torch.equal(again.rows(n_steps - 1), plan.rows(n_steps - 1)), "no steps before it needed"


@pytest.mark.parametrize("pad_to", [0, 257])
def test_processes_share_a_batch(world: str, pad_to: int) -> None:
    parts = read(world, "in-tool", "biographies")
    whole = BatchPlan(parts, 8, seed=0, pad_to=pad_to)
    shares = [BatchPlan(parts, 8, seed=0, pad_to=pad_to, share=(r, 2)) for r in range(2)]
    for step in (0, 5):
        batch, halves = whole.batch(step), [plan.batch(step) for plan in shares]
        assert sum(half.n_tokens for half in halves) == batch.n_tokens
        assert sum(len(half.targets) for half in halves) == len(batch.targets)
        assert {half.n_targets for half in halves} == {batch.n_targets} == {len(batch.targets)}
    with pytest.raises(ConfigError, match="does not divide by the 3 processes"):
        BatchPlan(parts, 8, seed=0, share=(0, 3))


def test_a_small_vocabulary_is_that_of_the_world(world: str, tmp_path: Path) -> None:
    config = MemoryConfig(
        database=world, mode="in-weight", n_people=30, n_unseen=5, d_model=8, n_layers=1, n_heads=2,
        d_hidden=8, batch_size=4, n_steps=4, n_evaluate=5, n_threads=1, tokenizer="used-bytes",
        tied_embeddings=True,
    )  # fmt: skip
    train_memory(config, tmp_path)
    run = MemoryRun(config, tmp_path)
    assert 50 < run.tokenizer.vocabulary_size < 100
    assert run.model.embedding.shape == (run.tokenizer.vocabulary_size, 8)
    assert run.model.config.n_parameters == sum(p.numel() for p in run.model.parameters())
    assert run.model.config.tied_embeddings
    for task in (run.tasks.seen, run.tasks.unseen):
        assert task is not None
        for text in texts(expert_dialogues(task, TOKENIZER)):
            plain = text.replace("<|user|>", "").replace("<|assistant|>", "").replace("<|eod|>", "")
            assert run.tokenizer.decode(run.tokenizer.encode(plain)) == plain


def test_a_run_on_a_mixture_resumes_to_the_same_bits(world: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("One line.\nAnother line.\n" * 20)
    config = MemoryConfig(
        database=world, n_people=30, n_unseen=5, d_model=16, n_layers=1, n_heads=2, d_hidden=16,
        batch_size=4, n_steps=12, log_every=4, checkpoint_every=6, n_evaluate=5, n_threads=1,
        sources=("in-tool=2", "in-weight", "biographies", f"{file}=0.5"),
    )  # fmt: skip
    rows: list[dict] = []
    train_memory(config, tmp_path / "whole", rows.append)

    def stop(row: dict) -> None:
        if row["step"] == 8:
            raise KeyboardInterrupt

    for name in ("broken", "changed"):
        with pytest.raises(KeyboardInterrupt):
            train_memory(config, tmp_path / name, stop)
    train_memory(config, tmp_path / "broken")
    whole, broken = (MemoryRun(config, tmp_path / name).model for name in ("whole", "broken"))
    for one, other in zip(whole.parameters(), broken.parameters(), strict=True):
        assert torch.equal(one, other)
    # 48 dialogues: 2/4.5 in-tool, 1/4.5 in-weight (120 facts each) and as many biographies of 30.
    assert rows[2]["exposures"] == pytest.approx((21.3 + 10.7) / 120 + 10.7 / 30, abs=0.05)

    file.write_text("Something else.\n")
    with pytest.raises(ConfigError, match="another source has changed since the run"):
        train_memory(config, tmp_path / "changed")
