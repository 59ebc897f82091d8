"""Pretrained language models: from the hub, a folder, an adapter's folder, or a GGUF file.

A NanoLlama's folder is a Hugging Face model, and is loaded as one.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from itl_agents.hub import ADAPTER, HUB_IDS, check_pretrained, lasting_name
from itl_env.errors import ConfigError, ITLError


class Pretrained(NamedTuple):
    """A model in evaluation mode, its tokenizer, and what it was loaded from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str


def load_pretrained(
    source: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    base: Pretrained | None = None,
) -> Pretrained:
    """Load a causal language model and its tokenizer.

    source: a name of `HUB_IDS`, a hub id, a model's folder, a GGUF file, or the folder of a PEFT
        adapter, which is merged into a base of float32; beside one of fewer bits, to which it would
        be rounded, it stays as it is.
    dtype: of the weights: float32, bfloat16 or float16.
    base: of an adapter, if it is there already, in the same dtype; it is copied. A base that is
        another than the adapter names is read instead.

    Raises ConfigError if there is no such model, and ITLError if it cannot be had: a licence that
    must be accepted first, no connection, a file that is damaged.
    """
    place = HUB_IDS.get(str(source), lasting_name(str(source)))
    path = Path(place)
    if (path / ADAPTER).is_file():
        return _with_adapter(path, dtype, device, base)
    tokenizer = load_tokenizer(place)
    where, options = _where(place)
    with _told(place):
        model = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, dtype), **options)
    _forget_quantization(model)
    model.name_or_path = place  # as an adapter of it will record it
    return Pretrained(model.to(device).eval(), tokenizer, place)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer alone; see `load_pretrained`."""
    place = HUB_IDS.get(str(source), str(source))
    where, options = _where(place)
    if (Path(place) / ADAPTER).is_file() and not (Path(place) / "tokenizer_config.json").is_file():
        return load_tokenizer(base_of(Path(place)))
    with _told(place):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, **options)
    return tokenizer


def base_of(adapter: Path) -> str:
    """The model that an adapter was trained on, as its folder names it."""
    try:
        settings = json.loads((adapter / ADAPTER).read_text(encoding="utf-8"))
        return str(settings["base_model_name_or_path"])
    except (OSError, ValueError, KeyError) as error:
        raise ITLError(
            f"{adapter / ADAPTER} does not name the adapter's base: {error!r}."
        ) from None


def _where(place: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is given; raises ConfigError for what cannot be a model."""
    check_pretrained(place)
    path = Path(place)
    if path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    return place, {}


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Say what is wrong with a model, and what to do, where the loaders raise what they like."""
    from huggingface_hub import errors

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        causes = []
        cause: BaseException | None = error
        while cause is not None and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        # By kind, the most telling first: one that is gated is not found, either.
        for kind, why in (
            (
                errors.GatedRepoError,
                f"its licence must be accepted first, at https://huggingface.co/{place}; then run "
                "`hf auth login`",
            ),
            (errors.RepositoryNotFoundError, "the hub has none of that name, or it is private"),
            (
                errors.LocalEntryNotFoundError,
                "it is not on this machine, and the hub cannot be reached; check the connection, "
                "or name a folder or a .gguf file",
            ),
        ):
            if any(isinstance(each, kind) for each in causes):
                raise ITLError(f"Cannot load the model {place}: {why}.") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "; the file may be incomplete" if place.endswith(".gguf") else ""
        raise ITLError(f"Cannot load the model {place}: {reason.rstrip('.')}{hint}.") from error


def _forget_quantization(model: PreTrainedModel) -> None:
    """A GGUF file's weights were expanded when they were read; without its marks they can be saved
    like any others.
    """
    if getattr(model.config, "quantization_config", None) is None:
        return
    method = getattr(model.config.quantization_config, "quant_method", "")
    if str(getattr(method, "value", method)) != "gguf":
        return
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    del model.quantization_method


def _with_adapter(folder: Path, dtype: str, device: str, there: Pretrained | None) -> Pretrained:
    try:
        from peft import PeftModel
    except ImportError:
        raise ConfigError(
            f"{folder} holds an adapter, which needs the package peft; install itl[large-scale]."
        ) from None
    if there is not None and there.source == base_of(folder):
        base = copy.deepcopy(there.model)
    else:
        base = load_pretrained(base_of(folder), dtype=dtype, device=device).model
    with _told(str(folder)):
        adapted = PeftModel.from_pretrained(base, str(folder))
        exact = next(base.parameters()).dtype in (torch.float32, torch.float64)
        model: PreTrainedModel = adapted.merge_and_unload() if exact else adapted.get_base_model()
    return Pretrained(model.eval(), load_tokenizer(folder), str(folder))
