"""NanoLlama as an agent: it writes a turn and ends it with the mark of a call or of an answer."""

from collections.abc import Sequence
from typing import Literal

from itl_agents.agent import Conversation
from itl_agents.nanollama.bpe import NanoTokenizer
from itl_agents.nanollama.generate import Generated, LanguageModel, TurnMemory, generate
from itl_agents.nanollama.tokenizer import ByteTokenizer
from itl_agents.render import render_prompt
from itl_env.episode import Completion
from itl_env.errors import ConfigError


class NanoLlamaAgent:
    """Plays with a NanoLlama, or another model that can be generated from.

    temperature: 0 is greedy; above 0 each turn is drawn with the conversation's own seed.
    max_new_tokens: of one turn; a longer turn is cut (`finish_reason` is `length`).

    Raises ConfigError for a model of another vocabulary than the tokenizer's.

    A conversation too long for the model ends in a completion with `finish_reason` `error`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: NanoTokenizer | None = None,
        *,
        name: str = "nanollama",
        temperature: float = 0.0,
        max_new_tokens: int = 160,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer or ByteTokenizer()
        if model.config.vocabulary_size != self.tokenizer.vocabulary_size:
            raise ConfigError(
                f"The model writes {model.config.vocabulary_size:,} tokens, but its tokenizer "
                f"knows {self.tokenizer.vocabulary_size:,}."
            )
        self.name = name
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self._memory = TurnMemory(after=(self.tokenizer.database_id,))

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`."""
        prompts = [
            render_prompt(talk.messages, self.tokenizer, talk.completions) for talk in conversations
        ]
        room = self.model.config.max_length
        fitting = [lane for lane, prompt in enumerate(prompts) if len(prompt) < room]
        written = generate(
            self.model,
            [prompts[lane] for lane in fitting],
            stop_ids=(self.tokenizer.database_id, self.tokenizer.end_id),
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seeds=[conversations[lane].seed for lane in fitting],
            memory=self._memory,
        )
        completions = [Completion("", None, "error")] * len(prompts)
        for lane, new in zip(fitting, written, strict=True):
            completions[lane] = self._completion(new)
        return completions

    def _completion(self, new: Generated) -> Completion:
        if not new.stopped:
            return Completion(self.tokenizer.decode(new.token_ids), new.token_ids, "length")
        *content, end = new.token_ids
        kind: Literal["query", "answer"]
        kind = "query" if end == self.tokenizer.database_id else "answer"
        return Completion(self.tokenizer.decode(content), new.token_ids, "stop", kind)
