"""Gemma Scope: published JumpReLU transcoders of Gemma 2, of the hub or in a folder.

    layer_12/width_16k/average_l0_6/params.npz

For each layer there are several, by how many of their features are active at a token on average.
"""

from pathlib import Path

from itl_agents.hub import may_be_of_the_hub
from itl_agents.transcoder import About, Transcoder, load_npz
from itl_env.errors import ConfigError, ITLError

GEMMA_SCOPE = "google/gemma-scope-2b-pt-transcoders"
FILE = "params.npz"


def gemma_scope(
    source: str | Path, layer: int, *, percentile: float = 0.5, width: str = "16k"
) -> Transcoder:
    """The transcoder of a layer, by how many of its features are active.

    source: a repository of the hub, such as `GEMMA_SCOPE`, or a folder with the same names.
    percentile: 0 picks the sparsest, 1 the densest.

    Raises ConfigError if there is none for the layer, and ITLError if the hub cannot be reached.
    """
    check_percentile(percentile)
    there = levels(source, layer, width)
    return load_level(source, layer, there[at_percentile(len(there), percentile)], width)


def levels(source: str | Path, layer: int, width: str = "16k") -> list[int]:
    """Of the transcoders of a layer, how many features are active: sparsest first.

    Raises what `gemma_scope` raises.
    """
    if Path(source).is_dir():
        names = [file.relative_to(source).as_posix() for file in Path(source).rglob(FILE)]
    elif not may_be_of_the_hub(str(source)):
        raise ConfigError(f"There is no folder {source}, and it is no OWNER/NAME of the hub.")
    else:
        names = _hub_names(str(source))
    start = _start(layer, width)
    l0s = {name.removeprefix(start).removesuffix(f"/{FILE}") for name in names
             if name.startswith(start)}  # fmt: skip
    found = sorted(int(l0) for l0 in l0s if l0.isdigit() and str(int(l0)) == l0)
    if not found:
        raise ConfigError(f"{source} holds no transcoder at {start}*/{FILE}.")
    return found


def load_level(source: str | Path, layer: int, l0: int, width: str = "16k") -> Transcoder:
    """The transcoder of a layer with so many active features, which is one of its `levels`."""
    name = f"{_start(layer, width)}{l0}/{FILE}"
    file = Path(source) / name if Path(source).is_dir() else _hub_file(str(source), name)
    return load_npz(file, About(layer=layer, l0=float(l0)))


def at_percentile(n: int, percentile: float) -> int:
    """Which of n transcoders a percentile picks, from 0, the sparsest, to 1, the densest."""
    return min(int(n * percentile), n - 1)


def check_percentile(percentile: float) -> None:
    """Raise ConfigError for one that is not from 0 to 1."""
    if not 0 <= percentile <= 1:
        raise ConfigError(f"percentile is {percentile}; it must be from 0 to 1.")


def _start(layer: int, width: str) -> str:
    return f"layer_{layer}/width_{width}/average_l0_"


def _hub_names(repository: str) -> list[str]:
    from huggingface_hub import list_repo_files

    try:
        return list(list_repo_files(repository))
    except Exception as error:  # it raises what its client raises
        raise _no_hub(repository, error) from error


def _hub_file(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:
        raise _no_hub(repository, error) from error


def _no_hub(repository: str, error: Exception) -> ITLError:
    said = str(error).strip().splitlines()
    return ITLError(
        f"{repository} is no folder here and cannot be had from the hub: "
        f"{said[0] if said else type(error).__name__}; download it and name its folder."
    )
