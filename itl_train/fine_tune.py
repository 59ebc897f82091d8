"""A run that fine-tunes a pretrained model, whatever it learns: `itl_train.sft`,
`itl_train.tool_sft`, and `itl_train.toolformer`, where rows are no dialogues.

TRL's `SFTTrainer` trains, all weights or an adapter of PEFT, on one process or on those that
`accelerate launch` starts. A run is a folder that can be killed at any moment; started again, it
goes on from its last checkpoint.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from itl_agents.agent import Agent
from itl_agents.chat_template import Calls, ChatTokenizer
from itl_agents.huggingface import HFAgent
from itl_agents.pretrained import Pretrained, load_pretrained
from itl_agents.render import DialogueTokenizer, Rendered
from itl_env.errors import ConfigError
from itl_train.batches import BatchPlan, Dialogues
from itl_train.dataset import rendered_to_dataset
from itl_train.fine_tune_config import FineTuneSettings, SupervisedSettings
from itl_train.run_folder import RunFolder
from itl_train.sft_trainer import DialogueTrainer
from itl_train.team import Team, check_device, check_one_model_a_process
from itl_train.trainer_run import TrainerRun, Watcher, adapter, without_dropout
from itl_train.watch import memory_mb


class Subject(Protocol):
    """What a run learns: dialogues to train on, and questions to ask.

    label: of the agent's name. calls: how calls are shown; see `ChatTokenizer`.
    shows_replies: whether dialogues hold what a tool replies, so that the template must show it.
    max_new_tokens: of a turn when it is asked. max_tokens: see `HFAgent`.
    """

    @property
    def label(self) -> str: ...
    @property
    def calls(self) -> Calls: ...
    @property
    def shows_replies(self) -> bool: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...

    def rendered(self, tokenizer: DialogueTokenizer) -> Iterable[Rendered]:
        """The dialogues to train on, always in one order."""
        ...

    def ask(self, agent: Agent, n: int) -> dict[str, Any]:
        """Recall on at most n of what is trained on, and of what is not, for a metrics row."""
        ...


class SupervisedRun(TrainerRun):
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    settings: SupervisedSettings
    remedy = "lower at_once or set gradient_checkpointing"

    def __init__(self, settings: SupervisedSettings, recorded: dict[str, Any], out: Path) -> None:
        """Open or begin the run; nothing is written if the data, model or settings are unfit.

        recorded: the settings as they may be written down, but for the model's name.

        Raises ConfigError if the folder holds a run of other settings.
        """
        self.settings = settings
        check_device(settings.device)
        check_one_model_a_process(settings.device)
        self.team = Team.join(settings.device)
        at_once, accumulation = settings.accumulation(self.team.n)
        pretrained = load_pretrained(settings.model, dtype=settings.dtype)
        model, tokenizer = pretrained.model, pretrained.tokenizer
        self.tokenizer = tokenizer
        dialogues = list(self.rendered(pretrained))
        self._check_lengths(dialogues, model)
        self.folder = RunFolder(out)
        if self.team.first:
            RunFolder.open(out, recorded)
        self.team.wait()
        self.n_dialogues = len(dialogues)
        self.n_threads = settings.n_threads or torch.get_num_threads()
        self.keep_checkpoints = settings.keep_checkpoints
        self.resumed_from = self.restore()
        plan = BatchPlan(Dialogues.of(dialogues), settings.batch_size, settings.seed)
        order = [row for step in range(self.n_steps) for row in plan.rows(step).tolist()]
        self.trainer = DialogueTrainer(
            model,
            args=self._arguments(at_once, accumulation),
            train_dataset=rendered_to_dataset(dialogues).select(order),
            processing_class=tokenizer,
            peft_config=adapter(settings, model, settings.lora_dropout),
            callbacks=[Watcher(self)],
        )
        self.trainer.remove_callback(PrinterCallback)
        self.last_evaluation = self.folder.last_evaluation()
        self._tokens = 0.0  # that were read when metrics were last written

    @abstractmethod
    def rendered(self, pretrained: Pretrained) -> Iterable[Rendered]:
        """What is trained on, always in one order."""

    def _check_lengths(self, dialogues: Sequence[Rendered], model: Any) -> None:
        """Raise ConfigError if a dialogue is longer than the model."""
        longest = max(len(row.input_ids) for row in dialogues)
        room = getattr(model.config, "max_position_embeddings", None) or math.inf
        if longest > room:
            raise ConfigError(
                f"The longest dialogue has {longest} tokens, more than the {room} of the model "
                f"{self.settings.model}."
            )

    def _arguments(self, at_once: int, accumulation: int) -> SFTConfig:
        settings = self.settings
        arguments = SFTConfig(
            output_dir=str(self.folder.checkpoints),
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=accumulation,
            max_steps=self.n_steps,
            learning_rate=settings.rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=math.ceil(settings.warmup * self.n_steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.clip,
            optim="adamw_torch_fused",
            bf16=False,  # the weights have the dtype that is wanted
            gradient_checkpointing=settings.gradient_checkpointing,
            seed=settings.seed % 2**32,
            use_cpu=settings.device == "cpu",
            logging_steps=settings.log_every,
            logging_nan_inf_filter=False,  # such a loss ends the run
            save_steps=settings.checkpoint_steps,
            save_total_limit=None,
            max_length=None,  # nothing is cut that the subject has not cut
            train_sampling_strategy="sequential",  # the batches are those of the plan
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
            disable_tqdm=True,
        )
        if arguments.device.type == "cuda":
            arguments._n_gpu = 1  # else all GPUs of this machine would share each batch
        return arguments

    @property
    def evaluation_steps(self) -> int:
        """See `TrainerRun`."""
        return self.settings.evaluation_steps

    @property
    def bare(self) -> Any:
        """The model as it is now, in which the layers of an adapter are, but without its shell."""
        model = self.trainer.model
        return model.get_base_model() if self.settings.lora_rank else model

    def before(self, resumed_from: Path | None) -> None:
        """The trainer counts tokens anew whenever it begins."""
        self._tokens = 0.0

    def row(self, logs: dict[str, Any], step: int, seconds: float) -> dict[str, Any]:
        """The rate, and what the steps cost."""
        n_tokens, self._tokens = logs["num_tokens"] - self._tokens, logs["num_tokens"]
        return {
            "lr": logs["learning_rate"],
            "epoch": step * self.settings.batch_size / self.n_dialogues,
            "tokens_per_s": n_tokens / seconds,
            "seconds": seconds,
            "memory_mb": memory_mb(self.settings.device),
        }


class FineTuneRun(SupervisedRun):
    """A run that learns a subject's dialogues, and is asked its questions."""

    settings: FineTuneSettings

    def __init__(
        self, settings: FineTuneSettings, subject: Subject, recorded: dict[str, Any], out: Path
    ) -> None:
        """See `SupervisedRun`; subject: what is learnt."""
        self.subject = subject
        super().__init__(settings, recorded, out)

    def rendered(self, pretrained: Pretrained) -> Iterable[Rendered]:
        """The dialogues, in the model's chat template."""
        self.chat = ChatTokenizer(
            pretrained.tokenizer,
            calls=self.subject.calls,
            system=self.settings.system,
            name=pretrained.source,
        )
        if self.subject.shows_replies:
            self.chat.check_tool()
        return self.subject.rendered(self.chat)

    @property
    def n_steps(self) -> int:
        """See `TrainerRun`."""
        return self.settings.steps

    def is_enough(self) -> bool:
        """Whether the recall to stop at is reached."""
        return self.settings.is_enough(self.last_evaluation)

    def agent(self) -> HFAgent:
        """The model as it is now, playing greedily."""
        return HFAgent(
            self.bare,
            self.tokenizer,
            name=f"{self.settings.model} {self.subject.label}",
            calls=self.subject.calls,
            system=self.settings.system,
            max_new_tokens=self.subject.max_new_tokens,
            max_tokens=self.subject.max_tokens,
            keep_turns=self.subject.shows_replies,
        )

    def evaluate(self, step: int) -> dict[str, Any]:
        """Recall on what is trained on and on the rest, through the task."""
        row: dict[str, Any] = {"step": step}
        if self.team.first:
            with without_dropout(self.trainer.model):
                row |= self.subject.ask(self.agent(), self.settings.n_evaluate)
        which = f"recall_{self.settings.stop_on}"
        row[which] = self.team.tell(row.get(which, 0.0))
        self.last_evaluation = row
        return row
