"""What a model is trained on: the expert's episodes, biographies, or files of any kind.

A source is written `KIND` or `KIND=WEIGHT`, where the kind is

- `in-tool` or `in-weight`: the expert's episodes about every fact, with the tool or without,
- `biographies`: a line of text about each person,
- anything else: a file or folder that `datasets` reads (JSON lines, CSV, Parquet, Arrow, text and
  more, compressed or not), or the name of a data set. A column `messages` holds dialogues, a column
  `text` holds plain text.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple, cast, get_args

from itl_agents.agent import rollout
from itl_agents.nanollama import ByteTokenizer, NanoTokenizer
from itl_agents.render import IGNORED, Rendered, render, render_messages
from itl_agents.scripted import ExpertAgent
from itl_env.dialogue import Message, Role
from itl_env.errors import ConfigError
from itl_env.export import biography
from itl_env.recall import Mode, RecallTask
from itl_train.batches import BatchPlan, Dialogues, NoDialoguesError
from itl_train.memory_config import MemoryConfig

ROLES = get_args(Role)
MODES = get_args(Mode)
ABOUT_PEOPLE = (*MODES, "biographies")


class Source(NamedTuple):
    """Where dialogues come from, and their share among all that are drawn, up to a factor."""

    kind: str
    weight: float


def parse_source(text: str) -> Source:
    """`KIND` or `KIND=WEIGHT`; raises ConfigError unless the weight is positive."""
    kind, equals, weight = text.rpartition("=")
    if not equals:
        return Source(text, 1.0)
    try:
        source = Source(kind, float(weight))
    except ValueError:
        return Source(text, 1.0)  # the equals sign is part of a file's name
    if not 0 < source.weight < float("inf"):
        raise ConfigError(f"The weight of {kind} is {weight}; it must be positive.")
    return source


def open_plan(
    config: MemoryConfig,
    task_in: Callable[[Mode], RecallTask],
    tokenizer: NanoTokenizer,
    share: tuple[int, int] = (0, 1),
    device: str = "",
) -> BatchPlan:
    """The batches of a run, from `config.sources` or the expert's episodes in its mode.

    task_in, share: see `read_sources` and `BatchPlan`, which say what is raised.
    device: where they are, if not on the run's.
    """
    sources = [parse_source(text) for text in config.sources or (config.mode,)]
    parts = read_sources(sources, task_in, tokenizer, config.max_length)
    return BatchPlan(
        [part.to(device or config.device) for part in parts],
        config.batch_size,
        config.seed,
        config.pad_to,
        weights=[source.weight for source in sources],
        share=share,
    )


def exposures(config: MemoryConfig, plan: BatchPlan, step: int) -> float:
    """How often each fact has been seen before `step`, on average, in all that speaks of people."""
    kinds = [parse_source(text).kind for text in config.sources or (config.mode,)]
    return sum(n for kind, n in zip(kinds, plan.epochs(step), strict=True) if kind in ABOUT_PEOPLE)


def read_sources(
    sources: Sequence[Source],
    task_in: Callable[[Mode], RecallTask],
    tokenizer: NanoTokenizer,
    max_length: int,
) -> list[Dialogues]:
    """The dialogues of each source, rendered.

    task_in: the task, in a mode, over the people that episodes and biographies are about.
    max_length: tokens of a dialogue; longer text is cut into pieces of that length.

    Raises ConfigError for a source that cannot be read, is empty, or holds a longer dialogue.
    """
    read = []
    for source in sources:
        rendered = _rendered(source.kind, task_in, tokenizer, max_length)
        try:
            dialogues = Dialogues.of(rendered)
        except NoDialoguesError:
            raise ConfigError(f"The source {source.kind} holds nothing to train on.") from None
        longest = int(dialogues.lengths.max())
        if longest > max_length:
            raise ConfigError(
                f"max_length is {max_length}, shorter than the longest dialogue of {longest} "
                f"tokens in {source.kind}; raise it."
            )
        read.append(dialogues)
    return read


def expert_dialogues(task: RecallTask, tokenizer: NanoTokenizer) -> Dialogues:
    """The expert's episodes about every fact of the task, rendered."""
    return Dialogues.of(_episodes(task, tokenizer))


