"""Any pretrained language model with a chat template as an agent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from itl_agents.agent import Conversation
from itl_agents.chat_template import Calls, ChatTokenizer
from itl_agents.native_calls import read_call
from itl_agents.pretrained import load_pretrained
from itl_agents.render import render_prompt
from itl_agents.sampling import Gumbel
from itl_env.dialogue import lookup_query
from itl_env.episode import Completion
from itl_env.errors import ConfigError, ITLError

T = TypeVar("T")


class HFAgent:
    """Plays with a causal language model of transformers.

    batch_size: conversations that are continued side by side; halved whenever memory runs out, and
        what was written before is kept.
    temperature: 0 is greedy; above 0 each turn is drawn with the conversation's own seed.
    max_new_tokens: of one turn; a longer turn is cut (`finish_reason` is `length`).
    calls, system, options: see `ChatTokenizer`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "",
        calls: Calls = "text",
        system: str = "",
        options: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        temperature: float = 0.0,
        max_new_tokens: int = 64,
    ) -> None:
        """Raises ConfigError for a model without a chat template that shows questions."""
        if batch_size < 1 or max_new_tokens < 1:
            raise ConfigError("batch_size and max_new_tokens must be at least 1.")
        self.model = model
        self.name = name or str(model.name_or_path)
        self.chat = ChatTokenizer(
            tokenizer, calls=calls, system=system, name=self.name, options=options
        )
        self.batch_size = batch_size
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        own = model.generation_config.eos_token_id if model.generation_config else None
        own = [] if own is None else [own] if isinstance(own, int) else own
        self.stop_ids = tuple(sorted({*self.chat.stop_ids, *own}))

    @classmethod
    def load(
        cls, source: str | Path, *, dtype: str = "float32", device: str = "cpu", **settings: Any
    ) -> "HFAgent":
        """The agent of a model; see `load_pretrained` for sources and what is raised."""
        model, tokenizer, name = load_pretrained(source, dtype=dtype, device=device)
        return cls(model, tokenizer, **{"name": name, **settings})

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`. A conversation too long for the model ends in an `error`.

        Raises ConfigError if a tool has replied and the template cannot show that.
        """
        prompts = [
            render_prompt(talk.messages, self.chat, talk.completions) for talk in conversations
        ]
        room = getattr(self.model.config, "max_position_embeddings", None) or 2**31
        fitting = [lane for lane, prompt in enumerate(prompts) if len(prompt) < room]
        completions = [Completion("", None, "error")] * len(prompts)
        # Prompts of nearly one length side by side need little padding.
        fitting.sort(key=lambda lane: len(prompts[lane]))

        def write(lanes: Sequence[int]) -> list[list[int]]:
            seeds = [conversations[lane].seed for lane in lanes]
            return self._write([prompts[lane] for lane in lanes], seeds, room)

        for lane, ids in self._in_batches(fitting, write):
            completions[lane] = self._completion(ids)
        return completions

    def _in_batches(
        self, lanes: Sequence[int], write: Callable[[Sequence[int]], list[T]]
    ) -> Iterator[tuple[int, T]]:
        """What `write` gives for each lane, as many at a time as memory allows."""
        start = 0
        while start < len(lanes):
            batch = lanes[start : start + self.batch_size]
            try:
                written = write(batch)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ITLError(
                        f"{self.name} runs out of memory with a single conversation; take a "
                        "smaller model or dtype, or another device."
                    ) from error
                self.batch_size = len(batch) // 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield from zip(batch, written, strict=True)
            start += len(batch)

    @torch.inference_mode()
    def _write(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], room: int
    ) -> list[list[int]]:
        """What is written after each prompt, with the id at which it stopped."""
        width = max(map(len, prompts))
        pad = self.stop_ids[0]
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        noise = []
        if self.temperature > 0:
            noise = [_Noise(Gumbel(seeds, self._vocabulary_size()), self.temperature)]
        with _greedy(self.model, self.stop_ids, pad):
            whole = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=seen.to(self.model.device),
                max_new_tokens=min(self.max_new_tokens, room - width),
                logits_processor=noise,
            )
        return [self._until_stop(row) for row in whole[:, width:].tolist()]

    def _vocabulary_size(self) -> int:
        """Numbers in a row of logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def _until_stop(self, ids: list[int]) -> list[int]:
        """The ids up to the first at which the turn ends, which is among them."""
        for place, id_ in enumerate(ids):
            if id_ in self.stop_ids:
                return ids[: place + 1]
        return ids

    def _completion(self, ids: list[int]) -> Completion:
        """What was written, as text and, where that is clear, as what it means."""
        stopped = bool(ids) and ids[-1] in self.stop_ids
        text = self.chat.decode(ids[:-1] if stopped else ids)
        if not stopped:
            return Completion(text, ids, "length")
        if self.chat.calls == "native":
            if (call := read_call(text)) is not None:
                return Completion(lookup_query(*call), ids, "stop", "query")
            return Completion(text, ids, "stop", "answer")
        return Completion(text, ids, "stop", self.chat.kind_of(ids[-1]))


class _Noise(LogitsProcessor):
    """Adds what makes the likeliest token a draw, for each row from its own seed."""

    def __init__(self, gumbel: Gumbel, temperature: float) -> None:
        self.gumbel = gumbel
        self.temperature = temperature
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = torch.arange(len(scores))
        noise = self.gumbel(rows, self.step).to(scores)
        self.step += 1
        return scores / self.temperature + noise


@contextmanager
def _greedy(model: PreTrainedModel, stop_ids: Sequence[int], pad: int) -> Iterator[None]:
    """Let the model generate greedily, without the penalties and filters that it ships with."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(stop_ids), pad_token_id=pad
    )
    try:
        yield
    finally:
        model.generation_config = own


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
