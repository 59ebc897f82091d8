"""The pipeline that the studies of a calculator tool seen from inside share.

The pipeline makes data, fine-tunes a model, merges it, collects activations of both, trains bases
on the model before and deltas on the one after. It lies in one folder that all studies read, and
each of its parts is a command of its own (`itl toolformer ...`, `itl transcoder ...`), so that one
that is interrupted goes on. What a study measures is kept by `benchmarks.toolformer_cells`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.interventions import Means, Row, Subject
from benchmarks.machine import machine
from benchmarks.progress import TrainingProgress
from benchmarks.timing import check_threads, say
from itl_agents.sites import site_of
from itl_agents.transcoder import Transcoder, check_model
from itl_env.errors import ConfigError
from itl_env.files import read_json, write_text
from itl_env.toolformer import SUBSETS, Kind, ToolformerMix, load_toolformer_rows
from itl_train.run_folder import first_entry
from itl_train.runs import claim
from itl_train.settings import check_at_least
from itl_train.transcoder_config import TranscoderSettings

if TYPE_CHECKING:
    from itl_agents.pretrained import Pretrained
    from itl_train.activations import Activations

Which = Literal["base", "tuned"]
"""The model before it was fine-tuned, or after."""


@dataclass(frozen=True)
class Sizes:
    """How much a preset does."""

    mix: Mapping[str, Any]  # of the data
    tuning: Mapping[str, Any]  # settings of the fine-tuning
    layers: tuple[int, ...]
    n_rows: int  # of the training data, whose activations are collected; 0 for all
    d_sae: int
    sparsities: tuple[float, ...]
    course: Mapping[str, Any]  # of bases
    percentiles: tuple[float, ...]
    d_new: tuple[int, ...]
    delta_sparsity: float
    delta_course: Mapping[str, Any]
    n_losses: int  # rows of each subset whose cross-entropy is measured in the validation
    n_evaluate: int  # rows of each subset in the interventions


SIZES = {
    "smoke": Sizes(
        mix={"n_tool": 12, "n_copy": 12, "n_evaluate": 4, "validation": 0.5},
        tuning={"epochs": 0.2, "batch_size": 4, "n_evaluate": 2, "patience": 0, "log_every": 1,
                "evaluate_every": 2, "checkpoint_every": 2, "lora_rank": 2},
        layers=(0, 1), n_rows=0, d_sae=16, sparsities=(0.1, 1.0),
        course={"n_steps": 4, "evaluate_every": 2, "batch_tokens": 64, "n_evaluate": 100},
        percentiles=(0.0, 1.0), d_new=(2, 4), delta_sparsity=1e-3,
        delta_course={"n_steps": 4, "evaluate_every": 2, "batch_tokens": 64, "n_evaluate": 100},
        n_losses=4, n_evaluate=4,
    ),
    "laptop": Sizes(
        mix={"n_tool": 5_000, "n_copy": 5_000, "n_evaluate": 200},
        tuning={"epochs": 0.192, "batch_size": 8, "lr": 1e-3, "lora_dropout": 0.0, "patience": 0,
                "log_every": 5, "evaluate_every": 80, "n_evaluate": 50, "checkpoint_every": 80},
        layers=(6, 12, 18, 24), n_rows=3_000, d_sae=4_096, sparsities=(5.0,),
        course={"n_steps": 500, "lr": 3e-3, "lr_warmup": 50, "sparsity_warmup": 100, "decay": 0.3,
                "evaluate_every": 100, "patience": 0},
        percentiles=(0.5,), d_new=(32, 64, 128), delta_sparsity=1e-3,
        delta_course={"n_steps": 1_500, "lr": 1e-3, "lr_warmup": 100, "sparsity_warmup": 100,
                      "decay": 0.3, "evaluate_every": 500, "patience": 0, "train_threshold": False},
        n_losses=200, n_evaluate=200,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ToolformerStudyConfig:
    """What the three studies of a calculator tool share."""

    preset: Literal["smoke", "laptop"] = "smoke"
    """smoke: a random small model, in half a minute; laptop: a pretrained one, about an hour for
    what the studies share and as much for all three"""
    model: str = ""  # pretrained model to fine-tune: a .gguf file, a folder or a hub id
    base: str = ""
    """Gemma Scope, a folder or a hub id, whose transcoders are the bases; else they are trained"""
    text: tuple[str, ...] = ()  # files of sentences to copy, see `itl toolformer data`
    runs: Path = Path("runs/toolformer-studies")  # folder of what the studies share
    layers: tuple[int, ...] = ()  # whose MLP is replaced; those of the preset if none is named
    sparsities: tuple[float, ...] = ()
    """of bases that are trained, one for each level; those of the preset if none is named"""
    seed: int = 0  # drives data, initialisation and the random control
    n_threads: int = 0  # CPU threads; 0 for one a core

    def __post_init__(self) -> None:
        check_threads(self.n_threads)
        if self.preset == "laptop" and not self.model:
            raise ConfigError("The preset laptop fine-tunes a pretrained model; name one: --model.")


@dataclass(frozen=True, kw_only=True)
class InterventionConfig(ToolformerStudyConfig):
    """What the studies share that let a model write while an MLP is replaced."""

    percentile: float = 0.5  # which base of a layer, by L0: 0 sparsest, 1 densest
    d_new: int = 0  # features of the delta beside it; 0 for the most of the preset

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "d_new")
        if not 0 <= self.percentile <= 1:
            raise ConfigError(f"percentile is {self.percentile}; it must be from 0 to 1.")

    @property
    def n_new(self) -> int:
        """Features of the delta."""
        return self.d_new or max(SIZES[self.preset].d_new)


@dataclass
class Toolformer:
    """The pipeline in its folder; each part is made when it is first asked for."""

    config: ToolformerStudyConfig
    sizes: Sizes = field(init=False)
    _loaded: "dict[str, Pretrained]" = field(default_factory=dict)
    _collected: "dict[tuple[str, int], tuple[Activations, Activations]]" = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        self.sizes = SIZES[self.config.preset]
        self._check_settings()

    def _check_settings(self) -> None:
        """Raise ConfigError if the folder was made with other settings."""
        from itl_agents.hub import check_pretrained, fingerprint

        if self.config.model:  # a misspelt one must not stand in the settings
            check_pretrained(self.config.model)
        config, file = self.config, self.place("settings.json")
        model = config.model and fingerprint(config.model)
        wanted = {"preset": config.preset, "model": model, "seed": config.seed}
        wanted |= {"text": [str(Path(each).absolute()) for each in config.text]}
        wanted |= {"base": config.base, "sparsities": list(config.sparsities)}
        if file.exists():
            there = read_json(file, "Name another folder of --runs.")
            for key, value in wanted.items():
                was = there.get(key)
                if was != value:
                    raise ConfigError(
                        f"{config.runs} was made with {key}={was!r}, not {value!r}; name another "
                        "folder: --runs."
                    )
            return
        if (found := first_entry(config.runs)) is not None:
            raise ConfigError(
                f"{config.runs} holds {found!r}, but nothing of these studies; name a new or empty "
                "folder: --runs."
            )
        config.runs.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(wanted, indent=1) + "\n")

    def place(self, name: str) -> Path:
        """A folder of the pipeline."""
        return self.config.runs / name

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose MLP is replaced."""
        return self.config.layers or self.sizes.layers

    @cached_property
    def data(self) -> Path:
        """The folder of rows."""
        from itl_env.toolformer import REPORT, make_toolformer_data

        text = self.config.text
        if self.config.preset == "smoke" and not text:
            text = (str(_sentences(self.place("sentences.txt"))),)
        folder = self.place("data")
        mix = ToolformerMix(**self.sizes.mix, text=text, seed=self.config.seed)
        if not (folder / REPORT).exists():
            say("making data")
            make_toolformer_data(mix, folder)
        return folder

    @cached_property
    def base_model(self) -> str:
        """The model before it is fine-tuned."""
        return self.config.model or str(_small_model(self.place("model"), self.config.seed))

    @cached_property
    def tuned_model(self) -> str:
        """The folder of the fine-tuned model, merged."""
        from itl_train.toolformer import ToolformerRun, merge
        from itl_train.toolformer_config import ToolformerSettings

        folder = self.place("merged")
        if not folder.exists():
            for layer in self.layers:  # before anything is trained
                site_of(self.loaded("base").model, layer)
            settings = ToolformerSettings(
                model=self.base_model, data=str(self.data), seed=self.config.seed,
                n_threads=self.config.n_threads, **self.sizes.tuning,
            )  # fmt: skip
            run = ToolformerRun(settings, self.place("tuning"))
            with TrainingProgress({"fine-tuning": run.n_steps}) as progress:
                run.train(lambda row: progress("fine-tuning", row))
            merge(self.place("tuning"), folder)
        return str(folder)

    def tuning(self) -> list[Row]:
        """The evaluations of the fine-tuning."""
        from itl_train.run_folder import RunFolder

        return [row for row in RunFolder(self.place("tuning")).rows() if "exact" in row]

    def activations(self, of: Which, layer: int) -> "tuple[Activations, Activations]":
        """The collections of a model that hold a layer, to train and to validate on."""
        if (of, layer) not in self._collected:
            there: dict[tuple[str, int], tuple[Activations, Activations]] = {}
            for folder in sorted(self.config.runs.glob(f"activations-{of}*")):
                found = self._whole(folder)
                there |= {(of, each): found for each in found[0].about.layers} if found else {}
            self._collected |= there
        if (of, layer) not in self._collected:
            missing = [each for each in self.layers if (of, each) not in self._collected]
            found = self._collect(of, missing)
            self._collected |= {(of, each): found for each in missing}
        return self._collected[of, layer]

    @staticmethod
    def _whole(folder: Path) -> "tuple[Activations, Activations] | None":
        """The collections in a folder; None if they are not whole."""
        from itl_train.activations import Activations

        try:
            return Activations(folder / "train"), Activations(folder / "validation")
        except ConfigError:
            return None

    def _collect(self, of: Which, layers: Sequence[int]) -> "tuple[Activations, Activations]":
        """Collect at all these layers in one pass over the texts."""
        from benchmarks.transcoder_runs import collect_parts

        out = self.place(f"activations-{of}-{'-'.join(map(str, layers))}")
        n_rows, name = self.sizes.n_rows, f"the {of} model"
        train, validation = collect_parts(
            self.loaded(of), self.data, layers, out, n_rows=n_rows, name=name
        )
        return train, validation

    def loaded(self, of: Which) -> "Pretrained":
        """A model and its tokenizer, which stay in memory."""
        from itl_agents.pretrained import load_pretrained

        if of not in self._loaded:
            place = self.base_model if of == "base" else self.tuned_model
            self._loaded[of] = load_pretrained(place)
        return self._loaded[of]

    def _settings(self, d_sae: int, sparsity: float, course: Mapping[str, Any]) -> Any:
        shared = {"seed": self.config.seed, "n_threads": self.config.n_threads}
        return TranscoderSettings(d_sae=d_sae, sparsity=sparsity, **{**course, **shared})

    @cached_property
    def bases(self) -> Path:
        """The folder of the bases, one for each layer and sparsity."""
        from benchmarks.transcoder_runs import train
        from itl_train.transcoder import RESULT, TranscoderRun
        from itl_train.transcoder_folders import base_folder

        root = self.place("bases")
        for layer in self.layers:
            for sparsity in self.config.sparsities or self.sizes.sparsities:
                out = base_folder(root, layer, sparsity)
                if not (out / RESULT).exists():
                    collected = self.activations("base", layer)
                    settings = self._settings(self.sizes.d_sae, sparsity, self.sizes.course)
                    run = TranscoderRun(settings, *collected, layer, out)
                    train(run, f"base of layer {layer}, sparsity {sparsity:g}")
        return root

    def base(self, layer: int, percentile: float) -> Transcoder:
        """The base of a layer."""
        from itl_train.transcoder_folders import open_base

        if not self.config.base:
            return open_base(str(self.bases), layer, percentile)
        base = open_base(self.config.base, layer, percentile)
        check_model(base, self.loaded("base").model, "model than the one before it is fine-tuned")
        return base

    def unexplained(self, base: Transcoder) -> float:
        """What a base leaves of the model before it was fine-tuned, on validation tokens."""
        if base.about.unexplained is not None:
            return base.about.unexplained
        from itl_train.transcoder import fit_of  # it was trained elsewhere

        layer = base.about.layer
        _, validation = self.activations("base", layer)
        return fit_of(base, validation.read(layer), validation.wrote(layer)).unexplained

    def delta(self, layer: int, percentile: float, d_new: int, of: Which = "tuned") -> Transcoder:
        """A delta beside the base of that percentile, trained if it has not been."""
        from benchmarks.transcoder_runs import train
        from itl_train.transcoder import RESULT, TranscoderRun
        from itl_train.transcoder_folders import delta_folder

        out = delta_folder(self.place(f"deltas-{of}"), layer, percentile, d_new)
        if not (out / RESULT).exists():
            settings = self._settings(d_new, self.sizes.delta_sparsity, self.sizes.delta_course)
            base = self.base(layer, percentile)
            collected = self.activations(of, layer)
            name = self.config.base or "bases"
            run = TranscoderRun(settings, *collected, layer, out, base, name)
            train(run, f"delta of layer {layer}, percentile {percentile:g}, {d_new} features")
        return Transcoder.load(out / RESULT)

    def means(self, layer: int, base: Transcoder) -> Means:
        """Of the fine-tuned model at a layer."""
        train, _ = self.activations("tuned", layer)
        return Means(base, train.read(layer), train.wrote(layer))

    def subject(self, n: int) -> Subject:
        """The fine-tuned model and n rows of each subset."""
        model, tokenizer, _ = self.loaded("tuned")
        rows: dict[Kind, Any] = {
            kind: load_toolformer_rows(self.data / name)[:n] for kind, name in SUBSETS.items()
        }
        return Subject(model, tokenizer, rows)

    def course(self, study: str) -> Row:
        """What the report of a study says of how all was made."""
        return {
            "command": _command(study, self.config),
            "preset": self.config.preset,
            "model": Path(self.base_model).name,
            "base": self.config.base or "trained on the model before it was fine-tuned",
            "layers": list(self.layers),
            "seed": self.config.seed,
            "tuning": self.tuning()[-1],
            "machine": machine(),
        }


