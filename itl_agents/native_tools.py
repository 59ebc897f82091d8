"""A pretrained model that calls any tools in its template's own way, as an agent of tool calling.

The task's turns are JSON (`itl_env.tool_call`); the model is shown them as its template shows calls
and replies, told of the tools as templates do, and what it writes becomes JSON again: a call, or
what it says as the final answer.
"""

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from itl_agents.agent import Conversation
from itl_agents.chat_template import OPTIONS
from itl_agents.continuation import Sampling, continue_prompts
from itl_agents.native_calls import read_any_call
from itl_agents.sampling import Gumbel
from itl_env.actions import Final, ToolCall, call_turn, final_turn, parse_json_turn
from itl_env.dialogue import Message
from itl_env.episode import Completion
from itl_env.errors import ConfigError
from itl_env.tools import Tool


class NativeToolAgent:
    """Plays tool calling with a model that has learnt to call tools.

    tools: those of the task. schemas: what the template is told of them; by default `schema`.
    batch_size, temperature, max_new_tokens: as in `HFAgent`.

    Raises ConfigError for a template that does not show tools.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tools: Sequence[Tool],
        *,
        schemas: Sequence[dict[str, Any]] = (),
        name: str = "",
        batch_size: int = 64,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.name = name or str(model.name_or_path)
        self.batch_size = batch_size
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.schemas = list(schemas) or [schema(tool) for tool in tools]
        own = model.generation_config.eos_token_id if model.generation_config else None
        own = [] if own is None else [own] if isinstance(own, int) else own
        self.stop_ids = tuple(sorted({tokenizer.eos_token_id, *own}))
        if not tokenizer.chat_template or tools[0].name not in self._text([Message("user", "?")]):
            raise ConfigError(f"The chat template of {self.name} does not tell of tools.")

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`."""
        prompts = [
            self.tokenizer.encode(self._text(talk.messages), add_special_tokens=False)
            for talk in conversations
        ]
        completions: list[Completion] = []
        for start in range(0, len(prompts), self.batch_size):
            some = slice(start, start + self.batch_size)
            sampling = None
            if self.temperature > 0:
                size = int(self.model.get_output_embeddings().weight.shape[0])
                seeds = [talk.seed for talk in conversations[some]]
                sampling = Sampling(Gumbel(seeds, size), self.temperature)
            written = continue_prompts(
                self.model,
                prompts[some],
                stop_ids=self.stop_ids,
                max_new_tokens=self.max_new_tokens,
                sampling=sampling,
            )
            completions += map(self._completion, written)
        return completions

    def _text(self, messages: Sequence[Message]) -> str:
        """The dialogue as the template writes it, up to where the assistant writes."""
        try:
            text = self.tokenizer.apply_chat_template(
                [_native(message) for message in messages],
                tools=self.schemas,
                tokenize=False,
                add_generation_prompt=True,
                **OPTIONS,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ConfigError(f"The chat template of {self.name} refuses: {error}") from None
        assert isinstance(text, str)
        return text

    def _completion(self, ids: list[int]) -> Completion:
        stopped = bool(ids) and ids[-1] in self.stop_ids
        text = str(self.tokenizer.decode(ids[:-1] if stopped else ids))
        call = read_any_call(text)
        turn = final_turn(text.strip()) if call is None else call_turn(*call)
        return Completion(turn, None, "stop" if stopped else "length")


def _native(message: Message) -> dict[str, Any]:
    """A message of the task as a template takes it."""
    if message.role == "database":
        return {"role": "tool", "content": message.content}
    if message.role == "assistant":
        action = parse_json_turn(message.content, 10**6)
        if isinstance(action, ToolCall):
            function = {"name": action.tool, "arguments": dict(action.args)}
            calls = [{"type": "function", "function": function}]
            return {"role": "assistant", "content": "", "tool_calls": calls}
        text = action.text if isinstance(action, Final) else message.content
        return {"role": "assistant", "content": text}
    return {"role": message.role, "content": message.content}


def schema(tool: Tool) -> dict[str, Any]:
    """A tool as templates are told of it, all of whose arguments are text."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in tool.parameters},
                "required": list(tool.parameters),
            },
        },
    }
