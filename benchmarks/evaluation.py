"""What a fine-tuned model recalls, and what it has paid for it: checkpoint by checkpoint.

    itl eval runs/sft --hellaswag 1000 --drift 100

For each checkpoint of a run, and for the model that it began with: recall through the real
environment and database, HellaSwag, and drift from the base. Each part is written as it is done, to
`RUN/evaluations/CHECKPOINT/PART.json`, and is not measured again with the same settings.
"""

import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from benchmarks.statistics import (
    Z,
    clustered_wilson,
    interval,
    paired_difference,
    paired_ratio,
    standard_error,
)
from itl_env.episode import Episode
from itl_env.errors import ConfigError, ITLError
from itl_env.files import read_json, write_text
from itl_train.run_folder import CONFIG, EVALUATIONS, TABLE, read_yaml
from itl_train.sft_config import SFTSettings

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.drift import Answer
    from itl_agents.pretrained import Pretrained

BASE = "base"
PARTS = ("recall", "hellaswag", "drift")
ASKED_OF = (
    "database", "table", "key", "trivia", "mode", "style", "calls", "system", "n_facts", "n_unseen",
)  # fmt: skip
"""Settings of a run on which the questions hang that are asked."""
BY_ANSWER = ("tokens", "tv_sums")
"""What of `Drift` is told answer by answer; a table holds it as JSON."""
ANSWERED_BY = ("model", "dtype", "calls", "system")
"""Settings of a run on which what its base says to general prompts hangs."""
Say = Callable[[str], None]
Track = Callable[[Iterable[Episode], str, int], Iterable[Episode]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is measured of each checkpoint."""

    n_seen: int = 300  # facts trained on that are asked for, always the same ones
    n_unseen: int = 100  # other facts that are asked for
    hellaswag: int = 0  # items of HellaSwag, the first ones; 0 for none
    hellaswag_file: str = ""  # file of items as lm-eval prepares them; the hub's data by default
    drift: int = 0  # general prompts over which drift from the base is measured; 0 for none
    drift_tokens: int = 400  # tokens of the base model's answer to each, at most

    def __post_init__(self) -> None:
        for name in ("n_seen", "n_unseen", "hellaswag", "drift"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if self.drift_tokens < 1:
            raise ConfigError(f"drift_tokens is {self.drift_tokens}; it must be at least 1.")


class RunEvaluation:
    """The evaluation of one fine-tuning run.

    folder: of the run. measured: of the base and of the last checkpoint. between: of those in
    between; the same by default. base_folder: where HellaSwag of the base and its answers are kept,
    which runs of one base may share; the run's own by default.
    """

    def __init__(
        self,
        folder: Path,
        measured: Measured,
        *,
        between: Measured | None = None,
        base_folder: Path | None = None,
        device: str = "cpu",
        say: Say = lambda line: None,
        track: Track = lambda episodes, label, total: episodes,
    ) -> None:
        """Raises ConfigError if the folder holds no fine-tuning run."""
        self.folder = folder
        self.measured = measured
        self.between = between or measured
        if self.between.hellaswag > measured.hellaswag:
            raise ConfigError(
                f"Checkpoints in between cannot be compared with the base over "
                f"{self.between.hellaswag} items of HellaSwag: it is asked {measured.hellaswag}."
            )
        if measured.hellaswag and measured.hellaswag_file:
            _check_items(Path(measured.hellaswag_file))
        self.settings = settings_of(folder)
        self.base_folder = base_folder or folder / EVALUATIONS / BASE
        self.device = device
        self.say = say
        self.track = track
        self._base: Pretrained | None = None

    def checkpoints(self) -> list[Path]:
        """Those of the run, oldest first."""
        from itl_train.checkpoint import checkpoints

        return checkpoints(self.folder / "checkpoints")

    def run(self, chosen: Sequence[Path] | None = None) -> "pd.DataFrame":
        """Measure what is left of the base and of the checkpoints, and return the table.

        chosen: checkpoints; all of the run by default. The table goes into
        `evaluations/table.csv`, where lines of other checkpoints stay.

        Raises ConfigError if there is no checkpoint.
        """
        import pandas as pd

        chosen = self.checkpoints() if chosen is None else chosen
        if not chosen:
            raise ConfigError(f"There is no checkpoint in {self.folder} to evaluate yet.")
        base = self.measure_base()
        rows = [self._row(BASE, base, base)]
        for path in chosen:
            rows.append(self._row(path.name, self.measure(path), base))
        table = pd.DataFrame(rows)
        file = self.folder / EVALUATIONS / TABLE
        whole = table
        if file.exists():
            before = pd.read_csv(file)
            there = {path.name for path in self.checkpoints()} - set(table["checkpoint"])
            others = before[before["checkpoint"].isin(there)]
            whole = pd.concat([table, others]).sort_values("step") if len(others) else table
        write_text(file, whole.to_csv(index=False))
        return table

    def measure_base(self) -> dict[str, Any]:
        """The parts of the model that the run began with; of drift there is none."""
        own, load = self.folder / EVALUATIONS / BASE, self._load_base
        found = self._parts(own, BASE, load, self.measured, ("recall",))
        self.base_folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.base_folder / ".lock"):  # others may share it
            found |= self._parts(self.base_folder, BASE, load, self.measured, ("hellaswag",))
            if self.measured.drift:
                self._answers(self.measured)
        return found

    def measure(self, checkpoint: Path) -> dict[str, Any]:
        """The parts of a checkpoint.

        Raises ITLError if the checkpoint is damaged.
        """
        from itl_agents.pretrained import load_pretrained
        from itl_train.checkpoint import check_whole

        def load() -> "Pretrained":
            check_whole(checkpoint)
            return load_pretrained(
                checkpoint, dtype=self.settings.dtype, device=self.device, base=self._base
            )

        folder = self.folder / EVALUATIONS / checkpoint.name
        is_last = checkpoint.name == self.checkpoints()[-1].name
        measured = self.measured if is_last else self.between
        return self._parts(folder, checkpoint.name, load, measured, PARTS)

    def _load_base(self) -> "Pretrained":
        from itl_agents.pretrained import load_pretrained

        if self._base is None:
            settings = self.settings
            self._base = load_pretrained(settings.model, dtype=settings.dtype, device=self.device)
        return self._base

    def _parts(
        self,
        folder: Path,
        name: str,
        load: Callable[[], "Pretrained"],
        measured: Measured,
        parts: Sequence[str],
    ) -> dict[str, Any]:
        """What is known of a model, measured where it is not; the model is loaded if it is needed.

        Returns the result of each part by its name.
        """
        loaded: Pretrained | None = None
        found = {}
        for part in parts:
            if not (made_by := self._made_by(part, measured)):
                continue
            file = folder / f"{part}.json"
            if file.exists():
                there = read_json(file, "Remove it, and it is measured anew.")
                if there["made_by"] == made_by:
                    found[part] = there["result"]
                    continue
            if loaded is None:
                loaded = load()
            self.say(f"{name}: {part}")
            result = getattr(self, f"_measure_{part}")(loaded, measured)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps({"made_by": made_by, "result": result}) + "\n")
            found[part] = result
        return found

    def _made_by(self, part: str, measured: Measured) -> dict[str, Any]:
        """The settings on which a part hangs; {} if it is not wanted."""
        wanted, dtype = asdict(measured), {"dtype": self.settings.dtype}
        if part == "recall":
            asked = {name: wanted[name] for name in ("n_seen", "n_unseen")}
            own = {name: getattr(self.settings, name) for name in ASKED_OF}
            return {**own, **dtype, "asked": asked} if any(asked.values()) else {}
        how = "hellaswag_file" if part == "hellaswag" else "drift_tokens"
        return {part: wanted[part], how: wanted[how], **dtype} if wanted[part] else {}

    # -- the parts -------------------------------------------------------------------------------

    def _agent(
        self, loaded: "Pretrained", max_new_tokens: int = 64, keep_turns: bool = True
    ) -> Any:
        from itl_agents.huggingface import HFAgent

        return HFAgent(
            loaded.model,
            loaded.tokenizer,
            name=loaded.source,
            calls=self.settings.calls,
            system=self.settings.system,
            max_new_tokens=max_new_tokens,
            keep_turns=keep_turns,
        )

    def _measure_recall(self, loaded: "Pretrained", measured: Measured) -> dict[str, Any]:
        from itl_agents.agent import rollout
        from itl_agents.evaluate import RecallCount
        from itl_train.sft_questions import Questions

        questions = Questions.open(self.settings)
        agent = self._agent(loaded, keep_turns=self.settings.mode == "in-tool")
        result: dict[str, Any] = {}
        for who, task, n in (
            ("seen", questions.seen, measured.n_seen),
            ("unseen", questions.unseen, measured.n_unseen),
        ):
            if task is None or not n:
                continue
            facts = questions.asked(task, n)
            count = RecallCount()
            samples: list[dict[str, Any]] = []
            for episode in self.track(rollout(agent, task, facts), f"asking {who}", len(facts)):
                count.add(episode)
                if len(samples) < 3:
                    samples.append(_sample(episode))
            low, high = clustered_wilson(list(count.by_person.values()))
            result[who] = {
                "asked": count.asked,
                "right": count.right,
                "queried": count.n_queried,
                "errors": count.n_errors,
                "recall": count.recall,
                "recall_error": standard_error(count.right, count.asked),
                "low": low,
                "high": high,
                "by_attribute": count.by_attribute,
                "samples": samples,
            }
        return result

    def _measure_hellaswag(self, loaded: "Pretrained", measured: Measured) -> dict[str, Any]:
        from benchmarks.hellaswag import hellaswag

        found = hellaswag(
            loaded.model,
            loaded.tokenizer,
            limit=measured.hellaswag,
            file=measured.hellaswag_file,
        )
        if (n := len(found.acc)) < measured.hellaswag:
            warnings.warn(
                f"HellaSwag has {n:,} items there, fewer than {measured.hellaswag:,}", stacklevel=2
            )
        return asdict(found)

    def _measure_drift(self, loaded: "Pretrained", measured: Measured) -> dict[str, Any]:
        from benchmarks.drift import measure_drift

        answers = self._answers(measured)
        return asdict(measure_drift(self._load_base().model, loaded.model, answers))

    def _answers(self, measured: Measured) -> "list[Answer]":
        """What the base says to the general prompts over which drift is measured."""
        from benchmarks.drift import base_answers, general_prompts

        return base_answers(
            lambda: self._agent(self._load_base(), measured.drift_tokens, keep_turns=False),
            {
                "max_new_tokens": measured.drift_tokens,
                **{name: getattr(self.settings, name) for name in ANSWERED_BY},
            },
            general_prompts(measured.drift),
            self.base_folder,
            self.say,
        )

    # -- the table -------------------------------------------------------------------------------

    def _row(self, name: str, parts: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
        """One line of the table: a model's figures, and how they compare with the base's."""
        settings = self.settings
        row: dict[str, Any] = {
            "model": settings.model,
            "mode": settings.mode,
            "n_facts": settings.n_facts,
            "checkpoint": name,
            "step": 0 if name == BASE else int(name.rpartition("-")[2]),
        }
        for who, figures in parts.get("recall", {}).items():
            for column in ("asked", "right", "recall", "recall_error", "low", "high"):
                row[f"{who}_{column}"] = figures[column]
        if "hellaswag" in parts:
            for metric in ("acc", "acc_norm"):
                own, theirs = (each["hellaswag"][metric] for each in (parts, base))
                # In between there may be fewer items: the first ones.
                row |= _compared(f"hellaswag_{metric}", own, theirs[: len(own)])
            row["hellaswag_items"] = len(parts["hellaswag"]["acc"])
        drift = dict(parts["drift"]) if "drift" in parts else None
        if drift is None and name == BASE and self.measured.drift:
            drift = dict.fromkeys(("kl", "kl_error", "tv", "tv_error"), 0.0)
        by_answer = {name: drift.pop(name) for name in BY_ANSWER if name in drift} if drift else {}
        if by_answer:
            row["drift_by_answer"] = json.dumps(by_answer)
        return row | {f"drift_{key}": value for key, value in (drift or {}).items()}


def _compared(name: str, own: Sequence[int], base: Sequence[int]) -> dict[str, float]:
    """A share of items, its standard error, and its difference from and ratio to the base's."""
    share = sum(own) / len(own)
    difference, low, high = paired_difference(own, base)
    ratio, ratio_low, ratio_high = paired_ratio(own, base)
    return {
        name: share,
        f"{name}_error": standard_error(sum(own), len(own)),
        f"{name}_change": difference,
        f"{name}_change_low": low,
        f"{name}_change_high": high,
        f"{name}_relative": ratio,
        f"{name}_relative_low": ratio_low,
        f"{name}_relative_high": ratio_high,
    }


def _sample(episode: Episode) -> dict[str, Any]:
    """An answer to look at."""
    return {
        "messages": [list(message) for message in episode.messages],
        "value": episode.fact.value,
        "right": episode.reward == 1.0,
    }


def _check_items(file: Path) -> None:
    """Raise ConfigError if the file holds no items of HellaSwag, by its first line."""
    try:
        with file.open("rb") as raw:
            is_packed = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if is_packed else open)(file, "rb") as lines:
            first = json.loads(lines.readline())
        there = isinstance(first, dict) and first.keys() >= {"query", "choices", "gold"}
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error):
        there = False
    except OSError as error:
        raise ConfigError(
            f"Cannot read items of HellaSwag from {file}: {error.strerror}."
        ) from None
    if not there:
        raise ConfigError(
            f"{file} holds no items of HellaSwag: each line is to be a JSON object with query, "
            "choices and gold."
        )


