"""How fast transcoders are trained, activations collected, and interventions generate.

    itl bench run throughput-transcoders --out DIR

Writes `throughput-transcoders.json` and `throughput-transcoders.md`. Each is measured against what
bounds it, in turns: training against the five matrix products of a step and nothing else, and
against the same loss by autograd; collection against the forward pass alone; generation with an
intervention against generation without. The model has the shape of SmolLM2-135M and random weights,
unless one is named.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.machine import machine
from benchmarks.study_report import publish, results_folder
from benchmarks.timing import check_threads, compare, comparisons_table, race
from itl_agents.continuation import continue_prompts
from itl_agents.sites import replaced, site_of
from itl_agents.transcoder import About, Transcoder
from itl_train.activations import batches_of, collect, run_blocks
from itl_train.transcoder import Features
from itl_train.transcoder_config import TranscoderSettings

STEP, AUTOGRAD = "training step", "the same by autograd"
PRODUCTS = "its two products and their three gradients alone"
FORWARD_ONLY = "its two products forward alone"
COLLECTION, FORWARD = "collect, 4 layers", "the forward pass alone"
HOOKED, UNHOOKED = "generation, one MLP replaced", "generation, unhooked"


@dataclass(frozen=True)
class ThroughputTranscodersConfig:
    """Time training, collection and interventions of transcoders against what bounds them."""

    out: Path = Path("runs/throughput-transcoders")  # folder for the .json and .md
    preset: Literal["smoke", "laptop"] = "laptop"  # laptop: minutes; smoke: does it run at all
    model: str = ""  # a pretrained model; by default random weights of SmolLM2-135M's shape
    n_threads: int = 0  # CPU threads; 0 for one a core

    def __post_init__(self) -> None:
        check_threads(self.n_threads)


class Sizes(NamedTuple):
    """How much each part does a round."""

    rounds: int
    model: dict[str, int]
    d_sae: int
    batch_tokens: int
    n_steps: int
    n_texts: int  # of 20 to 80 tokens
    lanes: int
    n_new: int  # tokens that each lane writes


SIZES = {
    "smoke": Sizes(
        1, {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100},
        32, 64, 2, 6, 3, 4,
    ),
    "laptop": Sizes(
        3, {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152},
        4_096, 2_048, 5, 200, 64, 32,
    ),
}  # fmt: skip


def throughput_transcoders(
    config: ThroughputTranscodersConfig, show: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure everything, write the two files into `config.out` and return the first's content."""
    sizes = SIZES[config.preset]
    out = results_folder(config.out)
    if config.n_threads:
        torch.set_num_threads(config.n_threads)
    began = time.perf_counter()
    model = _model(config.model, sizes)
    d_model = int(model.config.get_text_config().hidden_size)
    comparisons = [*training(sizes, d_model), collection(model, sizes), generation(model, sizes)]
    results = {
        "preset": config.preset,
        "model": Path(config.model).name or "random weights of SmolLM2-135M's shape",
        "d_model": d_model,
        "n_threads": torch.get_num_threads(),
        "comparisons": comparisons,
        "machine": machine(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    publish(out, "throughput-transcoders", results, report(results), show)
    return results


def _model(name: str, sizes: Sizes) -> PreTrainedModel:
    if name:
        from itl_agents.pretrained import load_pretrained

        return load_pretrained(name).model
    torch.manual_seed(0)
    settings = LlamaConfig(**sizes.model, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
    return LlamaForCausalLM(settings).eval()


def training(sizes: Sizes, d_model: int) -> list[dict[str, Any]]:
    """Tokens a second of training steps, against their products alone and against autograd."""
    settings = TranscoderSettings(d_sae=sizes.d_sae, sparsity=1.0)
    n = sizes.batch_tokens
    x, target = torch.randn(n, d_model), torch.randn(n, d_model)
    own = Features(d_model, settings, torch.zeros(d_model))
    optimizer = torch.optim.Adam(own.trained(), lr=1e-4, betas=(0.0, 0.999), fused=True)
    a = torch.randn(n, sizes.d_sae)
    plain = Features(d_model, settings, torch.zeros(d_model))
    plain_optimizer = torch.optim.Adam(plain.trained(), lr=1e-4, betas=(0.0, 0.999), fused=True)

    def ours() -> int:
        for _ in range(sizes.n_steps):
            own.descend(x, target, settings.sparsity)
            optimizer.step()
            own.renormalise()
        return sizes.n_steps * n

    @torch.no_grad()
    def products() -> int:
        for _ in range(sizes.n_steps):
            x @ own.W_enc
            y = a @ own.W_dec
            a.t() @ y
            y @ own.W_dec.t()
            x.t() @ a
        return sizes.n_steps * n

    @torch.no_grad()
    def forward() -> int:
        for _ in range(sizes.n_steps):
            x @ own.W_enc
            a @ own.W_dec
        return sizes.n_steps * n

    def by_autograd() -> int:
        for _ in range(sizes.n_steps):
            plain_optimizer.zero_grad()
            plain_loss(plain, x, target, settings).backward()
            plain_optimizer.step()
            plain.renormalise()
        return sizes.n_steps * n

    own.descend(x, target, settings.sparsity)
    plain_loss(plain, x, target, settings).backward()
    equal = all(
        torch.allclose(one.grad, other.grad, atol=1e-6)  # type: ignore[arg-type]
        for one, other in zip(own.trained(), plain.trained(), strict=True)
    )
    sides = {STEP: ours, PRODUCTS: products, FORWARD_ONLY: forward, AUTOGRAD: by_autograd}
    rates = race(sides, sizes.rounds)
    return [
        compare(rates, STEP, PRODUCTS, "tokens/s", equal=None, checked="", target=0.5),
        compare(rates, STEP, FORWARD_ONLY, "tokens/s", equal=None, checked=""),
        compare(
            rates, STEP, AUTOGRAD, "tokens/s", equal=equal, checked="gradients of the first step"
        ),
    ]


class _JumpReLU(torch.autograd.Function):
    """The activation as one would write it for autograd."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        pre, threshold = ctx.saved_tensors
        near = ((pre - threshold).abs() < ctx.bandwidth / 2).float()
        slope = -(threshold / ctx.bandwidth) * near * grad
        return grad * (pre > threshold), slope.sum(0), None


def plain_loss(
    features: Features, x: Tensor, target: Tensor, settings: TranscoderSettings
) -> Tensor:
    """The loss of a step, for autograd."""
    pre = x @ features.W_enc + features.b_enc
    a = _JumpReLU.apply(pre, features.log_threshold.exp(), settings.bandwidth)
    error = a @ features.W_dec + features.b_dec - target
    loss: Tensor = error.square().mean() + settings.sparsity * a.mean()
    return loss


def collection(model: PreTrainedModel, sizes: Sizes) -> dict[str, Any]:
    """Tokens a second that are collected at four layers, against those of the forward pass."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    lengths = torch.randint(20, 81, (sizes.n_texts,), generator=generator).tolist()
    texts = [
        [1, *torch.randint(3, vocabulary, (length - 1,), generator=generator).tolist()]
        for length in lengths
    ]
    n = sum(lengths)
    depth = model.config.get_text_config().num_hidden_layers
    layers = [i * depth // 4 for i in range(4)]

    def collected() -> int:
        with tempfile.TemporaryDirectory() as folder:
            collect(model, texts, layers, Path(folder) / "it", skip_ids=[1])
        return n

    @torch.inference_mode()
    def forward() -> int:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for batch in batches_of(texts, order, 4_096):
            run_blocks(model, [texts[i] for i in batch])
        return n

    rates = race({COLLECTION: collected, FORWARD: forward}, sizes.rounds)
    return compare(
        rates, COLLECTION, FORWARD, "tokens/s", equal=None, checked="", target=round(1 / 1.3, 2)
    )


def generation(model: PreTrainedModel, sizes: Sizes) -> dict[str, Any]:
    """Tokens a second that are written while a transcoder replaces an MLP, and without."""
    generator = torch.Generator().manual_seed(0)
    of = model.config.get_text_config()
    d_model = of.hidden_size

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / d_model**0.5

    weights = {
        "W_enc": draw(d_model, sizes.d_sae),
        "b_enc": draw(sizes.d_sae),
        "W_dec": draw(sizes.d_sae, d_model),
        "b_dec": draw(d_model),
        "threshold": torch.ones(sizes.d_sae),
    }
    layer = of.num_hidden_layers // 2
    transcoder = Transcoder(weights, About(layer=layer))
    prompts = [
        [1, *torch.randint(3, of.vocab_size, (24,), generator=generator).tolist()]
        for _ in range(sizes.lanes)
    ]

    def write() -> int:
        # Stops at nothing, so that both sides write as many tokens.
        continue_prompts(model, prompts, stop_ids=[-1], max_new_tokens=sizes.n_new)
        return sizes.lanes * sizes.n_new

    def hooked() -> int:
        with replaced(model, site_of(model, layer), transcoder.replacement(), skip_ids=[1]):
            return write()

    rates = race({HOOKED: hooked, UNHOOKED: write}, sizes.rounds)
    return compare(
        rates, HOOKED, UNHOOKED, "tokens/s", equal=None, checked="", target=round(1 / 1.5, 2)
    )


def report(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    on, sizes = results["machine"], SIZES[results["preset"]]
    return f"""# Throughput of transcoders

Machine: {on["cpu"]}, {on["cores"]} cores, {on["system"]}, torch {on["torch"]},
{results["n_threads"]} threads. Preset {results["preset"]}; {results["model"]}. Transcoders have a
width of {results["d_model"]}, {sizes.d_sae:,} features and {sizes.batch_tokens:,} tokens a
step.

Figures are medians [lowest, highest] of the rounds; the sides take turns. A ratio is the share of
what bounds the library that it reaches, or above 1 how much faster it is.

{comparisons_table(results["comparisons"])}
"""
