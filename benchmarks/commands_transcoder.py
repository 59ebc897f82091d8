"""Commands of `itl transcoder`: activations, bases, deltas, fusing, validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from itl_env.errors import ConfigError
from itl_train.settings import check_at_least
from itl_train.transcoder_config import TranscoderCourse, TranscoderSettings, check_features

if TYPE_CHECKING:
    from itl_agents.transcoder import Transcoder
    from itl_train.activations import Activations
    from itl_train.transcoder import TranscoderRun


@dataclass(frozen=True, kw_only=True)
class TranscoderCollect:
    """Run a model over prompts and targets, and keep what its MLPs read and add.

    The folder can be interrupted at any time; the same command goes on.
    """

    model: str  # a folder, a run of `itl toolformer train`, a .gguf file or a hub id
    data: Path  # folder of `itl toolformer data`
    layers: tuple[int, ...] = ()  # whose MLPs are watched, from 0; all if none is named
    out: Path = Path("runs/activations")  # folder of the collections train and validation
    n_rows: int = 0  # of the training and of the validation data, the first ones; 0 for all
    unnormed: bool = False  # keep the residual stream as it is, not divided by its root mean square
    precision: Literal["float16", "float32"] = "float16"  # of what is kept
    batch_tokens: int = 4_096  # tokens of a forward pass: what is in memory at once
    device: str = "cpu"  # where the model runs: cpu, cuda, ...

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_tokens")
        check_at_least(self, 0, "n_rows")


def transcoder_collect(config: TranscoderCollect) -> None:
    """Collect both parts, and print how many tokens there are."""
    from benchmarks.rollouts import quiet_transformers
    from benchmarks.transcoder_runs import PARTS, collect_parts
    from itl_agents.pretrained import load_pretrained
    from itl_agents.sites import n_layers
    from itl_train.models import model_of
    from itl_train.team import check_device

    quiet_transformers()
    check_device(config.device)
    pretrained = load_pretrained(model_of(config.model), device=config.device)
    layers = config.layers or range(n_layers(pretrained.model))
    found = collect_parts(
        pretrained, config.data, layers, config.out, n_rows=config.n_rows,
        normed=not config.unnormed, precision=config.precision, batch_tokens=config.batch_tokens,
    )  # fmt: skip
    for part, collected in zip(PARTS, found, strict=True):
        about = collected.about
        print(f"{part}: {about.n_tokens:,} tokens at {len(about.layers)} layers")
    print(f"in {config.out}")


@dataclass(frozen=True, kw_only=True)
class TranscoderTrain(TranscoderCourse):
    """Train a base transcoder for each layer and each level of sparsity.

    The folder can be interrupted at any time; the same command goes on.
    """

    activations: Path  # folder of `itl transcoder collect`
    layers: tuple[int, ...] = ()  # all that are collected if none is named
    d_sae: int = 4_096  # features of each base
    sparsity: tuple[float, ...] = (3.0,)  # weights of mean|a| in the loss, one base for each
    out: Path = Path("runs/transcoders")  # folder of the bases

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_grid(self, "sparsity")


def transcoder_train(config: TranscoderTrain) -> None:
    """Train what is left, and print how well each fits."""
    from itl_train.runs import claim
    from itl_train.transcoder import TranscoderRun
    from itl_train.transcoder_folders import base_folder

    train, validation = _parts(config.activations)
    layers = config.layers or train.about.layers
    for layer in layers:  # all of them, before a run is begun
        train.of_layer(layer)
    claim(config.out, "itl transcoder train", "layer-*/sparsity-*/config.yaml")
    runs = {}
    for layer in layers:
        for sparsity in config.sparsity:
            settings = _settings(config, config.d_sae, sparsity)
            out = base_folder(config.out, layer, sparsity)
            run = TranscoderRun(settings, train, validation, layer, out)
            runs[f"layer {layer}, sparsity {sparsity:g}"] = run
    _train(runs)


@dataclass(frozen=True, kw_only=True)
class TranscoderDelta(TranscoderCourse):
    """Train deltas beside frozen bases, on what these leave of a fine-tuned model.

    The folder can be interrupted at any time; the same command goes on.
    """

    activations: Path  # of the fine-tuned model, by `itl transcoder collect`
    base: str  # folder of `itl transcoder train`, or Gemma Scope: a folder or a hub id
    layers: tuple[int, ...] = ()  # all that are collected if none is named
    percentile: tuple[float, ...] = (0.5,)  # which bases of a layer, by L0: 0 sparsest, 1 densest
    d_new: tuple[int, ...] = (32, 64, 128)  # features, one delta for each
    sparsity: float = 1e-3  # weight of mean|a| in the loss
    train_threshold: bool = False  # by straight-through estimates, else it stays
    out: Path = Path("runs/deltas")  # folder of the deltas

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_grid(self, "percentile", "d_new")
        check_features(self.d_new)


def transcoder_delta(config: TranscoderDelta) -> None:
    """Train what is left, and print how well each fits together with its base."""
    from itl_train.runs import claim
    from itl_train.transcoder import TranscoderRun
    from itl_train.transcoder_folders import delta_folder, open_base

    train, validation = _parts(config.activations)
    bases = {  # all of them, before a run is begun
        (layer, percentile): open_base(config.base, layer, percentile)
        for layer in config.layers or train.about.layers
        for percentile in config.percentile
    }
    for layer, _ in bases:
        train.of_layer(layer)
    claim(config.out, "itl transcoder delta", "layer-*/percentile-*/*/config.yaml")
    runs = {}
    for (layer, percentile), base in bases.items():
        for d_new in config.d_new:
            run = TranscoderRun(
                _settings(config, d_new, config.sparsity), train, validation, layer,
                delta_folder(config.out, layer, percentile, d_new), base, config.base,
            )  # fmt: skip
            runs[f"layer {layer}, percentile {percentile:g}, {d_new} features"] = run
    _train(runs)


@dataclass(frozen=True, kw_only=True)
class TranscoderFuse:
    """Write a base and its delta as one transcoder, for SAELens or as Gemma Scope has them."""

    base: tyro.conf.Positional[str]
    """of the base, or of all bases: a folder, or Gemma Scope as for `delta`; or one params.npz"""
    delta: tyro.conf.Positional[Path]  # folder of the delta
    out: Path  # new folder, or a file that ends in .npz
    layer: int = -1  # of a params.npz, which does not say it
    alpha: float = 1.0  # factor of the delta


def transcoder_fuse(config: TranscoderFuse) -> None:
    """Fuse, and print where it is."""
    from itl_agents.transcoder import fuse

    if config.out.exists():  # before a base is looked for
        raise ConfigError(f"{config.out} is there already; name a new place.")
    whole = fuse(*_open_pair(config.base, config.delta, config.layer), config.alpha)
    if config.out.suffix == ".npz":
        whole.save_npz(config.out)
    else:
        whole.save(config.out)
    print(f"{whole.d_sae:,} features of layer {whole.about.layer} are in {config.out}")


@dataclass(frozen=True, kw_only=True)
class TranscoderValidate:
    """Measure how well a transcoder, or a base with its delta, gives what an MLP adds."""

    transcoder: tyro.conf.Positional[str]
    """its folder, or a params.npz; with a delta, its base as for `fuse`"""
    activations: Path  # a collection of the model: its folder, or that of both parts
    delta: Path | None = None  # folder of a delta beside it
    layer: int = -1  # of a params.npz, which does not say it
    other_model: bool = False
    """measure it though the activations are another model's, such as a base on a fine-tuned one"""


