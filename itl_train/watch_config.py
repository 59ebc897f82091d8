"""The settings of `itl_train.watch`, which load no torch."""

from dataclasses import dataclass, fields

from itl_env.errors import ConfigError


@dataclass(frozen=True)
class WatchConfig:
    """How a run is watched; a run may be continued with other settings of these."""

    probe_every: int = 0  # steps between looks into every layer: activations and gradients
    profile: int = 0  # steps to profile: a trace and a table in OUT/profile
    peak_tflops: float = 0.0  # of the machine, for MFU; 0 to measure a matrix product
    trackers: tuple[str, ...] = ()  # such as tensorboard, wandb, trackio; in OUT/trackers

    def watch(self) -> "WatchConfig":
        """These settings alone, of a command that has others, too."""
        return WatchConfig(
            **{field.name: getattr(self, field.name) for field in fields(WatchConfig)}
        )

    def __post_init__(self) -> None:
        for name in ("probe_every", "profile", "peak_tflops"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative.")


UNWATCHED = WatchConfig()
