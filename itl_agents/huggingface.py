"""Any pretrained language model with a chat template as an agent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itl_agents.agent import Conversation
from itl_agents.chat_template import Calls, ChatTokenizer
from itl_agents.continuation import Memory, Place, Sampling, continue_prompts, own_stops
from itl_agents.device_memory import give_back, is_out_of_memory
from itl_agents.native_calls import read_call
from itl_agents.pretrained import load_pretrained
from itl_agents.render import render_prompt
from itl_env.dialogue import Message, lookup_query
from itl_env.episode import Completion
from itl_env.errors import ConfigError, ITLError

T = TypeVar("T")


class HFAgent:
    """Plays with a causal language model of transformers.

    batch_size: conversations that are continued side by side; halved whenever memory runs out, and
        what was written before is kept.
    temperature: 0 is greedy; above 0 each turn is drawn with the conversation's own seed.
    max_new_tokens: of one turn; a longer turn is cut (`finish_reason` is `length`).
    max_tokens: of a prompt and the turn that follows: what the user says first loses its left part
        where there are more (see `render_messages`); 0 for as many as the model takes.
    keep_turns: keep what was computed of a turn until the next one, which then reads only what is
        new; it takes memory, and nothing is gained where dialogues have one turn.
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
        max_tokens: int = 0,
        keep_turns: bool = True,
    ) -> None:
        """Raises ConfigError for a model without a chat template that shows questions."""
        if batch_size < 1 or max_new_tokens < 1:
            raise ConfigError("batch_size and max_new_tokens must be at least 1.")
        if max_tokens and max_tokens <= max_new_tokens:
            raise ConfigError(
                f"max_tokens is {max_tokens}, which leaves no room for a question beside the "
                f"{max_new_tokens} of max_new_tokens."
            )
        self.model = model
        self.name = name or str(model.name_or_path)
        self.chat = ChatTokenizer(
            tokenizer, calls=calls, system=system, name=self.name, options=options
        )
        self.batch_size = batch_size
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.max_tokens = max_tokens
        self.stop_ids = tuple(sorted({*self.chat.stop_ids, *own_stops(model)}))
        self._memory = Memory(self.stop_ids) if keep_turns else None

    @classmethod
    def load(
        cls, source: str | Path, *, dtype: str = "float32", device: str = "cpu", **settings: Any
    ) -> "HFAgent":
        """The agent of a model; see `load_pretrained` for sources and what is raised."""
        model, tokenizer, name = load_pretrained(source, dtype=dtype, device=device)
        return cls(model, tokenizer, **{"name": name, **settings})

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`. One too long for the model, or max_tokens, ends in an `error`.

        Raises ConfigError if a tool has replied and the template cannot show that.
        """
        most = max(0, self.max_tokens - self.max_new_tokens)
        prompts = [self.prompt_ids(talk.messages, talk.completions) for talk in conversations]
        room = getattr(self.model.config, "max_position_embeddings", None) or 2**31
        longest = min(most or room, room - 1)
        fitting = [lane for lane, prompt in enumerate(prompts) if len(prompt) <= longest]
        completions = [Completion("", None, "error")] * len(prompts)
        known: list[Place | None] = [None] * len(prompts)
        if self._memory is not None:
            known = self._memory.take(self.model, prompts)

        def write(lanes: Sequence[int]) -> list[list[int]]:
            return self._write(
                [prompts[lane] for lane in lanes],
                [conversations[lane].seed for lane in lanes],
                [place for lane in lanes if (place := known[lane]) is not None],
                room,
            )

        # Prompts of nearly one length side by side need little padding.
        fitting.sort(key=lambda lane: len(prompts[lane]))
        # Those near the end of the model's room would cut the turns of others short.
        tight = [lane for lane in fitting if len(prompts[lane]) + self.max_new_tokens > room]
        loose = [lane for lane in fitting if len(prompts[lane]) + self.max_new_tokens <= room]
        for lanes in (
            [lane for lane in loose if known[lane] is not None],
            [lane for lane in loose if known[lane] is None],
            *([lane] for lane in tight),
        ):
            for lane, ids in self._in_batches(lanes, write, known):
                completions[lane] = self._completion(ids)
        return completions

    def prompt_ids(
        self, messages: Sequence[Message], completions: Sequence[Completion] = ()
    ) -> list[int]:
        """A dialogue as the model is shown it, up to where it writes."""
        most = max(0, self.max_tokens - self.max_new_tokens)
        return render_prompt(messages, self.chat, completions, most)

    def _in_batches(
        self,
        lanes: Sequence[int],
        write: Callable[[Sequence[int]], list[T]],
        known: list[Place | None],
    ) -> Iterator[tuple[int, T]]:
        """What `write` gives for each lane, as many at a time as memory allows.

        known: is emptied when memory runs out, for it holds keys and values; all is then read anew.
        """
        start = 0
        while start < len(lanes):
            batch = lanes[start : start + self.batch_size]
            written: list[T] | None = None
            try:
                written = write(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ITLError(
                        f"{self.name} runs out of memory with a single conversation; take a "
                        "smaller model or dtype, or another device."
                    ) from error
            if written is None:
                self.batch_size = len(batch) // 2
                known[:] = [None] * len(known)
                if self._memory is not None:
                    self._memory.forget()
                give_back()
                continue
            yield from zip(batch, written, strict=True)
            start += len(batch)

    def _write(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        known: Sequence[Place],
        room: int,
    ) -> list[list[int]]:
        """What is written after each prompt, with the id at which it stopped."""
        return continue_prompts(
            self.model,
            prompts,
            stop_ids=self.stop_ids,
            max_new_tokens=min(self.max_new_tokens, room - max(map(len, prompts))),
            sampling=Sampling.of(self.model, seeds, self.temperature),
            known=known,
            memory=self._memory,
        )

    def _completion(self, ids: list[int]) -> Completion:
        """What was written, as text and, where that is clear, as what it means."""
        stopped = bool(ids) and ids[-1] in self.stop_ids
        end = ids[-1] if stopped else None
        text = self.chat.decode(ids[:-1] if stopped else ids)
        if stopped and end not in self.chat.stop_ids:
            ids = ids[:-1]  # dialogues hold the marks of the template, and no others
        if not stopped:
            return Completion(text, ids, "length")
        if self.chat.calls == "native":
            if (call := read_call(text)) is not None:
                return Completion(lookup_query(*call), ids, "stop", "query")
            return Completion(text, ids, "stop", "answer")
        return Completion(text, ids, "stop", self.chat.kind_of(end))
