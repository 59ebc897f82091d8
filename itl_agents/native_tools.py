"""A pretrained model that calls any tools in its template's own way, as an agent of tool calling.

The task's turns are JSON (`itl_env.tool_call`); the model is shown them as its template shows calls
and replies, told of the tools as templates do, and what it writes becomes JSON again: a call, or
what it says as the final answer.
"""

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import get_json_schema

from itl_agents.agent import Conversation
from itl_agents.chat_template import OPTIONS
from itl_agents.continuation import Sampling, continue_prompts, own_stops
from itl_agents.native_calls import read_any_call
from itl_env.actions import Final, ToolCall, call_turn, final_turn, parse_json_turn
from itl_env.dialogue import Message
from itl_env.episode import Completion
from itl_env.errors import ConfigError
from itl_env.tool_call import ToolCallTask
from itl_env.trl import environment_factory


class NativeToolAgent:
    """Plays tool calling with a model that has learnt to call tools.

    task: whose tools it is told of, as TRL tells of them (`itl_env.trl`).
    system: a system message before each dialogue; by default what the template has.
    batch_size, temperature, max_new_tokens: as in `HFAgent`.

    Raises ConfigError for a template that does not show tools.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: ToolCallTask,
        *,
        name: str = "",
        system: str = "",
        batch_size: int = 64,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.name = name or str(model.name_or_path)
        self._begin = [{"role": "system", "content": system}] if system else []
        self.batch_size = batch_size
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        shell = environment_factory(task, ())()
        self.schemas = [get_json_schema(getattr(shell, name)) for name in task.tools]
        self.stop_ids = tuple(sorted({tokenizer.eos_token_id, *own_stops(model)}))
        self.room = getattr(model.config, "max_position_embeddings", None) or 2**31
        told = self._text([Message("user", "?")]) if tokenizer.chat_template else ""
        if not all(name in told for name in task.tools):
            raise ConfigError(f"The chat template of {self.name} does not tell of tools.")

    def respond(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """See `Agent.respond`. A conversation too long for the model ends in an `error`."""
        prompts = [self.prompt_ids(talk.messages) for talk in conversations]
        completions = [Completion("", None, "error")] * len(prompts)
        most = self.room - self.max_new_tokens
        fitting = [lane for lane, prompt in enumerate(prompts) if len(prompt) <= most]
        for start in range(0, len(fitting), self.batch_size):
            lanes = fitting[start : start + self.batch_size]
            seeds = [conversations[lane].seed for lane in lanes]
            written = continue_prompts(
                self.model,
                [prompts[lane] for lane in lanes],
                stop_ids=self.stop_ids,
                max_new_tokens=self.max_new_tokens,
                sampling=Sampling.of(self.model, seeds, self.temperature),
            )
            for lane, ids in zip(lanes, written, strict=True):
                completions[lane] = self._completion(ids)
        return completions

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """A dialogue as the model is shown it, up to where it writes."""
        ids: list[int] = self.tokenizer.encode(self._text(messages), add_special_tokens=False)
        return ids

    def _text(self, messages: Sequence[Message]) -> str:
        """The dialogue as the template writes it, up to where the assistant writes."""
        try:
            text = self.tokenizer.apply_chat_template(
                [*self._begin, *(_native(message) for message in messages)],
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
        return Completion(turn_of(text), None, "stop" if stopped else "length")


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


def turn_of(text: str) -> str:
    """What a model has written, as a turn of the task: its first call, or all of it as an answer.

    What no text may hold (NUL, halves of surrogate pairs, which JSON can spell) makes it no call.
    """
    call = read_any_call(text)
    if call is not None:
        try:
            turn = call_turn(*call)
        except RecursionError:
            return final_turn(text.strip())
        if isinstance(parse_json_turn(turn, len(turn)), ToolCall):
            return turn
    return final_turn(text.strip())
