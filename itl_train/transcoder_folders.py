"""Where the transcoders of a model are: bases by layer and sparsity, deltas beside them.

    bases/layer-12/sparsity-0.1/transcoder/          one run for each level of sparsity
    deltas/layer-12/percentile-50/d-128/transcoder/  a delta beside the base of that percentile

The percentile picks among the bases of a layer in the order of their L0, as among the files of
Gemma Scope: larger is denser.
"""

from collections.abc import Iterator
from pathlib import Path

from itl_agents.gemma_scope import at_percentile, check_percentile, gemma_scope, levels, load_level
from itl_agents.transcoder import Transcoder, check_delta
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
    check_percentile(percentile)
    if not _is_trained(source):
        return gemma_scope(source, layer, percentile=percentile)
    found = [Transcoder.load(folder) for folder in _trained(source, layer)]
    if not found:
        raise ConfigError(f"{source} holds no transcoder of layer {layer} that is trained.")
    found.sort(key=lambda each: each.about.l0 or 0.0)
    return found[at_percentile(len(found), percentile)]


def base_of(delta: Transcoder, source: str) -> Transcoder:
    """The base beside which a delta was trained, among those that `open_base` picks from.

    Those of Gemma Scope are had from the hub one after the other until it is found. Raises
    ConfigError if none of them is it or the delta is none, and what `open_base` raises.
    """
    check_delta(delta)
    layer = delta.about.layer
    bases: Iterator[Transcoder]
    if _is_trained(source):
        bases = map(Transcoder.load, _trained(source, layer))
    else:
        bases = (load_level(source, layer, l0) for l0 in levels(source, layer))
    for base in bases:
        if base.hash == delta.about.base_hash:
            return base
    raise ConfigError(f"{source} holds no base of layer {layer} that the delta was trained beside.")


def _is_trained(source: str) -> bool:
    """Whether it is a folder of `itl transcoder train`."""
    return any(Path(source).glob("layer-*"))


def _trained(source: str, layer: int) -> list[Path]:
    return sorted(_layer(Path(source), layer).glob(f"sparsity-*/{RESULT}"))


def _layer(root: Path, layer: int) -> Path:
    return root / f"layer-{layer:02d}"
