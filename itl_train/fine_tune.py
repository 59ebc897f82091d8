"""A run that fine-tunes a pretrained model, whatever it learns: `itl_train.sft`,
`itl_train.tool_sft`.

TRL's `SFTTrainer` trains, all weights or an adapter of PEFT, on one process or on those that
`accelerate launch` starts. A run is a folder that can be killed at any moment; started again, it
goes on from its last checkpoint.
"""

import math
import shutil
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from itl_agents.agent import Agent
from itl_agents.chat_template import Calls, ChatTokenizer
from itl_agents.device_memory import is_out_of_memory
from itl_agents.hub import lasting_name
from itl_agents.huggingface import HFAgent
from itl_agents.pretrained import load_pretrained
from itl_agents.render import DialogueTokenizer, Rendered
from itl_env.errors import ConfigError, ITLError
from itl_train.batches import BatchPlan, Dialogues
from itl_train.checkpoint import (
    adopt,
    check_finite,
    checkpoints,
    drop_optimizers,
    has_optimizer,
    keep_last,
    newest,
    what_is_left,
)
from itl_train.dataset import rendered_to_dataset
from itl_train.fine_tune_config import FineTuneSettings
from itl_train.interrupt import deferred_interrupt
from itl_train.run_folder import RunFolder
from itl_train.sft_trainer import DialogueTrainer
from itl_train.team import Team, check_device, check_one_model_a_process
from itl_train.threads import threads
from itl_train.watch import memory_mb

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a Llama's blocks, each of which gets an adapter. Of a model that has not all of
them, every linear layer but the head does."""

OnMetrics = Callable[[dict[str, Any]], None]


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


class FineTuneRun:
    """A run in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`."""

    def __init__(
        self, settings: FineTuneSettings, subject: Subject, recorded: dict[str, Any], out: Path
    ) -> None:
        """Open or begin the run; nothing is written if the data, model or settings are unfit.

        subject: what is learnt. recorded: the settings as they may be written down, but for the
        model's name.

        Raises ConfigError if the folder holds a run of other settings.
        """
        self.settings = settings
        self.subject = subject
        check_device(settings.device)
        check_one_model_a_process(settings.device)
        self.team = Team.join(settings.device)
        at_once, accumulation = settings.accumulation(self.team.n)
        model, tokenizer, source = load_pretrained(settings.model, dtype=settings.dtype)
        self.tokenizer = tokenizer
        self.chat = ChatTokenizer(
            tokenizer, calls=subject.calls, system=settings.system, name=source
        )
        if subject.shows_replies:
            self.chat.check_tool()
        dialogues = self._dialogues(model)
        self.folder = RunFolder(out)
        if self.team.first:
            RunFolder.open(out, {**recorded, "model": lasting_name(settings.model)})
        self.team.wait()
        self.n_dialogues = len(dialogues)
        self.n_threads = settings.n_threads or torch.get_num_threads()
        self.resumed_from = self._restore()
        plan = BatchPlan(Dialogues.of(dialogues), settings.batch_size, settings.seed)
        order = [row for step in range(settings.steps) for row in plan.rows(step).tolist()]
        self.trainer = DialogueTrainer(
            model,
            args=self._arguments(at_once, accumulation),
            train_dataset=rendered_to_dataset(dialogues).select(order),
            processing_class=tokenizer,
            peft_config=self._adapter(model),
            callbacks=[_Watcher(self)],
        )
        self.trainer.remove_callback(PrinterCallback)
        self.last_evaluation = self.folder.last_evaluation()

    def _dialogues(self, model: Any) -> list[Rendered]:
        """What is trained on; raises ConfigError if a dialogue is longer than the model."""
        rendered = list(self.subject.rendered(self.chat))
        longest = max(len(row.input_ids) for row in rendered)
        room = getattr(model.config, "max_position_embeddings", None) or math.inf
        if longest > room:
            raise ConfigError(
                f"The longest dialogue has {longest} tokens, more than the {room} of the model "
                f"{self.settings.model}."
            )
        return rendered

    def _adapter(self, model: Any) -> Any:
        """PEFT's configuration of the adapter; None to train all weights."""
        settings = self.settings
        if not settings.lora_rank:
            return None
        from peft import LoraConfig

        there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        is_llama = there.issuperset(PROJECTIONS)
        return LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=list(PROJECTIONS) if is_llama else "all-linear",
            task_type="CAUSAL_LM",
        )

    def _arguments(self, at_once: int, accumulation: int) -> SFTConfig:
        settings = self.settings
        arguments = SFTConfig(
            output_dir=str(self.folder.checkpoints),
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=accumulation,
            max_steps=settings.steps,
            learning_rate=settings.rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=math.ceil(settings.warmup * settings.steps),
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

    def _restore(self) -> Path | None:
        """The newest whole checkpoint; what is broken or too new is cleared away."""
        found = None
        if self.team.first:
            with self.folder.alone():
                found = newest(self.folder.checkpoints, self.folder.warn, lambda path: path)
                if found is not None and not has_optimizer(found):
                    self.folder.warn(
                        f"{found} holds no optimizer any more; training goes on with a new one, "
                        "and comes to other weights than without an interruption."
                    )
                self.folder.forget_metrics_after(_step_of(found))
                self._keep()
        self.team.wait()
        if not self.team.first:
            found = newest(self.folder.checkpoints, lambda message: None, lambda path: path)
        return found

    def _keep(self) -> None:
        keep_last(self.folder.checkpoints, self.settings.keep_checkpoints or None)

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return max(int(self.trainer.state.global_step), _step_of(self.resumed_from))

    def agent(self) -> HFAgent:
        """The model as it is now, playing greedily."""
        model = self.trainer.model
        return HFAgent(
            model.get_base_model() if self.settings.lora_rank else model,
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
            with _asked(self.trainer.model):
                row |= self.subject.ask(self.agent(), self.settings.n_evaluate)
        which = f"recall_{self.settings.stop_on}"
        row[which] = self.team.tell(row.get(which, 0.0))
        self.last_evaluation = row
        return row

    def train(self, on_metrics: OnMetrics | None = None) -> dict[str, Any]:
        """Train to the end and return the last evaluation.

        on_metrics: called with every line of `metrics.jsonl` as it is written.

        Ctrl-C, and the signals by which a scheduler ends a job, let the step finish and a
        checkpoint be saved before they have their effect. Raises ITLError at a loss that is not
        finite, naming the step.
        """
        self.on_metrics = on_metrics
        with threads(self.n_threads), self._alone(), warnings.catch_warnings():
            # PEFT looks for the settings of a base that is a single file.
            warnings.filterwarnings("ignore", message="Could not find a config file")
            while not self.finished:
                with deferred_interrupt() as self.interrupted:
                    path = self.resumed_from
                    with self._told():
                        self.trainer.train(
                            resume_from_checkpoint=None if path is None else str(path)
                        )
                self.resumed_from = checkpoints(self.folder.checkpoints)[-1]
            last = self.last_evaluation
            if last is None or last["step"] != self.step:
                last = self.evaluate(self.step)
                self.log(last)
            return last

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in a sentence that memory or the disk is full."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            left = what_is_left(self.folder.checkpoints)
            if is_out_of_memory(error):
                raise ITLError(
                    f"Memory is full after step {self.step}; lower at_once or set "
                    f"gradient_checkpointing. {left}"
                ) from error
            if shutil.disk_usage(self.folder.path).free < 2**20:
                raise ITLError(f"The disk is full after step {self.step}. {left}") from error
            raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """See `RunFolder.alone`; the first process speaks for all."""
        if not self.team.first:
            yield
            return
        with self.folder.alone():
            yield

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or the recall to stop at is reached."""
        return self.step >= self.settings.steps or self.settings.is_enough(self.last_evaluation)

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to the metrics."""
        if self.team.first:
            self.folder.log(row, self.on_metrics)


class _Watcher(TrainerCallback):
    """Writes what a run's folder holds, asks questions, and stops where that is due."""

    def __init__(self, run: FineTuneRun) -> None:
        self.run: FineTuneRun = weakref.proxy(run)  # so that who lets go of the run frees its model
        self._every = run.settings.evaluation_steps
        self._began, self._tokens, self._asking = 0.0, 0.0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:  # the summary at the end
            return
        run, now = self.run, time.perf_counter()
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise ITLError(
                f"The loss is {loss} at step {state.global_step}; lower lr. "
                f"{what_is_left(run.folder.checkpoints)}"
            )
        seconds = max(now - self._began - self._asking, 1e-9)  # of training alone
        run.log(
            {
                "step": state.global_step,
                "loss": loss,
                "gradient_norm": float(logs.get("grad_norm", math.nan)),
                "lr": logs["learning_rate"],
                "epoch": state.global_step * run.settings.batch_size / run.n_dialogues,
                "tokens_per_s": (logs["num_tokens"] - self._tokens) / seconds,
                "seconds": seconds,
                "memory_mb": memory_mb(run.settings.device),
            }
        )
        self._began, self._tokens, self._asking = now, logs["num_tokens"], 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        run, step = self.run, state.global_step
        if step % self._every == 0 and step < run.settings.steps:
            began = time.perf_counter()
            run.log(run.evaluate(step))
            self._asking += time.perf_counter() - began
        ends = step == run.settings.steps or run.settings.is_enough(run.last_evaluation)
        if ends or run.team.any(run.interrupted()):
            control.should_training_stop = True
            control.should_save = True
        if ends:
            control.should_log = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        run = self.run
        run.team.wait()  # each process writes a file of its own
        if run.team.first:
            check_finite(run.trainer.model, state.global_step, run.folder.checkpoints)
            adopt(run.folder.checkpoints, state.global_step)
            drop_optimizers(run.folder.checkpoints)
            run._keep()
        run.team.wait()


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


@contextmanager
def _asked(model: Any) -> Iterator[None]:
    """The model without dropout, for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
