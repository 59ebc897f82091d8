"""Watching a run: what a step costs, what flows through the layers, profiles and trackers.

None of it changes what is trained, so a run may be continued with other settings of these. (In a
compiled run, steps that are looked into are not compiled, and equal up to rounding.)
"""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itl_agents.nanollama import NanoLlama, NanoLlamaConfig
from itl_env.errors import ConfigError
from itl_train.batches import Batch
from itl_train.peak_memory import peak_memory_mb
from itl_train.watch_config import WatchConfig

PROFILE_AFTER = 3  # steps that warm up


def step_flops(config: NanoLlamaConfig, batch: Batch) -> float:
    """Floating-point operations of a training step that its tokens need, padding left out.

    batch: of one model, or of `stacked`, for all members together.

    Two for each weight that a token meets, forwards, and twice that backwards; causal attention
    meets half of all pairs. The last feed-forward and the head meet trained positions only.
    """
    # Targets of an ensemble are padded; of a step that processes share, these are its own.
    n_targets = len(batch.targets) if batch.targets.ndim == 1 else batch.n_targets
    n_tokens, rows = batch.n_tokens, batch.input_ids.shape[:-1].numel()
    d = config.d_model
    attention = 2 * d * d + 2 * d * config.kv_heads * config.d_head
    feed_forward = 3 * d * config.hidden_width
    met = config.n_layers * attention * n_tokens
    met += feed_forward * ((config.n_layers - 1) * n_tokens + n_targets)
    met += config.vocabulary_size * d * n_targets
    pairs = n_tokens**2 / rows / 2
    return 6.0 * met + 12.0 * config.n_layers * d * pairs


def matmul_rate(device: torch.device | str, dtype: torch.dtype, size: int = 0) -> float:
    """Operations per second of a square matrix product here: the best of several.

    size: rows and columns; 0 for enough of them to keep the device busy.
    """
    size = size or (8192 if torch.device(device).type == "cuda" else 1024)
    x = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        if x.is_cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        x @ x
        if x.is_cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


@functools.cache
def _rate_here(device: torch.device, dtype: torch.dtype, n_threads: int) -> float:
    """`matmul_rate`, once for all runs of a process."""
    return matmul_rate(device, dtype)


def memory_mb(device: torch.device | str) -> float:
    """The most memory that this process has held: of the GPU if it trains on one."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    return peak_memory_mb()


class Probe:
    """Root mean squares of what flows through a model, and norms of gradients, in one step."""

    def __init__(self) -> None:
        self._squares: dict[str, float] = {}
        self._numbers: dict[str, int] = {}

    def __call__(self, name: str, x: Tensor) -> None:
        """Note an activation of a part of the batch; the model calls this."""
        square = float(x.detach().float().square().sum())
        self._squares[name] = self._squares.get(name, 0.0) + square
        self._numbers[name] = self._numbers.get(name, 0) + x.numel()

    def row(self, model: NanoLlama) -> dict[str, Any]:
        """Both, by layer; gradients must still be there."""
        return {
            "activation_rms": {
                name: math.sqrt(square / self._numbers[name])
                for name, square in self._squares.items()
            },
            "gradient_norms": {
                name: float(p.grad.norm())
                for name, p in model.named_parameters()
                if p.grad is not None
            },
        }


class Watch:
    """What watches one run: costs of its steps, a profile, trackers. Use it in a `with` statement.

    settings: of the run, for trackers. n_processes: that share each step equally.
    """

    def __init__(
        self,
        config: WatchConfig,
        model: NanoLlama,
        dtype: torch.dtype,
        folder: Path,
        settings: Mapping[str, Any],
        n_processes: int = 1,
    ) -> None:
        self.config = config
        self.model = model
        self.device = model.embedding.device
        self.folder = folder
        self._peak = config.peak_tflops * 1e12
        self._dtype = dtype
        self._tokens, self._flops, self._seconds = 0, 0.0, 0.0
        self._steps = 0
        self._n_processes = n_processes
        self._profiler: Any = None
        self._trackers = _trackers(config.trackers, folder, settings) if config.trackers else None

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_profile()
        # `end_training` would also take leave of the other processes.
        for tracker in self._trackers.trackers if self._trackers is not None else ():
            tracker.finish()

    def probe(self, step: int) -> Probe | None:
        """What looks into the step with this number (from 0), if that is due."""
        every = self.config.probe_every
        return Probe() if every and (step + 1) % every == 0 else None

    def begin_step(self) -> float:
        """Call before a step; returns the time."""
        if self.config.profile and self._steps == PROFILE_AFTER:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        return time.perf_counter()

    def end_step(self, began: float, batch: Batch) -> None:
        """Call after a step."""
        self._seconds += time.perf_counter() - began
        self._tokens += batch.n_tokens
        self._flops += step_flops(self.model.config, batch)
        self._steps += 1
        if self._steps == PROFILE_AFTER + self.config.profile:
            self._end_profile()

    def costs(self) -> dict[str, float]:
        """Of the steps since the last call: tokens/s and TFLOP/s of all processes; and memory.

        mfu (model FLOP utilisation): of the rate at which this machine multiplies matrices, or of
        `peak_tflops`. memory_mb: see `memory_mb`.
        """
        if not self._peak:
            self._peak = _rate_here(self.device, self._dtype, torch.get_num_threads())
        seconds = max(self._seconds, 1e-9)
        rate = self._flops / seconds
        row = {
            "tokens_per_s": self._n_processes * self._tokens / seconds,
            "tflops": self._n_processes * rate / 1e12,
            "mfu": rate / self._peak,
            "memory_mb": memory_mb(self.device),
        }
        self._tokens, self._flops, self._seconds = 0, 0.0, 0.0
        return row

    def track(self, row: Mapping[str, Any]) -> None:
        """Hand a row of metrics to the trackers."""
        if self._trackers is not None:
            self._trackers.log(_flat(row), step=row["step"])

    def _end_profile(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        folder = self.folder / "profile"
        folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        by = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        (folder / "operations.txt").write_text(profiler.key_averages().table(sort_by=by))


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers in nested mappings, by their path."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}/")
        elif name != "step":
            flat[before + name] = float(value)
    return flat


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that is not installed."""
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    available = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if missing := [name for name in names if name not in available]:
        raise ConfigError(
            f"The tracker {missing[0]!r} is not installed; install it, or choose among those that "
            f"are: {', '.join(available) or 'none'}."
        )


def _trackers(names: tuple[str, ...], folder: Path, settings: Mapping[str, Any]) -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=list(names), project_dir=str(folder / "trackers"))
    simple = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
    accelerator.init_trackers("itl", config=simple)
    return accelerator
