"""Train a model by GRPO in the environments: on tool calling, or on looking facts up.

    itl toolcall rl --model runs/sft --data tasks --out runs/rl

TRL's `GRPOTrainer` trains. Where an episode has one turn, the parts of the task's rubric are its
reward functions; where it has more, the task is behind TRL's `environment_factory`, too. A run is a
folder that can be killed at any moment; started again, it goes on from its last checkpoint, and
ends with the same weights.
"""

import json
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig

from itl_agents.chat_template import Calls, ChatTokenizer
from itl_agents.hub import ADAPTER, fingerprint
from itl_agents.huggingface import HFAgent
from itl_agents.native_tools import NativeToolAgent
from itl_agents.pretrained import load_pretrained
from itl_env import streams
from itl_env.dialogue import Message
from itl_env.errors import ConfigError
from itl_env.files import read_json, write_text
from itl_env.recall import RecallTask
from itl_env.tool_call import ToolCallTask
from itl_env.trl import environment_factory
from itl_train.models import ORIGIN, model_of
from itl_train.rl_config import KL_ONLY, RecallRLSettings, ToolRLSettings
from itl_train.rl_rewards import Rewards
from itl_train.rl_subjects import RecallSubject, RLSubject, ToolSubject, digest
from itl_train.rl_trainer import EpisodeTrainer, turn_tokenizer
from itl_train.run_folder import RunFolder, run_settings
from itl_train.settings import lasting
from itl_train.team import Team, check_device
from itl_train.trainer_run import OnMetrics, TrainerRun, Watcher, adapter, without_dropout
from itl_train.watch import memory_mb

TOLD = {"kl": "kl", "entropy": "entropy", "clip_ratio/region_mean": "clip_share"}
"""What of TRL's metrics is kept, and under which name."""
START = "start"  # in a run's folder: the model that it began with, where that is in no folder