def transcoder_validate(config: TranscoderValidate) -> None:
    """Measure on all validation tokens, and print the figures."""
    import dataclasses

    from itl_agents.transcoder import check_pair
    from itl_train.activations import COLLECTION, Activations
    from itl_train.transcoder import fit_of, warn_unexplained

    is_one = (config.activations / COLLECTION).exists()
    found = Activations(config.activations if is_one else config.activations / "validation")
    base = None
    if config.delta is not None:
        base, one = _open_pair(config.transcoder, config.delta, config.layer)
        check_pair(base, one)
    else:
        one = _open(Path(config.transcoder), config.layer)
    about = one.about
    if about.base_hash and base is None:
        raise ConfigError("This is a delta, which is measured with its base: BASE --delta DELTA.")
    if one.d_model != found.about.d_model:
        raise ConfigError(
            f"The transcoder has the width {one.d_model}, the activations {found.about.d_model}."
        )
    is_own = about.model_hash in ("", found.about.model_hash)
    if not (is_own or config.other_model):
        raise ConfigError(
            f"The transcoder is of {about.model or 'another model'}, the activations of "
            f"{found.about.model}, or of other weights of it; --other-model measures it there."
        )
    if about.normed != found.about.normed:
        raise ConfigError("The transcoder reads another site than these activations.")
    fit = fit_of(one, found.read(about.layer), found.wrote(about.layer), base)
    for name, value in dataclasses.asdict(fit).items():
        print(f"{name:<12}{value:.4g}")
    warn_unexplained(fit.unexplained, f"of layer {about.layer}, {one.d_sae:,} features")


