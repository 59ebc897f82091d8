"""Where the transcoders of a model are: bases by layer and sparsity, deltas beside them.

    bases/layer-12/sparsity-0.1/transcoder/          one run for each level of sparsity
    deltas/layer-12/percentile-50/d-128/transcoder/  a delta beside the base of that percentile

The percentile picks among the bases of a layer in the order of their L0, as among the files of
Gemma Scope: larger is denser.
"""

from pathlib import Path

from itl_agents.transcoder import Transcoder, gemma_scope
from itl_env.errors import ConfigError
from itl_train.transcoder import RESULT


def base_folder(root: Path, layer: int, sparsity: float) -> Path:
    """The run of a base."""
    return _layer(root, layer) / f"sparsity-{sparsity:g}"


def delta_folder(root: Path, layer: int, percentile: float, d_new: int) -> Path:
    """The run of a delta."""
    return _layer(root, layer) / f"percentile-{percentile * 100:g}" / f"d-{d_new}"


def open_base(source: str, layer: int, percentile: float = 0.5) -> Transcoder:
    """The base of a layer: of a folder of `itl transcoder train`, or of Gemma Scope.

    Raises ConfigError if there is none, and what `gemma_scope` raises.
    """
    root = Path(source)
    folders = sorted(_layer(root, layer).glob(f"sparsity-*/{RESULT}"))
    if not folders:
        if root.is_dir() and any(root.glob("layer-*")):
            raise ConfigError(f"{root} holds no transcoder of layer {layer} that is trained.")
        return gemma_scope(source, layer, percentile=percentile)
    if not 0 <= percentile <= 1:
        raise ConfigError(f"percentile is {percentile}; it must be from 0 to 1.")
    found = sorted(map(Transcoder.load, folders), key=lambda each: each.about.l0 or 0.0)
    return found[at_percentile(len(found), percentile)]


def at_percentile(n: int, percentile: float) -> int:
    """Which of n bases a percentile picks, in the order of their L0."""
    return min(int(n * percentile), n - 1)


def base_of(delta: Transcoder, root: Path) -> Transcoder:
    """The base in a folder of `itl transcoder train` beside which a delta was trained.

    Raises ConfigError if none of them is it.
    """
    layer = delta.about.layer
    for folder in sorted(_layer(root, layer).glob(f"sparsity-*/{RESULT}")):
        base = Transcoder.load(folder)
        if base.hash == delta.about.base_hash:
            return base
    raise ConfigError(f"{root} holds no base of layer {layer} that the delta was trained beside.")


def _layer(root: Path, layer: int) -> Path:
    return root / f"layer-{layer:02d}"
