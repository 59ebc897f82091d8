"""Collecting activations and training transcoders on them."""

import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from itl_agents.sites import fingerprint, recorded, site_of
from itl_agents.transcoder import Transcoder, dosed
from itl_env.errors import ConfigError, ITLError
from itl_train import transcoder as training
from itl_train.activations import Activations, collect
from itl_train.run_folder import RunFolder
from itl_train.transcoder import Features, Order, TranscoderRun, fit_of, schedule
from itl_train.transcoder_config import TranscoderSettings
from itl_train.transcoder_folders import base_of

from ..itl_agents.decoders import D_MODEL, FAMILIES, decoder
from ..itl_agents.transcoders import transcoder

SMALL = TranscoderSettings(
    d_sae=48, sparsity=0.01, sparsity_warmup=20, lr=3e-3, lr_warmup=10, batch_tokens=64,
    n_steps=60, evaluate_every=20, n_evaluate=200, patience=0, n_threads=1,
)  # fmt: skip

# Small models of random weights, and few steps: most is left unexplained.
pytestmark = pytest.mark.filterwarnings("ignore:The transcoder of layer")


def texts(n: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, n)
    return [[1, *rng.integers(3, 64, length).tolist()] for length in lengths]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[Activations, Activations]:
    folder = tmp_path_factory.mktemp("activations")
    model = decoder("llama")
    return tuple(  # type: ignore[return-value]
        collect(model, texts(n, seed), [0, 1], folder / name, skip_ids=[1], precision="float32")
        for name, n, seed in (("train", 200, 0), ("validation", 40, 1))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_collected_is_what_passes_the_sites(family, tmp_path):
    model = decoder(family, str(tmp_path / "model"))
    given = texts(7)
    found = collect(
        model, given, [1, 0, 1], tmp_path / "out", skip_ids=[1], precision="float32",
        batch_tokens=64,
    )  # fmt: skip
    assert found.about.layers == (0, 1)
    assert found.about.n_tokens == sum(len(text) - 1 for text in given)
    for layer in (0, 1):
        read, wrote = [], []
        for text in sorted(given, key=len):
            with recorded(model, [site_of(model, layer)]) as seen, torch.no_grad():
                model(torch.tensor([text]))
            read.append(seen[layer].read[0, 1:])
            wrote.append(seen[layer].wrote[0, 1:])
        assert torch.allclose(found.read(layer), torch.cat(read), atol=1e-5)
        assert torch.allclose(found.wrote(layer), torch.cat(wrote), atol=1e-5)
    assert found.of_layer(1).model_hash == fingerprint(model)
    with pytest.raises(ConfigError, match="holds no layer 2; there is 0, 1"):
        found.read(2)


class StopError(Exception):
    """An interruption."""


def test_an_interrupted_collection_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("itl_train.activations.FLUSH_EVERY", 2)
    model, given = decoder("llama"), texts(30)

    def all_of(out: Path, after: int = 10**9) -> Activations:
        def stop(done: int, total: int) -> None:
            if done == after:
                raise StopError

        return collect(model, given, [1], out, batch_tokens=64, on_progress=stop)

    whole = all_of(tmp_path / "whole")
    with pytest.raises(StopError):
        all_of(tmp_path / "cut", after=5)
    with pytest.raises(ConfigError, match="is not whole; give its command again"):
        Activations(tmp_path / "cut")
    steps: list[int] = []
    collect(
        model, given, [1], tmp_path / "cut", batch_tokens=64,
        on_progress=lambda done, total: steps.append(done),
    )  # fmt: skip
    assert steps[0] == 5
    for layer_file in ("read.npy", "wrote.npy"):
        one, other = (tmp_path / name / "layer-01" / layer_file for name in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()
    assert whole.about.precision == "float16"
    with pytest.raises(ConfigError, match=r"holds a collection with layers=\[1\], not \[0\]"):
        collect(model, given, [0], tmp_path / "cut", batch_tokens=64)


def test_a_kill_while_files_are_made_costs_nothing(tmp_path, monkeypatch):
    model, given = decoder("llama"), texts(9)
    own = np.lib.format.open_memmap
    made = []

    def killed(*args, **settings):
        made.append(args)
        if len(made) == 2:
            raise StopError
        return own(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(np.lib.format, "open_memmap", killed)
        with pytest.raises(StopError):
            collect(model, given, [0, 1], tmp_path / "out")
    found = collect(model, given, [0, 1], tmp_path / "out")
    whole = collect(model, given, [0, 1], tmp_path / "whole")
    assert torch.equal(found.wrote(1), whole.wrote(1))
    with RunFolder(tmp_path / "out").alone(), pytest.raises(ITLError, match="Another process"):
        collect(model, given, [0, 1], tmp_path / "out")


def test_a_kill_at_the_very_end_leaves_nothing_behind(parts, tmp_path):
    train, validation = parts
    base = TranscoderRun(
        dataclasses.replace(SMALL, n_steps=1), train, validation, 0, tmp_path / "base"
    ).train()
    run = TranscoderRun(SMALL, train, validation, 0, tmp_path / "delta", base)
    made = run.train()
    run.target_file.write_bytes(b"left")
    again = dataclasses.replace(SMALL, n_threads=2)  # which may change
    assert (
        TranscoderRun(again, train, validation, 0, tmp_path / "delta", base).train().hash
        == made.hash
    )
    assert not run.target_file.exists()


def test_what_cannot_be_collected_is_refused(tmp_path):
    model = decoder("llama")
    with pytest.raises(ConfigError, match="There is no layer 3"):
        collect(model, texts(2), [3], tmp_path / "a")
    with pytest.raises(ConfigError, match="There is nothing to collect"):
        collect(model, [[1], [1]], [0], tmp_path / "b", skip_ids=[1])
    with pytest.raises(ConfigError, match="holds no activations"):
        Activations(tmp_path)
    (tmp_path / "odd").mkdir()
    for said in ("{}", "[]", '{"layers": 3}'):
        (tmp_path / "odd" / "collection.json").write_text(said)
        with pytest.raises(ConfigError, match=r"collection\.json is damaged: it does not say what"):
            Activations(tmp_path / "odd")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").touch()
    with pytest.raises(ConfigError, match="holds 'file', but no collection"):
        collect(model, texts(2), [0], tmp_path / "c")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(ITLError, match="At layer 1 numbers are not finite"):
        collect(model, texts(2), [1], tmp_path / "e")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e6)
    with pytest.raises(ITLError, match="At layer 0 numbers do not fit into float16"):
        collect(model, texts(2), [0], tmp_path / "d")


@pytest.mark.parametrize("is_delta", [False, True])
def test_gradients_are_those_of_the_loss(is_delta):
    torch.manual_seed(0)
    settings = dataclasses.replace(SMALL, d_sae=12, threshold=0.2, bandwidth=0.3)
    mean = None if is_delta else torch.randn(D_MODEL)
    features = Features(D_MODEL, settings, mean)
    x, target, sparsity = torch.randn(40, D_MODEL), torch.randn(40, D_MODEL), 0.7
    mse, mean_a = features.descend(x, target, sparsity)
    found = {name: weight.grad for name, weight in features.named().items()}
    copies = {
        name: weight.detach().clone().requires_grad_(weight.requires_grad)
        for name, weight in features.named().items()
    }

    class Step(torch.autograd.Function):
        """JumpReLU with the published pseudo-derivative for its threshold."""

        @staticmethod
        def forward(ctx, pre, threshold):
            ctx.save_for_backward(pre, threshold)
            return pre * (pre > threshold)

        @staticmethod
        def backward(ctx, grad):
            pre, threshold = ctx.saved_tensors
            kernel = ((pre - threshold).abs() < settings.bandwidth / 2).float()
            slope = -threshold / settings.bandwidth * kernel
            return grad * (pre > threshold), (grad * slope).sum(0)

    a = Step.apply(x @ copies["W_enc"] + copies["b_enc"], copies["log_threshold"].exp())
    error = a @ copies["W_dec"] + copies["b_dec"] - target
    loss = error.square().mean() + sparsity * a.mean()
    loss.backward()
    assert (float(mse), float(mean_a)) == pytest.approx(
        (float(error.square().mean()), float(a.mean()))
    )
    for name, weight in copies.items():
        if is_delta and name == "b_dec":
            assert found[name] is None
        else:
            assert torch.allclose(found[name], weight.grad, atol=1e-6), name


def test_a_base_learns_and_a_delta_learns_what_it_leaves(parts, tmp_path):
    train, validation = parts
    run = TranscoderRun(SMALL, train, validation, 1, tmp_path / "base")
    base = run.train()
    rows = run.folder.rows()
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert rows[-1]["unexplained"] < 0.8 * rows[0]["unexplained"]
    assert base.about.unexplained == rows[-1]["unexplained"]
    assert torch.allclose(base.W_dec.norm(dim=1), base.W_dec.norm(dim=1)[0].expand(48), rtol=1e-4)
    again = fit_of(base, validation.read(1), validation.wrote(1))
    assert again.unexplained == pytest.approx(rows[-1]["unexplained"], rel=0.2)

    settings = dataclasses.replace(SMALL, d_sae=16, n_steps=300, train_threshold=False)
    beside = TranscoderRun(settings, train, validation, 1, tmp_path / "delta", base=base)
    delta = beside.train()
    assert delta.about.base_hash == base.hash
    assert not delta.b_dec.any()
    assert torch.allclose(delta.threshold, torch.tensor(settings.threshold))
    assert delta.about.unexplained < 0.95 * base.about.unexplained
    assert not list((tmp_path / "delta").glob(".target*"))
    y = dosed(base, delta)(validation.read(1), validation.wrote(1))
    left = (validation.wrote(1) - y).square().sum()
    whole = (validation.wrote(1) - validation.wrote(1).mean(0)).square().sum()
    measured = fit_of(delta, validation.read(1), validation.wrote(1), base).unexplained
    assert measured == pytest.approx(float(left / whole), rel=1e-4)
    assert TranscoderRun(SMALL, train, validation, 1, tmp_path / "base").train().hash == base.hash


@pytest.mark.parametrize("is_delta", [False, True])
def test_an_interrupted_training_ends_with_the_same_weights(parts, tmp_path, monkeypatch, is_delta):
    train, validation = parts
    base = None
    if is_delta:
        base = TranscoderRun(
            dataclasses.replace(SMALL, n_steps=20), train, validation, 0, tmp_path / "base"
        ).train()
    whole = TranscoderRun(SMALL, train, validation, 0, tmp_path / "whole", base).train()
    cut = TranscoderRun(SMALL, train, validation, 0, tmp_path / "cut", base)
    steps = []
    own = Features.descend

    def interrupt(self, *given):
        steps.append(1)
        if len(steps) == 27:
            signal.raise_signal(signal.SIGINT)
        return own(self, *given)

    monkeypatch.setattr(Features, "descend", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert not cut.finished
    again = TranscoderRun(SMALL, train, validation, 0, tmp_path / "cut", base)
    assert again.train().hash == whole.hash
    assert len(steps) == 60
    assert [row["step"] for row in again.folder.rows()] == [20, 40, 60]


def test_training_ends_when_it_gets_no_better(parts, tmp_path):
    train, validation = parts
    settings = dataclasses.replace(SMALL, lr=1e-7, n_steps=1000, patience=2)
    run = TranscoderRun(settings, train, validation, 0, tmp_path / "run")
    fits = iter([0.5, 0.4, 0.45, 0.41, 0.1])
    run._fit = lambda made: dataclasses.replace(  # type: ignore[method-assign]
        fit_of(made, validation.read(0), validation.wrote(0)), unexplained=next(fits)
    )
    run.train()
    assert run.folder.rows()[-1]["step"] == 80


def test_the_wrong_site_is_explained_worse(tmp_path):
    """Un-normed residuals, of widely varying size, say less of what a normed MLP does."""
    model = decoder("gemma2")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(torch.logspace(-1, 1, 64)[:, None])
    unexplained = {}
    for normed in (True, False):
        train, validation = (
            collect(model, texts(n, seed), [0], tmp_path / f"{normed}-{n}", normed=normed)
            for n, seed in ((400, 0), (60, 1))
        )
        settings = dataclasses.replace(SMALL, d_sae=128, n_steps=300, sparsity=1e-3)
        made = TranscoderRun(settings, train, validation, 0, tmp_path / f"run-{normed}").train()
        unexplained[normed] = made.about.unexplained
    assert unexplained[True] < 0.8 * unexplained[False]


def test_what_does_not_fit_is_refused(parts, tmp_path):
    train, validation = parts
    base = TranscoderRun(
        dataclasses.replace(SMALL, n_steps=1), train, validation, 0, tmp_path / "base"
    ).train()
    with pytest.raises(ConfigError, match=r"The base is of layer 0 with normed=True, the act"):
        TranscoderRun(SMALL, train, validation, 1, tmp_path / "a", base)
    other = decoder("llama")
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.add_(1)
    others = collect(other, texts(9), [0, 1], tmp_path / "other", skip_ids=[1])
    with pytest.raises(ConfigError, match="are of different models"):
        TranscoderRun(SMALL, train, others, 0, tmp_path / "b")
    with pytest.raises(ConfigError, match="holds a run with"):
        TranscoderRun(SMALL, train, validation, 0, tmp_path / "base")
    with pytest.raises(ConfigError, match=r"lr is 0\.0; it must be positive"):
        dataclasses.replace(SMALL, lr=0.0)


def test_much_that_is_unexplained_is_warned_of(parts, tmp_path):
    train, validation = parts
    settings = dataclasses.replace(SMALL, n_steps=1)
    run = TranscoderRun(settings, train, validation, 0, tmp_path / "run")
    with pytest.warns(
        UserWarning,
        match=r"of layer 0, sparsity \S+, \d+ features, leaves \d+% of the variance unexplained",
    ):
        run.train()


def test_a_loss_that_is_not_finite_ends_the_training(parts, tmp_path, monkeypatch):
    train, validation = parts
    settings = dataclasses.replace(SMALL, lr=1e30, lr_warmup=0, n_steps=20)
    with pytest.raises(ITLError, match=r"The loss is .* at step 20; lower lr"):
        TranscoderRun(settings, train, validation, 0, tmp_path / "run").train()


def test_each_token_is_seen_once_an_epoch():
    order = Order(100, 30, seed=1)
    rows = [order.rows(step).tolist() for step in range(6)]
    first, second = ([i for batch in part for i in batch] for part in (rows[:3], rows[3:]))
    assert len(set(first)) == len(set(second)) == 90
    assert first != second
    assert Order(100, 30, seed=1).rows(4).tolist() == rows[4]


def test_the_rate_rises_and_falls():
    settings = dataclasses.replace(SMALL, lr_warmup=10, n_steps=100, decay=0.2)
    assert [schedule(settings, step) for step in (0, 9, 50, 80, 90, 99)] == pytest.approx(
        [0.1, 1, 1, 1, 0.5, 0.05]
    )
    assert math.isclose(schedule(dataclasses.replace(settings, decay=0.0), 99), 1)


def test_a_run_records_what_it_was_trained_on(parts, tmp_path):
    train, validation = parts
    TranscoderRun(
        dataclasses.replace(SMALL, n_steps=1), train, validation, 1, tmp_path / "run"
    ).train()
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["torch"]
    made = Transcoder.load(tmp_path / "run" / training.RESULT)
    assert (made.about.layer, made.about.model_hash) == (1, train.about.model_hash)
    shutil.rmtree(tmp_path / "run")


def test_the_base_of_a_delta_is_had_from_the_hub_level_after_level(tmp_path, monkeypatch):
    had = []

    def file_of(repository: str, name: str) -> str:
        had.append(name)
        return str(tmp_path / name)

    for l0 in (40, 6, 25):
        place = tmp_path / f"layer_1/width_16k/average_l0_{l0}/params.npz"
        transcoder(seed=l0).save_npz(place)
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("params.npz")]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda _: names)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", file_of)
    delta = transcoder(d_sae=3, base_hash=transcoder(seed=25).hash)
    assert base_of(delta, "nobody/transcoders").hash == delta.about.base_hash
    assert had == [f"layer_1/width_16k/average_l0_{l0}/params.npz" for l0 in (6, 25)]
    with pytest.raises(ConfigError, match="holds no base of layer 1 that the delta was trained"):
        base_of(transcoder(d_sae=3, base_hash="0"), "nobody/transcoders")
    had.clear()
    with pytest.raises(ConfigError, match="This is no delta"):
        base_of(transcoder(d_sae=3), "nobody/transcoders")
    assert not had
