"""Transcoders: formulas, files, deltas, and what does not fit."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from itl_agents.sites import fingerprint, replaced
from itl_agents.transcoder import (
    About,
    Transcoder,
    check_model,
    check_pair,
    dosed,
    fuse,
    load_npz,
    site_for,
)
from itl_env.errors import ConfigError, ITLError

from .decoders import D_MODEL, decoder
from .transcoders import transcoder


def pair() -> tuple[Transcoder, Transcoder]:
    base = transcoder()
    return base, transcoder(8, seed=1, base_hash=base.hash)


X = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(9))


def test_features_below_their_threshold_are_off():
    weights = {
        "W_enc": torch.eye(2),
        "b_enc": torch.tensor([0.0, 0.5]),
        "W_dec": torch.tensor([[1.0, 2.0], [10.0, 0.0]]),
        "b_dec": torch.tensor([0.0, -1.0]),
        "threshold": torch.tensor([1.0, 0.0]),
    }
    made = Transcoder(weights, About())
    x = torch.tensor([[1.0, 1.0], [1.5, -0.5], [2.0, -2.0]])
    assert made.encode(x).tolist() == [[0.0, 1.5], [1.5, 0.0], [2.0, 0.0]]
    assert made(x).tolist() == [[15.0, -1.0], [1.5, 2.0], [2.0, 3.0]]


def test_a_folder_gives_back_what_was_saved(tmp_path):
    made = transcoder(model="m", model_hash="h", unexplained=0.25, l0=3.5)
    made.save(tmp_path / "it")
    again = Transcoder.load(tmp_path / "it")
    assert (again.about, again.hash) == (made.about, made.hash)
    assert torch.equal(again(X), made(X))
    with pytest.raises(ConfigError, match="is there already"):
        made.save(tmp_path / "it")
    made.save_npz(tmp_path / "it.npz")
    assert load_npz(tmp_path / "it.npz", made.about).hash == made.hash


def test_a_fused_delta_gives_what_both_give():
    base, delta = pair()
    for alpha in (0.0, 0.5, 1.0, 1.5):
        whole = fuse(base, delta, alpha)
        assert torch.allclose(whole(X), base(X) + alpha * delta(X), atol=1e-5)
        assert torch.allclose(whole(X), dosed(base, delta, alpha)(X, X), atol=1e-5)
    assert torch.equal(dosed(base, delta, 0.0)(X, X), base(X))
    assert torch.allclose(dosed(base, delta, 1e-9)(X, X), base(X), atol=1e-6)
    assert torch.equal(dosed(base, delta)(X, X), base(X) + delta(X))
    assert not whole.about.base_hash
    known = Transcoder(delta.weights(), About(layer=1, base_hash=base.hash, unexplained=0.2))
    assert [fuse(base, known, alpha).about.unexplained for alpha in (1.0, 0.5)] == [0.2, None]


@torch.no_grad()
def test_no_delta_is_the_base_and_the_fused_one_the_whole_in_a_model():
    model = decoder("gemma2")
    base, delta = pair()
    site = site_for(base, model)
    ids = torch.tensor([[1, 5, 9, 13]])

    def logits(instead):
        with replaced(model, site, instead, skip_ids=[1]):
            return model(ids).logits

    assert torch.equal(logits(dosed(base, delta, 0.0)), logits(base.replacement()))
    whole = logits(dosed(base, delta))
    assert torch.allclose(logits(fuse(base, delta).replacement()), whole, atol=1e-4)
    assert not torch.allclose(logits(base.replacement()), whole, atol=1e-2)


def test_what_does_not_fit_is_refused_with_the_reason(tmp_path):
    model = decoder("llama")
    base, delta = pair()
    with pytest.raises(ConfigError, match="has the width 8, the model 16"):
        site_for(transcoder(d_model=8), model)
    with pytest.raises(ConfigError, match="is of layer 1, not 2"):
        site_for(base, model, layer=2)
    with pytest.raises(ConfigError, match="There is no layer 7"):
        site_for(transcoder(layer=7), model)
    assert not site_for(transcoder(normed=False), model).normed
    check_model(base, model)  # it does not say what it is of
    check_model(transcoder(model_hash=fingerprint(model)), model)
    with pytest.raises(ConfigError, match="of layer 1 was trained on another model: smol, or"):
        check_model(transcoder(model="smol", model_hash="0"), model)
    with pytest.raises(ConfigError, match="no delta: it names no base"):
        fuse(base, transcoder(seed=2))
    with pytest.raises(ConfigError, match="beside another base than this one"):
        check_pair(transcoder(seed=2), delta)
    with pytest.raises(ConfigError, match="A delta has no decoder bias"):
        Transcoder(transcoder().weights(), About(base_hash="x"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"W_dec": torch.zeros(3, D_MODEL)}, r"W_dec has the shape \(3, 16\), not \(24, 16\)"),
        ({"threshold": torch.full((24,), -1.0)}, "A threshold is negative"),
        ({"b_enc": torch.full((24,), torch.nan)}, "b_enc holds numbers that are not finite"),
        ({"b_dec": None}, "A transcoder needs b_dec"),
    ],
)
def test_weights_that_do_not_fit_together_are_refused(change, told, tmp_path):
    weights = {**transcoder().weights(), **change}
    weights = {name: value for name, value in weights.items() if value is not None}
    with pytest.raises(ConfigError, match=told):
        Transcoder(weights, About())
    np.savez(tmp_path / "bad.npz", **{name: value.numpy() for name, value in weights.items()})
    with pytest.raises(ConfigError, match=rf"bad.npz holds no transcoder: {told}"):
        load_npz(tmp_path / "bad.npz", About())


def test_damaged_npz_files_are_named(tmp_path):
    transcoder().save_npz(tmp_path / "it.npz")
    whole = (tmp_path / "it.npz").read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    for content in (whole[:-30], whole[:50], b"no", (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "it.npz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"Cannot read a transcoder from .*it\.npz"):
            load_npz(tmp_path / "it.npz", About())


def test_damaged_folders_are_named(tmp_path):
    transcoder().save(tmp_path / "it")
    with pytest.raises(ConfigError, match=r"holds no transcoder: there is no cfg\.json"):
        Transcoder.load(tmp_path)
    settings = json.loads((tmp_path / "it" / "cfg.json").read_text())
    (tmp_path / "it" / "cfg.json").write_text(json.dumps({**settings, "architecture": "topk"}))
    with pytest.raises(ConfigError, match="holds a topk; only JumpReLU"):
        Transcoder.load(tmp_path / "it")
    odd = {**settings, "normalize_activations": "layer_norm"}
    (tmp_path / "it" / "cfg.json").write_text(json.dumps(odd))
    with pytest.raises(ConfigError, match="has normalize_activations='layer_norm', which is not"):
        Transcoder.load(tmp_path / "it")
    for unsaid in ({"sae_lens_version": "6"}, None, {"itl": {"layer": "x"}}):
        (tmp_path / "it" / "cfg.json").write_text(json.dumps({**settings, "metadata": unsaid}))
        with pytest.raises(ConfigError, match="does not say its layer and site"):
            Transcoder.load(tmp_path / "it")
    (tmp_path / "it" / "cfg.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"cfg\.json holds no settings"):
        Transcoder.load(tmp_path / "it")
    (tmp_path / "it" / "cfg.json").write_text(json.dumps(settings))
    weights = tmp_path / "it" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="holds no whole transcoder"):
        Transcoder.load(tmp_path / "it")
    (tmp_path / "it" / "cfg.json").write_text("{")
    with pytest.raises(ITLError, match=r"cfg\.json is damaged"):
        Transcoder.load(tmp_path / "it")


LOADER = """
import json, sys, torch
from sae_lens import SAE
sae = SAE.load_from_disk(sys.argv[1])
x = torch.load(sys.argv[2])
torch.save({"kind": type(sae).__name__, "a": sae.encode(x), "y": sae(x)}, sys.argv[3])
"""


def test_sae_lens_loads_a_folder_and_gives_the_same(tmp_path, require):
    python = os.environ.get("ITL_SAE_LENS_PYTHON", "")
    require(python and Path(python).exists(), "ITL_SAE_LENS_PYTHON names no Python with sae-lens")
    base, delta = pair()
    torch.save(X, tmp_path / "x.pt")
    for name, made in (("base", base), ("delta", delta), ("fused", fuse(base, delta))):
        made.save(tmp_path / name)
        command = [python, "-c", LOADER, tmp_path / name, tmp_path / "x.pt", tmp_path / "out.pt"]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
        found = torch.load(tmp_path / "out.pt")
        assert found["kind"] == "JumpReLUTranscoder"
        assert torch.allclose(found["a"], made.encode(X), atol=1e-6)
        assert torch.allclose(found["y"], made(X), atol=1e-5)
