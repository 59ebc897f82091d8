"""Train JumpReLU transcoders on collected activations: bases, and deltas beside a frozen base.

The loss is MSE(y, target) + sparsity * mean|a| (spec of `itl_agents.transcoder` for y and a). The
target of a base is what the block adds to the residual stream, that of a delta what the base leaves
of it; either is divided by its root mean square while training, which is then put into the decoder.
Rows of the decoder have norm 1 in these units. Gradients are written out: two products forward,
three backward, and few passes over the features between them. Thresholds learn by straight-through
estimates (Rajamanoharan et al. 2024, eq. 11, with a rectangle as kernel).
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itl_agents.transcoder import About, Transcoder, unexplained_variance
from itl_env import streams
from itl_env.errors import ConfigError, ITLError
from itl_train.activations import Activations
from itl_train.checkpoint import keep_last, load_state, newest, save_checkpoint, what_is_left
from itl_train.interrupt import deferred_interrupt
from itl_train.run_folder import RunFolder
from itl_train.team import check_device
from itl_train.threads import threads
from itl_train.transcoder_config import TranscoderSettings

RESULT = "transcoder"  # folder of what was trained, in a run's folder
MUCH_UNEXPLAINED = 0.5
CHUNK = 8_192  # tokens that are computed at once where nothing is learnt

OnMetrics = Callable[[dict[str, Any]], None]


class Features:
    """The weights that are trained, with their gradients.

    bias: whether there is a decoder bias; a delta has none.
    """

    def __init__(self, d_model: int, settings: TranscoderSettings, mean: Tensor | None) -> None:
        generator = torch.Generator().manual_seed(settings.seed % 2**63)
        d_sae = settings.d_sae
        W_dec = torch.randn(d_sae, d_model, generator=generator)
        W_enc = torch.randn(d_model, d_sae, generator=generator) / math.sqrt(d_model)
        device = settings.device
        self.W_enc = W_enc.to(device).requires_grad_()
        self.b_enc = torch.zeros(d_sae, device=device, requires_grad=True)
        self.W_dec = (W_dec / W_dec.norm(dim=1, keepdim=True)).to(device).requires_grad_()
        self.b_dec = torch.zeros(d_model, device=device)
        if mean is not None:
            self.b_dec = mean.to(device, copy=True).requires_grad_()
        self.log_threshold = torch.full((d_sae,), math.log(settings.threshold), device=device)
        if settings.train_threshold:
            self.log_threshold.requires_grad_()
        self.bandwidth = settings.bandwidth

    def named(self) -> dict[str, Tensor]:
        """What is trained or kept."""
        return {
            name: getattr(self, name)
            for name in ("W_enc", "b_enc", "W_dec", "b_dec", "log_threshold")
        }

    def trained(self) -> list[Tensor]:
        """What an optimizer changes."""
        return [each for each in self.named().values() if each.requires_grad]

    @torch.no_grad()
    def descend(self, x: Tensor, target: Tensor, sparsity: float) -> tuple[Tensor, Tensor]:
        """Set the gradients of the loss on a batch; returns its error and its mean of a.

        x: what is read. target: what is wanted, both (n_tokens, d_model).
        """
        threshold = self.log_threshold.exp()
        a = torch.addmm(self.b_enc, x, self.W_enc)
        is_off = a <= threshold
        near = None
        if self.log_threshold.requires_grad:
            near = (a - threshold).abs_() < self.bandwidth / 2
        a.masked_fill_(is_off, 0.0)
        error = torch.addmm(self.b_dec, a, self.W_dec).sub_(target)
        mse, mean = error.square().mean(), a.mean()
        by_y = error.mul_(2 / error.numel())
        self.W_dec.grad = a.t() @ by_y
        if self.b_dec.requires_grad:
            self.b_dec.grad = by_y.sum(0)
        push = torch.full((1,), sparsity / a.numel(), device=a.device)
        by_a = torch.addmm(push, by_y, self.W_dec.t())
        if near is not None:
            # d a / d threshold = -threshold / width where pre is near the threshold.
            slope = by_a.mul(near).sum(0)
            self.log_threshold.grad = slope.mul_(-threshold.square() / self.bandwidth)
        by_pre = by_a.masked_fill_(is_off, 0.0)
        self.W_enc.grad = x.t() @ by_pre
        self.b_enc.grad = by_pre.sum(0)
        return mse, mean

    @torch.no_grad()
    def renormalise(self) -> None:
        """Give each row of the decoder the norm 1."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min_(1e-8))

    def transcoder(self, scale: float, about: About) -> Transcoder:
        """These weights for targets that are not divided by `scale`."""
        weights = {
            "W_enc": self.W_enc,
            "b_enc": self.b_enc,
            "W_dec": self.W_dec * scale,
            "b_dec": self.b_dec * scale,
            "threshold": self.log_threshold.exp(),
        }
        return Transcoder({name: weight.cpu() for name, weight in weights.items()}, about)


