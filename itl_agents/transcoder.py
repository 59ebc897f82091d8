"""JumpReLU transcoders: sparse features that stand in for the MLP of one block.

    pre = x W_enc + b_enc;   a = pre where pre > threshold, else 0;   y = a W_dec + b_dec

x is what a site reads and y what it is to add to the residual stream (`itl_agents.sites`). A delta
is a transcoder without a bias of its own, whose output is added to that of a base: base + alpha *
delta. Folders have the layout of SAELens (`cfg.json`, `sae_weights.safetensors`), which can load
them; `params.npz` as Gemma Scope has them (`itl_agents.gemma_scope`) are read and written, too.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from itl_agents.sites import Replacement, Site, fingerprint, site_of
from itl_env.errors import ConfigError
from itl_env.files import read_json

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


@dataclass(frozen=True)
class About:
    """What a transcoder is of, and how well it fits.

    model, model_hash: whose activations it was trained on; see `fingerprint`. Empty if unknown.
    layer, normed: its site. base_hash: of a delta, the transcoder it is added to; see
    `Transcoder.hash`. unexplained: fraction of the variance of what the block adds that is left,
    on validation tokens. l0: features that are active at a token, on average.
    """

    model: str = ""
    model_hash: str = ""
    layer: int = 0
    normed: bool = True
    base_hash: str = ""
    unexplained: float | None = None
    l0: float | None = None


class Transcoder(nn.Module):
    """The weights `W_enc` (d_model, d_sae), `b_enc` (d_sae), `W_dec` (d_sae, d_model), `b_dec`
    (d_model) and `threshold` (d_sae), which must not be negative.

    Raises ConfigError for shapes that do not fit together.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor

    def __init__(self, weights: dict[str, Tensor], about: About) -> None:
        super().__init__()
        if missing := [name for name in NAMES if name not in weights]:
            raise ConfigError(f"A transcoder needs {missing[0]}.")
        d_model, d_sae = weights["W_enc"].shape if weights["W_enc"].dim() == 2 else (0, 0)
        shapes = ((d_model, d_sae), (d_sae,), (d_sae, d_model), (d_model,), (d_sae,))
        for name, shape in zip(NAMES, shapes, strict=True):
            if tuple(weights[name].shape) != shape:
                raise ConfigError(
                    f"{name} has the shape {tuple(weights[name].shape)}, not {shape}."
                )
            if not bool(weights[name].isfinite().all()):
                raise ConfigError(f"{name} holds numbers that are not finite.")
            self.register_buffer(name, weights[name].detach().float().contiguous())
        if bool((self.threshold < 0).any()):
            raise ConfigError("A threshold is negative.")
        if about.base_hash and bool(self.b_dec.any()):
            raise ConfigError("A delta has no decoder bias of its own, but b_dec is not 0.")
        self.about = about

    @property
    def d_model(self) -> int:
        """Width of what it reads and writes."""
        return int(self.W_enc.shape[0])

    @property
    def d_sae(self) -> int:
        """How many features it has."""
        return int(self.W_enc.shape[1])

    def encode(self, x: Tensor) -> Tensor:
        """Features (n_tokens, d_sae) of what is read (n_tokens, d_model)."""
        pre = torch.addmm(self.b_enc, x, self.W_enc)
        return pre.masked_fill_(pre <= self.threshold, 0.0)

    def decode(self, a: Tensor) -> Tensor:
        """What features (n_tokens, d_sae) add to the residual stream."""
        return torch.addmm(self.b_dec, a, self.W_dec)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the residual stream (n_tokens, d_model) where x is read."""
        return self.decode(self.encode(x))

    def weights(self) -> dict[str, Tensor]:
        """The weights by their names."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def hash(self) -> str:
        """A hash of the weights."""
        found = hashlib.blake2b(digest_size=16)
        for name in NAMES:
            found.update(getattr(self, name).cpu().numpy().tobytes())
        return found.hexdigest()

    def replacement(self) -> Replacement:
        """For `replaced`: this transcoder in place of the MLP."""
        return lambda x, _: self(x)

    # -- files -------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write a folder as SAELens does; raises ConfigError if there is one."""
        if folder.exists():
            raise ConfigError(f"{folder} is there already; name a new folder.")
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(self.weights(), partial / WEIGHTS)
        settings = {
            "architecture": "jumprelu_transcoder",
            "d_in": self.d_model,
            "d_sae": self.d_sae,
            "d_out": self.d_model,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "metadata": {"itl": asdict(self.about)},
        }
        (partial / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder)

    @classmethod
    def load(cls, folder: Path) -> "Transcoder":
        """Read a folder; raises ConfigError if it holds no such transcoder, and says why."""
        if not (folder / CONFIG).is_file():
            inner = [place.parent for place in folder.glob(f"*/{CONFIG}")]
            hint = f"; there is one in {inner[0]}." if inner else "."
            raise ConfigError(f"{folder} holds no transcoder: there is no {CONFIG}{hint}")
        settings = read_json(folder / CONFIG, "Train it again.")
        if not isinstance(settings, dict):
            raise ConfigError(f"{folder / CONFIG} holds no settings.")
        kind = settings.get("architecture")
        for key, wanted in (("apply_b_dec_to_input", False), ("normalize_activations", "none")):
            if settings.get(key, wanted) != wanted:
                raise ConfigError(f"{folder} has {key}={settings[key]!r}, which is not read here.")
        if kind != "jumprelu_transcoder":
            raise ConfigError(f"{folder} holds a {kind}; only JumpReLU transcoders are read.")
        given = (settings.get("metadata") or {}).get("itl")
        if not isinstance(given, dict) or not isinstance(given.get("layer"), int):
            raise ConfigError(
                f"{folder} does not say its layer and site, as transcoders of `itl transcoder` do; "
                "write it as a params.npz, and name its layer."
            )
        known = {field.name for field in fields(About)}
        try:
            weights = load_file(folder / WEIGHTS)
            return cls(weights, About(**{k: v for k, v in given.items() if k in known}))
        except (OSError, SafetensorError, ConfigError) as error:
            raise ConfigError(f"{folder} holds no whole transcoder: {error}") from None

    def save_npz(self, file: Path) -> None:
        """Write a file as Gemma Scope has them."""
        partial = file.with_name(f".{file.name}.partial.npz")
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {name: each.cpu().numpy() for name, each in self.weights().items()}
        np.savez(partial, **arrays)
        partial.replace(file)


