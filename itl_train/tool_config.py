"""The settings of `itl_train.tool_calling`."""

from dataclasses import dataclass
from typing import Literal

from itl_env.errors import ConfigError
from itl_train.nano_config import NanoConfig
from itl_train.settings import check_at_least


@dataclass(frozen=True, kw_only=True)
class ToolConfig(NanoConfig):
    """One training run; the same fields are the command line's flags and `config.yaml`."""

    data: str  # folder of `itl toolcall data`
    max_turns: int = 1  # turns of an episode: 1 for one call or answer, more for several calls
    instruction: str = ""  # put before each prompt; {forms} stands for the forms of a turn
    database: str = ""  # URL of a fact database that the tool `find` looks into
    max_new_tokens: int = 200  # of a turn when it is asked
    rope_theta: float = 100.0  # base of the rotary frequencies; dialogues are short
    lr: float = 6e-3  # AdamW's learning rate
    batch_size: int = 32  # dialogues a step
    n_steps: int = 16_000  # optimizer steps
    stop_on: Literal["seen", "unseen"] = "seen"  # of samples trained on, or of others

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "max_turns", "max_new_tokens")
        if self.tokenizer == "used-bytes":
            raise ConfigError("tokenizer is used-bytes, which would lack what others write.")