def _check_grid(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name):
            raise ConfigError(f"{name} names nothing; give one value or more.")


def _settings(config: TranscoderCourse, d_sae: int, sparsity: float) -> TranscoderSettings:
    from dataclasses import fields

    course = {field.name: getattr(config, field.name) for field in fields(TranscoderCourse)}
    return TranscoderSettings(**course, d_sae=d_sae, sparsity=sparsity)


def _parts(folder: Path) -> "list[Activations]":
    from benchmarks.transcoder_runs import PARTS
    from itl_train.activations import Activations

    return [Activations(folder / part) for part in PARTS]


def _train(runs: "Mapping[str, TranscoderRun]") -> None:
    """Train runs, all of which have been opened; print how well they fit, and where they are."""
    from benchmarks.transcoder_runs import train

    for label, run in runs.items():
        train(run, label)
    print(_fits(list(runs.values())))
    print("\n".join(["in", *(f"  {run.result}" for run in runs.values())]))


def _fits(runs: "Sequence[TranscoderRun]") -> str:
    """The last evaluation of each run, as lines."""
    lines = ["layer  features  sparsity  steps  unexplained      L0   dead  cosine"]
    for run in runs:
        row, settings = run.folder.rows()[-1], run.settings
        lines.append(
            f"{run.layer:>5}  {settings.d_sae:>8,}  {settings.sparsity:>8g}  {row['step']:>5,}  "
            f"{row['unexplained']:>11.3f}  {row['l0']:>6.1f}  {row['dead']:>5.0%}  "
            f"{row['cosine']:>6.3f}"
        )
    return "\n".join(lines)


def _open_pair(base: str, delta: Path, layer: int) -> "tuple[Transcoder, Transcoder]":
    """A base, by itself or among all bases, and a delta."""
    from itl_train.transcoder_folders import base_of

    if delta.suffix == ".npz":
        raise ConfigError(f"{delta} does not say what it is a delta beside; name its folder.")
    one, path = _open(delta), Path(base)
    if path.suffix == ".npz" or (path.is_dir() and not any(path.glob("layer[-_]*"))):
        return _open(path, layer), one
    _no_layer(base, layer)
    return base_of(one, base), one


def _open(path: Path, layer: int = -1) -> "Transcoder":
    from itl_agents.transcoder import About, Transcoder, load_npz

    if path.suffix != ".npz":
        _no_layer(path, layer)
        return Transcoder.load(path)
    if layer < 0:
        raise ConfigError(f"{path} does not say its layer; name it with --layer.")
    return load_npz(path, About(layer=layer))


def _no_layer(place: Path | str, layer: int) -> None:
    if layer >= 0:
        raise ConfigError(f"--layer is of a params.npz; {place} says its own.")