def summary(table: "pd.DataFrame") -> str:
    """The table for people to read: shares in per cent, with 95% intervals where there is room."""
    lines = []
    for _, row in table.iterrows():
        parts = [f"{row['checkpoint']:<14}"]
        for who in ("seen", "unseen"):
            if f"{who}_recall" in row:
                share = interval(*(row[f"{who}_{key}"] for key in ("recall", "low", "high")))
                parts.append(f"{who} {share}")
        if "hellaswag_acc" in row:
            keys = ("relative", "relative_low", "relative_high")
            share = interval(*(row[f"hellaswag_acc_{key}"] for key in keys))
            beside = "" if row["checkpoint"] == BASE else f", {share} of the base's"
            parts.append(f"HellaSwag {100 * row['hellaswag_acc']:.1f}%{beside}")
        if "drift_tv" in row:
            for name in ("tv", "kl"):
                mean, half = row[f"drift_{name}"], Z * row[f"drift_{name}_error"]
                parts.append(f"{name.upper()} {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]")
        lines.append("  ".join(parts))
    return "\n".join(lines)


def settings_of(folder: Path) -> SFTSettings:
    """The settings of a fine-tuning run; raises ConfigError if the folder holds none."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} holds no run; name the folder of `itl train sft`.")
    found = read_yaml(folder / CONFIG)
    names = [field.name for field in fields(SFTSettings)]
    if "model" not in found:
        raise ConfigError(
            f"{folder} holds a run that began from nothing, so there is no base to compare with; "
            "leave out HellaSwag and drift, or fine-tune its checkpoint with `itl train sft`."
        )
    if "data" in found:
        raise ConfigError(f"{folder} has learnt to call tools; see `itl toolcall eval --every`.")
    if unknown := [name for name in found if name not in names]:
        raise ITLError(f"{folder / CONFIG} has the setting {unknown[0]!r}, which is not known.")
    return SFTSettings(**found)
