"""Commands of `itl` that train by GRPO: `toolcall rl`, `train rl`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.training import FACTS, SAMPLES, part_of, train_run
from itl_train.rl_config import RecallRLSettings, ToolRLSettings

NO_RECIPES: Mapping[str, Mapping[str, Any]] = {}


@dataclass(frozen=True, kw_only=True)
class ToolcallRL(ToolRLSettings):
    """Train a model to call tools by GRPO: what comes of its calls is what it is paid for.

    The folder can be interrupted at any time; the same command goes on.
    """

    RECIPES: ClassVar = NO_RECIPES

    out: Path = Path("runs/tools-rl")  # folder of the run
    config: str = ""  # YAML file of settings, such as another run's config.yaml; flags override it


def toolcall_rl(config: ToolcallRL) -> None:
    """Train, and print the share of right outcomes at the end."""
    _train(part_of(config, ToolRLSettings), config.out, "tools", SAMPLES)


@dataclass(frozen=True, kw_only=True)
class TrainRL(RecallRLSettings):
    """Train a model to look facts up by GRPO: exact answers are what it is paid for.

    The folder can be interrupted at any time; the same command goes on.
    """

    RECIPES: ClassVar = NO_RECIPES

    out: Path = Path("runs/rl")  # folder of the run
    config: str = ""  # YAML file of settings, such as another run's config.yaml; flags override it


def train_rl(config: TrainRL) -> None:
    """Train, and print the recall at the end."""
    _train(part_of(config, RecallRLSettings), config.out, "in-tool", FACTS)


def _train(
    settings: ToolRLSettings | RecallRLSettings, out: Path, label: str, about: Mapping[str, str]
) -> None:
    from benchmarks.rollouts import quiet_transformers
    from itl_train.rl import RLRun

    quiet_transformers()
    train_run(RLRun(settings, out), out, label, settings.n_steps, about)
