"""The processes that train one model together, as `accelerate launch` starts them.

Each computes the gradient of its share of every batch; the sum is that of one process, so that a
run on any number of processes takes the same steps up to rounding. Only the first one writes.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from itl_env.errors import ConfigError


def check_device(device: str) -> None:
    """Raise ConfigError for a device that torch does not know or that is not here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"Cannot train on device {device!r}: {str(error).splitlines()[0]}."
        ) from None


def check_one_model_a_process(device: str) -> None:
    """Raise ConfigError for what cannot be done here: shards of a model, or a GPU by its number."""
    sharded = [n for n in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED") if n in os.environ]
    if any(os.environ[name].lower() in ("true", "1") for name in sharded):
        raise ConfigError(
            "Fine-tuning shares batches among processes, not the model; launch it without FSDP and "
            "DeepSpeed."
        )
    if ":" in device:
        raise ConfigError(
            f"device is {device!r}; name its kind, and choose one by CUDA_VISIBLE_DEVICES."
        )


@dataclass(frozen=True)
class Team:
    """A process among n; alone by default."""

    rank: int = 0
    n: int = 1
    device: str = ""  # its own, where there are several

    @classmethod
    def join(cls, device: str) -> "Team":
        """The processes that the environment tells of, on their kind of device.

        Raises ConfigError if they cannot be brought together.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=torch.device(device).type == "cpu")
        if state.num_processes != int(os.environ["WORLD_SIZE"]):
            raise ConfigError(
                f"{os.environ['WORLD_SIZE']} processes were started, but they do not find each "
                f"other on device {device!r}."
            )
        return cls(state.process_index, state.num_processes, str(state.device))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @torch.no_grad()
    def add(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Add up the gradients of all processes, in place; returns the sum of their losses."""
        if self.n == 1:
            return loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        own = torch.tensor([loss], dtype=torch.float32, device=gradients[0].device)
        # One message: at these sizes it is the number of messages that costs.
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), own])
        torch.distributed.all_reduce(flat)
        place = 0
        for gradient in gradients:
            gradient.copy_(flat[place : place + gradient.numel()].view_as(gradient))
            place += gradient.numel()
        return float(flat[-1])

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.n == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        torch.distributed.all_reduce(flags)
        return bool(flags > 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.n > 1:
            torch.distributed.barrier()

    def tell(self, value: float) -> float:
        """The first process's value, in every process."""
        if self.n == 1:
            return value
        told: Tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(told, src=0)
        return float(told)