@dataclass(frozen=True)
class Fit:
    """How well a transcoder, beside a base or alone, gives what a block adds.

    unexplained: fraction of variance left. l0: active features at a token. dead: share of features
    that are active nowhere. mean_a: mean of |a|. cosine: with what the block adds, mean over
    tokens. ratio: of their norms, mean over tokens.
    """

    unexplained: float
    l0: float
    dead: float
    mean_a: float
    cosine: float
    ratio: float


@torch.inference_mode()
def fit_of(
    transcoder: Transcoder, read: Tensor, wrote: Tensor, base: Transcoder | None = None
) -> Fit:
    """Measure a transcoder, or a base with a delta, on tokens; each (n_tokens, d_model)."""
    n, device = len(read), transcoder.W_enc.device
    mean = sum(part.double().sum(0) for part in wrote.split(CHUNK)).float() / n
    left = whole = active = cosine = ratio = total = 0.0
    mean = mean.to(device)
    ever = torch.zeros(transcoder.d_sae, dtype=torch.bool, device=device)
    for start in range(0, n, CHUNK):
        x, y = (part[start : start + CHUNK].to(device).float() for part in (read, wrote))
        a = transcoder.encode(x)
        given = transcoder.decode(a)
        if base is not None:
            given += base(x)
        left += float((y - given).double().square().sum())
        whole += float((y - mean).double().square().sum())
        active += float((a > 0).sum())
        total += float(a.sum())
        ever |= (a > 0).any(0)
        cosine += float(torch.cosine_similarity(given, y, dim=1).sum())
        ratio += float((given.norm(dim=1) / y.norm(dim=1).clamp_min(1e-8)).sum())
    return Fit(
        unexplained=unexplained_variance((left, whole)),
        l0=active / n,
        dead=1 - float(ever.float().mean()),
        mean_a=total / n / transcoder.d_sae,
        cosine=cosine / n,
        ratio=ratio / n,
    )


def warn_unexplained(unexplained: float, which: str) -> None:
    """Warn where much of the variance is unexplained: interventions would say little.

    which: of a layer's transcoders, such as "of layer 6, sparsity 3, 4,096 features".
    """
    if unexplained > MUCH_UNEXPLAINED:
        warnings.warn(
            f"The transcoder {which}, leaves {unexplained:.0%} of the variance "
            "unexplained; take more features, less sparsity or more steps.",
            stacklevel=3,
        )


