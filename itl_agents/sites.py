"""Where a transcoder reads a model and what it replaces, by plain forward hooks.

A transcoder reads what goes into a block's MLP, after its RMS norm but without that norm's gain,
and predicts what the MLP adds to the residual stream (Gemma Scope; Lieberum et al. 2024). `Site`
says which modules these are, for every decoder whose blocks have a norm before their MLP:

    site = site_of(model, layer=12)
    with recorded(model, [site]) as seen:
        model(ids)
    seen[12].read, seen[12].wrote  # each (batch, seq, d_model)

    with replaced(model, site, lambda read, wrote: transcoder(read)):
        model.generate(ids)        # at every step, with or without a cache

Tokens by which a text begins are told by their ids: what is computed there is like nowhere else,
and is left alone.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from itl_env.errors import ConfigError

LLAMA = {"input_layernorm", "post_attention_layernorm"}
GEMMA = LLAMA | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
"""The norms of a block of either family: of Llama and its kin, and of Gemma 2 and 3."""

Replacement = Callable[[Tensor, Tensor], Tensor]
"""What a block is to add to the residual stream instead, from what its MLP reads and what it would
add, each (n_tokens, d_model) in float32."""


@dataclass(frozen=True)
class Site:
    """Where the MLP of one block is read, and where what it adds can be replaced.

    reads: path of the module whose input is read: the norm before the MLP. writes: path of the
    module whose output is added to the residual stream: the MLP, or a norm after it. eps: of the
    norm. normed: whether what is read is divided by its root mean square.
    """

    layer: int
    reads: str
    writes: str
    eps: float
    normed: bool = True

    def normalised(self, residual: Tensor) -> Tensor:
        """What a transcoder reads of the residual stream (..., d_model), in float32."""
        x = residual.float()
        if not self.normed:
            return x
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


@dataclass
class Seen:
    """What passed a site in the last forward pass, each (batch, seq, d_model)."""

    read: Tensor
    wrote: Tensor


def n_layers(model: PreTrainedModel) -> int:
    """How many blocks a model has."""
    return len(_blocks(model)[1])


def site_of(model: PreTrainedModel, layer: int, *, normed: bool = True) -> Site:
    """The site of a layer, counted from 0.

    Raises ConfigError if there is no such layer, or no norm before the MLP of its own.
    """
    path, blocks = _blocks(model)
    if not 0 <= layer < len(blocks):
        raise ConfigError(f"There is no layer {layer}: the model has {len(blocks)}, from 0.")
    block, here = blocks[layer], f"{path}.{layer}"
    has = {name for name, _ in block.named_children()}
    norms = {name for name in has if "norm" in name}
    if norms == GEMMA and "mlp" in has:
        reads, writes = "pre_feedforward_layernorm", "post_feedforward_layernorm"
    elif norms == LLAMA and "mlp" in has:
        reads, writes = "post_attention_layernorm", "mlp"
    else:
        raise ConfigError(
            f"{type(model).__name__} has no norm before its MLP that is known here, but "
            f"{', '.join(sorted(has))}; Gemma 2 and models built like Llama have."
        )
    norm: Any = block.get_submodule(reads)
    eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
    is_rms = "RMSNorm" in type(norm).__name__ and getattr(norm, "bias", None) is None
    if not is_rms or not isinstance(eps, float):
        raise ConfigError(f"{here}.{reads} is no RMS norm but {type(norm).__name__}.")
    return Site(layer, f"{here}.{reads}", f"{here}.{writes}", eps, normed)


def _blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The path of a model's blocks, and the blocks."""
    for path in ("model.layers", "model.language_model.layers"):
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return path, found
    raise ConfigError(f"{type(model).__name__} has no list of blocks at model.layers.")


@contextmanager
def recorded(model: PreTrainedModel, sites: Sequence[Site]) -> Iterator[dict[int, Seen]]:
    """While this lasts, each forward pass leaves what passed the sites, by layer.

    What is read is normalised as the site says; both are float32.
    """
    seen: dict[int, Seen] = {}
    empty = torch.empty(0)

    def watch(site: Site, hooks: ExitStack) -> None:
        def read(_: nn.Module, given: tuple[Any, ...]) -> None:
            seen[site.layer] = Seen(site.normalised(given[0]), empty)

        def wrote(_: nn.Module, __: Any, output: Tensor) -> None:
            seen[site.layer].wrote = output.float()

        hooks.enter_context(model.get_submodule(site.reads).register_forward_pre_hook(read))
        hooks.enter_context(model.get_submodule(site.writes).register_forward_hook(wrote))

    with ExitStack() as hooks:
        for site in sites:
            watch(site, hooks)
        yield seen


