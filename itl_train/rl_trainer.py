"""TRL's GRPO trainer over the dialogues of this library.

Prompts and replies are rendered as they are everywhere (`itl_agents.render`), turns are read by the
task, and completions are written by `itl_agents.continuation`, with draws that follow from torch's
random state, so that an interrupted run ends with the same weights.
"""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from itl_agents.chat_template import ChatTokenizer
from itl_agents.continuation import Sampling, continue_prompts
from itl_agents.render import render_prompt
from itl_env.actions import Answer, Final
from itl_env.dialogue import Message
from itl_env.episode import Completion

GENERATED = "generated.pt"  # in a checkpoint: the completions that are not yet trained on

_TOOL_TEMPLATE = (
    "{%- for m in messages -%}<{{ m.role }}>{{ m.content }}"
    "{%- for call in m.tool_calls or [] -%}"
    "{{ call.function.name }}{{ call.function.arguments | tojson }}"
    "{%- endfor -%}{%- endfor -%}{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
"""What TRL checks for tools. Nothing is rendered by it."""


class EpisodeTrainer(GRPOTrainer):
    """`GRPOTrainer` whose rows hold messages and the `index` of what they ask.

    chat: renders and reads text calls; None leaves both to TRL and the model's own template.
    max_tokens: of a prompt and a completion; longer prompts lose their left part; 0 for any.
    """

    def __init__(
        self, *args: Any, chat: ChatTokenizer | None = None, max_tokens: int = 0, **settings: Any
    ) -> None:
        self.chat = chat
        self.max_tokens = max_tokens
        self.generation_seconds = 0.0
        super().__init__(*args, **settings)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        if self.chat is None:
            return super()._tokenize_prompts(prompts)
        most = max(0, self.max_tokens - (self.args.max_completion_length or 0))
        rendered = [
            render_prompt(
                [Message(turn["role"], turn["content"]) for turn in prompt],
                self.chat,
                max_tokens=most,
            )
            for prompt in prompts
        ]
        return rendered, None, {}

    def _get_tool_suffix_ids(self, tool_messages: list[dict[str, Any]]) -> list[int]:
        if self.chat is None:
            ids: list[int] = super()._get_tool_suffix_ids(tool_messages)
            return ids
        # The environment's marks behind the turn, its reply, and the beginning of the next turn.
        around = self.chat.around(("user", "assistant", "database"), True)
        reply = self.chat.encode_reply(tool_messages[-1]["content"])
        return [*around[2].between, *reply, *around[3].between]

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *others: Any, **more: Any
    ) -> tuple[list[list[int]], Any]:
        began = time.perf_counter()
        if self.use_vllm or self.use_transformers_continuous_batching:
            written = super()._generate_single_turn(prompt_ids, *others, **more)
        else:
            written = self._write(prompt_ids), None
        self.generation_seconds += time.perf_counter() - began
        return written

    def _write(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """What the model writes after each prompt."""
        model = self.accelerator.unwrap_model(self.model)
        seeds = torch.randint(2**62, (len(prompt_ids),)).tolist()
        was_training = model.training
        model.eval()
        try:
            return continue_prompts(
                model,
                prompt_ids,
                stop_ids=self.eos_token_ids,
                max_new_tokens=self.args.max_completion_length or 1,
                sampling=Sampling.of(model, seeds, self.temperature),
            )
        finally:
            model.train(was_training)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a run's folder says what it is."""

    def keep_generated(self, checkpoint: Path) -> None:
        """Put beside a checkpoint what has been generated and not yet trained on."""
        torch.save({"step": self._step, "buffered": self._buffered_inputs}, checkpoint / GENERATED)

    def take_generated(self, checkpoint: Path) -> None:
        """Go on with what `keep_generated` has kept."""
        kept = torch.load(checkpoint / GENERATED, map_location="cpu", weights_only=True)
        self._step, self._buffered_inputs = kept["step"], kept["buffered"]


def turn_tokenizer(tokenizer: PreTrainedTokenizerBase, chat: ChatTokenizer, task: Any) -> Any:
    """A copy of the tokenizer by which TRL sees calls that are written as text.

    A turn that the task would not take for an answer becomes a call of the tool `turn`.
    """
    reader = copy.copy(tokenizer)
    reader.chat_template = _TOOL_TEMPLATE
    reader.response_template = {}  # says that responses are parsed

    def parse_response(ids: Sequence[int], **_: Any) -> dict[str, Any]:
        end = ids[-1] if len(ids) and ids[-1] in chat.stop_ids else None
        text = chat.decode(ids[:-1] if end is not None else ids)
        kind = chat.kind_of(end)
        said: dict[str, Any] = {"role": "assistant", "content": text, "kind": kind}
        # A turn that was cut is the last one.
        if end is not None and is_call(task, Completion(text, kind=kind)):
            function = {"name": "turn", "arguments": {"text": text}}
            said["tool_calls"] = [{"type": "function", "function": function}]
        return said

    reader.parse_response = parse_response
    return reader


def is_call(task: Any, completion: Completion) -> bool:
    """Whether the task would reply to a turn, be it by an error, and not take it for an answer."""
    return not isinstance(task.read(completion), Answer | Final)
