"""How fast fine-tuning and asking a pretrained model are, against the usual way; in one run.

    itl bench run throughput-sft --model MODEL --out runs/throughput-sft

The usual way to train is TRL's `SFTTrainer` as its quick start sets it up: chat messages, drawn at
random, padded to the longest of a batch, every token trained. The usual way to ask is a loop that
applies the chat template, calls `generate`, runs the query and calls `generate` again, one question
at a time. Both sides do the same dialogues, and take turns in one process; memory is measured in
processes of their own.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.machine import machine
from benchmarks.study_report import publish, results_folder
from benchmarks.timing import check_threads, compare, comparisons_table, race, say
from itl_env import FactDatabase, people
from itl_env.errors import ConfigError
from itl_train.peak_memory import peak_memory_mb

TARGETS = {"training": 1.2, "asking": 3.0}


@dataclass(frozen=True, kw_only=True)
class ThroughputSFTConfig:
    """Time fine-tuning and asking against the usual way, in turns, in one process."""

    model: str = ""  # a folder, a .gguf file or a hub id
    out: Path = Path("runs/throughput-sft")  # folder for throughput-sft.json and .md
    preset: Literal["smoke", "laptop"] = "laptop"  # laptop: minutes; smoke: does it run at all
    seed: int = 0  # drives the world and the order of the data
    n_threads: int = 0  # CPU threads of torch; 0 for its own choice


class Sizes(NamedTuple):
    """How much each part does."""

    rounds: int
    n_facts: int  # whose dialogues are trained on
    n_steps: int  # a round
    batch_size: int
    n_taught: int  # steps that the model which is asked has been taught
    n_questions: int  # asked side by side
    n_alone: int  # of these, asked one at a time
    dtypes: tuple[str, ...]


SIZES = {
    "smoke": Sizes(1, 16, 1, 4, 1, 4, 2, ("float32",)),
    "laptop": Sizes(3, 1_000, 5, 8, 40, 64, 12, ("float32", "bfloat16")),
}


def throughput_sft(
    config: ThroughputSFTConfig, show: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure, write the two files into `config.out` and return the first's content.

    show: given the table at the end. Raises ConfigError if no model is named.
    """
    import torch

    from benchmarks.rollouts import quiet_transformers

    if not config.model:
        raise ConfigError("Name a model with --model: a folder, a .gguf file, or a hub id.")
    check_threads(config.n_threads)
    sizes = SIZES[config.preset]
    out = results_folder(config.out)
    quiet_transformers()
    if config.n_threads:
        torch.set_num_threads(config.n_threads)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="itl-throughput-sft-") as temporary:
        folder = Path(temporary)
        database = f"sqlite:///{folder / 'people.db'}"
        n_people = (sizes.n_facts + 4 * sizes.n_questions) // 4
        FactDatabase.create(database, people(n_people, config.seed)).close()
        load = Load(config.model, database, config.seed, sizes, str(folder))
        comparisons = training(load)
        comparisons += asking(load)
        memory = {side: peak_memory(side, load) for side in ("library", "usual")}
    results = {
        "preset": config.preset,
        "seed": config.seed,
        "model": Path(config.model).name,
        "comparisons": comparisons,
        "memory_mb": memory,
        "machine": {**machine(), "torch_threads": torch.get_num_threads()},
        "seconds": round(time.perf_counter() - began, 1),
    }
    publish(out, "throughput-sft", results, report(results), show)
    return results


class Load(NamedTuple):
    """What both sides do; it can be handed to another process."""

    model: str
    database: str
    seed: int
    sizes: Sizes
    folder: str


# -- training ------------------------------------------------------------------------------------


def training(load: Load) -> list[dict[str, Any]]:
    """Tokens a second of both sides, without padding, for each dtype of the weights of ours."""
    rows = []
    sides = {f"itl train sft, {dtype}": library_trainer(load, dtype) for dtype in load.sizes.dtypes}
    usual = "SFTTrainer on chat messages, float32"
    rates = race({**sides, usual: usual_trainer(load)}, load.sizes.rounds)
    for side in sides:
        rows.append(
            compare(
                rates, side, usual, "tokens/s", equal=None, checked="",
                target=TARGETS["training"] if side.endswith("float32") else None,
            )
        )  # fmt: skip
    return rows


def library_trainer(load: Load, dtype: str) -> Callable[[], int]:
    """A round of `itl train sft`, on a run of its own each time."""
    from itl_train.sft import SFTRun, SFTSettings

    settings = SFTSettings(
        database=load.database,
        model=load.model,
        n_facts=load.sizes.n_facts,
        n_unseen=0,
        n_steps=load.sizes.n_steps,
        batch_size=load.sizes.batch_size,
        at_once=load.sizes.batch_size,
        dtype=dtype,  # type: ignore[arg-type]
        seed=load.seed,
        log_every=10**6,
        evaluate_every=1e6,
        checkpoint_every=1e6,
    )
    run = SFTRun(settings, Path(tempfile.mkdtemp(dir=load.folder)))
    return _steps(run.trainer, load, "Watcher")


