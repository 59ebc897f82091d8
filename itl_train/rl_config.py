"""The settings of `itl_train.rl`, which load no torch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from itl_env.errors import ConfigError
from itl_train.settings import check_at_least, check_types
from itl_train.tool_asking import asking_of

KL_ONLY = 1e-30
"""A weight of the KL divergence at which TRL tells it, and which changes no weight by a bit."""


@dataclass(frozen=True, kw_only=True)
class RLSettings(ABC):
    """One run of GRPO; what is asked is a subclass's.

    A step trains on `batch_size` completions: `batch_size / n_generations` prompts, each answered
    `n_generations` times, whose rewards are compared with their mean.
    """

    model: str  # a run or its checkpoint, a folder, a hub id, or a .gguf file
    calls: Literal["auto", "text", "native"] = "auto"
    """as text, or as the model has learnt to call tools; auto: as in its run, or else as text"""
    system: str = ""  # a system message before each dialogue; by default that of the model's run
    max_new_tokens: int = 128  # of a completion, the tools' replies included
    temperature: float = 1.0  # of what is sampled for training; evaluations are greedy
    n_generations: int = 8  # completions of one prompt: a group
    batch_size: int = 8  # completions a step
    at_once: int = 8  # completions that are computed at once, at most; gradients add up
    steps_per_generation: int = 10  # steps between two generations, for all of which it samples
    n_steps: int = 500  # optimizer steps
    lr: float = 1e-5  # learning rate, constant
    beta: float = 0.0  # weight of the KL divergence from the model as it was; it is told anyway
    epsilon: float = 0.2  # how far the ratio of probabilities may go before it is clipped
    scale_rewards: Literal["group", "batch", "none"] = "group"  # by whose spread they are divided
    lora_rank: int = 0  # rank of an adapter; 0 to train all weights
    lora_alpha: int = 32  # its updates are multiplied by lora_alpha / lora_rank
    clip: float = 1.0  # the largest norm a gradient may have; 0 for any
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights
    seed: int = 0  # drives what is asked, what is sampled, and an adapter's initialisation
    log_every: int = 10  # steps between lines of metrics.jsonl
    evaluate_every: int = 100  # steps between evaluations; the last step is always evaluated
    n_evaluate: int = 200  # questions in an evaluation, of either kind; always the same ones
    checkpoint_every: int = 100  # steps between checkpoints
    keep_checkpoints: int = 0  # how many of the last ones are kept; 0 for all
    device: str = "cpu"  # where to train: cpu, cuda, ...
    n_threads: int = 0  # CPU threads; 0 for one a core

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(
            self, 1, "max_new_tokens", "batch_size", "at_once", "steps_per_generation", "n_steps",
            "log_every", "evaluate_every", "n_evaluate", "checkpoint_every",
        )  # fmt: skip
        check_at_least(
            self, 0, "beta", "epsilon", "lora_rank", "clip", "keep_checkpoints", "n_threads"
        )
        for name in ("temperature", "lr", "lora_alpha"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")
        if self.n_generations < 2:
            raise ConfigError(
                f"n_generations is {self.n_generations}; a group needs 2 completions or more to "
                "compare."
            )
        if self.per_generation % self.n_generations:
            raise ConfigError(
                f"batch_size * steps_per_generation is {self.per_generation}, which is no whole "
                f"number of groups of {self.n_generations} (n_generations)."
            )

    def after(self, run: Mapping[str, Any]) -> Self:
        """The same with what was left to the model's run, given its settings, or none."""
        calls = run.get("calls", "text") if self.calls == "auto" else self.calls
        return replace(self, calls=calls, system=self.system or run.get("system", ""))

    @property
    @abstractmethod
    def asks_about(self) -> str:
        """Where what is asked comes from."""

    @property
    def per_generation(self) -> int:
        """Completions that are sampled together."""
        return self.batch_size * self.steps_per_generation

    @property
    def micro_batches(self) -> tuple[int, int]:
        """(completions computed at once, times that so many are for one step)."""
        n = next(n for n in range(self.at_once, 0, -1) if self.batch_size % n == 0)
        return n, self.batch_size // n

    @property
    def n_prompts(self) -> int:
        """Prompts that are asked in the whole run."""
        generations = -(-self.n_steps // self.steps_per_generation)
        return generations * self.per_generation // self.n_generations


@dataclass(frozen=True, kw_only=True)
class ToolRLSettings(RLSettings):
    """GRPO on tool calling."""

    data: str  # folder of `itl toolcall data`
    rubric: Literal["outcome", "classic"] = "outcome"  # what is paid for
    max_turns: int = 0  # turns of an episode; 0 for those of the model's run, or else 1
    instruction: str = "auto"  # put before each prompt; {forms} stands for the forms of a turn
    """auto: as in the model's run; for a model of no run, the one that tells all forms"""
    database: str = ""  # URL of a fact database that the tool `find` looks into; the run's own
    max_tokens: int = 0
    """of a dialogue; longer prompts lose their left part; 0 for the run's, or for a pretrained
    model of no run 512 besides max_new_tokens"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "max_turns", "max_tokens")
        if self.max_tokens and self.max_tokens <= self.max_new_tokens:
            raise ConfigError(
                f"max_tokens is {self.max_tokens}, which leaves no room for a question beside the "
                f"{self.max_new_tokens} of max_new_tokens."
            )

    @property
    def asks_about(self) -> str:
        """See `RLSettings.asks_about`."""
        return self.data

    def after(self, run: Mapping[str, Any]) -> Self:
        """See `RLSettings.after`; raises ConfigError for a folder without a model."""
        asking = asking_of(
            self.model,
            max_turns=self.max_turns,
            instruction=self.instruction,
            database=self.database,
            max_tokens=self.max_tokens,
            max_new_tokens=self.max_new_tokens,
        )._asdict()
        found = super().after(run)
        if found.calls == "native":  # of which nothing can be cut
            asking["max_tokens"] = self.max_tokens
        return replace(found, **asking)


@dataclass(frozen=True, kw_only=True)
class RecallRLSettings(RLSettings):
    """GRPO on fact recall with the tool."""

    database: str  # URL of the fact database, such as sqlite:///facts.db
    table: str = "people"  # its table of facts
    key: str = "name"  # the column that names people
    n_people: int = 1_000  # people to ask about in training: the first of the database
    n_unseen: int = 1_000  # people to test on: the next ones

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "n_people", "n_unseen")

    @property
    def asks_about(self) -> str:
        """See `RLSettings.asks_about`."""
        return self.database
