"""The settings of `itl_train.tool_sft`, which load no torch."""

from dataclasses import dataclass

from itl_env.errors import ConfigError
from itl_env.tool_call import INSTRUCTION
from itl_train.fine_tune_config import FineTuneSettings
from itl_train.settings import check_at_least


@dataclass(frozen=True, kw_only=True)
class ToolSFTSettings(FineTuneSettings):
    """One fine-tuning run; the same fields are the command line's flags and `config.yaml`."""

    data: str  # folder of `itl toolcall data`
    instruction: str = INSTRUCTION  # put before each prompt; {forms} stands for the forms of a turn
    max_turns: int = 1  # turns of an episode: 1 for one call or answer, more for several calls
    database: str = ""  # URL of a fact database that the tool `find` looks into
    max_tokens: int = 512  # of a dialogue; longer prompts lose their left part
    max_new_tokens: int = 200  # of a turn when it is asked
    lora_rank: int = 32  # rank of the adapter; 0 to train all weights
    lr: float = 5e-5  # learning rate
    n_steps: int = 800  # optimizer steps
    log_every: int = 50  # steps between lines of metrics.jsonl
    evaluate_every: int = 200  # steps between evaluations; the last step is always evaluated
    n_evaluate: int = 50  # samples in an evaluation, of either part; always the same ones
    checkpoint_every: int = 200  # steps between checkpoints; the last step has one, too

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(
            self, 1, "max_turns", "max_new_tokens", "n_steps", "evaluate_every", "checkpoint_every"
        )
        if not self.lr:
            raise ConfigError("lr is 0; it must be positive.")
        if self.max_tokens <= self.max_new_tokens:
            raise ConfigError(
                f"max_tokens is {self.max_tokens}, which leaves no room for a question beside the "
                f"{self.max_new_tokens} of max_new_tokens."
            )

    @property
    def steps(self) -> int:
        """See `FineTuneSettings.steps`."""
        return self.n_steps

    @property
    def evaluation_steps(self) -> int:
        """See `FineTuneSettings.evaluation_steps`."""
        return self.evaluate_every

    @property
    def checkpoint_steps(self) -> int:
        """See `FineTuneSettings.checkpoint_steps`."""
        return self.checkpoint_every