def load_npz(file: Path, about: About) -> Transcoder:
    """A transcoder of Gemma Scope; raises ConfigError if the file holds none."""
    try:
        with np.load(file, allow_pickle=False) as found:
            weights = {name: torch.from_numpy(found[name]) for name in NAMES if name in found}
    except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
        raise ConfigError(f"Cannot read a transcoder from {file}: {error}.") from None
    try:
        return Transcoder(weights, about)
    except ConfigError as error:
        raise ConfigError(f"{file} holds no transcoder: {error}") from None


# -- deltas ------------------------------------------------------------------------------------


def dosed(base: Transcoder, delta: Transcoder, alpha: float = 1.0) -> Replacement:
    """For `replaced`: base + alpha * delta. Raises ConfigError if they do not belong together."""
    check_pair(base, delta)
    if alpha == 0:
        return base.replacement()
    return lambda x, _: base(x) + alpha * delta(x)


def fuse(base: Transcoder, delta: Transcoder, alpha: float = 1.0) -> Transcoder:
    """One transcoder whose output is base + alpha * delta, features of the base first.

    Raises ConfigError if they do not belong together.
    """
    check_pair(base, delta)
    weights = {
        "W_enc": torch.cat((base.W_enc, delta.W_enc), 1),
        "b_enc": torch.cat((base.b_enc, delta.b_enc)),
        "W_dec": torch.cat((base.W_dec, alpha * delta.W_dec)),
        "b_dec": base.b_dec,
        "threshold": torch.cat((base.threshold, delta.threshold)),
    }
    own = delta.about
    left = own.unexplained if alpha == 1 else None  # of other doses it is not known
    about = About(own.model, own.model_hash, own.layer, own.normed, unexplained=left)
    return Transcoder(weights, about)


def check_pair(base: Transcoder, delta: Transcoder) -> None:
    """Raise ConfigError if a delta was not trained beside this base."""
    check_delta(delta)
    if delta.d_model != base.d_model:
        raise ConfigError(f"The delta has the width {delta.d_model}, the base {base.d_model}.")
    if delta.about.layer != base.about.layer:
        raise ConfigError(
            f"The delta is of layer {delta.about.layer}, the base of layer {base.about.layer}."
        )
    if delta.about.base_hash != base.hash:
        raise ConfigError(
            "The delta was trained beside another base than this one; name the folder of all "
            "bases, and its own is taken."
        )


def check_delta(delta: Transcoder) -> None:
    """Raise ConfigError if a transcoder is no delta."""
    if not delta.about.base_hash:
        raise ConfigError("This is no delta: it names no base.")


def site_for(transcoder: Transcoder, model: PreTrainedModel, layer: int | None = None) -> Site:
    """The site of a model where a transcoder belongs.

    layer: where it is wanted; its own by default.

    Raises ConfigError if its width, its layer or its site does not fit.
    """
    about = transcoder.about
    if layer is not None and layer != about.layer:
        raise ConfigError(f"The transcoder is of layer {about.layer}, not {layer}.")
    width = int(model.config.get_text_config().hidden_size)
    if transcoder.d_model != width:
        raise ConfigError(f"The transcoder has the width {transcoder.d_model}, the model {width}.")
    return site_of(model, about.layer, normed=about.normed)


def check_model(transcoder: Transcoder, model: PreTrainedModel, which: str = "model") -> None:
    """Raise ConfigError if a transcoder was trained on another model than this one.

    One that does not say what it was trained on, as those of Gemma Scope, is taken for any.
    """
    wanted = transcoder.about.model_hash
    if wanted and wanted != fingerprint(model):
        raise ConfigError(
            f"The transcoder of layer {transcoder.about.layer} was trained on another {which}: "
            f"{transcoder.about.model or 'unknown'}, or other weights of it."
        )


def unexplained_variance(sums: Sequence[float]) -> float:
    """Fraction of variance unexplained, from the sums of squares (left, in all)."""
    left, whole = sums
    return left / whole if whole else float(left > 0)