def _command(study: str, config: ToolformerStudyConfig) -> str:
    """The command that runs a study so, with files by their names and without its folders."""
    words = ["itl bench run", study]
    for option in fields(config):
        value = getattr(config, option.name)
        if option.name in ("out", "runs", "n_threads") or value == option.default:
            continue
        values = value if isinstance(value, tuple) else (value,)
        said = [Path(each).name if Path(str(each)).exists() else str(each) for each in values]
        words += ["--" + option.name.replace("_", "-"), *said]
    return " ".join([*words, "--out DIR"])


def begin(config: ToolformerStudyConfig, out: Path, study: str) -> Toolformer:
    """The pipeline of a study, and its folder; raises ConfigError if that is another's."""
    import torch

    from benchmarks.rollouts import quiet_transformers

    if out.is_file():
        raise ConfigError(f"{out} is a file; name a folder.")
    quiet_transformers()
    if config.n_threads:
        torch.set_num_threads(config.n_threads)
    made = Toolformer(config)
    claim(out, f"itl bench run {study}")
    return made


def _sentences(file: Path) -> Path:
    """Sentences to copy, for a model that learns nothing from them."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        things = ("lamps", "birds", "stones", "letters", "apples", "boats")
        lines = [
            f"There were {n} {thing} in box number {n * 7 + 3} yesterday."
            for n in range(2, 40)
            for thing in things
        ]
        write_text(file, "\n\n".join(lines) + "\n")
    return file


def _small_model(folder: Path, seed: int) -> Path:
    """A NanoLlama of random weights, as a folder."""
    from itl_agents.nanollama import ByteTokenizer, NanoLlama, NanoLlamaConfig, save_model

    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.partial")
        sizes = NanoLlamaConfig(d_model=16, n_layers=2, n_heads=2)
        save_model(NanoLlama(sizes, seed=seed), partial)
        ByteTokenizer().save(partial)
        partial.replace(folder)
    return folder