class RLRun(TrainerRun):
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    def __init__(self, settings: ToolRLSettings | RecallRLSettings, out: Path) -> None:
        """Open or begin the run; nothing is written if the data, model or settings are unfit.

        Raises ConfigError if the folder holds a run of other settings.
        """
        settings = settings.after(run_settings(Path(settings.model)))
        self._origin = out / ORIGIN
        begun_with = self._begun_with()
        self.settings = settings
        check_device(settings.device)
        self.team = Team.join(settings.device)
        if self.team.n > 1:
            raise ConfigError("GRPO runs on one process here; start it without accelerate launch.")
        self.subject: RLSubject
        if isinstance(settings, ToolRLSettings):
            self.subject = ToolSubject.open(settings)
        else:
            self.subject = RecallSubject.open(settings)
        task, items = self.subject.task, self.subject.items
        self.n_threads = settings.n_threads or torch.get_num_threads()
        name = begun_with.get("model") or model_of(settings.model)
        origin = {"model": name, "fingerprint": fingerprint(name), "items": digest(task, items)}
        for what, where, kind in (
            ("fingerprint", name, "weights"),
            ("items", settings.asks_about, "samples or facts"),
        ):
            if begun_with and begun_with[what] != origin[what]:
                raise ConfigError(
                    f"{out} began with other {kind} than there are now in {where}; bring them "
                    "back, or name another folder."
                )
        model, tokenizer, source = load_pretrained(name, dtype=settings.dtype)
        self.tokenizer = tokenizer
        calls: Calls = "native" if settings.calls == "native" else "text"
        if calls == "native" and task.max_turns == 1:
            raise ConfigError(
                "Native calls need a reply: set max_turns to 2 or more, or calls to text."
            )
        if calls == "native" and isinstance(settings, ToolRLSettings) and settings.max_tokens:
            raise ConfigError(
                "What a template says of tools cannot be cut: leave out max_tokens, or set calls "
                "to text."
            )
        # What is shown of the tools of a `ToolCallTask` natively is left to the template.
        own = calls if isinstance(task, RecallTask) else "text"
        self.chat = ChatTokenizer(tokenizer, calls=own, system=settings.system, name=source)
        if task.max_turns > 1:
            self.chat.check_tool()
        self.max_tokens = settings.max_tokens if isinstance(settings, ToolRLSettings) else 0
        self._check_lengths(model)
        self.folder = RunFolder.open(out, lasting(settings))
        if not begun_with:
            write_text(self._origin, json.dumps(origin, indent=1) + "\n")
        self.keep_checkpoints = settings.keep_checkpoints
        with self.folder.alone():
            model = self._started(model, source)
        self.resumed_from = self.restore()
        model.requires_grad_(True)
        model.generation_config.eos_token_id = sorted(self.agent(model).stop_ids)
        group = settings.n_generations
        self.rewards = Rewards(task, items, self.chat, group, calls)
        multi = task.max_turns > 1
        is_text = calls == "text"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*experimental feature")
            self.trainer = EpisodeTrainer(
                model,
                self.rewards.functions(),
                self._arguments(),
                self._rows(),
                processing_class=(
                    turn_tokenizer(tokenizer, self.chat, task) if multi and is_text else tokenizer
                ),
                peft_config=adapter(settings, model),
                callbacks=[Watcher(self)],
                environment_factory=(
                    environment_factory(task, self.subject.items, calls) if multi else None
                ),
                chat=None if multi and calls != own else self.chat,
                max_tokens=self.max_tokens,
            )
        self.trainer.remove_callback(PrinterCallback)
        self.last_evaluation = self.folder.last_evaluation()
        self._warned: set[str] = set()

    def _begun_with(self) -> dict[str, str]:
        """The model, the weights and the items that the run has begun with; {} before it has."""
        if not self._origin.exists():
            return {}
        found: dict[str, str] = read_json(self._origin, "Remove the folder, and train anew.")
        return found

    def _check_lengths(self, model: Any) -> None:
        """Raise ConfigError if a prompt and its completion are longer than the model."""
        task, agent = self.subject.task, self.agent(model)
        room = getattr(model.config, "max_position_embeddings", None) or math.inf
        questions = sorted({task.question(item) for item in self.subject.items}, key=len)
        longest = max(
            len(agent.prompt_ids([Message("user", question)])) for question in questions[-50:]
        )
        most = self.settings.max_new_tokens
        if longest + most > room:
            raise ConfigError(
                f"The longest prompt has {longest:,} tokens, which with {most:,} of max_new_tokens "
                f"are more than the {room:,} of the model; lower that, or give text calls a "
                "max_tokens."
            )

    def _started(self, model: Any, source: str) -> Any:
        """The model as it is loaded from a folder that will last, or from the hub.

        TRL reads the model that it compares with once more from where its name says; a merged
        adapter or a GGUF file can only be read from a copy.
        """
        is_copied = (Path(source) / ADAPTER).is_file() or Path(source).is_file()
        if not is_copied:
            return model
        place = (self.folder.path / START).resolve()
        if not place.is_dir():
            partial = place.with_name(f".{START}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            model.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            partial.replace(place)
        return load_pretrained(str(place), dtype=self.settings.dtype).model

    def _rows(self) -> Any:
        """The prompts of the whole run in their order, each with the `index` of what it asks."""
        from datasets import Dataset

        items, task = self.subject.items, self.subject.task
        drawn = np.arange(self.settings.n_prompts, dtype=np.uint64)
        order: list[int] = []
        for epoch in range(-(-len(drawn) // len(items))):
            places = np.arange(len(items), dtype=np.uint64)
            stream = streams.key(self.settings.seed, "prompts", epoch)
            order += streams.permute(places, len(items), stream).tolist()
        order = order[: len(drawn)]
        # Where the template is left to TRL, it is given the system message like any other.
        told = self.settings.system if self.is_native_tools else ""
        begin = [{"role": "system", "content": told}] if told else []
        prompts = [[*begin, {"role": "user", "content": task.question(items[i])}] for i in order]
        return Dataset.from_dict({"prompt": prompts, "index": order})

    def _arguments(self) -> GRPOConfig:
        settings = self.settings
        at_once, accumulation = settings.micro_batches
        return GRPOConfig(
            output_dir=str(self.folder.checkpoints),
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=settings.steps_per_generation * accumulation,
            num_generations=settings.n_generations,
            num_iterations=1,
            max_steps=settings.n_steps,
            max_completion_length=settings.max_new_tokens,
            max_tool_calling_iterations=max(1, self.subject.task.max_turns - 1),
            chat_template_kwargs={"enable_thinking": False},
            temperature=settings.temperature,
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
            max_grad_norm=settings.clip,
            beta=settings.beta or KL_ONLY,
            epsilon=settings.epsilon,
            scale_rewards=settings.scale_rewards,
            reward_weights=Rewards(self.subject.task, (), self.chat, 1).weights,
            loss_type="dapo",
            mask_truncated_completions=False,
            shuffle_dataset=False,  # the rows are in their order
            bf16=False,  # the weights have the dtype that is wanted
            gradient_checkpointing=False,
            seed=settings.seed % 2**32,
            use_cpu=settings.device == "cpu",
            logging_steps=settings.log_every,
            logging_nan_inf_filter=False,  # such a loss ends the run
            save_steps=settings.checkpoint_every,
            save_total_limit=None,
            report_to="none",
            disable_tqdm=True,
        )

    @property
    def n_steps(self) -> int:
        """See `TrainerRun`."""
        return self.settings.n_steps

    @property
    def evaluation_steps(self) -> int:
        """See `TrainerRun`."""
        return self.settings.evaluate_every

    @property
    def is_native_tools(self) -> bool:
        """Whether a model calls any tools in the way of its own template."""
        return self.settings.calls == "native" and isinstance(self.subject.task, ToolCallTask)

    def agent(self, model: Any) -> HFAgent | NativeToolAgent:
        """A model playing greedily."""
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        task = self.subject.task
        if self.is_native_tools:
            return NativeToolAgent(
                bare,
                self.tokenizer,
                task,
                name=self.settings.model,
                system=self.settings.system,
                max_new_tokens=self.settings.max_new_tokens,
            )
        return HFAgent(
            bare,
            self.tokenizer,
            name=self.settings.model,
            calls=self.chat.calls,
            system=self.settings.system,
            max_new_tokens=self.settings.max_new_tokens,
            max_tokens=self.max_tokens,
            keep_turns=self.subject.task.max_turns > 1,
        )

    def evaluate(self, step: int) -> dict[str, Any]:
        """What comes of questions trained on and of others, through the task."""
        model = self.trainer.model
        with without_dropout(model):
            row = {"step": step, **self.subject.ask(self.agent(model), self.settings.n_evaluate)}
        self.last_evaluation = row
        return row

    def before(self, resumed_from: Path | None) -> None:
        """Evaluate the model as it was, or take up what has been generated."""
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        if resumed_from is not None:
            self.trainer.take_generated(resumed_from)
        elif self.last_evaluation is None:
            self.log(self.evaluate(0))

    def row(self, logs: dict[str, Any], step: int, seconds: float) -> dict[str, Any]:
        """The parts of the reward, and what the time was spent on, in seconds."""
        seen = self.rewards.take()
        generation, self.trainer.generation_seconds = self.trainer.generation_seconds, 0.0
        return {
            **{ours: logs[theirs] for theirs, ours in TOLD.items() if logs.get(theirs) is not None},
            **seen.row(),
            "seconds": seconds,
            "generation_s": generation,
            "tools_s": seen.tool_seconds,
            "update_s": seconds - generation - seen.tool_seconds,
            "memory_mb": memory_mb(self.settings.device),
        }

    def told(self, row: dict[str, Any]) -> None:
        """Say once, loudly, what makes training idle."""
        flat, cut = row.get("groups_without_spread", 0.0), row.get("cut_and_worthless", 0.0)
        # At the first one, and once more when there are many.
        if flat:
            self._once(
                f"spread {flat > 0.5}",
                f"At step {row['step']}, in {flat:.0%} of the groups all completions earned the "
                "same, so nothing is learnt from them; take prompts that the model answers now and "
                "then, more n_generations, or a higher temperature.",
            )
        if cut:
            self._once(
                f"cut {cut > 0.1}",
                f"At step {row['step']}, {cut:.0%} of the completions were cut at "
                f"{self.settings.max_new_tokens} tokens and earned nothing; raise max_new_tokens.",
            )

    def _once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self.folder.warn(message)

    def written(self, checkpoint: Path) -> None:
        """Put beside the weights what resuming needs, and the tokenizer as it was."""
        shutil.rmtree(checkpoint / "ref", ignore_errors=True)
        self.tokenizer.save_pretrained(checkpoint)  # not the copy that TRL reads calls by
        self.trainer.keep_generated(checkpoint)


def train_rl(
    settings: ToolRLSettings | RecallRLSettings,
    out: str | Path,
    on_metrics: OnMetrics | None = None,
) -> dict[str, Any]:
    """Train (or go on training) the run in `out`; returns its last evaluation.

    See `RLRun` for what is raised.
    """
    return RLRun(settings, Path(out)).train(on_metrics)
