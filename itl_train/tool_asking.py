"""How a model is asked to call tools: as in its own run, unless something else is said."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from itl_env.tool_call import INSTRUCTION
from itl_train.models import is_nanollama, model_of
from itl_train.run_folder import run_settings

AUTO = "auto"
MAX_PROMPT = 512  # tokens of a prompt, of which longer ones lose their left part; 0 for any


class Asking(NamedTuple):
    """Settings of a `ToolCallTask`, and the most tokens of a dialogue; 0 for any."""

    max_turns: int
    instruction: str
    database: str
    max_tokens: int


def asking_of(
    model: str,
    *,
    max_turns: int = 0,
    instruction: str = AUTO,
    database: str = "",
    max_tokens: int = 0,
    max_new_tokens: int,
) -> Asking:
    """What is left out (0, "", or "auto" for the instruction) is taken from the model's run.

    A model of no run is told the forms of a turn, unless it is a NanoLlama, which knows nothing of
    them; of its prompts at most `MAX_PROMPT` tokens are kept, before a turn of max_new_tokens.

    Raises ConfigError for a folder without a model.
    """
    run: Mapping[str, Any] = {}
    is_small = False
    if Path(model).is_dir():
        run = run_settings(Path(model))
        is_small = is_nanollama(Path(model_of(model)))
    if run and "data" not in run:
        warnings.warn(f"{model} has not learnt to call tools.", stacklevel=2)
    elif max_turns and max_turns != (learnt := run.get("max_turns", max_turns)):
        warnings.warn(
            f"{model} has learnt episodes of {learnt} turns at most, and is asked in {max_turns}.",
            stacklevel=2,
        )
    if instruction == AUTO:
        instruction = run.get("instruction", "" if is_small else INSTRUCTION)
    most = 0 if is_small else MAX_PROMPT + max_new_tokens
    return Asking(
        max_turns=max_turns or run.get("max_turns", 1),
        instruction=instruction,
        database=database or run.get("database", ""),
        max_tokens=max_tokens or run.get("max_tokens", most),
    )