def usual_trainer(load: Load) -> Callable[[], int]:
    """A round of `SFTTrainer` as its quick start sets it up, on a CPU."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from itl_agents import ExpertAgent, rollout
    from itl_agents.pretrained import load_pretrained
    from itl_env import RecallTask
    from itl_train.trainer_run import PROJECTIONS

    model, tokenizer, _ = load_pretrained(load.model)
    task = RecallTask(FactDatabase(load.database), keys=slice(0, load.sizes.n_facts // 4))
    roles = {"database": "tool"}
    chats = [
        {
            "messages": [
                {"role": roles.get(m.role, m.role), "content": m.content} for m in e.messages
            ]
        }
        for e in rollout(ExpertAgent(task), task, task.facts())
    ]
    trainer = SFTTrainer(
        model,
        SFTConfig(
            tempfile.mkdtemp(dir=load.folder),
            max_steps=load.sizes.n_steps,
            per_device_train_batch_size=load.sizes.batch_size,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # as ours; it would cost the usual way more
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10**6,
            seed=load.seed,
        ),
        train_dataset=Dataset.from_list(chats),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=list(PROJECTIONS),
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    return _steps(trainer, load)


def _steps(trainer: Any, load: Load, without: str = "") -> Callable[[], int]:
    """A round of a trainer: its steps, and nothing of what is due after them.

    The round returns how many tokens, padding not among them, were trained.
    """
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_utils import SaveStrategy

    trainer.remove_callback(PrinterCallback)
    trainer.args.save_strategy = SaveStrategy.NO
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == without:  # it would write checkpoints, and ask
            trainer.remove_callback(callback)

    def train() -> int:
        before = trainer._total_train_tokens
        trainer.train()
        return int(trainer._total_train_tokens - before)

    return train


# -- asking --------------------------------------------------------------------------------------


def asking(load: Load) -> list[dict[str, Any]]:
    """Questions a second of both sides, of a model that has been taught to look facts up."""
    from itl_agents import rollout
    from itl_agents.huggingface import HFAgent
    from itl_env import RecallTask
    from itl_train.sft import SFTRun, SFTSettings

    sizes = load.sizes
    folder = Path(tempfile.mkdtemp(dir=load.folder))
    settings = SFTSettings(
        database=load.database, model=load.model, n_facts=sizes.n_facts, n_unseen=0,
        n_steps=sizes.n_taught, batch_size=sizes.batch_size, at_once=sizes.batch_size,
        seed=load.seed, evaluate_every=1e6, checkpoint_every=1e6, n_evaluate=1,
    )  # fmt: skip
    say("teaching the model that is asked")
    SFTRun(settings, folder).train()
    from itl_train.checkpoint import checkpoints

    agent = HFAgent.load(checkpoints(folder / "checkpoints")[-1])
    database = FactDatabase(load.database)
    task = RecallTask(database, keys=slice(sizes.n_facts // 4, None))
    facts = [task.fact(4 * i + i % 4) for i in range(sizes.n_questions)]
    said: dict[str, list[str | None]] = {}

    def ours() -> int:
        episodes = list(rollout(agent, task, facts, lanes=sizes.n_questions))
        said["ours"] = [episode.completions[-1].text for episode in episodes]
        return len(facts)

    def usual() -> int:
        some = facts[: sizes.n_alone]
        said["usual"] = [ask_alone(agent.model, agent.chat.tokenizer, task, fact) for fact in some]
        return len(some)

    what, against = f"HFAgent, {sizes.n_questions} lanes", "generate, one question at a time"
    rates = race({what: ours, against: usual}, sizes.rounds)
    return [
        compare(
            rates, what, against, "questions/s",
            equal=said["ours"][: sizes.n_alone] == said["usual"],
            checked=f"{sizes.n_alone} answers", target=TARGETS["asking"],
        )
    ]  # fmt: skip


def ask_alone(model: Any, tokenizer: Any, task: Any, fact: Any) -> str:
    """The last turn of a dialogue as a tutorial would play it, with the query run in between."""
    import torch

    chat = [{"role": "user", "content": task.question(fact)}]
    text = ""
    for _ in range(2):
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            whole = model.generate(**ids.to(model.device), max_new_tokens=64, do_sample=False)
        text = tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        attribute, _, name = text.removeprefix("FIND ").partition(" FOR ")
        if not text.startswith("FIND ") or attribute not in task.attributes:
            return text
        reply = task.database.lookup([(name, attribute)])[0] or "no result"
        chat += [{"role": "assistant", "content": text}, {"role": "tool", "content": reply}]
    return text


# -- memory --------------------------------------------------------------------------------------


def peak_memory(side: str, load: Load) -> float:
    """The most memory that a process of its own holds which trains for a round, in MB."""
    say(f"memory of the {side} way")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train_once, (side, load))


def _train_once(side: str, load: Load) -> float:
    from benchmarks.rollouts import quiet_transformers

    quiet_transformers()
    (library_trainer(load, "float32") if side == "library" else usual_trainer(load))()
    return peak_memory_mb()


def report(results: dict[str, Any]) -> str:
    """`throughput-sft.md`: ratios, memory, the machine."""
    on = results["machine"]
    memory = results["memory_mb"]
    return f"""# Throughput of a pretrained model

Model {results["model"]}; {on["cpu"]}, {on["cores"]} cores, {on["torch_threads"]} threads, torch
{on["torch"]}, transformers {on["transformers"]}. Preset {results["preset"]}, seed
{results["seed"]}. Figures are medians [lowest, highest] of the rounds; both sides take turns.

{comparisons_table(results["comparisons"])}

The library trains calls, answers and the marks that end them, the usual way every token. Peak
memory of a process that trains: {memory["library"]:,.0f} MB, the usual way
{memory["usual"]:,.0f} MB.
"""