class TranscoderRun:
    """A training in its folder: `config.yaml`, `versions.json`, `metrics.jsonl`, `checkpoints/`.

    At its end there is `transcoder/`, as `Transcoder.load` reads it. The last step is what counts.
    """

    def __init__(
        self,
        settings: TranscoderSettings,
        train: Activations,
        validation: Activations,
        layer: int,
        out: Path,
        base: Transcoder | None = None,
        base_name: str = "",
    ) -> None:
        """Begin or reopen the run.

        train, validation: of the same model. base: what the transcoder is a delta beside; base_name
        says where it is.

        Raises ConfigError if they do not fit together, or the folder holds another run.
        """
        check_device(settings.device)
        self.settings, self.layer = settings, layer
        self.base = None if base is None else base.to(settings.device)
        self.train_on, self.validation = train, validation
        about = train.of_layer(layer)
        if validation.of_layer(layer) != about:
            raise ConfigError(f"{train.folder} and {validation.folder} are of different models.")
        if base is not None:
            if (base.about.layer, base.about.normed) != (layer, about.normed):
                raise ConfigError(
                    f"The base is of layer {base.about.layer} with normed={base.about.normed}, the "
                    f"activations of layer {layer} with normed={about.normed}."
                )
            if base.d_model != train.about.d_model:
                raise ConfigError(
                    f"The base has the width {base.d_model}, the activations {train.about.d_model}."
                )
            about = dataclasses.replace(about, base_hash=base.hash)
        self.about = about
        how = dataclasses.asdict(settings)
        for each in ("device", "n_threads"):  # which may change from one invocation to the next
            del how[each]
        recorded = {
            **how,
            "layer": layer,
            "train": str(train.folder.absolute()),
            "validation": str(validation.folder.absolute()),
            "model": about.model,
            "model_hash": about.model_hash,
            "texts": train.about.texts,
            "validation_texts": validation.about.texts,
            "base": base_name,
            "base_hash": about.base_hash,
        }
        self.folder = RunFolder.open(out, recorded)
        self.n_threads = settings.n_threads or torch.get_num_threads()

    @property
    def result(self) -> Path:
        """Where the transcoder is, once it is trained."""
        return self.folder.path / RESULT

    @property
    def finished(self) -> bool:
        """Whether it is trained."""
        return self.result.exists()

    @property
    def target_file(self) -> Path:
        """What is to be learnt of each token, while training."""
        return self.folder.path / ".target.npy"

    def train(self, on_metrics: OnMetrics | None = None) -> Transcoder:
        """Train to the end, or go on; returns the transcoder.

        Ctrl-C lets a step finish and a checkpoint be saved before it has its effect. Raises
        ITLError at a loss that is not finite. Warns if much is left unexplained.
        """
        if self.finished:
            self.target_file.unlink(missing_ok=True)  # of a kill at the very end
            return Transcoder.load(self.result)
        with threads(self.n_threads), self.folder.alone(), deferred_interrupt() as interrupted:
            done = self._steps(interrupted, on_metrics)
        if done is None:  # stopped, and the signal had no effect
            return self.train(on_metrics)
        return done

    def _steps(
        self, interrupted: Callable[[], bool], on_metrics: OnMetrics | None
    ) -> Transcoder | None:
        settings = self.settings
        read = self.train_on.read(self.layer)
        target, scale, mean = self._target(read)
        features = Features(
            self.train_on.about.d_model, settings, mean if self.base is None else None
        )
        optimizer = torch.optim.Adam(
            features.trained(), lr=settings.lr, betas=(0.0, 0.999), fused=True
        )
        state = newest(self.folder.checkpoints, self.folder.warn, load_state)
        step = 0 if state is None else int(state["step"])
        if state is not None:
            with torch.no_grad():
                for name, weight in features.named().items():
                    weight.copy_(state["weights"][name])
            optimizer.load_state_dict(state["optimizer"])
        self.folder.forget_metrics_after(step)
        order = Order(len(read), settings.batch_tokens, settings.seed)
        is_enough = self._is_enough()
        while step < settings.n_steps and not is_enough:
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * schedule(settings, step)
            sparsity = settings.sparsity * min(1.0, (step + 1) / max(settings.sparsity_warmup, 1))
            rows = order.rows(step)
            x, wanted = (part[rows].to(settings.device).float() for part in (read, target))
            mse, mean_a = features.descend(x, wanted.div_(scale), sparsity)
            optimizer.step()
            features.renormalise()
            step += 1
            ends = step == settings.n_steps
            if step % settings.evaluate_every == 0 or ends:
                self._check_finite(float(mse), step)
                fit = self._fit(features.transcoder(scale, self.about))
                row = {"step": step, "mse": float(mse), "train_mean_a": float(mean_a)}
                self.folder.log(row | dataclasses.asdict(fit), on_metrics)
                is_enough = self._is_enough()
            if step % settings.evaluate_every == 0 or ends or interrupted():
                self._save(step, features, optimizer)
            if interrupted():
                return None
        rows_of = self.folder.rows()
        fitted = dataclasses.replace(
            self.about, unexplained=rows_of[-1]["unexplained"], l0=rows_of[-1]["l0"]
        )
        done = features.transcoder(scale, fitted)
        done.save(self.result)
        self.target_file.unlink(missing_ok=True)
        which = f"of layer {self.layer}, sparsity {settings.sparsity:g}, {done.d_sae:,} features"
        warn_unexplained(rows_of[-1]["unexplained"], which)
        return done

    def _is_enough(self) -> bool:
        """Whether the last evaluations were no better than one before them."""
        losses = [row["unexplained"] for row in self.folder.rows()]
        patience = self.settings.patience
        return bool(patience) and len(losses) > patience and min(losses[-patience:]) >= min(
            losses[:-patience]
        )  # fmt: skip

    @torch.inference_mode()
    def _target(self, read: Tensor) -> tuple[Tensor, float, Tensor]:
        """What is to be learnt (n_tokens, d_model), its root mean square, and its mean so divided.

        What a base leaves is computed once and kept on disk.
        """
        wrote = self.train_on.wrote(self.layer)
        if self.base is None:
            target = wrote
        else:
            partial = self.target_file.with_name(".target.partial.npy")
            if not self.target_file.exists():
                left = np.lib.format.open_memmap(
                    partial, mode="w+", dtype=np.float32, shape=tuple(wrote.shape)
                )
                for start in range(0, len(read), CHUNK):
                    rows = slice(start, start + CHUNK)
                    x, y = (part[rows].to(self.settings.device).float() for part in (read, wrote))
                    left[rows] = (y - self.base(x)).cpu().numpy()
                left.flush()
                partial.replace(self.target_file)
            target = torch.from_numpy(np.load(self.target_file, mmap_mode="c"))
        squares, total = 0.0, torch.zeros(target.shape[1], dtype=torch.float64)
        for start in range(0, len(target), CHUNK):
            chunk = target[start : start + CHUNK].double()
            squares += float(chunk.square().sum())
            total += chunk.sum(0)
        scale = math.sqrt(squares / target.numel())
        if scale == 0:
            raise ITLError(f"At layer {self.layer} there is nothing to learn: all targets are 0.")
        return target, scale, (total / len(target) / scale).float()

    def _fit(self, transcoder: Transcoder) -> Fit:
        """On the validation tokens, spread evenly over all there are."""
        read, wrote = self.validation.read(self.layer), self.validation.wrote(self.layer)
        step = max(1, len(read) // self.settings.n_evaluate)
        transcoder = transcoder.to(self.settings.device)
        return fit_of(transcoder, read[::step], wrote[::step], self.base)

    def _check_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise ITLError(
                f"The loss is {loss} at step {step}; lower lr. "
                f"{what_is_left(self.folder.checkpoints)}"
            )

    def _save(self, step: int, features: Features, optimizer: torch.optim.Optimizer) -> None:
        state = {
            "step": step,
            "weights": {name: weight.detach() for name, weight in features.named().items()},
            "optimizer": optimizer.state_dict(),
        }
        save_checkpoint(self.folder.checkpoints, step, state)
        keep_last(self.folder.checkpoints, self.settings.keep_checkpoints)


class Order:
    """The order of tokens: each once an epoch, drawn from a seed."""

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, min(batch, n), seed
        self._epoch, self._drawn = -1, np.zeros(0, dtype=np.int64)

    def rows(self, step: int) -> Tensor:
        """The tokens of a step; what is left of an epoch is left out."""
        per_epoch = self.n // self.batch
        epoch, place = divmod(step, per_epoch)
        if epoch != self._epoch:
            indices = np.arange(self.n, dtype=np.uint64)
            stream = streams.key(self.seed, "tokens", epoch)
            self._drawn = streams.permute(indices, self.n, stream).astype(np.int64)
            self._epoch = epoch
        return torch.from_numpy(self._drawn[place * self.batch : (place + 1) * self.batch])


def schedule(settings: TranscoderSettings, step: int) -> float:
    """The factor of the learning rate at a step: up, flat, and down where there is decay."""
    up = min(1.0, (step + 1) / max(settings.lr_warmup, 1))
    n_down = round(settings.decay * settings.n_steps)
    down = min(1.0, (settings.n_steps - step) / n_down) if n_down else 1.0
    return up * down