@contextmanager
def replaced(
    model: PreTrainedModel, site: Site, instead: Replacement, skip_ids: Sequence[int] = ()
) -> Iterator[None]:
    """While this lasts, a block adds what `instead` says to the residual stream.

    skip_ids: tokens at which it adds what it would have added: those that begin a text.
    """
    skipped = torch.tensor(list(skip_ids), device=model.device)
    ids: list[Tensor] = []
    read: list[Tensor] = []

    def take_ids(_: nn.Module, given: tuple[Any, ...]) -> None:
        ids[:] = [given[0]]

    def take_residual(_: nn.Module, given: tuple[Any, ...]) -> None:
        read[:] = [given[0]]

    def write(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        x, y = site.normalised(read[0]), output.float()
        d_model = x.shape[-1]
        new = instead(x.reshape(-1, d_model), y.reshape(-1, d_model)).reshape(y.shape)
        if len(skipped):
            new = torch.where(torch.isin(ids[0], skipped)[..., None], y, new)
        return new.to(output.dtype)

    with ExitStack() as hooks:
        if len(skipped):  # told by the ids that are embedded, at every step of a generation
            embedding = model.get_input_embeddings()
            hooks.enter_context(embedding.register_forward_pre_hook(take_ids))
        norm, end = model.get_submodule(site.reads), model.get_submodule(site.writes)
        hooks.enter_context(norm.register_forward_pre_hook(take_residual))
        hooks.enter_context(end.register_forward_hook(write))
        yield


class Below:
    """What comes into a block in a series of forward passes, so that the series can be repeated
    without the blocks below, for as long as nothing is changed there.

        below = Below(model, layer=12)
        for instead in replacements:
            with below.passes(), replaced(model, site_of(model, 12), instead):
                [model(ids) for ids in batches]  # from the second time on, from block 12 upwards
    """

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        blocks = _blocks(model)[1]
        self._first, self._below, self._block = blocks[0], blocks[:layer], blocks[layer]
        self._embedded: list[Tensor] = []
        self._given: list[Tensor] = []
        self._is_whole = False

    @contextmanager
    def passes(self) -> Iterator[None]:
        """While this lasts, the passes of the series: the same ids in the same order each time, by
        the same weights, and no cache. Raises ValueError for another pass.
        """
        with ExitStack() as undo:
            if self._is_whole:
                passed = 0

                def give(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
                    nonlocal passed
                    self._check_known(passed, given[0])
                    passed += 1
                    return (self._given[passed - 1], *given[1:])

                for block in self._below:
                    undo.enter_context(_passed_by(block))
                hooks = [self._block.register_forward_pre_hook(give)]
            else:
                hooks = [
                    block.register_forward_pre_hook(partial(_keep, kept))
                    for block, kept in (
                        (self._first, self._embedded), (self._block, self._given),
                    )
                ]  # fmt: skip
                self._embedded.clear()
                self._given.clear()
            for hook in hooks:
                undo.callback(hook.remove)
            yield
        self._is_whole = True

    def _check_known(self, place: int, embedded: Tensor) -> None:
        """Raise ValueError unless this was embedded in the same pass when the series was kept."""
        known = self._embedded[place] if place < len(self._embedded) else None
        is_same = known is not None and known.dtype == embedded.dtype
        if known is None or not is_same or not torch.equal(known, embedded):
            raise ValueError(f"Pass {place} is no repetition: it embeds other ids, or otherwise.")


def _keep(kept: list[Tensor], _: nn.Module, given: tuple[Any, ...]) -> None:
    kept.append(given[0])


@contextmanager
def _passed_by(block: nn.Module) -> Iterator[None]:
    """While this lasts, a block gives what it is given."""
    own = vars(block).get("forward")  # of the block itself, where a library has put one
    block.forward = lambda hidden_states, *_, **__: hidden_states
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def fingerprint(model: nn.Module) -> str:
    """A hash by which a model's weights are told from others, whatever their dtype is.

    Of at most 64 numbers of every weight, as bfloat16.
    """
    found = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        sample = flat[:: (len(flat) // 64) | 1][:64]  # odd, or it might keep to one column
        found.update(name.encode())
        found.update(sample.to(torch.bfloat16).float().cpu().numpy().tobytes())
    return found.hexdigest()