def used_bytes(task: RecallTask) -> bytes:
    """Every byte that occurs in the expert's episodes about the task, once."""
    ids = expert_dialogues(task, ByteTokenizer()).ids.unique()
    return bytes(ids[ids < 256].tolist())


def _episodes(task: RecallTask, tokenizer: NanoTokenizer) -> Iterator[Rendered]:
    for episode in rollout(ExpertAgent(task), task, task.facts(), lanes=1024):
        yield render(episode, tokenizer)


def _rendered(
    kind: str,
    task_in: Callable[[Mode], RecallTask],
    tokenizer: NanoTokenizer,
    max_length: int,
) -> Iterator[Rendered]:
    if kind in MODES:
        yield from _episodes(task_in(cast(Mode, kind)), tokenizer)
    elif kind == "biographies":
        task = task_in("in-weight")
        for row in task.database.rows(task.keys.start, task.keys.stop):
            yield from text_pieces(biography(row), tokenizer, max_length)
    else:
        yield from _from_rows(kind, open_dataset(kind), tokenizer, max_length)


def _from_rows(
    name: str, rows: Iterable[dict[str, Any]], tokenizer: NanoTokenizer, max_length: int
) -> Iterator[Rendered]:
    for place, row in enumerate(rows):
        if row.get("messages") is not None:
            rendered = render_messages(_messages(row["messages"], name, place), tokenizer)
            if any(label != IGNORED for label in rendered.labels):
                yield rendered
        elif isinstance(row.get("text"), str):
            yield from text_pieces(row["text"], tokenizer, max_length)
        else:
            raise ConfigError(
                f"Row {place} of {name} has neither `messages` nor a `text` that is text; it has "
                f"{', '.join(row) or 'nothing'}."
            )


def _messages(given: Any, name: str, place: int) -> list[Message]:
    try:
        messages = [Message(turn["role"], turn["content"]) for turn in given]
    except (TypeError, KeyError):
        messages = []
    fit = all(m.role in ROLES and isinstance(m.content, str) for m in messages)
    if not messages or not fit:
        raise ConfigError(
            f"The messages of row {place} of {name} do not fit: each needs a content and a role, "
            f"which is {', '.join(ROLES)}."
        )
    return messages


def text_pieces(text: str, tokenizer: NanoTokenizer, max_length: int) -> Iterator[Rendered]:
    """Plain text between two end marks, cut into pieces that fit; all but a first token is trained.

    A piece begins with the last token of the one before, so that every token is predicted once.
    """
    ids = [tokenizer.end_id, *tokenizer.encode(text), tokenizer.end_id]
    for start in range(0, len(ids) - 1, max_length - 1):
        piece = ids[start : start + max_length]
        yield Rendered(piece, [IGNORED, *piece[1:]])


def open_dataset(name: str) -> Iterable[dict[str, Any]]:
    """The rows of a file, of a folder (of files, or written by `save_to_disk`), or of a data set's
    `train` split.

    Raises ConfigError if `datasets` cannot read it.
    """
    import datasets

    path = Path(name)
    try:
        if path.is_dir() and (path / "state.json").is_file():
            return datasets.load_from_disk(name)
        if path.is_file():
            if path.suffix == ".arrow":  # perhaps in a folder that is refused otherwise
                return datasets.load_dataset("arrow", data_files=name, split="train")
            # It tells the format by the file's name.
            folder = str(path.parent.absolute())
            return datasets.load_dataset(folder, data_files=path.name, split="train")
        if "/" not in name and not path.is_dir():
            raise ConfigError(
                f"There is no source {name!r}: it is neither {', '.join(ABOUT_PEOPLE)}, nor a file "
                "or folder here, nor the OWNER/NAME of a data set."
            )
        return datasets.load_dataset(name, split="train")
    except ConfigError:
        raise
    except Exception as error:  # a reader raises what it likes
        raise ConfigError(f"Cannot read the source {name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What `datasets` says is wrong, in a line."""
    if isinstance(error, StopIteration):
        return "it is empty."
    told = error.__cause__ or error  # it wraps what its readers raise in words that say nothing
    return shorten(str(told), 200, placeholder=" ...") or type(told).__name__
